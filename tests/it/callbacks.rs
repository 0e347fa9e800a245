//! Callbacks through the real binary: signatures, receivers that fail or are slow, a killed sender, dead letters, and addresses
//! that must not be called.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use serde_json::{Value, json};

use crate::harness::{Response, Service, form, imgcls, request, test_image, until};
use crate::http_server::{Answer, ReceivedRequest, serve_on, serve_tls};
use crate::keys::{create_key, keyed_service, test_certificate};
use crate::shim::Shim;

/// Everything on this machine may be called.
const OPEN: [&str; 3] = ["--allow-callbacks", "--allow-calls-to", "127.0.0.0/8"];

/// A call, as its receiver got it.
#[derive(Clone)]
pub struct Call {
    pub id: String,
    timestamp: String,
    signature: String,
    body: Vec<u8>,
}

impl Call {
    fn of(request: &ReceivedRequest) -> Call {
        let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
        assert_eq!((request.method.as_str(), &*header("content-type")), ("POST", "application/json"));
        Call {
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: request.body.clone(),
        }
    }

    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks the signature as a receiver does.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").expect("the form of a secret")).unwrap();
        let mut message = format!("{}.{}.", self.id, self.timestamp).into_bytes();
        message.extend_from_slice(&self.body);
        let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &message);
        self.signature == format!("v1,{}", BASE64_STANDARD.encode(expected.as_ref()))
    }
}

