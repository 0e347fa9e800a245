//! The web tier and its workers as clients see them, with real processes, real sockets and the real model.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Response, Service, form, imgcls, label_of, read_response, request, test_image, until};

fn problem(response: &Response) -> (u16, String) {
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{}", response.text());
    let problem = response.json();
    assert_eq!(problem["status"], response.status);
    assert!(!problem["detail"].as_str().unwrap().is_empty());
    let kind = problem["type"].as_str().unwrap().strip_prefix("urn:imgcls:problem:").unwrap().to_owned();
    (response.status, kind)
}

#[test]
fn every_endpoint_classifies_an_image() {
    let service = Service::start(1, &[], &[]);
    let image = test_image("rocket.jpg");
    let label = label_of("rocket.jpg");

    let (content_type, body) = form("myfile", "rocket.jpg", &image);
    let plain = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
    assert_eq!((plain.status, plain.text()), (200, label.clone()));
    assert_eq!(plain.header("content-type"), Some("text/plain; charset=utf-8"));
    let (content_type, body) = form("inputFile", "rocket.jpg", &image);
    let headers = [("Content-Type", content_type.as_str()), ("Accept", "application/json")];
    let json = service.request("POST", "/", &headers, &body).json();
    assert_eq!((&json["status"], &json["predictions"][0]["label"]), (&"succeeded".into(), &label.clone().into()));
    assert_eq!(json["filename"], "rocket.jpg");

    let classified = service.request("POST", "/v1/classify?top_k=2", &[], &image).json();
    assert_eq!(classified["predictions"].as_array().unwrap().len(), 2);
    assert_eq!(classified["predictions"][0]["label"], label.as_str());
    assert!(classified["timings_ms"]["total"].as_f64().unwrap() > 0.0);
    assert!(classified["model"]["digest"].as_str().unwrap().starts_with("sha256:"));

    let id = service.submit("a.jpg", &image);
    let job = service.finished(&id);
    assert_eq!((&job["id"], &job["status"]), (&id.as_str().into(), &"succeeded".into()));
    assert_eq!(job["timeline"].as_array().unwrap().last().unwrap()["event"], "succeeded");
    let shown = service.request("GET", &format!("/v1/jobs/{id}/image"), &[], b"");
    assert_eq!((shown.body.as_slice(), shown.header("content-type")), (image.as_slice(), Some("image/jpeg")));
    assert_eq!(service.request("GET", "/readyz", &[], b"").status, 200);
    let metrics = service.request("GET", "/metrics", &[], b"").text();
    assert!(metrics.contains("imgcls_web_accepted_total 4"), "{metrics}");
}

#[test]
fn invalid_requests_get_a_problem_of_their_kind() {
    let service = Service::start(1, &["--max-upload-bytes", "300000"], &["--max-pixels", "20000000"]);
    let post =
        |path: &str, headers: &[(&str, &str)], body: &[u8]| problem(&service.request("POST", path, headers, body));
    let expected = |status: u16, kind: &str| (status, kind.to_owned());

    assert_eq!(post("/v1/classify", &[], b""), expected(415, "unsupported-type"));
    assert_eq!(post("/v1/jobs", &[], b"plain text"), expected(415, "unsupported-type"));
    assert_eq!(post("/v1/classify", &[], &vec![0xff; 400_000]), expected(413, "too-large"));
    assert_eq!(post("/v1/classify?wait=soon", &[], b"x"), expected(400, "malformed"));
    assert_eq!(post("/v1/classify?top_k=0", &[], b"x"), expected(400, "malformed"));
    assert_eq!(post("/", &[("Content-Type", "multipart/form-data")], b"x"), expected(400, "malformed"));
    let no_file = b"--b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nhello\r\n--b--\r\n";
    assert_eq!(post("/", &[("Content-Type", "multipart/form-data; boundary=b")], no_file), expected(400, "malformed"));
    assert_eq!(
        post("/", &[("Content-Type", "multipart/form-data; boundary=b")], b"nonsense"),
        expected(400, "malformed")
    );
    let (content_type, body) = form("myfile", "big.jpg", &vec![0xff; 310_000]);
    assert_eq!(post("/", &[("Content-Type", &content_type)], &body), expected(413, "too-large"));

    for id in ["0198c0de-0000-7000-8000-000000000000", "x", "..%2F..%2Fetc%2Fpasswd"] {
        let unknown = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"");
        assert_eq!(problem(&unknown), expected(404, "no-such-job"));
    }
    assert_eq!(problem(&service.request("GET", "/nothing", &[], b"")), expected(404, "not-found"));
    assert_eq!(problem(&service.request("DELETE", "/v1/jobs", &[], b"")), expected(405, "method-not-allowed"));
}

