//! The progress of jobs: positions, expected ends and timelines, event streams, and the state of the service.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::api::assert_problem;
use crate::emulators::moto;
use crate::harness::{DEADLINE, Service, request, test_image, until};

/// Reads an event stream until its end, or until `enough` says so. Returns names and data of the events.
fn events_until(
    service: &Service,
    path: &str,
    headers: &[(&str, &str)],
    enough: impl Fn(&[(String, Value)]) -> bool,
) -> Vec<(String, Value)> {
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", service.address);
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let status = lines.next().unwrap();
    assert!(status.contains(" 200 "), "{status}");
    let (mut events, mut name) = (Vec::new(), String::new());
    while !enough(&events) {
        let Some(line) = lines.next() else { break };
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        } else if let Some(data) = line.strip_prefix("data: ") {
            events.push((name.clone(), serde_json::from_str(data).unwrap()));
        }
    }
    events
}

#[test]
fn job_that_waits_tells_its_position_and_that_no_worker_runs() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    // Jobs of one millisecond may have the same position.
    let millisecond = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let submit = |_| {
        let id = service.submit("cup.jpg", &image);
        let submitted_by = millisecond();
        until("the next millisecond", || (millisecond() > submitted_by).then_some(id.clone()))
    };
    let ids: Vec<String> = (0..3).map(submit).collect();
    for (at, id) in ids.iter().enumerate() {
        let job = until("the depth of the queue", || {
            let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
            (job["position"] == at + 1).then_some(job)
        });
        assert_eq!((&job["id"], &job["status"]), (&json!(id), &json!("queued")));
        assert_eq!(job["timeline"][0]["event"], "submitted");
        assert!(job["eta_seconds"].is_null(), "nothing was measured: {job}");
    }
    // The stream tells the change, without being asked again.
    let waits = |state: &Value| state["stage"] == "waiting_for_capacity" && state["message"].is_string();
    let path = format!("/v1/jobs/{}/events", ids[2]);
    let events = events_until(&service, &path, &[], |events| events.iter().any(|(_, state)| waits(state)));
    let (first, last) = (&events[0], events.last().unwrap());
    assert_eq!((first.0.as_str(), last.0.as_str()), ("queued", "progress"));
    assert_eq!((&first.1["position"], &last.1["position"]), (&json!(3), &json!(3)));
    assert!(last.1["message"].as_str().unwrap().starts_with("no worker is running"), "{events:?}");

    service.add_worker();
    for id in &ids {
        let job = service.finished(id);
        let names: Vec<&str> =
            job["timeline"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names.first(), Some(&"submitted"));
        assert!(names.ends_with(&["received", "fetched", "decoded", "inferred", "succeeded"]), "{names:?}");
    }
    // The start of the worker and its time for an image were measured, so that the next wait has an expected end.
    service.workers.clear();
    let id = service.submit("cup.jpg", &image);
    let job = until("an expected end", || {
        let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
        // The depth is read now and then, so that the last job may still be counted.
        (job["eta_seconds"].is_number() && job["position"] == 1).then_some(job)
    });
    assert_eq!(job["status"], "queued", "{job}");
    service.add_worker();
    assert_eq!(service.finished(&id)["status"], "succeeded");
}

#[test]
fn one_stream_tells_the_outcome_of_several_jobs() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    let ids: Vec<String> = (0..3).map(|_| service.submit("cup.jpg", &image)).collect();
    let unknown = uuid::Uuid::now_v7().to_string();
    let path = format!("/v1/events?jobs={},{unknown}", ids.join(","));
    let begun = |events: &[(String, Value)]| events.iter().filter(|(name, _)| name == "progress").count() >= 3;
    let events = events_until(&service, &path, &[], begun);
    assert!(events.contains(&("unknown".to_owned(), json!({"id": unknown, "status": "unknown"}))), "{events:?}");

    assert_eq!(service.request("DELETE", &format!("/v1/jobs/{}", ids[2]), &[], b"").status, 200);
    service.add_worker();
    let events = events_until(&service, &path, &[], |_| false);
    let outcome = |id: &str| {
        let mut of_job = events.iter().filter(|(_, state)| state["id"] == id);
        of_job.next_back().map(|(name, state)| (name.clone(), state.clone())).unwrap()
    };
    for id in &ids[..2] {
        let (name, job) = outcome(id);
        assert_eq!((name.as_str(), &job["status"]), ("finished", &json!("succeeded")));
        assert_eq!(job["timeline"].as_array().unwrap().last().unwrap()["event"], "answered");
    }
    assert_eq!(outcome(&ids[2]).0, "removed", "{events:?}");

    for (query, says) in [("", "jobs=ID"), ("?jobs=x", "not the id"), ("?jobs=a&jobs=b", "twice")] {
        assert_problem(&service.request("GET", &format!("/v1/events{query}"), &[], b""), 400, says);
    }
}

#[test]
fn state_of_the_service_shows_the_queue_and_the_answers() {
    let mut service = Service::start(0, &[], &[]);
    let ids: Vec<String> = (0..2).map(|_| service.submit("cup.jpg", &test_image("cup.jpg"))).collect();
    let fleet = || service.request("GET", "/v1/fleet", &[], b"").json();
    until("two images that wait", || (fleet()["queue"] == json!({"waiting": 2, "in_flight": 0})).then_some(()));
    assert_eq!(fleet()["workers"]["ready"], Value::Null, "they belong to another process");
    assert_eq!(fleet()["recent"]["p50_ms"], Value::Null);
    service.add_worker();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    let fleet = || service.request("GET", "/v1/fleet", &[], b"").json();
    until("the times of two answers", || fleet()["recent"]["p99_ms"].is_number().then_some(()));
}

#[test]
fn cost_of_images_is_known_only_with_a_price() {
    let url = moto().url();
    let buckets = ["--input-bucket", "cost-test-input", "--output-bucket", "cost-test-output"];
    let queues = ["--request-queue", "cost-test-requests", "--result-queue", "cost-test-results"];
    let shared = [&["--endpoint-url", url.as_str(), "--region", "us-east-1"][..], &buckets, &queues].concat();
    let flags = ["--auth", "none", "--worker-instance-type"];
    let fleet = |address| request(address, "GET", "/v1/fleet", &[], b"").unwrap().json();
    let start = |instance_type| {
        let flags = [&flags[..], &[instance_type]].concat();
        Service::start_on(&shared, moto().environment(), 1, &flags, &[])
    };
    let service = start("c6i.large");
    assert_eq!(fleet(service.address)["cost"], Value::Null, "nothing was answered yet");
    let id = service.submit("cup.jpg", &test_image("cup.jpg"));
    service.finished(&id);
    let cost = until("a figure", || Some(fleet(service.address)["cost"].clone()).filter(Value::is_object));
    // One machine has answered one image in a minute: a sixtieth of 0.085 for each.
    assert_eq!(cost, json!({"per_thousand": 1.416_667, "currency": "USD"}));
    drop(service);

    let service = start("c99.unknown");
    let id = service.submit("cup.jpg", &test_image("cup.jpg"));
    service.finished(&id);
    until("the times of an answer", || fleet(service.address)["recent"]["p99_ms"].is_number().then_some(()));
    assert_eq!(fleet(service.address)["cost"], Value::Null, "this type has no price");
}
