//! `imgcls queue …` through the real binary: depth, dead letters, redrive, purge.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use imgcls::config::{Backend, Names};
use imgcls::protocol::{self, ClassifyRequest, ClassifyResult, ErrorCode, LegacyRequest, Status};
use imgcls::transport;
use imgcls::transport::queued::ServiceQueues;
use imgcls::transport::queued::object::{ObjectStore, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing, ReceiveOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::{NoContext, Timestamp, Uuid};

use crate::harness::{Process, Service, block_on, classify_request, imgcls, label_of, stored_image, test_image, until};

const DEAD_LETTERS: &str = "web-app-image-transport-dead";
const REQUESTS: &str = "web-app-image-transport";

/// A data directory with failed jobs. Each has a stored result and a dead letter, as a worker writes them.
struct Fixture {
    dir: TempDir,
    service: ServiceQueues,
    input: Arc<dyn ObjectStore>,
    output: Arc<dyn ObjectStore>,
}

impl Fixture {
    async fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let (backend, names) = (Backend::Local { data_dir: dir.path().join("data") }, Names::local("imgcls"));
        let queues = transport::open_queues(&backend).await.unwrap();
        let service = ServiceQueues::open_or_create(&*queues, &names, Duration::from_secs(30), 5).await.unwrap();
        let input = transport::open_bucket(&backend, &names.input_bucket).await.unwrap();
        let output = transport::open_bucket(&backend, &names.output_bucket).await.unwrap();
        Fixture { dir, service, input, output }
    }

    /// Stores a job that was submitted `hours_ago` and has failed after five attempts.
    async fn failed_job(&self, name: &str, hours_ago: u64) -> Uuid {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let submitted = now.saturating_sub(Duration::from_secs(hours_ago * 3_600));
        let id = Uuid::new_v7(Timestamp::from_unix(NoContext, submitted.as_secs(), submitted.subsec_nanos()));
        let _ = self.input.put(&protocol::image_key(id), test_image(name).into(), PutOptions::default()).await.unwrap();
        let message = "given up after 5 attempts: store down";
        let result = ClassifyResult::ended(id, name, Status::Failed, ErrorCode::AttemptsExhausted, message);
        self.store(id, &result).await;
        let submitted_at = jiff::Timestamp::from_second(submitted.as_secs().cast_signed()).unwrap();
        let request = ClassifyRequest {
            filename: name.to_owned(),
            image: Some(stored_image(id)),
            submitted_at,
            expires_at: submitted_at + Duration::from_secs(3_600),
            reply_to: Some("app-web-result-queue-0123456789abcdef".to_owned()),
            ..classify_request(id)
        };
        self.send_dead_letter(serde_json::to_string(&request).unwrap(), Some(id)).await;
        id
    }

    async fn store(&self, id: Uuid, result: &ClassifyResult) {
        let body = result.to_json().into();
        let _ = self.output.put(&protocol::result_key(id), body, PutOptions::default()).await.unwrap();
    }

    async fn send_dead_letter(&self, body: String, id: Option<Uuid>) {
        let mut dead_letter = Outgoing::new(body);
        dead_letter.attributes =
            [("reason", "store down"), ("attempts", "5")].map(|(k, v)| (k.into(), v.into())).into();
        dead_letter.attributes.extend(id.map(|id| ("id".to_owned(), id.to_string())));
        queue::send_one(&*self.service.dead_letters, dead_letter).await.unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        queue_command(&self.dir, arguments)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        json_of(&self.run(arguments))
    }

    /// Makes all dead letters visible now, including those that a killed command has received.
    fn make_dead_letters_visible(&self) {
        let file = rusqlite::Connection::open(self.dir.path().join("data/imgcls.sqlite3")).unwrap();
        file.busy_timeout(Duration::from_secs(10)).unwrap();
        let queue = "(SELECT id FROM queues WHERE name = ?1)";
        file.execute(&format!("UPDATE messages SET visible_at_ms = 0 WHERE queue_id = {queue}"), [DEAD_LETTERS])
            .unwrap();
    }
}

fn queue_command(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = imgcls();
    command.arg("queue").args(arguments).args(["--backend", "local", "--data-dir"]).arg(dir.path().join("data"));
    command
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ids(report: &Value) -> BTreeSet<String> {
    report["dead_letters"].as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap_or("-").to_owned()).collect()
}

