//! The HTTP interface that programs use: waiting, repeating, deleting and listening, and the headers and documents that tools
//! read. Refusals of malformed requests are in `requests.rs`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, Service, count_results, label_of, request, result_text, test_image, until};

pub const BOUNDARY: &str = "XBOUND";

#[track_caller]
pub fn assert_problem(response: &Response, status: u16, says: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{}", response.text());
    let detail = response.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(says), "{detail:?} does not say {says:?}");
}

/// Returns a form with a file in each of these fields, by the name of the field, the name of the file and its content.
pub fn form_of(files: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, name, content) in files {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn post_form(service: &Service, path: &str, headers: &[(&str, &str)], files: &[(&str, &str, &[u8])]) -> Response {
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [&[("Content-Type", content_type.as_str())], headers].concat();
    service.request("POST", path, &headers, &form_of(files))
}

fn id_of(response: &Response) -> String {
    response.json()["id"].as_str().unwrap_or_else(|| panic!("no id in {}", response.text())).to_owned()
}

#[test]
fn client_chooses_between_waiting_and_not_waiting() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    for (path, prefer, applied) in [
        ("/v1/jobs", None, None),
        ("/v1/classify?wait=0", None, None),
        ("/v1/classify", Some("respond-async"), Some("respond-async")),
        ("/v1/classify", Some("wait=0"), Some("wait=0")),
        ("/v1/classify?wait=1ms", Some("respond-async"), Some("respond-async")),
    ] {
        let headers: Vec<_> = prefer.map(|value| ("Prefer", value)).into_iter().collect();
        let pending = service.request("POST", path, &headers, &image);
        assert_eq!(pending.status, 202, "{path} {prefer:?}: {}", pending.text());
        assert_eq!(pending.header("preference-applied"), applied, "{path} {prefer:?}");
        assert_eq!(pending.header("location"), Some(format!("/v1/jobs/{}", id_of(&pending)).as_str()));
        assert_eq!(pending.header("retry-after"), Some("1"));
        assert_eq!(pending.text(), format!("{{\"id\":\"{}\",\"status\":\"queued\"}}", id_of(&pending)));
    }
    let conflict = service.request("POST", "/v1/classify?wait=5", &[("Prefer", "wait=6")], &image);
    assert_problem(&conflict, 400, "wait=5");
    assert_problem(&service.request("POST", "/v1/jobs?wait=soon", &[], &image), 400, "wait=");

    service.add_worker();
    let waited = service.request("PUT", "/v1/jobs/my%20cup.jpg", &[("Prefer", "wait=60")], &image);
    assert_eq!((waited.status, waited.header("preference-applied")), (200, Some("wait=60")), "{}", waited.text());
    let result = waited.json();
    assert_eq!(result["predictions"][0]["label"], label_of("cup.jpg").as_str());
    assert_eq!(result["filename"], "my cup.jpg");
    let timing = waited.header("server-timing").unwrap();
    assert!(timing.starts_with("queued;dur=") && timing.contains("inferred;dur="), "{timing}");
}

#[test]
fn members_of_a_result_have_one_order_everywhere() {
    let service = Service::start(1, &[], &[]);
    let posted = service.request("POST", "/v1/classify", &[], &test_image("cup.jpg"));
    let read = service.request("GET", &format!("/v1/jobs/{}", id_of(&posted)), &[], b"").text();
    let beginning = posted.text().trim_end_matches('}').to_owned();
    assert!(read.starts_with(&beginning), "{read}\ndoes not begin like\n{beginning}");
    assert!(read[beginning.len()..].contains(",\"timeline\":[{\"event\":\"submitted\",\"at\":\""), "{read}");
    let stored = result_text(&service.database(), &id_of(&posted));
    assert_eq!(stored, posted.text());
}

