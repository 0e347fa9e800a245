//! Our tiers on SQS and S3 together with the legacy tiers, which a boto3 script simulates, and `imgcls queue` on SQS.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::emulators::{self, Emulator, ministack, moto};
use crate::harness::{Service, form, imgcls, label_of, metric, request, test_image, until};
use crate::message_size::photograph;

/// The queues and buckets of one test on an emulator.
pub struct AwsFixture {
    emulator: &'static Emulator,
    pub name: String,
}

impl AwsFixture {
    pub fn new(emulator: &'static Emulator) -> AwsFixture {
        AwsFixture { emulator, name: format!("t-{}", Uuid::now_v7()) }
    }

    /// Returns the variables that both the legacy tiers and ours read.
    pub fn environment(&self) -> Vec<(String, String)> {
        let names = [
            ("REQUEST_QUEUE_NAME", "requests"),
            ("RESPONSE_QUEUE_NAME", "results"),
            ("INPUT_BUCKET_NAME", "in"),
            ("OUTPUT_BUCKET_NAME", "out"),
        ];
        let mut environment = self.emulator.environment();
        environment.push(("AWS_DEFAULT_REGION".to_owned(), "us-east-1".to_owned()));
        environment.extend(names.map(|(variable, name)| (variable.to_owned(), self.name_of(name))));
        environment
    }

    /// Returns the variables for a process that reaches the emulator at another address.
    pub fn environment_at(&self, url: &str) -> Vec<(String, String)> {
        let mut environment = self.environment();
        environment.push(("AWS_ENDPOINT_URL".to_owned(), url.to_owned()));
        environment
    }

