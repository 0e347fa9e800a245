//! Requests as programs, browsers and curl really send them, and the answers to those that cannot be served.

use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

use base64::Engine as _;
use imgcls::config::{Backend, Names};
use imgcls::transport;
use imgcls::transport::queued::queue::{self, Outgoing, ReceiveOptions};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, Service, label_of, read_response, test_image, until};

const BOUNDARY: &str = "XBOUND";

/// Sends a head and a body. Only the length of the body and `Connection: close` are added.
fn send(service: &Service, head: &str, body: &[u8]) -> Response {
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    let _ = stream.write_all(body);
    read_response(&mut BufReader::new(stream)).unwrap()
}

fn post(service: &Service, headers: &[(&str, &str)], body: &[u8]) -> Response {
    service.request("POST", "/v1/classify?top_k=1", headers, body)
}

/// Returns a form with these parts, each with its headers and its content.
fn form_of(boundary: &str, parts: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in parts {
        for piece in [b"--", boundary.as_bytes(), b"\r\n", head, b"\r\n\r\n", content, b"\r\n"] {
            body.extend_from_slice(piece);
        }
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

fn post_form(service: &Service, parts: &[(&[u8], &[u8])]) -> Response {
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    post(service, &[("Content-Type", &content_type)], &form_of(BOUNDARY, parts))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn assert_problem(response: &Response, status: u16, says: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{}", response.text());
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    let problem = response.json();
    assert_eq!(problem["status"], status);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(says), "{detail:?} does not say {says:?}");
}

#[test]
fn every_form_that_clients_send_is_read() {
    let service = Service::start(1, &[], &[]);
    let (image, label) = (test_image("cup.jpg"), label_of("cup.jpg"));
    let assert_named = |response: &Response, expected: &str| {
        let answer = response.json();
        assert_eq!((&answer["status"], &answer["filename"]), (&"succeeded".into(), &expected.into()), "{answer}");
        assert_eq!(answer["predictions"][0]["label"], label.as_str());
    };
    for (head, name) in [
        (
            &b"Content-Disposition: form-data; name=\"f\"; filename*=utf-8''Gr%C3%B6%C3%9Fe.jpg"[..],
            "Gr\u{f6}\u{df}e.jpg",
        ),
        (b"Content-Disposition: form-data; name=f; filename*=UTF-8''a%20b.jpg; filename=\"x.jpg\"", "a b.jpg"),
        (b"Content-Disposition: form-data; name=\"f\"; filename=\"caf\xe9.jpg\"", "caf\u{e9}.jpg"),
        (b"Content-Disposition: form-data; name=\"f\"; filename=\"\x8e\xca\x90\x5e.jpg\"", "\u{5199}\u{771f}.jpg"),
        (b"Content-Disposition: form-data; name=\"f\"; filename=\"\xff\xfe\x00.jpg\"", "\u{ff}\u{fe}\0.jpg"),
        (b"Content-Disposition: form-data; name=\"image\"\r\nContent-Type: image/jpeg", ""),
        (b"content-disposition: FORM-DATA; NAME=f; FILENAME=a.jpg\r\nCONTENT-TYPE: IMAGE/JPEG", "a.jpg"),
        (b"Content-Type: application/octet-stream", ""),
    ] {
        assert_named(&post_form(&service, &[(head, &image)]), name);
    }
    let file = b"Content-Disposition: form-data; name=\"f\"; filename=\"a.jpg\"";
    for (boundary, content_type) in [
        ("----=_Part_7_1234.5678", "multipart/form-data; boundary=----=_Part_7_1234.5678"),
        ("a=b;c", "Multipart/Form-Data; charset=utf-8; BOUNDARY=\"a=b;c\""),
        ("plain", "multipart/mixed;boundary=plain"),
    ] {
        assert_named(
            &post(&service, &[("Content-Type", content_type)], &form_of(boundary, &[(file, &image)])),
            "a.jpg",
        );
    }
    // The first part that is an image is classified, whatever precedes it.
    let note = (
        &b"Content-Disposition: form-data; name=\"n\"; filename=\"note.txt\"\r\nContent-Type: text/plain"[..],
        &b"hello"[..],
    );
    let field = (&b"Content-Disposition: form-data; name=\"user\""[..], &b"{\"id\": 7}"[..]);
    let nothing = (
        &b"Content-Disposition: form-data; name=\"g\"; filename=\"\"\r\nContent-Type: application/octet-stream"[..],
        &b""[..],
    );
    assert_named(&post_form(&service, &[note, field, nothing, (file, &image), note]), "a.jpg");
}

#[test]
fn form_without_exactly_one_image_is_refused() {
    let service = Service::start(0, &["--max-upload-bytes", "1MiB"], &[]);
    let image = test_image("cup.jpg");
    let (first, second) =
        (&b"Content-Disposition: form-data; name=a; filename=1.jpg"[..], &b"Content-Type: image/png"[..]);
    let post_to_page = |parts: &[(&[u8], &[u8])]| {
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        service.request("POST", "/", &[("Content-Type", &content_type)], &form_of(BOUNDARY, parts))
    };
    let two = post_to_page(&[(first, &image), (second, &test_image("rgb.png"))]);
    assert_problem(&two, 400, "more than one image");
    let note =
        (&b"Content-Disposition: form-data; name=n; filename=note.txt\r\nContent-Type: text/plain"[..], &b"hello"[..]);
    let empty = (&b"Content-Disposition: form-data; name=e; filename=empty.jpg"[..], &b""[..]);
    assert_problem(&post_form(&service, &[note]), 415, "note.txt");
    assert_problem(&post_form(&service, &[note, empty]), 415, "\"empty.jpg\": the image is empty");
    let field = (&b"Content-Disposition: form-data; name=user"[..], &b"7"[..]);
    assert_problem(&post_form(&service, &[field]), 400, "fields without a file: user");
    assert_problem(&post_form(&service, &[(first, &vec![0xff; 1_100_000])]), 413, "1048576");
    // Two images, each of which fits the limit.
    let large = [&b"\xff\xd8\xff"[..], &vec![0; 700_000]].concat();
    assert_problem(&post_to_page(&[(first, &large), (second, &large)]), 400, "more than one image");
    assert!(service.images().is_empty(), "no part of a refused form is stored");
}

#[test]
fn endless_part_head_is_refused_while_it_arrives() {
    let service = Service::start(0, &[], &[]);
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n\
        Content-Length: 1000000\r\n\r\n--b\r\nX: ";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 20_000]).unwrap();
    assert_problem(&read_response(&mut BufReader::new(stream)).unwrap(), 400, "headers of a part are longer");
}

#[test]
fn put_requests_and_gzip_bodies_are_accepted() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let (image, label) = (test_image("cup.jpg"), label_of("cup.jpg"));
    let assert_answered = |response: Response, filename: &str| {
        let answer = response.json();
        assert_eq!(
            (&answer["predictions"][0]["label"], &answer["filename"]),
            (&label.as_str().into(), &filename.into())
        );
    };
    assert_answered(service.request("PUT", "/v1/classify", &[], &image), "");
    assert_answered(service.request("PUT", "/v1/classify/my%20cat.jpg", &[], &image), "my cat.jpg");
    assert_eq!(service.request("PUT", "/v1/jobs", &[], &image).status, 202);
    for coding in ["gzip", "X-GZIP", "identity, gzip"] {
        assert_answered(post(&service, &[("Content-Encoding", coding)], &gzip(&image)), "");
    }
    let form = form_of(BOUNDARY, &[(b"Content-Disposition: form-data; name=f; filename=a.jpg", &image)]);
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    assert_answered(
        post(&service, &[("Content-Encoding", "gzip"), ("Content-Type", &content_type)], &gzip(&form)),
        "a.jpg",
    );

    let post_gzip = |body: &[u8]| post(&service, &[("Content-Encoding", "gzip")], body);
    assert_problem(&post_gzip(&image), 400, "gzip");
    assert_problem(&post_gzip(&gzip(&image)[..1_000]), 400, "gzip");
    assert_problem(&post_gzip(&gzip(&[image.clone(), vec![0; 50 << 20]].concat())), 413, "1048576");
    assert!(service.web.peak_memory_bytes() < 128 << 20, "{}", service.web.peak_memory_bytes());
    for coding in ["br", "deflate", "gzip, gzip", "gzip, br"] {
        let refused = post(&service, &[("Content-Encoding", coding)], &image);
        assert_problem(&refused, 415, "gzip");
        assert_eq!(refused.header("accept-encoding"), Some("gzip"));
    }
}

#[test]
fn body_that_is_not_an_image_is_refused_with_advice() {
    let service = Service::start(0, &[], &[]);
    let base64 = base64::engine::general_purpose::STANDARD.encode(test_image("cup.jpg"));
    let json = json!({"image": base64}).to_string();
    let as_json = [("Content-Type", "application/json")];
    assert_problem(&service.request("POST", "/", &as_json, json.as_bytes()), 415, "send the bytes");
    assert_problem(&post(&service, &[], json.as_bytes()), 415, "send the bytes");
    assert_problem(&post(&service, &[], base64.as_bytes()), 415, "send the bytes");
    assert_problem(&post(&service, &[], format!("data:image/jpeg;base64,{base64}").as_bytes()), 415, "send the bytes");
    assert_problem(&post(&service, &[], b"hello"), 415, "is text");
    let form =
        form_of(BOUNDARY, &[(b"Content-Disposition: form-data; name=f; filename=a.jpg", &test_image("cup.jpg"))]);
    assert_problem(&post(&service, &[], &form), 415, "multipart/form-data");
}

#[test]
fn every_refusal_is_a_problem_document() {
    let service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    let id = "0198c0de-0000-7000-8000-000000000000";
    let at = |method: &str, path: &str| service.request(method, path, &[], &image);
    assert_problem(&at("POST", "/v1/classify?wait=5&wait=6"), 400, "wait twice");
    assert_problem(&at("POST", "/v1/jobs?top_k=5&top_k=5"), 400, "top_k twice");
    assert_problem(&at("GET", &format!("/v1/jobs/{id}?wait=1&wait=2")), 400, "wait twice");
    assert_problem(&at("POST", "/v1/classify?wait=%ff"), 400, "UTF-8");
    assert_problem(&at("POST", "/v1/classify?wait=%zz"), 400, "wait");
    assert_problem(&at("GET", "/v1/jobs/%ff"), 404, "no job");
    assert_problem(&at("GET", "/v1/jobs/%ff/image"), 404, "no job");
    assert_problem(&at("PUT", "/v1/classify/%ff"), 400, "UTF-8");
    let preflight = [("Origin", "http://app.example"), ("Access-Control-Request-Method", "POST")];
    let refused = service.request("OPTIONS", "/v1/classify", &preflight, b"");
    assert_problem(&refused, 405, "Allow");
    assert_eq!(refused.header("allow"), Some("POST,PUT"));

    // These refusals come from the HTTP library.
    let many: String = (0..150).map(|at| format!("X-{at}: y\r\n")).collect();
    assert_problem(&send(&service, &format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}"), b""), 431, "100 headers");
    assert_problem(&send(&service, "NO REQUEST AT ALL\r\n", b""), 400, "not a valid");
    assert_problem(
        &send(&service, &format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n", "a".repeat(70_000)), b""),
        414,
        "shorter",
    );
}

#[test]
fn loopback_server_answers_only_to_names_of_this_machine() {
    let service = Service::start(0, &["--allowed-host", "images.example"], &[]);
    let get = |host: &str| send(&service, &format!("GET /healthz HTTP/1.1\r\n{host}"), b"");
    for host in ["localhost", "LocalHost:9", "app.localhost", "127.0.0.1", "127.3.2.1:80", "[::1]:80", "images.example"]
    {
        assert_eq!(get(&format!("Host: {host}\r\n")).status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "192.0.2.7:8080", "0.0.0.0"] {
        assert_problem(&get(&format!("Host: {host}\r\n")), 421, "--allowed-host");
    }
    assert_problem(&get(""), 400, "Host");
    assert_problem(&get("Host: localhost\r\nHost: localhost\r\n"), 400, "more than one Host");
    assert_problem(&get("Host: local host\r\n"), 400, "Host");
    let mut stream = TcpStream::connect(service.address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "HTTP/1.0 has no Host: {answer}");
    // The server reads a large body, so that the client can read the refusal.
    let large = send(&service, "POST /v1/jobs HTTP/1.1\r\nHost: evil.example\r\n", &vec![0xff; 5 << 20]);
    assert_problem(&large, 421, "evil.example");
}

#[test]
fn pages_of_other_sites_cannot_submit() {
    let service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    let own = format!("http://{}", service.address);
    let submit = |method: &str, path: &str, headers: &[(&str, &str)]| service.request(method, path, headers, &image);
    for (headers, is_taken) in [
        (&[][..], true),
        (&[("Origin", own.as_str()), ("Sec-Fetch-Site", "same-origin")], true),
        (&[("Origin", own.as_str())], true),
        (&[("Sec-Fetch-Site", "none")], true),
        (&[("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")], false),
        (&[("Origin", "http://evil.example")], false),
        (&[("Origin", "null")], false),
        (&[("Sec-Fetch-Site", "cross-site")], false),
    ] {
        for (method, path) in
            [("POST", "/v1/jobs"), ("PUT", "/v1/jobs"), ("POST", "/v1/classify?wait=0"), ("POST", "/")]
        {
            if is_taken && path == "/" {
                continue;
            }
            let response = submit(method, path, headers);
            if is_taken {
                assert_eq!(response.status, 202, "{method} {path} {headers:?}: {}", response.text());
            } else {
                assert_problem(&response, 403, "the request comes from");
            }
        }
    }
    assert_eq!(
        service.request("GET", "/", &[("Sec-Fetch-Site", "cross-site")], b"").status,
        200,
        "a link may lead here"
    );
}

#[test]
fn answers_forbid_caching_and_type_guessing() {
    let service = Service::start(0, &[], &[]);
    let id = service.submit("a.jpg", &test_image("cup.jpg"));
    for path in [format!("/v1/jobs/{id}"), "/readyz".to_owned(), "/metrics".to_owned()] {
        let answer = service.request("GET", &path, &[], b"");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    let image = service.request("GET", &format!("/v1/jobs/{id}/image"), &[], b"");
    assert_eq!(image.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(image.header("content-security-policy"), Some("default-src 'none'; sandbox"));
}

#[test]
fn legacy_message_may_contain_base64_with_line_breaks() {
    let service = Service::start(1, &[], &[]);
    let encoded = base64::engine::general_purpose::STANDARD.encode(test_image("cup.jpg"));
    let broken = |end: &str| {
        let lines: Vec<&str> = encoded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
        lines.join(end) + end
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names = Names::local("imgcls");
    let backend = Backend::Local { data_dir: service.data_dir() };
    let (requests, results) = runtime.block_on(async {
        let queues = transport::open_queues(&backend).await.unwrap();
        (queues.open(&names.request_queue).await.unwrap(), queues.open(&names.result_queue).await.unwrap())
    });
    for (name, end) in [("lf", "\n"), ("crlf", "\r\n"), ("space", " "), ("tab", "\t\n")] {
        let message = json!({"filename": format!("{name}.jpg"), "image_data": broken(end)}).to_string();
        runtime.block_on(queue::send_one(&*requests, Outgoing::new(message))).unwrap();
        let options = ReceiveOptions { max: 1, wait: std::time::Duration::from_secs(1), visibility_timeout: DEADLINE };
        let reply = until("the reply", || {
            let mut received = runtime.block_on(results.receive(options)).unwrap();
            received.pop().map(|delivery| delivery.body)
        });
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(reply, json!({format!("{name}.jpg"): label_of("cup.jpg")}));
    }
}
