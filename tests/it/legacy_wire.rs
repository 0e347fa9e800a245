//! `serve-web --wire seed`: our web tier asks workers of the original. They are played here by their own rules, through
//! the two ports, so that any backend can carry them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::queued::object::{ObjectStore, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing, Queue, QueueAttributes, ReceiveOptions};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, Service, form, label_of, picture, request};

/// The original's worker: it writes the image under its file name, the answer under the name to its first dot, replies
/// with what it splits off its own output at the comma, and deletes the message. It answers with the image's size.
struct OriginalWorker {
    requests: Arc<dyn Queue>,
    results: Arc<dyn Queue>,
    input: Arc<dyn ObjectStore>,
    output: Arc<dyn ObjectStore>,
    writes_output: bool,
    replies: bool,
}

impl OriginalWorker {
    async fn on(backend: &Backend) -> OriginalWorker {
        let (queues, names) = (transport::open_queues(backend).await.unwrap(), Names::local("imgcls"));
        OriginalWorker {
            requests: queues.open(&names.request_queue).await.unwrap(),
            results: queues.open(&names.result_queue).await.unwrap(),
            input: transport::open_bucket(backend, &names.input_bucket).await.unwrap(),
            output: transport::open_bucket(backend, &names.output_bucket).await.unwrap(),
            writes_output: true,
            replies: true,
        }
    }

    /// Serves one message; the file name that it had.
    async fn serve_one(&self) -> String {
        let options = ReceiveOptions { max: 1, wait: Duration::from_secs(5), visibility_timeout: PATIENCE };
        let started = Instant::now();
        let delivery = loop {
            if let Some(delivery) = self.requests.receive(options).await.unwrap().pop() {
                break delivery;
            }
            assert!(started.elapsed() < PATIENCE, "no request came");
        };
        let body: Value = serde_json::from_str(&delivery.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 2, "the original knows two members: {body}");
        let name = body["filename"].as_str().unwrap().to_owned();
        let image = base64::engine::general_purpose::STANDARD.decode(body["image_data"].as_str().unwrap()).unwrap();
        let said = format!("({name}, {})\n", label(&image));
        let _ = self.input.put(&name, image.into(), PutOptions::default()).await.unwrap();
        if self.writes_output {
            let stem = name.split('.').next().unwrap();
            let body = format!("({})", said.trim_end());
            let _ = self.output.put(stem, body.into(), PutOptions::default()).await.unwrap();
        }
        if self.replies {
            let (_, answer) = said.split_once(',').unwrap();
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

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn backend(service: &Service) -> Backend {
    Backend::Local { data_dir: service.data_dir() }
}

#[test]
fn an_original_worker_answers_clients_who_never_hear_of_its_form() {
    let service = Service::start(0, &["--wire", "seed"], &[]);
    let image = picture("cup.jpg");
    let (content_type, body) = form("myfile", "../secret.jpg", &image);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            run(async {
                let worker = OriginalWorker::on(&backend(&service)).await;
                [worker.serve_one().await, worker.serve_one().await]
            })
        });
        // Two users with one file name, at the same time.
        let form = scope.spawn(|| service.request("POST", "/", &[("Content-Type", &content_type)], &body));
        let answer = service.request(
            "POST",
            "/v1/classify",
            &[("Content-Disposition", "attachment; filename=\"../secret.jpg\"")],
            &picture("rocket.jpg"),
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result = answer.json();
        assert_eq!(result["predictions"], json!([{"label": label(&picture("rocket.jpg"))}]));
        let form = form.join().unwrap();
        assert_eq!((form.status, form.text()), (200, label(&image)));
        for name in worker.join().unwrap() {
            let (id, extension) = name.split_once('.').unwrap();
            assert!(extension == "jpg" && id.parse::<uuid::Uuid>().is_ok(), "a name of a user's on the wire: {name}");
        }
        // The end is everybody's from now on.
        let id = result["id"].as_str().unwrap();
        let job = service.finished(id);
        assert_eq!((&job["status"], &job["predictions"]), (&"succeeded".into(), &result["predictions"]));
    });
}

/// Of output object and reply either may be missing: some workers write none, and a reply may be read by a process that
/// dies. Asked of another web process than the one that took the image.
#[test]
fn either_the_output_or_the_reply_is_enough_and_any_web_process_answers() {
    let mut service = Service::start(0, &["--wire", "seed"], &[]);
    let other = service.add_web();
    let image = picture("cup.jpg");
    for (writes_output, replies) in [(true, false), (false, true)] {
        let id = service.submit("x.jpg", &image);
        let queued = request(other, "GET", &format!("/v1/jobs/{id}"), &[], b"").unwrap().json();
        assert_eq!(queued, json!({"id": id, "status": "queued"}));
        thread::scope(|scope| {
            // Somebody waits there while the worker comes.
            let waiting = scope.spawn(|| {
                let path = format!("/v1/jobs/{id}?wait=50");
                request(other, "GET", &path, &[], b"").unwrap().json()
            });
            run(async {
                let worker = OriginalWorker::on(&backend(&service)).await;
                let name = OriginalWorker { writes_output, replies, ..worker }.serve_one().await;
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

/// While tiers are moved, a web tier that speaks the original's form also meets workers of ours, and one that does not
/// is asked for what the other accepted.
#[test]
fn our_workers_and_our_other_web_tiers_understand_it_too() {
    let mut service = Service::start(1, &["--wire", "seed"], &[]);
    let answer = service.request("POST", "/v1/classify", &[], &picture("rocket.jpg"));
    assert_eq!(answer.json()["predictions"], json!([{"label": label_of("rocket.jpg")}]));
    let refused = service.request("POST", "/v1/classify", &[], &picture("hostile/half.jpg"));
    assert_eq!((refused.status, &refused.json()["type"]), (422, &"urn:imgcls:problem:undecodable".into()));

    service.workers.clear();
    let id = service.submit("x.jpg", &picture("cup.jpg"));
    let mut plain = Service::start_in(service.dir, 0, &[], &[]);
    service.web.kill();
    assert_eq!(plain.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json()["status"], "queued");
    plain.add_worker();
    assert_eq!(plain.finished(&id)["predictions"], json!([{"label": label_of("cup.jpg")}]));
}

#[test]
fn an_image_that_does_not_fit_the_queue_is_refused_with_the_queues_limit() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let queues = transport::open_queues(&Backend::Local { data_dir: dir.path().join("data") }).await.unwrap();
        let attributes = QueueAttributes { max_message_bytes: 6_144, ..QueueAttributes::default() };
        queues.create(&Names::local("imgcls").request_queue, &attributes).await.unwrap();
    });
    let service = Service::start_in(dir, 0, &["--wire", "seed"], &[]);
    let image = picture("one-pixel.png");
    // Images may be followed by anything; base64 of 4,527 bytes and the name just fit.
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
