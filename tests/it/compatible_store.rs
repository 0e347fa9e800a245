//! Stores that speak like S3 and are not S3: a current one (SeaweedFS), and one that ignores conditions of puts and refuses
//! checksums, as older releases of several stores do. A proxy in front of moto plays the latter.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::cloud::scope;
use crate::emulators::{moto, seaweedfs};
use crate::harness::{Service, label_of, request, test_image, until};
use crate::legacy_tiers::AwsFixture;
use crate::provision::proxy::{self, Call};

const NOT_IMPLEMENTED: &str = "<Error><Code>NotImplemented</Code><Message>A header implies functionality that is not implemented.</Message></Error>";
const LINE: &str = "this store does not keep conditions of puts";

/// A store that is older than conditions and checksums.
pub struct OldStore {
    pub url: String,
    /// Calls that it refused because of a checksum.
    pub refused: Arc<AtomicUsize>,
}

impl OldStore {
    pub fn before(emulator: SocketAddr) -> OldStore {
        let refused = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refused);
        let address = proxy::start(move |call| {
            let is_checksum = |line: &str| {
                let line = line.to_ascii_lowercase();
                line.starts_with("x-amz-checksum-") || line.starts_with("x-amz-sdk-checksum-")
            };
            if is_of_object(call) && call.head.lines().any(is_checksum) {
                counted.fetch_add(1, Ordering::Relaxed);
                let length = NOT_IMPLEMENTED.len();
                let head =
                    format!("HTTP/1.1 501 Not Implemented\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                return Some((head + NOT_IMPLEMENTED).into_bytes());
            }
            let is_condition = |line: &&str| line.to_ascii_lowercase().starts_with("if-");
            let head = call.head.split_inclusive('\n').filter(|line| !is_condition(line)).collect();
            Call { head, body: call.body.clone() }.forward_to(emulator)
        });
        OldStore { url: format!("http://{address}"), refused }
    }
}

fn is_of_object(call: &Call) -> bool {
    let path = call.path().split('?').next().unwrap_or_default();
    path.trim_matches('/').contains('/')
}

/// The service with its queues on moto and its objects in the store.
fn service(fixture: &AwsFixture, store: &str, workers: usize) -> Service {
    let mut environment = fixture.environment();
    environment.push(("AWS_ENDPOINT_URL_S3".to_owned(), store.to_owned()));
    Service::start_on(&["--backend", "aws"], environment, workers, &[], &[])
}

fn classifies(service: &Service) {
    for name in ["cat.jpg", "rocket.jpg"] {
        let answer = service.request("POST", "/v1/classify?wait=50", &[], &test_image(name));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["predictions"][0]["label"], label_of(name));
    }
}

fn lines(log: &str) -> usize {
    log.lines().filter(|line| line.contains(LINE)).count()
}

#[test]
fn current_store_gets_conditional_puts_and_no_line_of_log() {
    let service = service(&AwsFixture::new(moto()), &seaweedfs().url(), 1);
    classifies(&service);
    assert_eq!((lines(&service.web.log()), lines(&service.workers[0].log())), (0, 0));
}

#[test]
fn old_store_gets_no_checksums_and_one_line_of_log_names_what_it_ignores() {
    let store = OldStore::before(moto().address);
    let service = service(&AwsFixture::new(moto()), &store.url, 1);
    classifies(&service);
    let log = service.workers[0].log();
    assert_eq!((lines(&service.web.log()), lines(&log)), (1, 1), "{log}");
    assert!(log.contains("a second put with If-None-Match: *"), "{log}");
    assert_eq!(store.refused.load(Ordering::Relaxed), 0);
}

/// A call of moto's S3 on the result of a job.
fn result_object(fixture: &AwsFixture, method: &str, id: &str, body: &str) -> String {
    let path = format!("/{}/results/{id}.json", fixture.name_of("out"));
    let scope = scope("s3");
    let answer = request(moto().address, method, &path, &[("Authorization", &scope)], body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

#[test]
fn worker_looks_for_a_result_before_it_writes_one_to_a_store_without_conditions() {
    let (fixture, store) = (AwsFixture::new(moto()), OldStore::before(moto().address));
    let mut service = service(&fixture, &store.url, 0);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    let error = json!({"code": "internal", "message": "written by another worker"});
    let earlier = json!({"v": 1, "id": id, "status": "failed", "error": error}).to_string();
    result_object(&fixture, "PUT", &id, &earlier);
    service.add_worker();
    until("the request to be acknowledged", || {
        let depth = fixture.queue_json(&["depth"]);
        let requests = depth["queues"].as_array().unwrap().iter().find(|queue| queue["role"] == "requests").unwrap();
        (requests["visible"] == 0 && requests["in_flight"] == 0).then_some(())
    });
    assert_eq!(result_object(&fixture, "GET", &id, ""), earlier);
}
