//! One result queue for all web processes, as in the legacy system: each reply reaches its process.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::Depth;
use imgcls::transport::queued::queue::{self, Outgoing, Queue};
use serde_json::json;

use crate::harness::{DEADLINE, Service, form, label_of, metric, request, test_image, until};

const IMAGES: [&str; 5] = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];

#[test]
fn two_web_processes_share_an_inbox_and_every_caller_gets_its_answer() {
    let mut service = Service::start(2, &["--result-queue-mode", "shared"], &[]);
    let addresses = [service.address, service.add_web()];
    let labels = IMAGES.map(label_of);
    thread::scope(|scope| {
        for client in 0..10 {
            let labels = &labels;
            scope.spawn(move || {
                for at in (client..100).step_by(10) {
                    let (name, label) = (IMAGES[at % IMAGES.len()], &labels[at % IMAGES.len()]);
                    let (content_type, body) = form("myfile", "same.jpg", &test_image(name));
                    let headers = [("Content-Type", content_type.as_str())];
                    let answer = request(addresses[at / 5 % 2], "POST", "/", &headers, &body).unwrap();
                    assert_eq!((answer.status, &answer.text()), (200, label));
                }
            });
        }
    });
    let handed_over = addresses.map(|address| metric(address, r#"imgcls_web_replies_total{outcome="waited_for"}"#));
    assert!(handed_over.iter().all(|count| *count > 0.0), "replies woke nobody: {handed_over:?}");
}

#[test]
fn reply_for_another_process_is_released_and_deleted_once_nobody_can_wait_for_it() {
    let mut service = Service::start(0, &["--result-queue-mode", "shared"], &[]);
    let addresses = [service.address, service.add_web()];
    let id = service.submit("x.jpg", &test_image("cup.jpg"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let results = result_queue(&service).await;
        // A reply to a legacy web process, and one to a job that another web process may wait for.
        queue::send_one(&*results, Outgoing::new(json!({"test_0.JPEG": "bathtub"}).to_string())).await.unwrap();
        let adopted = json!({ format!("{id}.jpg"): " bathtub)\n" }).to_string();
        queue::send_one(&*results, Outgoing::new(adopted)).await.unwrap();
        let released = || -> f64 {
            let line = r#"imgcls_web_replies_total{outcome="handed_back"}"#;
            addresses.iter().map(|address| metric(*address, line)).sum()
        };
        until("both to be released more than once", || (released() >= 6.0).then_some(()));
        assert_eq!(count(results.depth().await.unwrap()), 2);

        // After a minute no process can wait for them, so they are deleted. The reply to the job is stored before.
        let file = rusqlite::Connection::open(service.data_dir().join("imgcls.sqlite3")).unwrap();
        file.busy_timeout(Duration::from_secs(10)).unwrap();
        file.execute("UPDATE messages SET sent_at_ms = sent_at_ms - 61000 WHERE body LIKE '%bathtub%'", []).unwrap();
        let started = Instant::now();
        while count(results.depth().await.unwrap()) > 0 {
            assert!(started.elapsed() < DEADLINE, "the replies are not deleted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let job = service.finished(&id);
    assert_eq!((&job["status"], &job["predictions"]), (&"succeeded".into(), &json!([{"label": "bathtub"}])));
}

#[test]
fn web_process_without_an_own_inbox_shares_and_logs_it() {
    // The name of a reply queue would be longer than queue names may be, so it cannot be created.
    let long = "r".repeat(70);
    let service = Service::start(1, &["--result-queue", &long], &["--result-queue", &long]);
    service.web.wait_for_log("sharing the result queue");
    let answer = service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg"));
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("rocket.jpg").as_str());
    assert!(metric(service.address, r#"imgcls_web_replies_total{outcome="waited_for"}"#) > 0.0);
}

async fn result_queue(service: &Service) -> Arc<dyn Queue> {
    let queues = transport::open_queues(&Backend::Local { data_dir: service.data_dir() }).await.unwrap();
    queues.open(&Names::local("imgcls").result_queue).await.unwrap()
}

fn count(depth: Depth) -> u64 {
    depth.visible + depth.in_flight + depth.delayed
}
