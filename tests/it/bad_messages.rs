//! Bad messages and replies: each has an outcome, is counted and logged, and stops no process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imgcls::config::{Backend, Names};
use imgcls::protocol::reply_queue;
use imgcls::transport;
use imgcls::transport::Delivery;
use imgcls::transport::local::SqliteStore;
use imgcls::transport::queued::object::{ObjectStore as _, Put, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing, Queue, QueueAttributes, Queues, ReceiveOptions};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{DEADLINE, Service, block_on, free_port, metric, result_text, test_image, until};

/// A service with one worker, the address of its metrics, and the queues of the service.
struct Fixture {
    service: Service,
    admin: SocketAddr,
    queues: Arc<dyn Queues>,
    requests: Arc<dyn Queue>,
    dead_letters: Arc<dyn Queue>,
}

impl Fixture {
    fn start(workers: usize, worker_flags: &[&str]) -> Fixture {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let address = admin.to_string();
        let flags: Vec<&str> = worker_flags.iter().copied().chain(["--admin-listen", address.as_str()]).collect();
        let service = Service::start(workers, &[], &flags);
        let names = Names::local("imgcls");
        let (queues, requests, dead_letters) = block_on(async {
            let queues = transport::open_queues(&Backend::Local { data_dir: service.data_dir() }).await.unwrap();
            let requests = queues.open(&names.request_queue).await.unwrap();
            let dead_letters = queues.open(&names.dead_letter_queue()).await.unwrap();
            (queues, requests, dead_letters)
        });
        Fixture { service, admin, queues, requests, dead_letters }
    }

    fn send(&self, body: &Value) {
        block_on(queue::send_one(&*self.requests, Outgoing::new(body.to_string()))).unwrap();
    }

    fn completed(&self, outcome: &str) -> f64 {
        metric(self.admin, &format!("imgcls_worker_endings_total{{ending=\"{outcome}\"}}"))
    }

    /// Outcomes are counted after results and replies were written.
    fn wait_for_completed(&self, outcome: &str, count: f64) {
        until(&format!("{count} deliveries to be {outcome}"), || {
            ((self.completed(outcome) - count).abs() < 0.5).then_some(())
        });
    }

    fn wait_for_worker_log(&self, text: &str) {
        self.service.workers[0].wait_for_log(text);
    }

    /// Stops the worker with SIGSTOP, but never within a transaction, because that would block all other processes.
    fn stop_worker(&self) {
        loop {
            self.service.workers[0].signal("STOP");
            let tag = self.queues.set_tag(self.requests.name(), "probe", "1");
            if block_on(async { tokio::time::timeout(Duration::from_secs(1), tag).await })
                .is_ok_and(|tagged| tagged.is_ok())
            {
                return;
            }
            self.service.workers[0].signal("CONT");
        }
    }

    fn store(&self, id: Uuid, image: &[u8]) {
        let input = SqliteStore::open(&self.service.data_dir(), "input").unwrap();
        let key = format!("images/{id}");
        let put = block_on(input.put(&key, image.to_vec().into(), PutOptions::default()));
        assert_eq!(put.unwrap(), Put::Created);
    }
}

fn request(id: Uuid) -> Value {
    json!({
        "v": 1, "id": id, "filename": "x.jpg", "image": {"bucket": "input", "key": format!("images/{id}")},
        "submitted_at": "2026-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z",
    })
}

fn receive(queue: &dyn Queue, visibility_timeout: Duration) -> Delivery {
    let options = ReceiveOptions { max: 1, wait: Duration::from_secs(1), visibility_timeout };
    until(&format!("a message on {}", queue.name()), || block_on(queue.receive(options)).unwrap().pop())
}

#[test]
fn messages_without_an_image_fail() {
    let fixture = Fixture::start(1, &["--max-upload-bytes", "100000"]);
    let too_large = Uuid::now_v7();
    fixture.store(too_large, &[test_image("cup.jpg"), vec![0; 200_000]].concat());
    for (id, code) in [(too_large, "input_too_large"), (Uuid::now_v7(), "input_missing")] {
        fixture.send(&request(id));
        let job = fixture.service.finished(&id.to_string());
        assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &code.into()));
        fixture.wait_for_worker_log(code);
    }
    fixture.wait_for_completed("failed", 2.0);

    let inline = Uuid::now_v7();
    let mut body = request(inline);
    body.as_object_mut().unwrap().remove("image");
    body["image_data"] = "no base64 !".into();
    fixture.send(&body);
    assert_eq!(fixture.service.finished(&inline.to_string())["error"]["code"], "malformed");
    fixture.send(&json!({"filename": "legacy.jpg", "image_data": "no base64 !"}));
    until("both to be dead letters", || (fixture.completed("dead_letter") > 1.5).then_some(()));
    fixture.wait_for_worker_log("image_data is not base64");
    for _ in 0..2 {
        let dead_letter = receive(&*fixture.dead_letters, DEADLINE);
        assert!(dead_letter.attributes["reason"].contains("image_data is not base64"), "{:?}", dead_letter.attributes);
    }
    assert_eq!(fixture.service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg")).status, 200);
}