#[test]
fn hostile_images_are_refused_and_harm_no_other_image() {
    let service = Service::start(1, &[], &["--max-batch-size", "4"]);
    let good = test_image("rocket.jpg");
    let label = label_of("rocket.jpg");
    let expected: serde_json::Value = serde_json::from_slice(&test_image("hostile/expected.json")).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let answer = service.request("POST", "/v1/classify", &[], &good).json();
                    assert_eq!(answer["predictions"][0]["label"], label.as_str());
                }
            });
        }
        for name in expected.as_object().unwrap().keys() {
            let bytes = test_image(&format!("hostile/{name}"));
            let answer = service.request("POST", "/v1/classify", &[], &bytes);
            assert!(matches!(answer.status, 200 | 415 | 422), "{name}: {} {}", answer.status, answer.text());
        }
    });
    let refused = service.request("POST", "/v1/classify", &[], &test_image("hostile/half.jpg"));
    assert_eq!(problem(&refused), (422, "undecodable".to_owned()));
    // The refusal is a stored result like any other.
    let id = refused.json()["id"].as_str().unwrap().to_owned();
    let job = service.finished(&id);
    assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"undecodable".into()));
}

#[test]
fn refused_image_costs_little_memory() {
    let service = Service::start(1, &[], &[]);
    let classify = |image: &[u8]| service.request("POST", "/v1/classify", &[], image).status;
    assert_eq!(classify(&test_image("rocket.jpg")), 200);
    let before = service.workers[0].peak_memory_bytes();
    for name in ["huge-header.jpg", "huge-header.png", "many-scans.jpg", "half.jpg", "empty.jpg", "text.jpg"] {
        let status = classify(&test_image(&format!("hostile/{name}")));
        assert!(matches!(status, 400 | 415 | 422), "{name}: {status}");
    }
    let more = service.workers[0].peak_memory_bytes() - before;
    assert!(more < 64 << 20, "{more} bytes more");
}

#[test]
fn first_frame_of_fifty_thousand_is_classified() {
    let service = Service::start(1, &[], &[]);
    let mut gif = Vec::new();
    let photograph = image::load_from_memory(&test_image("cup.jpg")).unwrap().into_rgba8();
    image::codecs::gif::GifEncoder::new(&mut gif).encode_frame(image::Frame::new(photograph)).unwrap();
    let one = service.request("POST", "/v1/classify", &[], &gif).json();
    assert_eq!(gif.pop(), Some(b';'), "the trailer");
    for _ in 1..50_000 {
        // A frame of one pixel: image descriptor, code size, one block with the codes for clear and end, terminator.
        gif.extend(*b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    gif.push(b';');
    let many = service.request("POST", "/v1/classify", &[], &gif);
    assert_eq!(many.status, 200, "{}", many.text());
    assert_eq!(many.json()["predictions"], one["predictions"]);
}

#[test]
fn file_names_never_become_keys() {
    let service = Service::start(1, &[], &[]);
    let image = test_image("cup.jpg");
    let long = "x".repeat(2000);
    let encoded = "attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd%00%0A%3Cscript%3E";
    for (header, expected) in [
        (encoded.to_owned(), "../../etc/passwd\0\n<script>".to_owned()),
        (format!("attachment; filename=\"{long}\""), long[..255].to_owned()),
    ] {
        let answer = service.request("POST", "/v1/classify", &[("Content-Disposition", &header)], &image).json();
        assert_eq!(answer["filename"], expected.as_str());
        assert_eq!(answer["status"], "succeeded");
    }
    let (content_type, body) = form("f", "../../x\\\"<b>.jpg", &image);
    let answer = service.request("POST", "/v1/classify", &[("Content-Type", &content_type)], &body).json();
    assert_eq!(answer["status"], "succeeded");
    let keys = service.images();
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in keys {
        let name = key.strip_prefix("images/").unwrap();
        assert!(name.len() == 36 && name.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()), "{name}");
    }
}

#[test]
fn uploads_with_the_same_name_get_their_own_answers() {
    let service = Service::start(2, &[], &[]);
    let names = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];
    let labels: Vec<String> = names.iter().map(|name| label_of(name)).collect();
    thread::scope(|scope| {
        for at in 0..50 {
            let (service, expected, name) = (&service, &labels[at % names.len()], names[at % names.len()]);
            scope.spawn(move || {
                let (content_type, body) = form("myfile", "same.jpg", &test_image(name));
                let answer = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
                assert_eq!((answer.status, &answer.text()), (200, expected));
            });
        }
    });
}