#[test]
fn repeated_request_gets_the_first_job_from_every_web_process() {
    let mut service = Service::start(1, &[], &[]);
    let other = service.add_web();
    let (cup, cat) = (test_image("cup.jpg"), test_image("cat.jpg"));
    let send = |address: SocketAddr, path: &str, headers: &[(&str, &str)], image: &[u8]| {
        request(address, "POST", path, headers, image).unwrap()
    };
    let key = [("Idempotency-Key", "order-7")];
    let first = send(service.address, "/v1/jobs", &key, &cup);
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, None), "{}", first.text());
    let id = id_of(&first);
    service.finished(&id);
    for (address, path) in [(service.address, "/v1/jobs?wait=10"), (other, "/v1/classify"), (other, "/v1/jobs?wait=5")]
    {
        let repeated = send(address, path, &key, &cup);
        assert_eq!((repeated.status, repeated.header("idempotency-replayed")), (200, Some("true")));
        assert_eq!(id_of(&repeated), id, "{path}");
        assert_eq!(repeated.json()["predictions"][0]["label"], label_of("cup.jpg").as_str());
    }
    for (path, image) in [("/v1/jobs", &cat), ("/v1/jobs?top_k=1", &cup)] {
        let refused = send(other, path, &key, image);
        assert_problem(&refused, 422, "Idempotency-Key");
        assert_eq!(
            (refused.json()["type"].as_str(), id_of(&refused)),
            (Some("urn:imgcls:problem:idempotency-key-reused"), id.clone())
        );
    }
    assert_ne!(id_of(&send(other, "/v1/classify", &[("Idempotency-Key", "order-8")], &cup)), id);
    assert_eq!(service.images().len(), 2);
    assert_problem(&send(other, "/v1/jobs", &[key[0], key[0]], &cup), 400, "more than one Idempotency-Key");
    assert_problem(&send(other, "/v1/jobs", &[("Idempotency-Key", "")], &cup), 400, "Idempotency-Key");

    service.restart_web();
    assert_eq!(id_of(&send(service.address, "/v1/jobs?wait=30", &key, &cup)), id, "also after a crash");
}