#[test]
fn replies_go_only_to_queues_of_the_service() {
    let fixture = Fixture::start(1, &[]);
    let foreign = block_on(fixture.queues.create("somebody-elses", &QueueAttributes::default())).unwrap();
    let id = Uuid::now_v7();
    fixture.store(id, &test_image("rocket.jpg"));
    let mut body = request(id);
    body["reply_to"] = "somebody-elses".into();
    fixture.send(&body);
    assert_eq!(fixture.service.finished(&id.to_string())["status"], "succeeded");
    until("the reply to be counted", || {
        (metric(fixture.admin, r#"imgcls_worker_replies_total{outcome="foreign"}"#) > 0.5).then_some(())
    });
    fixture.wait_for_worker_log("not a reply queue of this service");
    assert_eq!(block_on(foreign.depth()).unwrap().visible, 0);
}

#[test]
fn message_delivered_twice_has_one_result_and_two_equal_replies() {
    let mut fixture = Fixture::start(0, &[]);
    let reply_to = reply_queue("app-web-result-queue", "test");
    let replies = block_on(fixture.queues.create(&reply_to, &QueueAttributes::default())).unwrap();
    let id = Uuid::now_v7();
    fixture.store(id, &test_image("rocket.jpg"));
    let mut body = request(id);
    body["reply_to"] = reply_to.into();
    // Sent twice, so that both may be processed at the same time.
    fixture.send(&body);
    fixture.send(&body);
    fixture.service.add_worker();
    let first = receive(&*replies, DEADLINE).body;
    assert_eq!(receive(&*replies, DEADLINE).body, first);
    assert_eq!(result_text(&fixture.service.database(), &id.to_string()), first);

    // The message is delivered once more, as if a worker had died between the result and the deletion.
    fixture.service.workers.clear();
    fixture.send(&body);
    let once = receive(&*fixture.requests, Duration::from_secs(30));
    block_on(fixture.requests.set_visibility(&[(once.receipt, Duration::ZERO)])).unwrap();
    fixture.service.add_worker();
    assert_eq!(receive(&*replies, DEADLINE).body, first);
    fixture.wait_for_completed("again", 1.0);
    fixture.wait_for_worker_log("delivered again after its end");
}

/// The worker is stopped while it holds a message, for longer than its lease.
#[test]
fn worker_that_slept_through_its_lease_changes_nothing() {
    let fixture = Fixture::start(1, &["--visibility-timeout", "1s"]);
    // This image takes so long to decode that the worker is stopped before it has finished.
    let id = fixture.service.submit("black.png", &test_image("black-49-megapixels.png"));
    until("the worker to receive it", || (block_on(fixture.requests.depth()).unwrap().in_flight == 1).then_some(()));
    fixture.stop_worker();
    let held = fixture.service.try_request("GET", &format!("/v1/jobs/{id}"), &[], b"").unwrap().json();
    assert_eq!(held["status"], "queued", "the worker had finished before it was stopped");
    // The first worker uses the admin address, so the second one is started without it.
    let mut second = crate::harness::imgcls();
    second.args(["worker", "--backend", "local", "--sessions", "1", "--data-dir"]).arg(fixture.service.data_dir());
    let second = crate::harness::Process::start(second, &fixture.service.dir.path().join("second.log"));
    let job = fixture.service.finished(&id);
    assert_eq!((&job["status"], &job["attempt"]), (&"succeeded".into(), &2.into()));
    fixture.service.workers[0].signal("CONT");
    until("the first worker to complete it too", || (fixture.completed("succeeded") > 0.5).then_some(()));
    assert_eq!(fixture.service.finished(&id), job, "the first result is kept");
    let depth = block_on(fixture.requests.depth()).unwrap();
    assert_eq!((depth.visible, depth.in_flight), (0, 0));
    drop(second);
    assert_eq!(fixture.service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg")).status, 200);
}

#[test]
fn reply_without_a_waiter_is_deleted_and_counted() {
    let fixture = Fixture::start(0, &[]);
    let own = block_on(fixture.queues.list("app-web-result-queue-")).unwrap().pop().expect("the web tier's own queue");
    let own = block_on(fixture.queues.open(&own)).unwrap();
    let id = Uuid::now_v7();
    for body in [json!({"v": 1, "id": id, "status": "succeeded"}).to_string(), "{".to_owned()] {
        block_on(queue::send_one(&*own, Outgoing::new(body))).unwrap();
    }
    let count =
        |outcome: &str| metric(fixture.service.address, &format!("imgcls_web_replies_total{{outcome=\"{outcome}\"}}"));
    until("both to be counted", || (count("nobody_waits") > 0.5 && count("foreign") > 0.5).then_some(()));
    fixture.service.web.wait_for_log("not a reply to any job; deleted");
    let depth = || block_on(own.depth()).unwrap();
    until("both to be deleted", || (depth().visible + depth().in_flight == 0).then_some(()));
    assert_eq!(
        fixture.service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").status,
        404,
        "the reply created a job"
    );
}

#[test]
fn newer_wire_is_released_until_it_is_a_dead_letter() {
    let fixture = Fixture::start(1, &["--max-receive-count", "1"]);
    fixture.send(&json!({"v": 2, "id": Uuid::now_v7(), "image": "in a form to come"}));
    let dead_letter = receive(&*fixture.dead_letters, DEADLINE);
    assert_eq!(
        (dead_letter.attributes["reason"].as_str(), dead_letter.attributes["attempts"].as_str()),
        ("no worker knows wire version 2", "2")
    );
    fixture.wait_for_completed("handed_back", 1.0);
    fixture.wait_for_worker_log("wire version 2, this worker speaks 1");
}
