//! `serve-web --wire seed`: the web tier uses legacy workers. The tests play those workers through the two ports, so
//! that they run on any backend.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::queued::object::{ObjectStore, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing, Queue, QueueAttributes, ReceiveOptions};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Service, block_on, form, label_of, request, test_image};

/// A legacy worker. It stores the image under its file name and the answer under the name up to its first dot, replies
/// with the text after the first comma of its own output, and deletes the message. Its label contains the image's size.
struct LegacyWorker {
    requests: Arc<dyn Queue>,
    results: Arc<dyn Queue>,
    input: Arc<dyn ObjectStore>,
    output: Arc<dyn ObjectStore>,
    writes_output: bool,
    replies: bool,
}

impl LegacyWorker {
    async fn on(backend: &Backend) -> LegacyWorker {
        let (queues, names) = (transport::open_queues(backend).await.unwrap(), Names::local("imgcls"));
        LegacyWorker {
            requests: queues.open(&names.request_queue).await.unwrap(),
            results: queues.open(&names.result_queue).await.unwrap(),
            input: transport::open_bucket(backend, &names.input_bucket).await.unwrap(),
            output: transport::open_bucket(backend, &names.output_bucket).await.unwrap(),
            writes_output: true,
            replies: true,
        }
    }

    /// Serves one message and returns its file name.
    async fn serve_one(&self) -> String {
        let options = ReceiveOptions { max: 1, wait: Duration::from_secs(5), visibility_timeout: DEADLINE };
        let started = Instant::now();
        let delivery = loop {
            if let Some(delivery) = self.requests.receive(options).await.unwrap().pop() {
                break delivery;
            }
            assert!(started.elapsed() < DEADLINE, "no request came");
        };
        let body: Value = serde_json::from_str(&delivery.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 2, "a legacy request has two members: {body}");
        let name = body["filename"].as_str().unwrap().to_owned();
        let image = base64::engine::general_purpose::STANDARD.decode(body["image_data"].as_str().unwrap()).unwrap();
        let printed = format!("({name}, {})\n", label(&image));
        let _ = self.input.put(&name, image.into(), PutOptions::default()).await.unwrap();
        if self.writes_output {
            let stem = name.split('.').next().unwrap();
            let body = format!("({})", printed.trim_end());
            let _ = self.output.put(stem, body.into(), PutOptions::default()).await.unwrap();
        }
        if self.replies {
            let (_, answer) = printed.split_once(',').unwrap();
            let reply = json!({ name.clone(): answer }).to_string();
            queue::send_one(&*self.results, Outgoing::new(reply)).await.unwrap();
        }
        self.requests.ack(&[delivery.receipt]).await.unwrap();
        name
    }
}

fn label(image: &[u8]) -> String {
    format!("bathtub, {} bytes (large)", image.len())
}

fn backend(service: &Service) -> Backend {
    Backend::Local { data_dir: service.data_dir() }
}

#[test]
fn legacy_worker_answers_clients_of_the_current_interface() {
    let service = Service::start(0, &["--wire", "seed"], &[]);
    let image = test_image("cup.jpg");
    let (content_type, body) = form("myfile", "../secret.jpg", &image);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            block_on(async {
                let worker = LegacyWorker::on(&backend(&service)).await;
                [worker.serve_one().await, worker.serve_one().await]
            })
        });
        // Two users send the same file name at the same time.
        let form = scope.spawn(|| service.request("POST", "/", &[("Content-Type", &content_type)], &body));
        let answer = service.request(
            "POST",
            "/v1/classify",
            &[("Content-Disposition", "attachment; filename=\"../secret.jpg\"")],
            &test_image("rocket.jpg"),
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result = answer.json();
        assert_eq!(result["predictions"], json!([{"label": label(&test_image("rocket.jpg"))}]));
        let form = form.join().unwrap();
        assert_eq!((form.status, form.text()), (200, label(&image)));
        for name in worker.join().unwrap() {
            let (id, extension) = name.split_once('.').unwrap();
            assert!(extension == "jpg" && id.parse::<uuid::Uuid>().is_ok(), "a user's file name on the wire: {name}");
        }
        // From now on every web process knows the result.
        let id = result["id"].as_str().unwrap();
        let job = service.finished(id);
        assert_eq!((&job["status"], &job["predictions"]), (&"succeeded".into(), &result["predictions"]));
    });
}