#[test]
fn simultaneous_requests_with_one_key_are_one_job() {
    let mut service = Service::start(1, &[], &[]);
    let addresses = [service.address, service.add_web()];
    let image = test_image("cup.jpg");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|at| {
                let image = &image;
                scope.spawn(move || {
                    let key = [("Idempotency-Key", "at-once")];
                    let answer = request(addresses[at % 2], "POST", "/v1/classify?wait=60", &key, image).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    id_of(&answer)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // The record of the key is stored beside the result.
    assert_eq!((service.images().len(), count_results(&service.database())), (1, 2));
}

#[test]
fn record_without_a_job_is_completed_by_the_next_request() {
    let service = Service::start(1, &[], &[]);
    let (image, key) = (test_image("cup.jpg"), [("Idempotency-Key", "half")]);
    let id = id_of(&service.request("POST", "/v1/classify", &key, &image));
    // This is the state after a process died between the record and the job.
    let database = service.database();
    for (bucket, key) in [("input", format!("images/{id}")), ("output", format!("results/{id}.json"))] {
        let deleted = database.execute("DELETE FROM objects WHERE bucket = ?1 AND key = ?2", [bucket, &key]).unwrap();
        assert_eq!(deleted, 1, "{key}");
    }
    let repeated = service.request("POST", "/v1/classify?wait=60", &key, &image);
    assert_eq!((repeated.status, id_of(&repeated)), (200, id), "{}", repeated.text());
}

#[test]
fn each_file_of_a_form_is_answered_in_order() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let (cup, cat) = (test_image("cup.jpg"), test_image("cat.jpg"));
    let too_large = [&b"\xff\xd8\xff"[..], &vec![0; 1_100_000]].concat();
    let files: [(&str, &str, &[u8]); 5] = [
        ("image", "1.jpg", &cup),
        ("image", "2.txt", b"hello"),
        ("image", "3.jpg", b"\xff\xd8\xff no image"),
        ("image", "4.jpg", &too_large),
        ("image", "5.jpg", &cat),
    ];
    let answered = post_form(&service, "/v1/classify?wait=60&top_k=1", &[], &files);
    assert_eq!((answered.status, answered.header("content-type")), (200, Some("application/json")));
    let answers = answered.json();
    let status: Vec<&Value> = answers.as_array().unwrap().iter().map(|answer| &answer["status"]).collect();
    assert_eq!(status, [&json!("succeeded"), &json!(415), &json!(422), &json!(413), &json!("succeeded")], "{answers}");
    assert_eq!(answers[0]["predictions"][0]["label"], label_of("cup.jpg").as_str());
    assert_eq!(
        (&answers[4]["filename"], &answers[4]["predictions"][0]["label"]),
        (&json!("5.jpg"), &json!(label_of("cat.jpg")))
    );
    assert!(answers[1]["detail"].as_str().unwrap().contains("2.txt"), "{answers}");
    assert!(answers[2]["id"].is_string(), "it was accepted and could not be decoded");

    let key = [("Idempotency-Key", "pair")];
    let pair = [("a", "1.jpg", cup.as_slice()), ("b", "2.jpg", &cat)];
    let accepted = post_form(&service, "/v1/jobs", &key, &pair);
    assert_eq!((accepted.status, accepted.header("retry-after")), (202, Some("1")), "{}", accepted.text());
    let ids: Vec<String> =
        accepted.json().as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(service.finished(&ids[1])["predictions"][0]["label"], label_of("cat.jpg").as_str());
    let repeated = post_form(&service, "/v1/classify?wait=60", &key, &pair).json();
    assert_eq!([&repeated[0]["id"], &repeated[1]["id"]], [ids[0].as_str(), ids[1].as_str()]);

    // A form with one image and a file in another field is not a list.
    let single = post_form(&service, "/v1/classify?wait=60", &[], &[("n", "note.txt", b"hello"), ("f", "1.jpg", &cup)]);
    assert_eq!(single.json()["status"], "succeeded", "{}", single.text());
    let many: Vec<(&str, &str, &[u8])> = (0..101).map(|_| ("f", "x.txt", &b"hello"[..])).collect();
    assert_problem(&post_form(&service, "/v1/jobs", &[], &many), 400, "100 files");
    assert!(service.web.peak_memory_bytes() < 128 << 20, "{}", service.web.peak_memory_bytes());
}

#[test]
fn image_in_json_is_classified() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let image = test_image("cup.jpg");
    let base64 = base64::engine::general_purpose::STANDARD.encode(&image);
    let post = |path: &str, content_type: &str, body: &Value| {
        service.request("POST", path, &[("Content-Type", content_type)], body.to_string().as_bytes())
    };
    for (path, content_type, body, classes) in [
        ("/v1/classify", "application/json", json!({"image": base64}), 5),
        (
            "/v1/classify?top_k=2",
            "application/json; charset=utf-8",
            json!({"image": format!("data:image/jpeg;base64,{base64}")}),
            2,
        ),
        (
            "/v1/jobs?wait=60",
            "application/vnd.api+json",
            json!({"image": base64, "filename": "cup.jpg", "top_k": 3}),
            3,
        ),
    ] {
        let answer = post(path, content_type, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result = answer.json();
        assert_eq!(result["predictions"].as_array().unwrap().len(), classes);
        assert_eq!(result["predictions"][0]["label"], label_of("cup.jpg").as_str());
        assert_eq!(&result["filename"], body.get("filename").unwrap_or(&json!("")));
    }
    let json = "application/json";
    assert_problem(&post("/v1/jobs?top_k=2", json, &json!({"image": base64, "top_k": 3})), 400, "top_k=2");
    assert_problem(&post("/v1/jobs", json, &json!({"image": base64, "model": "none"})), 404, "none");
    assert_problem(&post("/v1/jobs", json, &json!({"image": base64, "tok_k": 3})), 400, "tok_k");
    assert_problem(&post("/v1/jobs", json, &json!({"image": "https://images.example/cat.jpg"})), 400, "not fetched");
    assert_problem(&post("/v1/jobs", json, &json!({"image": "aGVsbG8="})), 415, "text");
    let large = base64::engine::general_purpose::STANDARD.encode(vec![0xff; (1 << 20) + 1]);
    assert_problem(&post("/v1/jobs", json, &json!({"image": large})), 413, "1048576");
    assert_problem(&post("/v1/jobs", json, &json!({"image": "A".repeat(8 << 20)})), 413, "1048576");
    assert!(service.web.peak_memory_bytes() < 128 << 20, "{}", service.web.peak_memory_bytes());
}

#[test]
fn deleted_job_stays_deleted() {
    let mut service = Service::start(0, &[], &[]);
    let other = service.add_web();
    let image = test_image("cup.jpg");
    let waiting = service.submit("waiting.jpg", &image);
    let path = format!("/v1/jobs/{waiting}");
    let at = |address: SocketAddr, method: &str, path: &str| request(address, method, path, &[], b"").unwrap();
    let addresses = [service.address, other];
    let assert_gone = |path: &str| {
        for address in addresses {
            assert_problem(&at(address, "GET", path), 404, "no job");
            assert_problem(&at(address, "GET", &format!("{path}/image")), 404, "no job");
            assert_problem(&at(address, "GET", &format!("{path}/events")), 404, "no job");
            assert_problem(&at(address, "DELETE", path), 404, "no job");
        }
    };
    let cancelled = request(other, "DELETE", &path, &[("X-Request-Id", "delete-1")], b"").unwrap();
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")), "{}", cancelled.text());
    assert_eq!(cancelled.header("x-request-id"), Some("delete-1"));
    let line = until("a line about the deletion", || {
        service.web.log().lines().find(|line| line.contains("by its client")).map(str::to_owned)
    });
    assert!(line.contains("delete-1") && line.contains(&waiting), "{line}");
    assert_gone(&path);

    // A caller that waits for the job is told.
    let address = service.address;
    let caller = std::thread::spawn({
        let image = image.clone();
        move || request(address, "POST", "/v1/classify?wait=60", &[], &image).unwrap()
    });
    let id = until("the image of the caller", || {
        let ids = service.images().into_iter().map(|key| key.trim_start_matches("images/").to_owned());
        ids.into_iter().find(|id| *id != waiting)
    });
    assert_eq!(at(other, "DELETE", &format!("/v1/jobs/{id}")).status, 200);
    assert_problem(&caller.join().unwrap(), 410, "deleted");

    service.add_worker();
    until("an empty queue", || {
        let sql =
            "SELECT count(*) FROM messages JOIN queues ON queues.id = queue_id WHERE name = 'web-app-image-transport'";
        let left: u64 = service.database().query_row(sql, [], |row| row.get(0)).unwrap();
        (left == 0).then_some(())
    });
    assert_gone(&path);
    let complete = service.submit("complete.jpg", &image);
    service.finished(&complete);
    let path = format!("/v1/jobs/{complete}");
    let removed = at(other, "DELETE", &path);
    assert_eq!((removed.status, &removed.json()["status"]), (200, &json!("removed")));
    assert_gone(&path);
    assert!(!service.images().contains(&format!("images/{complete}")), "the image is gone");
    assert!(!result_text(&service.database(), &complete).contains("complete.jpg"), "nothing of the result is left");
    assert_problem(&at(other, "DELETE", "/v1/jobs/0198c0de-0000-7000-8000-000000000000"), 404, "no job");
}

/// An event stream, read line by line.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(address: SocketAddr, id: &str) -> Events {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        Events(BufReader::new(stream))
    }

    fn line_with(&mut self, text: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended before {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }
}

#[test]
fn events_of_a_job_end_with_its_result() {
    let mut service = Service::start(0, &["--max-connections", "6"], &[]);
    let id = service.submit("cup.jpg", &test_image("cup.jpg"));
    let mut events = Events::open(service.address, &id);
    events.line_with("200 OK");
    events.line_with("content-type: text/event-stream");
    events.line_with("event: queued");
    assert!(events.line_with("data: ").contains(&id));
    // At most half of the connections listen, and others are answered at once.
    let mut more: Vec<Events> = (0..2).map(|_| Events::open(service.address, &id)).collect();
    for events in &mut more {
        events.line_with("event: queued");
    }
    let refused = service.request("GET", &format!("/v1/jobs/{id}/events"), &[], b"");
    assert_problem(&refused, 503, "too many clients wait");
    assert!(refused.header("retry-after").is_some());
    let polled = service.request("GET", &format!("/v1/jobs/{id}?wait=600"), &[], b"");
    assert_eq!((polled.status, &polled.json()["status"]), (200, &json!("queued")));
    assert_eq!(polled.header("retry-after"), Some("1"));
    drop(more);

    service.add_worker();
    events.line_with("event: finished");
    let data = events.line_with("data: ");
    let job: Value = serde_json::from_str(data.trim().trim_start_matches("data: ")).unwrap();
    assert_eq!(job["predictions"][0]["label"], label_of("cup.jpg").as_str());
    assert_eq!(job["timeline"][0]["event"], "submitted");
    let mut of_complete = Events::open(service.address, &id);
    of_complete.line_with("event: finished");
}

#[test]
fn answers_have_the_headers_that_tools_read() {
    let service = Service::start(1, &[], &[]);
    let image = test_image("cup.jpg");
    let id = id_of(&service.request("POST", "/v1/classify?wait=60", &[], &image));
    let job = format!("/v1/jobs/{id}");
    for path in [job.as_str(), "/", "/no-such-page", "/healthz", "/v1/jobs/none"] {
        let answer = service.request("GET", path, &[("X-Request-Id", "trace/1=x")], b"");
        assert_eq!(answer.header("x-request-id"), Some("trace/1=x"), "{path}");
        assert!(answer.header("server-timing").unwrap().contains("total;dur="), "{path}");
        assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let made = service.request("GET", path, &[("X-Request-Id", "two words")], b"");
        assert_eq!(made.header("x-request-id").map(str::len), Some(36), "{path}");
    }
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = service.request("POST", "/v1/jobs", &[("traceparent", traceparent)], &image);
    assert_eq!(traced.header("traceparent"), Some(traceparent));

    let before = service.request("GET", &job, &[], b"");
    let tag = before.header("etag").unwrap().to_owned();
    let known = service.request("GET", &job, &[("If-None-Match", &tag)], b"");
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(tag.as_str())));
    let plain = service.request("GET", "/assets/app.js", &[], b"");
    assert_eq!((plain.status, plain.header("content-encoding")), (200, None));
    let packed = service.request("GET", "/assets/app.js", &[("Accept-Encoding", "gzip, br")], b"");
    assert_eq!((packed.header("content-encoding"), packed.header("vary")), (Some("gzip"), Some("accept-encoding")));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.body && packed.body.len() < plain.body.len() / 2);
    assert_ne!(packed.header("etag"), plain.header("etag"));
    for (coding, answer) in [("gzip", &packed), ("identity", &plain)] {
        let headers = [("Accept-Encoding", coding), ("If-None-Match", answer.header("etag").unwrap())];
        assert_eq!(service.request("GET", "/assets/app.js", &headers, b"").status, 304, "{coding}");
    }
    let refused = service.request("GET", "/assets/app.js", &[("Accept-Encoding", "gzip;q=0, *")], b"");
    assert_eq!(refused.header("content-encoding"), None);

    let text = service.request("POST", "/", &[("Accept", "application/json;q=0, */*")], &image);
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"), "{}", text.text());
    let as_json = service.request("POST", "/", &[("Accept", "application/json, text/plain, */*")], &image);
    assert_eq!(as_json.header("content-type"), Some("application/json"));
}