    /// Returns the name of one of its queues or buckets: `requests`, `results`, `in` or `out`.
    pub fn name_of(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// Starts a web tier without workers that reaches the emulator at another address.
    pub fn service_at(&self, url: &str, web_flags: &[&str], worker_flags: &[&str]) -> Service {
        Service::start_on(&["--backend", "aws"], self.environment_at(url), 0, web_flags, worker_flags)
    }

    fn service(&self, workers: usize, web_flags: &[&str]) -> Service {
        self.service_with(workers, web_flags, &[])
    }

    /// Starts a web tier and workers.
    pub fn service_with(&self, workers: usize, web_flags: &[&str], worker_flags: &[&str]) -> Service {
        Service::start_on(&["--backend", "aws"], self.environment(), workers, web_flags, worker_flags)
    }

    fn legacy(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(emulators::python());
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/legacy.py")).args(arguments);
        command.envs(self.environment());
        command
    }

    fn queue(&self, arguments: &[&str]) -> Output {
        imgcls().arg("queue").args(arguments).envs(self.environment()).output().unwrap()
    }

    /// Returns the JSON that a subcommand of `imgcls queue` prints.
    pub fn queue_json(&self, arguments: &[&str]) -> Value {
        let output = self.queue(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}

#[test]
fn legacy_worker_answers_our_web_tier_on_moto() {
    legacy_worker_answers_our_web_tier(moto());
}

#[test]
fn legacy_worker_answers_our_web_tier_on_ministack() {
    legacy_worker_answers_our_web_tier(ministack());
}

fn legacy_worker_answers_our_web_tier(emulator: &'static Emulator) {
    let fixture = AwsFixture::new(emulator);
    let service = fixture.service(0, &["--wire", "seed"]);
    let worker = fixture.legacy(&["worker", "2"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let image = test_image("cup.jpg");
    let (content_type, body) = form("myfile", "../secret.jpg", &image);
    let answer = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
    let label = format!("bathtub {}", image.len());
    assert_eq!((answer.status, answer.text()), (200, label.clone()));
    let id = service.submit("secret.jpg", &image);
    assert_eq!(service.finished(&id)["predictions"], json!([{"label": label}]));
    let names = stdout_of(&worker.wait_with_output().unwrap());
    assert!(!names.contains("secret") && names.ends_with(&format!("{id}.jpg")), "{names}");
}

#[test]
fn our_worker_answers_the_legacy_web_tier_on_moto() {
    // moto may deliver the same message to two readers of one queue.
    our_worker_answers_the_legacy_web_tier(moto(), "own");
}

#[test]
fn our_worker_answers_the_legacy_web_tier_on_ministack() {
    our_worker_answers_the_legacy_web_tier(ministack(), "shared");
}

/// A web tier of ours runs as well. In `shared` mode it reads the same result queue and releases foreign replies.
fn our_worker_answers_the_legacy_web_tier(emulator: &'static Emulator, mode: &str) {
    let fixture = AwsFixture::new(emulator);
    let service = fixture.service(1, &["--result-queue-mode", mode]);
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures/rocket.jpg");
    let label = stdout_of(&fixture.legacy(&["ask", image.to_str().unwrap()]).output().unwrap());
    assert_eq!(label, label_of("rocket.jpg"));
    let ours = service.request("POST", "/v1/classify", &[], &test_image("cat.jpg"));
    assert_eq!(ours.json()["predictions"][0]["label"], label_of("cat.jpg"), "{}", ours.text());
}

#[test]
fn photograph_is_classified_through_small_queues_on_moto() {
    photograph_is_classified_through_small_queues(moto());
}

#[test]
fn photograph_is_classified_through_small_queues_on_ministack() {
    photograph_is_classified_through_small_queues(ministack());
}

/// The result queue is shared, so that replies also pass a queue with a small limit. Images are inline when they fit.
fn photograph_is_classified_through_small_queues(emulator: &'static Emulator) {
    let image = photograph();
    for limit in ["1024", "6144"] {
        let fixture = AwsFixture::new(emulator);
        stdout_of(&fixture.legacy(&["make", limit]).output().unwrap());
        let service = fixture.service(1, &["--result-queue-mode", "shared", "--inline-bytes", "20MiB"]);
        let name = format!("attachment; filename*=UTF-8''{}", "%01".repeat(255));
        let answer =
            service.request("POST", "/v1/classify?top_k=200", &[("Content-Disposition", name.as_str())], &image);
        assert_eq!(answer.status, 200, "{limit}: {}", answer.text());
        assert_eq!(answer.json()["predictions"].as_array().unwrap().len(), 200);
        let woken = metric(service.address, r#"imgcls_web_replies_total{outcome="waited_for"}"#);
        assert!(woken > 0.5, "the shortened reply woke no caller");
    }
}

#[test]
fn queue_command_shows_and_redrives_dead_letters_on_moto() {
    queue_command_shows_and_redrives_dead_letters(moto());
}

#[test]
fn queue_command_shows_and_redrives_dead_letters_on_ministack() {
    queue_command_shows_and_redrives_dead_letters(ministack());
}

fn queue_command_shows_and_redrives_dead_letters(emulator: &'static Emulator) {
    let fixture = AwsFixture::new(emulator);
    let service = fixture.service(1, &[]);
    // The message refers to an image in a bucket that does not belong to the service.
    let id = Uuid::now_v7();
    let times = json!({"submitted_at": "2026-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z"});
    let mut body = json!({"v": 1, "id": id, "image": {"bucket": "foreign", "key": format!("images/{id}")}});
    body.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
    for body in [body.to_string(), "{".to_owned()] {
        stdout_of(&fixture.legacy(&["send", &body]).output().unwrap());
    }
    let dead_letters = until("both dead letters", || {
        let report = fixture.queue_json(&["dead"]);
        (report["dead_letters"].as_array().unwrap().len() == 2).then_some(report)
    });
    assert!(dead_letters.to_string().contains("foreign"), "{dead_letters}");
    assert_eq!(fixture.queue_json(&["dead"])["dead_letters"].as_array().unwrap().len(), 2, "the command releases them");
    let depth = fixture.queue_json(&["depth"]);
    let of = |role: &str| depth["queues"].as_array().unwrap().iter().find(|q| q["role"] == role).unwrap().clone();
    assert_eq!((&of("dead_letters")["visible"], &of("requests")["visible"]), (&2.into(), &0.into()), "{depth}");
    assert_eq!(of("replies")["name"].as_str().unwrap().len(), fixture.name.len() + "-results-".len() + 16);

    let shown = fixture.queue_json(&["show", &id.to_string()]);
    assert_eq!((&shown["result"]["status"], &shown["attempts"]), (&"failed".into(), &1.into()));
    let redriven = fixture.queue(&["redrive", "--all", "--json"]);
    assert_eq!(redriven.status.code(), Some(1), "no worker would accept them: {redriven:?}");
    let dead = of("dead_letters")["name"].as_str().unwrap().to_owned();
    assert_eq!(fixture.queue(&["purge", &dead]).status.code(), Some(1), "there is no confirmation");
    assert_eq!(fixture.queue(&["purge", &dead, "--yes"]).status.code(), Some(0));
    until("an empty queue", || {
        let depth = fixture.queue_json(&["depth"]);
        let queues = depth["queues"].as_array().unwrap();
        (queues.iter().find(|queue| queue["role"] == "dead_letters").unwrap()["visible"] == 0).then_some(())
    });

    // A message that can succeed now is sent again: a legacy request that failed for a temporary reason.
    drop(service);
    let message = json!({"filename": "again.jpg", "image_data": base64(&test_image("rocket.jpg"))}).to_string();
    let to_dead_letters = [("REQUEST_QUEUE_NAME", dead.as_str())];
    stdout_of(&fixture.legacy(&["send", &message]).envs(to_dead_letters).output().unwrap());
    let redriven = fixture.queue_json(&["redrive", "--all"]);
    assert_eq!(redriven["letters"][0]["outcome"], "sent_again", "{redriven}");
    assert_eq!(fixture.queue_json(&["dead"])["dead_letters"], json!([]));
}

fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

#[test]
fn age_of_the_oldest_message_comes_from_cloudwatch_if_it_reports_one() {
    let fixture = AwsFixture::new(moto());
    let service = fixture.service(0, &[]);
    service.submit("x.jpg", &test_image("cup.jpg"));
    let requests = |depth: &Value| depth["queues"][0].clone();
    let unreported = requests(&fixture.queue_json(&["depth"]));
    assert_eq!((&unreported["visible"], &unreported["oldest_age_seconds"]), (&1.into(), &Value::Null), "{unreported}");

    let minutes = |ago: u64| jiff::Timestamp::now().as_second() as u64 - 60 * ago;
    for (timestamp, age) in [(minutes(3), 10), (minutes(1), 130), (minutes(2), 70)] {
        let dimensions = json!([{"Name": "QueueName", "Value": fixture.name_of("requests")}]);
        let name = "ApproximateAgeOfOldestMessage";
        let datum = json!({"MetricName": name, "Dimensions": dimensions, "Timestamp": timestamp, "Value": age});
        cloudwatch("PutMetricData", &json!({"Namespace": "AWS/SQS", "MetricData": [datum]}));
    }
    assert_eq!(requests(&fixture.queue_json(&["depth"]))["oldest_age_seconds"], 130.0);
    let text = stdout_of(&fixture.queue(&["depth"]));
    let row = text.lines().find(|line| line.contains("requests")).unwrap_or_else(|| panic!("{text}"));
    assert!(row.ends_with("2m 10s"), "{text}");

    let elsewhere = imgcls()
        .args(["queue", "depth"])
        .envs(fixture.environment())
        .env("AWS_ENDPOINT_URL_CLOUDWATCH", "http://127.0.0.1:1")
        .output()
        .unwrap();
    let warning = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(
        stdout_of(&elsewhere).lines().any(|line| line.contains("requests") && line.ends_with(" -")),
        "{elsewhere:?}"
    );
    assert!(warning.contains("cloudwatch:GetMetricStatistics"), "{warning}");
}

/// Calls CloudWatch directly.
fn cloudwatch(operation: &str, body: &Value) {
    let target = format!("GraniteServiceVersion20100801.{operation}");
    let scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/monitoring/aws4_request";
    let headers =
        [("X-Amz-Target", target.as_str()), ("Authorization", scope), ("Content-Type", "application/x-amz-json-1.0")];
    let answer = request(moto().address, "POST", "/", &headers, body.to_string().as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}