/// Either the output object or the reply may be missing: some workers write no object, and the process that reads a
/// reply may die. The test asks another web process than the one that accepted the image.
#[test]
fn output_or_reply_alone_is_enough_for_every_web_process() {
    let mut service = Service::start(0, &["--wire", "seed"], &[]);
    let other = service.add_web();
    let image = test_image("cup.jpg");
    for (writes_output, replies) in [(true, false), (false, true)] {
        let id = service.submit("x.jpg", &image);
        let queued = request(other, "GET", &format!("/v1/jobs/{id}"), &[], b"").unwrap().json();
        assert_eq!((&queued["id"], &queued["status"]), (&json!(id), &json!("queued")));
        thread::scope(|scope| {
            // A caller waits at the other process before the worker starts.
            let waiting = scope.spawn(|| {
                let path = format!("/v1/jobs/{id}?wait=50");
                request(other, "GET", &path, &[], b"").unwrap().json()
            });
            block_on(async {
                let worker = LegacyWorker::on(&backend(&service)).await;
                let name = LegacyWorker { writes_output, replies, ..worker }.serve_one().await;
                assert_eq!(name, format!("{id}.jpg"));
            });
            let job = waiting.join().unwrap();
            assert_eq!(job["predictions"], json!([{"label": label(&image)}]), "{writes_output} {replies}: {job}");
            assert_eq!(job["timeline"][1]["event"], "succeeded");
        });
        service.restart_web();
        assert_eq!(service.finished(&id)["predictions"], json!([{"label": label(&image)}]));
    }
}

/// During a migration, a web tier with the legacy wire also meets current workers, and a current web tier is asked for
/// jobs that the other one accepted.
#[test]
fn current_workers_and_web_tiers_understand_the_legacy_wire() {
    let mut service = Service::start(1, &["--wire", "seed"], &[]);
    let answer = service.request("POST", "/v1/classify", &[], &test_image("rocket.jpg"));
    assert_eq!(answer.json()["predictions"], json!([{"label": label_of("rocket.jpg")}]));
    let refused = service.request("POST", "/v1/classify", &[], &test_image("hostile/half.jpg"));
    assert_eq!((refused.status, &refused.json()["type"]), (422, &"urn:imgcls:problem:undecodable".into()));

    service.workers.clear();
    let id = service.submit("x.jpg", &test_image("cup.jpg"));
    let mut plain = Service::start_in(service.dir, 0, &[], &[]);
    service.web.kill();
    assert_eq!(plain.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json()["status"], "queued");
    plain.add_worker();
    assert_eq!(plain.finished(&id)["predictions"], json!([{"label": label_of("cup.jpg")}]));
}

#[test]
fn image_that_does_not_fit_the_queue_is_refused_with_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let queues = transport::open_queues(&Backend::Local { data_dir: dir.path().join("data") }).await.unwrap();
        let attributes = QueueAttributes { max_message_bytes: 6_144, ..QueueAttributes::default() };
        queues.create(&Names::local("imgcls").request_queue, &attributes).await.unwrap();
    });
    let service = Service::start_in(dir, 0, &["--wire", "seed"], &[]);
    let image = test_image("one-pixel.png");
    // An image may be followed by any bytes. With 4,527 bytes, the message in base64 just fits.
    let padded = |len: usize| [image.as_slice(), &vec![0; len - image.len()]].concat();
    let envelope = format!(r#"{{"image_data":"","filename":"{}.png"}}"#, uuid::Uuid::nil()).len();
    let largest = (6_144 - envelope) / 4 * 3;
    let taken = service.request("POST", "/v1/jobs", &[], &padded(largest));
    assert_eq!(taken.status, 202, "{}", taken.text());
    let refused = service.request("POST", "/v1/jobs", &[], &padded(largest + 1));
    assert_eq!((refused.status, &refused.json()["type"]), (413, &"urn:imgcls:problem:too-large".into()));
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("web-app-image-transport") && detail.contains("6144"), "{detail}");
    assert_eq!(service.images().len(), 1, "the refused image was stored");
}