#[test]
fn only_pages_of_named_origins_may_use_the_interface() {
    let service =
        Service::start(0, &["--cors-origin", "https://app.example", "--cors-origin", "http://localhost:3000"], &[]);
    let image = test_image("cup.jpg");
    let preflight = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type,idempotency-key"),
        ];
        service.request("OPTIONS", "/v1/classify", &headers, b"")
    };
    for origin in ["https://app.example", "http://localhost:3000"] {
        let allowed = preflight(origin);
        assert_eq!(allowed.status, 200, "{}", allowed.text());
        assert_eq!(allowed.header("access-control-allow-origin"), Some(origin));
        assert!(allowed.header("access-control-allow-methods").unwrap().contains("DELETE"));
        assert!(allowed.header("access-control-allow-headers").unwrap().contains("idempotency-key"));
        let sent = service.request("POST", "/v1/jobs", &[("Origin", origin), ("Sec-Fetch-Site", "cross-site")], &image);
        assert_eq!((sent.status, sent.header("access-control-allow-origin")), (202, Some(origin)), "{}", sent.text());
        assert!(sent.header("access-control-expose-headers").unwrap().contains("location"));
    }
    assert_eq!(preflight("https://evil.example").header("access-control-allow-origin"), None);
    let refused = service.request("POST", "/v1/jobs", &[("Origin", "https://evil.example")], &image);
    assert_problem(&refused, 403, "--cors-origin");
    assert_eq!(refused.header("access-control-allow-origin"), None);
}