/// A receiver that remembers its calls.
pub struct Receiver {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Receiver {
    /// Answers the nth call as the test decides.
    pub fn start(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Receiver {
        Receiver::start_at("127.0.0.1:0", answer)
    }

    pub fn start_at(address: &str, answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Receiver {
        let calls = Arc::default();
        let address = serve_on(TcpListener::bind(address).unwrap(), recorded(&calls, answer));
        Receiver { address, calls }
    }

    /// The same with TLS.
    fn start_tls(certificate: &str, answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Receiver {
        let calls = Arc::default();
        let address = serve_tls(certificate, recorded(&calls, answer));
        Receiver { address, calls }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn ids(&self) -> BTreeSet<String> {
        self.calls().into_iter().map(|call| call.id).collect()
    }
}

/// Records each call before it is answered.
fn recorded(
    calls: &Arc<Mutex<Vec<Call>>>,
    answer: impl Fn(usize) -> Answer + Send + Sync + 'static,
) -> impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static {
    let calls = Arc::clone(calls);
    move |request| {
        let mut calls = calls.lock().unwrap();
        calls.push(Call::of(request));
        let count = calls.len();
        drop(calls);
        answer(count)
    }
}

pub fn status(status: u16) -> Answer {
    Answer { status, headers: Vec::new(), body: Vec::new() }
}

/// Submits an image whose end is told to the receiver, and returns the id of the job.
fn submit(service: &Service, url: &str) -> String {
    let answer = try_submit(service, url);
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn try_submit(service: &Service, url: &str) -> Response {
    let body = json!({"image": BASE64_STANDARD.encode(test_image("cup.jpg")), "callback_url": url}).to_string();
    service.request("POST", "/v1/jobs", &[("Content-Type", "application/json")], body.as_bytes())
}

/// Runs a command on the data directory of a service and returns what it prints.
fn run(data_dir: &Path, arguments: &[&str]) -> String {
    let output = imgcls().args(arguments).args(["--backend", "local", "--data-dir"]).arg(data_dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn secret(data_dir: &Path, key: &[&str]) -> String {
    run(data_dir, &[&["keys", "webhook-secret"][..], key].concat()).trim_end().to_owned()
}

/// The messages that wait in the queue of callbacks, in every state.
fn waiting(service: &Service) -> u64 {
    let depths: Value = serde_json::from_str(&run(&service.data_dir(), &["queue", "depth", "--json"])).unwrap();
    let queues = depths["queues"].as_array().unwrap();
    let queue = queues.iter().find(|queue| queue["role"] == "callbacks").expect("the queue of callbacks");
    // A queue that does not exist has no numbers.
    ["visible", "in_flight", "delayed"].iter().map(|state| queue[state].as_u64().unwrap_or_default()).sum()
}

fn until_none_wait(service: &Service) {
    until("the end of all callbacks", || (waiting(service) == 0).then_some(()));
}

#[test]
fn end_of_a_job_is_told_once_with_a_signature() {
    let service = Service::start(1, &OPEN, &[]);
    let receiver = Receiver::start(|_| status(204));
    let in_json = submit(&service, &receiver.url());
    let (content_type, body) = form("image", "cat.jpg", &test_image("cat.jpg"));
    let path = format!("/v1/classify?callback_url={}", receiver.url());
    let answered = service.request("POST", &path, &[("Content-Type", &content_type)], &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    let in_query = answered.json()["id"].as_str().unwrap().to_owned();
    let refused =
        service.request("POST", &path, &[("Content-Type", "image/jpeg")], b"\xff\xd8\xff\xe0 no image at all");
    assert_eq!(refused.status, 422, "{}", refused.text());

    until("three calls", || (receiver.ids().len() == 3).then_some(()));
    until_none_wait(&service);
    let secret = secret(&service.data_dir(), &[]);
    let calls: BTreeMap<String, Call> = receiver.calls().into_iter().map(|call| (call.id.clone(), call)).collect();
    assert_eq!(receiver.calls().len(), 3, "each of them once");
    assert!(calls.values().all(|call| call.is_signed_with(&secret)));
    let event = calls[&in_json].event();
    assert_eq!((&event["type"], &event["data"]["id"]), (&json!("job.finished"), &json!(in_json)));
    assert_eq!(event["data"]["predictions"][0]["label"], "espresso");
    assert_eq!(calls[&in_query].event()["data"], answered.json(), "the result as it is stored");
    let failed = calls.values().find(|call| call.event()["data"]["status"] == "failed").expect("the failed job");
    assert_eq!(failed.event()["data"]["error"]["code"], "undecodable");
    assert!(!service.web.log().contains("whsec_"), "a secret is in the log");
}

#[test]
fn callbacks_are_off_unless_they_are_allowed() {
    let service = Service::start(0, &[], &[]);
    let answer = try_submit(&service, "https://receiver.example/");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("--allow-callbacks"), "{}", answer.text());
    assert_eq!(waiting(&service), 0);
}

#[test]
fn receiver_that_fails_is_called_again_with_the_same_id() {
    let service = Service::start(1, &OPEN, &[]);
    let receiver = Receiver::start(|count| status(if count < 4 { 503 } else { 200 }));
    let id = submit(&service, &receiver.url());
    until("the call that succeeds", || (receiver.calls().len() == 4).then_some(()));
    until_none_wait(&service);
    let secret = secret(&service.data_dir(), &[]);
    let calls = receiver.calls();
    assert_eq!(calls.len(), 4);
    assert!(calls.iter().all(|call| call.id == id && call.is_signed_with(&secret)));
    let times: BTreeSet<&str> = calls.iter().map(|call| call.timestamp.as_str()).collect();
    assert!(times.len() > 1, "each call has its own time: {times:?}");
}

#[test]
fn receiver_that_does_not_answer_delays_no_other() {
    let service = Service::start(1, &OPEN, &[]);
    // It accepts connections, and never reads from them.
    let silent = TcpListener::bind("127.0.0.2:0").unwrap();
    let silent_url = format!("http://{}/hook", silent.local_addr().unwrap());
    for _ in 0..12 {
        submit(&service, &silent_url);
    }
    let receiver = Receiver::start(|_| status(200));
    let id = submit(&service, &receiver.url());
    until("the call", || receiver.ids().contains(&id).then_some(()));
    assert!(waiting(&service) >= 12, "the others still wait");
}

#[test]
fn no_callback_is_lost_when_its_sender_is_killed() {
    let mut service = Service::start(1, &OPEN, &[]);
    let held = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&held);
    let receiver = Receiver::start(move |_| {
        // The first calls get no answer before their sender is killed.
        if counted.fetch_add(1, Ordering::SeqCst) < 3 {
            loop {
                std::thread::park();
            }
        }
        status(200)
    });
    let mut ids: BTreeSet<String> = (0..3).map(|_| submit(&service, &receiver.url())).collect();
    until("calls without an answer", || (held.load(Ordering::SeqCst) >= 3).then_some(()));
    service.restart_web();
    ids.extend((0..3).map(|_| submit(&service, &receiver.url())));
    service.web.kill();
    service.add_web();
    until("all calls", || (receiver.ids() == ids).then_some(()));
    until_none_wait(&service);
    assert_eq!(receiver.ids(), ids, "an idempotent receiver sees each of them once");
}

#[test]
fn callback_that_is_given_up_is_a_dead_letter_and_can_be_sent_again() {
    let service = Service::start(1, &OPEN, &[]);
    let receiver = Receiver::start(|count| status(if count == 1 { 410 } else { 200 }));
    let id = submit(&service, &format!("{}?token=hidden", receiver.url()));
    let dead = || -> Value { serde_json::from_str(&run(&service.data_dir(), &["queue", "dead", "--json"])).unwrap() };
    let given_up = until("the dead letter", || dead()["dead_letters"].get(0).cloned());
    assert_eq!((&given_up["id"], &given_up["callback"]), (&json!(id), &json!(receiver.url())));
    assert!(given_up["reason"].as_str().unwrap().contains("410"), "{given_up}");
    let shown = run(&service.data_dir(), &["queue", "show", &id]);
    assert!(shown.contains("callback") && shown.contains("succeeded"), "{shown}");
    assert!(!run(&service.data_dir(), &["queue", "dead"]).contains("hidden"));
    assert!(!service.web.log().contains("hidden"), "a query is in the log");

    let sent = run(&service.data_dir(), &["queue", "redrive", &id]);
    assert!(sent.contains("1 sent again"), "{sent}");
    until("the second call", || (receiver.calls().len() == 2).then_some(()));
    until_none_wait(&service);
    assert_eq!(dead()["dead_letters"], json!([]));
    assert_eq!(service.finished(&id)["status"], "succeeded", "the result of the job is untouched");
}

#[test]
fn end_of_a_batch_is_told_with_its_counts() {
    let service = Service::start(1, &OPEN, &[]);
    let receiver = Receiver::start(|_| status(200));
    let boundary = "batch-boundary";
    let mut body = Vec::new();
    for (name, image) in
        [("cup.jpg", test_image("cup.jpg")), ("broken.jpg", b"\xff\xd8\xff\xe0 no image at all".to_vec())]
    {
        let head =
            format!("--{boundary}\r\nContent-Disposition: form-data; name=\"images\"; filename=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&image);
        body.extend_from_slice(b"\r\n");
    }
    let url = receiver.url();
    let field = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"callback_url\"\r\n\r\n{url}\r\n");
    body.extend_from_slice(field.as_bytes());
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let answer = service.request("POST", "/v1/batches", &[("Content-Type", &content_type)], &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let call = until("the call", || receiver.calls().first().cloned());
    let event = call.event();
    assert_eq!((&call.id, &event["type"], &event["data"]["id"]), (&id, &json!("batch.finished"), &json!(id)));
    let counts = json!({"queued": 0, "succeeded": 1, "failed": 1, "expired": 0, "cancelled": 0});
    assert_eq!((&event["data"]["counts"], &event["data"]["status"]), (&counts, &json!("finished")));
    until_none_wait(&service);
    assert_eq!(receiver.calls().len(), 1);
}

#[test]
fn calls_are_signed_with_the_secret_of_the_key_that_submitted() {
    let mut keys = Vec::new();
    let service = keyed_service(1, &OPEN, |data_dir| {
        keys.extend(["one", "other"].map(|name| create_key(data_dir, name, "classify", &[])));
    });
    let receiver = Receiver::start(|_| status(200));
    let mut secrets = BTreeMap::new();
    for (key, name) in keys.iter().zip(["one", "other"]) {
        let path = format!("/v1/jobs?callback_url={}", receiver.url());
        let authorization = format!("Bearer {key}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "image/jpeg")];
        let answer = request(service.address, "POST", &path, &headers, &test_image("cup.jpg")).unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        secrets.insert(id, secret(&service.data_dir(), &[name]));
    }
    until("both calls", || (receiver.ids().len() == 2).then_some(()));
    for call in receiver.calls() {
        for (id, secret) in &secrets {
            assert_eq!(call.is_signed_with(secret), call.id == *id, "{id}");
        }
    }
}

#[test]
fn addresses_that_are_not_public_are_refused_at_once() {
    let service = Service::start(0, &["--allow-callbacks"], &[]);
    for url in [
        "http://127.0.0.1:8080/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://user:password@receiver.example/",
        "ftp://receiver.example/",
        "https://receiver.example:25/",
        "receiver.example",
        "",
    ] {
        let answer = try_submit(&service, url);
        assert_eq!(answer.status, 400, "{url}: {}", answer.text());
        assert!(answer.text().contains("callback_url"), "{}", answer.text());
    }
    let two = "/v1/jobs?callback_url=https://one.example/";
    let body = json!({"image": BASE64_STANDARD.encode(test_image("cup.jpg")), "callback_url": "https://two.example/"});
    let json_type = [("Content-Type", "application/json")];
    let answer = service.request("POST", two, &json_type, body.to_string().as_bytes());
    assert_eq!(answer.status, 400, "{}", answer.text());
    let (content_type, body) = form("images", "cup.jpg", &test_image("cup.jpg"));
    let batch = "/v1/batches?callback_url=http://127.0.0.1/";
    let answer = service.request("POST", batch, &[("Content-Type", &content_type)], &body);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let images = service.images().into_iter().filter(|key| key.starts_with("images/")).count();
    assert_eq!((waiting(&service), images), (0, 0), "nothing was accepted");
}

/// 127.0.0.2 stands for the public internet, and 127.0.0.1 for the network of the service.
const ONLY_SECOND: [&str; 3] = ["--allow-callbacks", "--allow-calls-to", "127.0.0.2"];

#[test]
fn redirect_to_a_private_address_is_not_followed() {
    let service = Service::start(1, &ONLY_SECOND, &[]);
    let private = Receiver::start(|_| status(200));
    let target = private.url();
    let receiver = Receiver::start_at("127.0.0.2:0", move |_| Answer {
        status: 307,
        headers: vec![("Location", target.clone())],
        body: Vec::new(),
    });
    let id = submit(&service, &receiver.url());
    until("several calls", || (receiver.calls().len() >= 3).then_some(()));
    assert_eq!(receiver.ids(), BTreeSet::from([id]));
    assert_eq!(private.calls().len(), 0, "the redirect was followed");
    assert_eq!(waiting(&service), 1, "a redirect is a failure, and the call is repeated");
}

#[test]
fn name_whose_address_becomes_private_is_not_called_any_more() {
    let shim = Shim::new();
    let service = Service::start_on(&["--backend", "local"], shim.environment(), 1, &ONLY_SECOND, &[]);
    let receiver = Receiver::start_at("127.0.0.2:0", |_| status(500));
    let port = receiver.address.port();
    let private = Receiver::start_at(&format!("127.0.0.1:{port}"), |_| status(200));
    // One that may be called, one that may not, and then one answer with both.
    shim.answer_look_ups("receiver.example", &["127.0.0.2", "127.0.0.1", "127.0.0.2 127.0.0.1"]);
    let id = submit(&service, &format!("http://receiver.example:{port}/hook"));
    until("three tries", || {
        let tries = service.web.log().lines().filter(|line| line.contains("a callback failed")).count();
        (tries >= 3).then_some(())
    });
    let log = service.web.log();
    assert!(log.contains("the address may not be called: its address is of this machine"), "{log}");
    assert_eq!((receiver.calls().len(), receiver.ids()), (1, BTreeSet::from([id])));
    assert_eq!(private.calls().len(), 0, "an address that was not checked was called");
}

#[test]
fn receiver_with_tls_is_called_only_if_its_certificate_is_trusted() {
    let trust = |name: &str| vec![("SSL_CERT_FILE".to_owned(), test_certificate(name, "crt"))];
    let mut service = Service::start_on(&["--backend", "local"], trust("two"), 1, &OPEN, &[]);
    let receiver = Receiver::start_tls("one", |_| status(204));
    let id = submit(&service, &format!("https://{}/hook", receiver.address));
    until("a failed call", || service.web.log().contains("a callback failed").then_some(()));
    assert!(service.web.log().contains("certificate"), "{}", service.web.log());
    assert_eq!(receiver.calls().len(), 0, "nothing is sent to somebody who may be another");
    service.start_next_with(trust("one"));
    service.restart_web();
    until("the call", || receiver.ids().contains(&id).then_some(()));
    until_none_wait(&service);
    let secret = secret(&service.data_dir(), &[]);
    assert!(receiver.calls().iter().all(|call| call.id == id && call.is_signed_with(&secret)));
}

/// Waits until at most so many callbacks wait. The time limit starts again with each one that ends.
fn until_waiting(service: &Service, wanted: u64) {
    // After a receiver was down for a minute, its next call may be two minutes away.
    let end = Instant::now() + Duration::from_mins(5);
    while waiting(service) > wanted {
        assert!(Instant::now() < end, "{} callbacks wait", waiting(service));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With `IMGCLS_TEST_LONG` the receiver is down for a minute.
#[test]
fn storm_of_calls_is_seen_once_for_each_job_by_an_idempotent_receiver() {
    let mut service = Service::start(1, &ONLY_SECOND, &[]);
    service.add_web();
    let private = Receiver::start(|_| status(200));
    let target = private.url();
    let redirecting = Receiver::start_at("127.0.0.2:0", move |_| Answer {
        status: 302,
        headers: vec![("Location", target.clone())],
        body: Vec::new(),
    });
    // The receiver is down at first: nothing listens at its port.
    let address = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let is_down_since = Instant::now();
    let url = format!("http://{address}/hook");
    let mut ids: BTreeSet<String> = (0..24).map(|_| submit(&service, &url)).collect();
    let redirected = submit(&service, &redirecting.url());
    until("failed calls while the receiver is down", || {
        let logs = [service.web.log(), service.other_webs[0].log()].concat();
        (logs.matches("a callback failed").count() >= 48).then_some(())
    });
    if std::env::var_os("IMGCLS_TEST_LONG").is_some() {
        until("the minute of the receiver", || (is_down_since.elapsed() > Duration::from_secs(60)).then_some(()));
    }
    // Then it is slow, and at first every fourth call is answered with an error although it was taken: it comes again. Since
    // delays double, errors that never ended would keep a call away for longer than a test waits.
    let receiver = Receiver::start_at(&address.to_string(), |count| match count % 4 {
        1 if count < 24 => status(500),
        2 => {
            std::thread::sleep(Duration::from_millis(300));
            status(200)
        }
        _ => status(204),
    });
    for _ in 0..3 {
        let before = receiver.calls().len();
        ids.extend((0..4).map(|_| submit(&service, &url)));
        until("another call", || (receiver.calls().len() > before).then_some(()));
        service.restart_web();
    }
    service.other_webs[0].kill();
    until_waiting(&service, 1);

    assert_eq!(receiver.ids(), ids, "each job is told once to a receiver that knows its ids");
    let mut events: BTreeMap<String, Value> = BTreeMap::new();
    let secret = secret(&service.data_dir(), &[]);
    for call in receiver.calls() {
        assert!(call.is_signed_with(&secret));
        let data = call.event()["data"].take();
        let first = events.entry(call.id).or_insert_with(|| data.clone());
        assert_eq!(*first, data, "a repeated call tells the same");
    }
    assert!(receiver.calls().len() > ids.len(), "some calls came twice");
    assert_eq!((redirecting.ids(), private.calls().len()), (BTreeSet::from([redirected]), 0));
}