#[test]
fn depth_lists_every_queue_and_receives_nothing() {
    let service = Service::start(0, &[], &[]);
    for _ in 0..2 {
        service.submit("x.jpg", &test_image("cup.jpg"));
    }
    let report = json_of(&queue_command(&service.dir, &["depth", "--json"]).output().unwrap());
    let queues = report["queues"].as_array().unwrap();
    let roles: Vec<&str> = queues.iter().map(|queue| queue["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["requests", "bulk_requests", "dead_letters", "results", "callbacks", "replies"]);
    let requests = &queues[0];
    assert_eq!(
        (&requests["name"], &requests["visible"], &requests["in_flight"]),
        (&REQUESTS.into(), &2.into(), &0.into())
    );
    assert!(requests["oldest_age_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!((&queues[2]["visible"], &queues[2]["oldest_age_seconds"]), (&0.into(), &Value::Null));
    let text = text_of(&queue_command(&service.dir, &["depth"]).output().unwrap());
    let row = text.lines().find(|line| line.starts_with(DEAD_LETTERS)).unwrap_or_else(|| panic!("{text}"));
    let row = row.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(row, format!("{DEAD_LETTERS} dead letters 0 0 0 -"));
    block_on(async {
        let queues = transport::open_queues(&Backend::Local { data_dir: service.data_dir() }).await.unwrap();
        let requests = queues.open(REQUESTS).await.unwrap();
        let options = ReceiveOptions { max: 1, wait: Duration::ZERO, visibility_timeout: Duration::from_secs(1) };
        assert_eq!(requests.receive(options).await.unwrap()[0].receive_count, 1, "`queue depth` received a message");
    });

    let nowhere = imgcls().args(["queue", "depth", "--data-dir", "/nonexistent/data"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("--data-dir"));
}

#[test]
fn dead_letters_are_listed_and_shown_and_stay() {
    let service = Service::start(1, &[], &[]);
    block_on(async {
        let queues = transport::open_queues(&Backend::Local { data_dir: service.data_dir() }).await.unwrap();
        let requests = queues.open(REQUESTS).await.unwrap();
        let image_data =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, test_image("hostile/half.jpg"));
        let legacy = json!({"image_data": image_data, "filename": "\u{1b}[2Jbad.jpg"}).to_string();
        for body in ["{".to_owned(), legacy] {
            queue::send_one(&*requests, Outgoing::new(body)).await.unwrap();
        }
    });
    let list = || json_of(&queue_command(&service.dir, &["dead", "--json"]).output().unwrap());
    let report =
        until("both dead letters", || Some(list()).filter(|r| r["dead_letters"].as_array().unwrap().len() == 2));
    assert_eq!(list()["dead_letters"].as_array().unwrap().len(), 2, "listing them released them");
    assert_eq!(report["is_cut"], false);
    let dead_letter = |reason: &str| {
        let dead_letters = report["dead_letters"].as_array().unwrap();
        dead_letters
            .iter()
            .find(|dead_letter| dead_letter["reason"].as_str().unwrap().starts_with(reason))
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&dead_letter("malformed")["filename"], &dead_letter("malformed")["attempts"]),
        (&Value::Null, &1.into())
    );
    let bad = dead_letter("undecodable");
    assert_eq!(bad["filename"], "\u{1b}[2Jbad.jpg", "JSON output keeps the filename unchanged");

    let text = text_of(&queue_command(&service.dir, &["list"]).output().unwrap());
    assert!(!text.contains('\u{1b}') && text.contains("bad.jpg") && text.contains("malformed: not JSON"), "{text}");
    let one = json_of(&queue_command(&service.dir, &["dead", "--limit", "1", "--json"]).output().unwrap());
    assert_eq!((one["dead_letters"].as_array().unwrap().len(), &one["is_cut"]), (1, &true.into()));

    let id = bad["message_id"].as_str().unwrap();
    let saved = service.dir.path().join("saved.jpg");
    let show = ["show", id, "--json", "--save", saved.to_str().unwrap()];
    let shown = json_of(&queue_command(&service.dir, &show).output().unwrap());
    assert_eq!(shown["image"]["content_type"], "image/jpeg");
    assert_eq!(std::fs::read(&saved).unwrap(), test_image("hostile/half.jpg"));
    let again = queue_command(&service.dir, &show).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "an existing file was overwritten");
    let text = text_of(&queue_command(&service.dir, &["show", id]).output().unwrap());
    assert!(text.contains("undecodable") && text.contains("characters; --save") && text.len() < 2_000, "{text}");
    let unknown = queue_command(&service.dir, &["show", "nobody"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("imgcls queue dead"));
}

#[test]
fn redriven_job_gets_new_time_and_a_new_result() {
    let fixture = block_on(Fixture::new());
    let (old, young, gone, succeeded, legacy) = block_on(async {
        let old = fixture.failed_job("rocket.jpg", 30).await;
        let young = fixture.failed_job("cup.jpg", 0).await;
        let gone = fixture.failed_job("cat.jpg", 0).await;
        fixture.input.delete(&protocol::image_key(gone)).await.unwrap();
        let succeeded = fixture.failed_job("cat.jpg", 0).await;
        let result = ClassifyResult { status: Status::Succeeded, error: None, ..failed(succeeded) };
        fixture.store(succeeded, &result).await;
        fixture.send_dead_letter("{".to_owned(), None).await;
        // This job comes from a web tier that sends the legacy form.
        let legacy = Uuid::now_v7();
        fixture.store(legacy, &failed(legacy)).await;
        let body = LegacyRequest::new(&test_image("cup.jpg"), protocol::legacy_name(legacy, "image/jpeg")).to_json();
        fixture.send_dead_letter(body, None).await;
        (old, young, gone, succeeded, legacy)
    });

    let one = fixture.run(&["redrive", &young.to_string(), "nobody", "--json"]);
    assert_eq!(one.status.code(), Some(1), "one of the two does not exist");
    let one = json_of(&one);
    assert_eq!(one["not_found"], json!(["nobody"]));
    assert_eq!(
        (&one["letters"][0]["id"], &one["letters"][0]["outcome"]),
        (&young.to_string().into(), &"sent_again".into())
    );
    assert_eq!(ids(&fixture.json(&["dead", "--json"])).len(), 5, "the others are kept");

    let all = fixture.run(&["redrive", "--all", "--json"]);
    assert_eq!(all.status.code(), Some(1), "two cannot be sent");
    let all = json_of(&all);
    let outcome = |id: Uuid| {
        let redriven = all["letters"].as_array().unwrap();
        redriven.iter().find(|redriven| redriven["id"] == id.to_string()).unwrap()["outcome"].clone()
    };
    assert_eq!([outcome(old), outcome(legacy), outcome(gone)], ["sent_again", "sent_again", "kept"]);
    assert_eq!(outcome(succeeded), "already_succeeded");
    assert_eq!(ids(&fixture.json(&["dead", "--json"])), ["-".to_owned(), gone.to_string()].into());

    // No worker runs yet, and yesterday's job has not expired, because a redrive sets a new submission time.
    let mut service = Service::start_in(fixture.dir, 0, &[], &[]);
    for id in [old, young, legacy] {
        let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
        assert_eq!((&job["id"], &job["status"]), (&json!(id), &json!("queued")));
    }
    service.add_worker();
    for (id, name) in [(old, "rocket.jpg"), (young, "cup.jpg"), (legacy, "cup.jpg")] {
        let job = service.finished(&id.to_string());
        assert_eq!((&job["status"], &job["predictions"][0]["label"]), (&"succeeded".into(), &label_of(name).into()));
    }
    assert_eq!(service.finished(&succeeded.to_string())["status"], "succeeded");
    assert_eq!(service.finished(&gone.to_string())["error"]["code"], "attempts_exhausted");
}

fn failed(id: Uuid) -> ClassifyResult {
    ClassifyResult::ended(id, "", Status::Failed, ErrorCode::AttemptsExhausted, "store down")
}

#[test]
fn redrive_that_is_killed_repeatedly_loses_nothing() {
    let fixture = block_on(Fixture::new());
    let ids: Vec<Uuid> = block_on(async {
        let mut ids = Vec::new();
        for _ in 0..60 {
            ids.push(fixture.failed_job("rocket.jpg", 2).await);
        }
        ids
    });
    let sent = || block_on(fixture.service.requests.depth()).unwrap().visible;
    for kill in 1..=5_u64 {
        let mut redrive =
            Process::start(fixture.command(&["redrive", "--all"]), &fixture.dir.path().join("redrive.log"));
        until("some jobs to be sent", || (sent() >= kill * 10 - 5).then_some(()));
        redrive.kill();
        fixture.make_dead_letters_visible();
    }
    let last = fixture.run(&["redrive", "--all", "--json"]);
    assert_eq!(last.status.code(), Some(0), "{last:?}");
    assert_eq!(fixture.json(&["dead", "--json"])["dead_letters"], json!([]));

    let service = Service::start_in(fixture.dir, 1, &[], &[]);
    for id in ids {
        let job = service.finished(&id.to_string());
        assert_eq!(job["status"], "succeeded", "{job}");
    }
}

#[test]
fn nothing_is_purged_without_confirmation() {
    let fixture = block_on(Fixture::new());
    block_on(fixture.failed_job("rocket.jpg", 0));
    let left = || block_on(fixture.service.dead_letters.depth()).unwrap().visible;

    let unattended = fixture.command(&["purge", DEAD_LETTERS]).stdin(Stdio::null()).output().unwrap();
    assert_eq!((unattended.status.code(), left()), (Some(1), 1));
    assert!(String::from_utf8_lossy(&unattended.stderr).contains("--yes"));
    let foreign = fixture.run(&["purge", "somebody-elses", "--yes"]);
    assert_eq!(foreign.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains(REQUESTS), "the error names the queues of the service");

    // On a terminal, the command asks for confirmation.
    assert_eq!((on_a_terminal(&fixture, "n\n"), left()), (Some(1), 1));
    assert_eq!((on_a_terminal(&fixture, "y\n"), left()), (Some(0), 0));

    block_on(fixture.failed_job("rocket.jpg", 0));
    assert_eq!(
        fixture.json(&["purge", DEAD_LETTERS, "--yes", "--json"]),
        json!({"queue": DEAD_LETTERS, "messages": 1})
    );
    assert_eq!(left(), 0);
}

/// Runs the purge with a terminal as its standard input and types `typed` there. Returns the exit code.
fn on_a_terminal(fixture: &Fixture, typed: &str) -> Option<i32> {
    let purge = fixture.command(&["purge", DEAD_LETTERS]);
    let script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(purge.get_program()).args(purge.get_args());
    for (name, value) in purge.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let mut python = python.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("python3");
    python.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    python.wait().unwrap().code()
}