#[test]
fn every_described_operation_answers_and_others_are_refused() {
    let service = Service::start(0, &[], &[]);
    let document = service.request("GET", "/openapi.json", &[], b"").json();
    assert_eq!(document["openapi"], "3.1.0");
    let job = service.submit("cup.jpg", &test_image("cup.jpg"));
    let batch = id_of(&post_form(&service, "/v1/batches", &[], &[("images", "cup.jpg", &test_image("cup.jpg"))]));
    let paths = document["paths"].as_object().unwrap();
    for (template, operations) in paths {
        let id = if template.contains("/batches/") { &batch } else { &job };
        let name = match template.as_str() {
            "/v1/models/{name}" => "efficientnet-lite0",
            "/assets/{name}" => "app.css",
            _ => "cup.jpg",
        };
        let path = template.replace("{id}", id).replace("{name}", name);
        let described: Vec<&String> = operations.as_object().unwrap().keys().collect();
        for method in ["get", "post", "put", "delete", "patch"] {
            if method == "delete" || template.ends_with("/events") {
                continue; // They have tests of their own.
            }
            let answer = service.request(&method.to_uppercase(), &path, &[], b"");
            let (status, text) = (answer.status, answer.text());
            if described.iter().any(|known| *known == method) {
                let known = operations[method]["responses"].as_object().unwrap();
                assert!(known.contains_key(&status.to_string()), "{method} {path}: {status} is not described: {text}");
                assert!(status != 404 && status != 405, "{method} {path}: {text}");
            } else {
                assert_problem(&answer, 405, "Allow");
                assert!(answer.header("allow").is_some(), "{method} {path}");
            }
        }
    }
    let docs = service.request("GET", "/docs", &[], b"").text();
    for path in paths.keys() {
        assert!(docs.contains(&format!("<code>{path}</code>")), "/docs does not name {path}");
    }
    assert!(!docs.contains("http://") && !docs.contains("https://"), "the page needs no other server");
    let readable = "/v1/jobs/%7Bid%7D";
    assert_problem(&service.request("GET", readable, &[], b""), 404, "no job");
}

/// The routes of the service itself come from the table of operations, which is what is described. The formats of other
/// servers are described by their own protocols, and the document has none of their routes.
#[test]
fn document_describes_the_routes_of_the_service_itself_and_none_of_the_dialects() {
    let routes = include_str!("../../src/web/routes.rs");
    assert_eq!(routes.matches(".route(").count(), 1, "routes.rs adds a route that is not in the table of operations");

    let service = Service::start(0, &[], &[]);
    let document = service.request("GET", "/openapi.json", &[], b"").json();
    let sources = dialect_sources();
    let of_dialects: Vec<(&str, &str)> =
        sources.split(".route(\"").skip(1).filter_map(|rest| rest.lines().next()?.split_once("\", ")).collect();
    assert!(of_dialects.len() > 10, "{of_dialects:?}");
    for (path, handlers) in of_dialects {
        for method in ["get", "post", "put"].into_iter().filter(|method| handlers.contains(&format!("{method}("))) {
            assert!(document["paths"][path][method].is_null(), "{method} {path} is described");
        }
    }
}

fn dialect_sources() -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/dialects");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.map(|path| if path.is_dir() { path.join("mod.rs") } else { path });
    files.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}
