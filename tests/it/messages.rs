//! Messages that were not sent by this web tier: the legacy form, and malformed ones.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::Delivery;
use imgcls::transport::queued::queue::{self, DEFAULT_MAX_MESSAGE_BYTES, Outgoing, Queue, ReceiveOptions};
use serde_json::json;

use crate::harness::{DEADLINE, Service, block_on, label_of, test_image};

const MANY: u64 = 1 << 30;

/// The queues of the service, opened a second time by this process.
struct Queues {
    requests: Arc<dyn Queue>,
    results: Arc<dyn Queue>,
    dead_letters: Arc<dyn Queue>,
}

impl Queues {
    async fn open(service: &Service) -> Queues {
        let queues = transport::open_queues(&Backend::Local { data_dir: service.data_dir() }).await.unwrap();
        let names = Names::local("imgcls");
        Queues {
            requests: queues.open(&names.request_queue).await.unwrap(),
            results: queues.open(&names.result_queue).await.unwrap(),
            dead_letters: queues.open(&names.dead_letter_queue()).await.unwrap(),
        }
    }

    async fn send(&self, body: String) {
        queue::send_one(&*self.requests, Outgoing::new(body)).await.unwrap();
    }
}

async fn next(queue: &dyn Queue) -> Delivery {
    let options = ReceiveOptions { max: 1, wait: Duration::from_secs(5), visibility_timeout: DEADLINE };
    let started = std::time::Instant::now();
    loop {
        if let Some(delivery) = queue.receive(options).await.unwrap().pop() {
            queue.ack(std::slice::from_ref(&delivery.receipt)).await.unwrap();
            return delivery;
        }
        assert!(started.elapsed() < DEADLINE, "nothing comes on {}", queue.name());
    }
}

#[test]
fn legacy_messages_are_answered_in_the_legacy_form() {
    let service = Service::start(1, &[], &[]);
    let image = test_image("rocket.jpg");
    let label = label_of("rocket.jpg");
    block_on(async {
        let queues = Queues::open(&service).await;
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        queues.send(json!({"image_data": encode(&image), "filename": "../../test_0.x.JPEG"}).to_string()).await;
        assert_eq!(next(&*queues.results).await.body, json!({"test_0.x.JPEG": label}).to_string());
        let backend = Backend::Local { data_dir: service.data_dir() };
        let input = transport::open_bucket(&backend, "input").await.unwrap();
        let output = transport::open_bucket(&backend, "output").await.unwrap();
        assert_eq!(input.get("test_0.x.JPEG", MANY).await.unwrap().unwrap(), image);
        let stored = output.get("test_0", MANY).await.unwrap().unwrap();
        assert_eq!(stored, format!("((test_0.x.JPEG, {label}))"));

        queues.send(json!({"image_data": encode(b"no image"), "filename": "bad.JPEG"}).to_string()).await;
        let reply: serde_json::Value = serde_json::from_str(&next(&*queues.results).await.body).unwrap();
        assert!(reply["bad.JPEG"].as_str().unwrap().starts_with("error: "), "{reply}");
        let dead_letter = next(&*queues.dead_letters).await;
        assert!(dead_letter.attributes["reason"].starts_with("unsupported_type"), "{:?}", dead_letter.attributes);
    });
}

#[test]
fn malformed_messages_are_kept_with_their_reason_and_stop_no_worker() {
    let service = Service::start(1, &[], &[]);
    block_on(async {
        let queues = Queues::open(&service).await;
        let id = "01936d5c-7e00-7abc-8def-0123456789ab";
        let times = r#""submitted_at":"2026-01-01T00:00:00Z","expires_at":"2100-01-01T00:00:00Z""#;
        let foreign = format!(r#"{{"v":1,"id":"{id}","image":{{"bucket":"other","key":"images/{id}"}},{times}}}"#);
        // This body is as large as the queue accepts, so the dead letter has no space for a reason.
        let largest = "x".repeat(DEFAULT_MAX_MESSAGE_BYTES);
        for body in ["{", "[1]", "\u{1f4a3}", foreign.as_str(), largest.as_str()] {
            queues.send(body.to_owned()).await;
            let dead_letter = next(&*queues.dead_letters).await;
            assert!(dead_letter.body == body, "another message is in the dead letters: {:?}", dead_letter.attributes);
            if body.len() < largest.len() {
                assert!(dead_letter.attributes["reason"].starts_with("malformed: "), "{:?}", dead_letter.attributes);
                assert_eq!(dead_letter.attributes["attempts"], "1");
            }
        }
        let job = service.finished(id);
        assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"malformed".into()));

        // The image is missing, and the reply address does not belong to the service.
        let id = "01936d5c-7e00-7abc-8def-0123456789ac";
        let image = format!(r#""image":{{"bucket":"input","key":"images/{id}"}}"#);
        queues.send(format!(r#"{{"v":1,"id":"{id}",{image},{times},"reply_to":"somebody-elses"}}"#)).await;
        assert_eq!(service.finished(id)["error"]["code"], "input_missing");
    });
    assert_eq!(service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg")).status, 200);
}
