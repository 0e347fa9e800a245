//! The NATS backend: the conformance suites, the service from end to end, kills of workers and servers, faults of the
//! network, and the errors when NATS cannot be used.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use imgcls::config::Names;
use imgcls::transport::{self, Transport};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Service, imgcls, label_of, request, test_image, until};
use crate::nats_server::{Faults, NatsGreeter, NatsProxy, NatsServer, shared};
use crate::{conformance, queue_conformance, store_conformance};

const IMAGES: [&str; 3] = ["rocket.jpg", "cat.jpg", "rgb.png"];

#[tokio::test(flavor = "multi_thread")]
async fn transport_on_nats_conforms() {
    conformance::transport::all(&shared().backend(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_of_nats_conform() {
    queue_conformance::all(transport::open_queues(&shared().backend()).await.unwrap(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_of_nats_conforms() {
    let bucket = format!("test-{}", Uuid::now_v7());
    let open = || async { transport::open_bucket(&shared().backend(), &bucket).await.unwrap() };
    let handles = [open().await, open().await];
    let next = AtomicUsize::new(0);
    store_conformance::all(|| Arc::clone(&handles[next.fetch_add(1, Ordering::Relaxed) % handles.len()]), &[]).await;
}

/// A service whose names no other test has.
pub fn service(url: &str, stack: &str, workers: usize, flags: &[&str]) -> Service {
    let environment = vec![("IMGCLS_NATS_URL".to_owned(), url.to_owned())];
    Service::start_on(&["--backend", "nats", "--stack", stack], environment, workers, flags, flags)
}

pub fn new_stack() -> String {
    format!("t{}", &Uuid::now_v7().simple().to_string()[20..])
}

/// A command of an operator on a service.
pub fn operator(url: &str, stack: &str, words: &[&str]) -> Output {
    let mut command = imgcls();
    command.args(words).args(["--backend", "nats", "--stack", stack]).env("IMGCLS_NATS_URL", url);
    command.output().unwrap()
}

fn depths(url: &str, stack: &str) -> Value {
    let output = operator(url, stack, &["queue", "depth", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn two_web_tiers_and_a_worker_answer_on_nats() {
    let (url, stack) = (shared().url(), new_stack());
    let mut service = service(&url, &stack, 1, &[]);
    let other = service.add_web();
    for (address, name) in [(service.address, "cat.jpg"), (other, "rocket.jpg")] {
        let response = request(address, "POST", "/v1/classify", &[], &test_image(name)).unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json()["predictions"][0]["label"], label_of(name).as_str());
        assert_eq!(request(address, "GET", "/readyz", &[], b"").unwrap().status, 200);
    }
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let elsewhere = request(other, "GET", &format!("/v1/jobs/{id}"), &[], b"").unwrap().json();
    assert_eq!(elsewhere["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let image = request(other, "GET", &format!("/v1/jobs/{id}/image"), &[], b"").unwrap();
    assert!(image.status == 200 && image.body == test_image("cat.jpg"));
    service.web.signal("TERM");
    assert_eq!(service.web.wait(), Some(0), "{}", service.web.log());
}

#[test]
fn dead_letters_on_nats_are_listed_sent_again_and_purged() {
    let (url, stack) = (shared().url(), new_stack());
    let flags = ["--max-receive-count", "1"];
    let service = service(&url, &stack, 0, &flags);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    let names = Names::local(&stack);
    // A worker received it and died.
    block_on(async {
        let queues = transport::open_queues(&shared().backend()).await.unwrap();
        let requests = queues.open(&names.request_queue).await.unwrap();
        let options = transport::queued::queue::ReceiveOptions {
            max: 1,
            wait: Duration::from_secs(20),
            visibility_timeout: Duration::from_secs(1),
        };
        assert_eq!(requests.receive(options).await.unwrap().len(), 1);
    });
    let mut service = service;
    service.add_worker();
    let job = service.finished(&id);
    assert_eq!(
        (job["status"].as_str(), job["error"]["code"].as_str()),
        (Some("failed"), Some("attempts_exhausted")),
        "{job}"
    );
    let dead = until("a dead letter", || {
        let output = operator(&url, &stack, &["queue", "dead", "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success() && text.contains(&id)).then_some(text)
    });
    assert!(dead.contains("reason"), "{dead}");
    let redrive = operator(&url, &stack, &["queue", "redrive", "--all"]);
    assert!(redrive.status.success(), "{}", String::from_utf8_lossy(&redrive.stderr));
    let job = until("the second outcome", || Some(service.finished(&id)).filter(|job| job["status"] == "succeeded"));
    assert_eq!(job["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let purge = operator(&url, &stack, &["queue", "purge", &names.dead_letter_queue(), "--yes"]);
    assert!(purge.status.success(), "{}", String::from_utf8_lossy(&purge.stderr));
    let depths = depths(&url, &stack).to_string();
    assert!(depths.contains(&names.bulk_queue()) && depths.contains(&names.request_queue), "{depths}");
}

#[test]
fn jobs_are_kept_while_nats_is_away() {
    let mut server = NatsServer::start("");
    let (url, stack) = (server.url(), new_stack());
    let mut service = service(&url, &stack, 0, &[]);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    server.kill();
    let refused = until("a refusal", || {
        let response = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
        (response.status == 503).then_some(response)
    });
    assert!(refused.header("retry-after").is_some(), "{}", refused.text());
    assert_ne!(service.request("GET", "/readyz", &[], b"").status, 200);
    service.web.wait_for_log("cannot receive replies error=queue unavailable: no connection to NATS");
    server.restart();
    until("a ready web tier", || (service.request("GET", "/readyz", &[], b"").status == 200).then_some(()));
    service.add_worker();
    server.kill();
    server.restart();
    assert_eq!(service.finished(&id)["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let log = service.web.log();
    assert!(log.contains("the connection to NATS is lost") && log.contains("connected to NATS again"), "{log}");
    // The client tries more often than that.
    let before = log.split("connected to NATS again").next().unwrap();
    assert!(before.matches("NATS reports a problem of the connection").count() <= 2, "{log}");
}

#[test]
fn commands_say_in_one_line_why_nats_cannot_be_used() {
    let plain = NatsServer::start("");
    let closed = NatsServer::start("authorization { user: ann, password: s3cret }");
    let without = NatsServer::start("accounts { A { users: [ { user: ann, password: s3cret } ] } }");
    let away = format!("nats://127.0.0.1:{}", crate::harness::free_port());
    let with = |server: &NatsServer, login: &str| format!("nats://{login}@{}", server.address());
    let no_file: &[&str] = &["--nats-credentials", "/nowhere/user.creds"];
    let cases: [(String, &[&str], &str); 6] = [
        (away, &[], "start it with `nats-server -js`, or give its address as --nats-url"),
        (closed.url(), &[], "refuses the login: give user and password or a token in IMGCLS_NATS_URL"),
        (with(&closed, "ann:hunter2"), &[], "refuses the login"),
        (with(&without, "ann:s3cret"), &[], "runs without JetStream: start it with"),
        (plain.url(), no_file, "cannot read credentials of NATS from /nowhere/user.creds"),
        ("http://hunter2@127.0.0.1:1".to_owned(), &[], "an address of NATS has the form nats://HOST:4222"),
    ];
    let commands: [&[&str]; 4] =
        [&["queue", "depth"], &["worker"], &["autoscale"], &["serve-web", "--listen", "127.0.0.1:0"]];
    for (url, flags, said) in cases {
        for words in commands {
            let output = operator(&url, "imgcls", &[words, flags].concat());
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
            let lines: Vec<&str> = error.lines().filter(|line| line.contains(said)).collect();
            assert_eq!(lines.len(), 1, "{words:?}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
        }
    }
    let allowed = operator(&with(&closed, "ann:s3cret"), "imgcls", &["queue", "depth"]);
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
}

#[test]
fn servers_that_are_too_old_are_refused_in_one_line() {
    let old = NatsGreeter::start("2.10.25");
    let said = format!(
        "NATS at nats://{} has version 2.10.25, and 2.11 or later is needed: install a newer nats-server there, or give \
         the address of one as --nats-url",
        old.address
    );
    let commands: [&[&str]; 3] = [&["queue", "depth"], &["worker"], &["serve-web", "--listen", "127.0.0.1:0"]];
    for words in commands {
        let output = operator(&format!("nats://ann:hunter2@{}", old.address), "imgcls", words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
        assert_eq!(error.lines().filter(|line| line.contains(&said)).count(), 1, "{words:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let depth = operator(&format!("nats://{}", old.address), "imgcls", &["queue", "depth"]);
    assert_eq!(String::from_utf8_lossy(&depth.stderr).lines().count(), 1);
}

#[test]
fn settings_of_nats_show_no_password() {
    let mut command = imgcls();
    command.args(["config", "show", "worker"]).env("IMGCLS_NATS_URL", "nats://ann:hunter2@127.0.0.1:4222");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("nats-url"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let mut command = imgcls();
    command.args(["worker", "--help"]).env("IMGCLS_NATS_URL", "nats://ann:hunter2@127.0.0.1:4222");
    let help = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(help.contains("--nats-url") && !help.contains("hunter2"), "{help}");
}

#[test]
fn nats_is_reached_by_tls() {
    let file = |name: &str| format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let tls = format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}", file("one.crt"), file("one.key"));
    let server = NatsServer::start(&tls);
    let url = format!("tls://localhost:{}", server.address().port());
    let known = operator(&url, "imgcls", &["queue", "depth", "--nats-ca", &file("one.crt")]);
    assert!(known.status.success(), "{}", String::from_utf8_lossy(&known.stderr));
    let unknown = operator(&url, "imgcls", &["queue", "depth", "--nats-ca", &file("two.crt")]);
    assert_eq!(unknown.status.code(), Some(1), "a server that another authority signed");
}

struct Storm {
    jobs: usize,
    worker_kills: usize,
    server_kills: usize,
}

/// Returns 2,000 jobs and 40 kills for `scripts/test --long`, and a tenth of that otherwise.
fn storm() -> Storm {
    match std::env::var_os("IMGCLS_TEST_LONG") {
        Some(_) => Storm { jobs: 2_000, worker_kills: 40, server_kills: 2 },
        None => Storm { jobs: 200, worker_kills: 4, server_kills: 2 },
    }
}

#[test]
fn kills_of_workers_and_nats_lose_no_job_and_answer_none_twice() {
    let storm = storm();
    let mut server = NatsServer::start("");
    let stack = new_stack();
    let mut service = service(&server.url(), &stack, 2, &["--visibility-timeout", "2s"]);
    let other = service.add_web();
    let expected: Vec<Value> = IMAGES.iter().map(|name| predictions(service.address, name)).collect();
    let (all_submitted, accepted) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    let addresses = [service.address, other];
    thread::scope(|scope| {
        scope.spawn(|| {
            submit_all(&addresses, storm.jobs, &accepted);
            all_submitted.store(true, Ordering::Release);
        });
        kill_all(&mut service, &mut server, &stack, &storm, &all_submitted);
    });
    let accepted = accepted.into_inner().unwrap();
    assert_eq!(accepted.len(), storm.jobs);
    check_answers(&service, other, &accepted, &expected);
    assert_eq!(dead_letters(&server.url(), &stack), 0);
}

#[test]
fn faults_of_the_network_lose_no_job() {
    let server = NatsServer::start("");
    let proxy = NatsProxy::before(server.address(), 7);
    let stack = new_stack();
    let mut service = service(&proxy.url, &stack, 1, &["--visibility-timeout", "2s"]);
    let other = service.add_web();
    let expected: Vec<Value> = IMAGES.iter().map(|name| predictions(service.address, name)).collect();
    let latency = Duration::from_millis(1);
    let accepted = Mutex::new(BTreeMap::new());
    proxy.follow(Faults { latency, broken_after_bytes: Some(500_000), unreachable: false });
    submit_all(&[service.address, other], 40, &accepted);
    proxy.follow(Faults { unreachable: true, ..Faults::default() });
    until("a web tier that is not ready", || (service.request("GET", "/readyz", &[], b"").status != 200).then_some(()));
    proxy.follow(Faults::default());
    submit_all(&[service.address, other], 10, &accepted);
    check_answers(&service, other, &accepted.into_inner().unwrap(), &expected);
    assert_eq!(dead_letters(&server.url(), &stack), 0);
}

fn predictions(address: SocketAddr, name: &str) -> Value {
    let answer = until("an answer without faults", || {
        let response = request(address, "POST", "/v1/classify", &[], &test_image(name)).ok()?;
        (response.status == 200).then_some(response)
    });
    answer.json()["predictions"].clone()
}

/// Submits until `jobs` more are accepted. What is refused is sent again.
fn submit_all(addresses: &[SocketAddr], jobs: usize, accepted: &Mutex<BTreeMap<String, usize>>) {
    let images: Vec<Vec<u8>> = IMAGES.iter().map(|name| test_image(name)).collect();
    for job in 0..jobs {
        let image = job % images.len();
        let id = until("a web tier that accepts", || {
            let response = request(addresses[job % addresses.len()], "POST", "/v1/jobs", &[], &images[image]).ok()?;
            (response.status == 202).then(|| response.json()["id"].as_str().unwrap().to_owned())
        });
        assert!(accepted.lock().unwrap().insert(id, image).is_none(), "two jobs got the same id");
    }
}

/// Kills as results appear, so that the kills are spread over the run on a machine of any speed.
fn kill_all(service: &mut Service, server: &mut NatsServer, stack: &str, storm: &Storm, all_submitted: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let transport = runtime.block_on(transport::open(&server.backend(), &Names::local(stack))).unwrap();
    let server_every = storm.worker_kills / storm.server_kills;
    for kill in 0..storm.worker_kills {
        let mark = storm.jobs * kill / storm.worker_kills;
        until("work to be done", || {
            let finished = runtime.block_on(count_results(&*transport))?;
            let is_late = all_submitted.load(Ordering::Acquire) && finished + 50 >= storm.jobs;
            (finished >= mark || is_late).then_some(())
        });
        let victim = kill % service.workers.len();
        service.workers[victim].kill();
        if kill % server_every == server_every - 1 {
            server.kill();
            server.restart();
        }
        replace_ended(service);
    }
    replace_ended(service);
}

/// Starts workers in the place of those that were killed, or that started while NATS was away.
fn replace_ended(service: &mut Service) {
    for at in 0..service.workers.len() {
        if service.workers[at].has_ended() {
            service.workers[at] = service.spawn_worker();
        }
    }
}

async fn count_results(transport: &dyn Transport) -> Option<usize> {
    let (mut count, mut after) = (0, None::<String>);
    loop {
        let keys = transport.record_keys("results/", after.as_deref()).await.ok()?;
        count += keys.len();
        after = keys.last().cloned();
        if after.is_none() {
            return Some(count);
        }
    }
}

/// Each job has one answer, which every web process gives, and it is the one of its image.
fn check_answers(service: &Service, other: SocketAddr, accepted: &BTreeMap<String, usize>, expected: &[Value]) {
    for (id, image) in accepted {
        let job = service.finished(id);
        assert_eq!(job["status"], "succeeded", "{job}");
        assert_eq!(job["predictions"], expected[*image], "{id} has the answer to another job");
        let elsewhere = request(other, "GET", &format!("/v1/jobs/{id}"), &[], b"").unwrap().json();
        assert_eq!(elsewhere, job, "{id} was answered in two ways");
    }
}

fn dead_letters(url: &str, stack: &str) -> u64 {
    let queue = Names::local(stack).dead_letter_queue();
    block_on(async {
        let queues = transport::open_queues(&crate::nats_server::backend(url)).await.unwrap();
        queues.open(&queue).await.unwrap().depth().await.unwrap().visible
    })
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work)
}