#[test]
fn every_web_process_answers_for_every_id_and_jobs_wait_for_a_worker() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("rocket.jpg");
    let early = service.request("POST", "/v1/classify?wait=0", &[], &image);
    assert_eq!((early.status, early.json()["status"].as_str()), (202, Some("queued")));
    let id = early.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(early.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    service.restart_web();
    let queued = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
    assert_eq!((queued["id"].as_str(), queued["status"].as_str()), (Some(id.as_str()), Some("queued")));
    service.add_worker();
    assert_eq!(service.finished(&id)["status"], "succeeded");
}

#[test]
fn job_that_no_worker_reaches_in_time_expires() {
    let mut service = Service::start(0, &["--job-ttl", "1s"], &[]);
    let id = service.submit("late.jpg", &test_image("rocket.jpg"));
    until("its expiry", || {
        let submitted_at = imgcls::protocol::submitted_at(id.parse().unwrap()).unwrap();
        (jiff::Timestamp::now().duration_since(submitted_at).as_millis() > 1_100).then_some(())
    });
    service.add_worker();
    assert_eq!(service.finished(&id)["status"], "expired");
}

#[test]
fn slow_clients_are_disconnected_and_full_memory_is_answered_with_503() {
    let service = Service::start(
        0,
        &["--idle-timeout", "1s", "--body-timeout", "1s", "--max-buffered-bytes", "1MiB", "--max-connections", "8"],
        &[],
    );
    // Headers that never end and a silent connection are closed.
    for text in ["POST / HTTP/1.1\r\nHost: localhost\r\n", ""] {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    }
    // A body that stops is refused.
    let mut stalled = TcpStream::connect(service.address).unwrap();
    stalled.set_read_timeout(Some(DEADLINE)).unwrap();
    stalled.write_all(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc").unwrap();
    let answer = read_response(&mut BufReader::new(stalled)).unwrap();
    assert_eq!(problem(&answer), (408, "body-timeout".to_owned()));
    // One upload holds the memory, so the next is asked to try again.
    let mut holder = TcpStream::connect(service.address).unwrap();
    holder.write_all(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    holder.write_all(&vec![0xff; 950_000]).unwrap();
    let full = until("a full web tier", || {
        let answer = request(service.address, "POST", "/v1/jobs", &[], &vec![0xff; 200_000]).ok()?;
        (answer.status == 503).then_some(answer)
    });
    assert_eq!((problem(&full), full.header("retry-after")), ((503, "full".to_owned()), Some("1")));
}

#[test]
fn drain_answers_waiting_callers_and_a_worker_finishes_its_jobs() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("rocket.jpg");
    let address = service.address;
    let waiting = thread::spawn(move || request(address, "POST", "/v1/classify?wait=600", &[], &image).unwrap());
    until("the job", || service.images().pop().map(drop));
    let started = Instant::now();
    service.web.signal("TERM");
    let answer = waiting.join().unwrap();
    assert_eq!((answer.status, answer.json()["status"].as_str()), (202, Some("queued")));
    assert_eq!(service.web.wait(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());

    service.restart_web();
    service.add_worker();
    let ids: Vec<String> = (0..20).map(|_| service.submit("x.jpg", &test_image("cup.jpg"))).collect();
    service.workers[0].signal("TERM");
    assert_eq!(service.workers[0].wait(), Some(0));
    service.add_worker();
    for id in ids {
        assert_eq!(service.finished(&id)["attempt"], 1, "the worker left {id} unfinished");
    }
}

#[test]
fn failed_start_logs_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let inside = file.join("data");
    let data = dir.path().join("data");
    let (data, inside) = (data.to_str().unwrap(), inside.to_str().unwrap());
    for (arguments, says) in [
        (vec!["serve-web", "--data-dir", data, "--listen", &address], "choose another address with --listen"),
        (vec!["serve-web", "--data-dir", inside, "--listen", "127.0.0.1:0"], "--data-dir"),
        (vec!["worker", "--data-dir", data, "--model", "no-such-model"], "no-such-model"),
        (vec!["worker", "--data-dir", data, "--ort-dylib", "/no/such/library.so"], "/no/such/library.so"),
    ] {
        let output = imgcls().args(&arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = errors.lines().find(|line| line.starts_with("imgcls: ")).unwrap_or_else(|| panic!("{errors}"));
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(line.contains(says), "{arguments:?}: {line}");
    }
}
