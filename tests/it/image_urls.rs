//! Images by URL through the real binary: what is fetched, what is refused, and what a client learns of other servers.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use imgcls::config::Backend;
use imgcls::transport;
use imgcls::transport::queued::object::PutOptions;
use serde_json::{Value, json};

use crate::harness::{Response, Service, block_on, form, label_of, test_image};
use crate::http_server::{Answer, serve, serve_on};
use crate::shim::Shim;

const SECRET: &str = "the content of a private page";
/// 127.0.0.2 stands for the public internet, and 127.0.0.1 for the network of the service.
const ONLY_SECOND: [&str; 3] = ["--allow-image-urls", "--allow-calls-to", "127.0.0.2"];

fn classify(service: &Service, url: &str) -> Response {
    let body = json!({"image_url": url}).to_string();
    service.request("POST", "/v1/classify", &[("Content-Type", "application/json")], body.as_bytes())
}

/// A form without a file, with one field.
fn form_with(field: &str, text: &str) -> (String, Vec<u8>) {
    let boundary = "field-boundary";
    let body =
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{text}\r\n--{boundary}--\r\n");
    (format!("multipart/form-data; boundary={boundary}"), body.into_bytes())
}

/// A server of images at 127.0.0.2.
fn images(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    format!("http://{}", serve_on(listener, move |request| answer(&request.path)))
}

fn redirect(to: String) -> Answer {
    Answer { status: 302, headers: vec![("Location", to)], body: SECRET.into() }
}

/// Checks a refusal, and that it tells nothing of the other server's answer.
fn refused(answer: &Response, status: u16, kind: &str) {
    let text = answer.text();
    let problem: Value = answer.json();
    assert_eq!(answer.status, status, "{text}");
    assert!(problem["type"].as_str().unwrap().ends_with(kind), "{text}");
    assert!(!text.contains("private page") && !text.contains("127.0.0.1"), "{text}");
}

#[test]
fn image_is_fetched_from_the_address_in_json_or_in_a_form() {
    let service = Service::start(1, &ONLY_SECOND, &[]);
    let server = images(|path| match path {
        "/moved" => redirect("/photos/my%20cup.jpg?size=large".to_owned()),
        "/photos/my%20cup.jpg?size=large" => Answer::text(200, "text/plain", test_image("cup.jpg")),
        _ => Answer::text(404, "text/plain", SECRET),
    });
    for path in ["/photos/my%20cup.jpg?size=large", "/moved"] {
        let answer = classify(&service, &format!("{server}{path}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["predictions"][0]["label"], label_of("cup.jpg"));
    }
    let (content_type, body) = form_with("url", &format!("{server}/photos/my%20cup.jpg?size=large"));
    let answer = service.request("POST", "/v1/classify", &[("Content-Type", &content_type)], &body);
    assert_eq!((answer.status, &answer.json()["filename"]), (200, &json!("my cup.jpg")), "{}", answer.text());
    // A file of the form is the image, whatever else the form says.
    let (content_type, body) = form("image", "cat.jpg", &test_image("cat.jpg"));
    let answer = service.request("POST", "/", &[("Content-Type", &content_type)], &body);
    assert_eq!((answer.status, answer.text()), (200, label_of("cat.jpg")));
    refused(&classify(&service, &format!("{server}/missing")), 422, "image-not-fetched");
}

#[test]
fn images_are_not_fetched_unless_that_is_allowed() {
    let service = Service::start(0, &["--allow-calls-to", "127.0.0.0/8"], &[]);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let address = serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Answer::text(200, "image/jpeg", test_image("cup.jpg"))
    });
    let url = format!("http://{address}/cup.jpg");
    let (content_type, body) = form_with("url", &url);
    for answer in
        [classify(&service, &url), service.request("POST", "/v1/jobs", &[("Content-Type", &content_type)], &body)]
    {
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("--allow-image-urls"), "{}", answer.text());
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn fetched_files_have_the_limits_of_uploads() {
    let service = Service::start(0, &[&ONLY_SECOND[..], &["--max-upload-bytes", "64KiB"]].concat(), &[]);
    let server = images(|path| match path {
        "/large" => Answer::text(200, "image/jpeg", [test_image("cup.jpg"), vec![0; 100_000]].concat()),
        "/text" => Answer::text(200, "image/jpeg", SECRET),
        "/empty" => Answer::text(200, "image/jpeg", ""),
        _ => Answer::text(500, "text/plain", SECRET),
    });
    refused(&classify(&service, &format!("{server}/large")), 413, "too-large");
    refused(&classify(&service, &format!("{server}/text")), 415, "unsupported-type");
    refused(&classify(&service, &format!("{server}/empty")), 415, "unsupported-type");
    refused(&classify(&service, &format!("{server}/error")), 422, "image-not-fetched");
    // It announces no length, and never ends.
    let endless = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = endless.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut connection, _) = endless.accept().unwrap();
        let _ = connection.read(&mut [0; 4_096]);
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while connection.write_all(&[0xff; 4_096]).is_ok() {}
    });
    refused(&classify(&service, &format!("http://{address}/")), 413, "too-large");
    // It speaks another protocol.
    let other = TcpListener::bind("127.0.0.2:0").unwrap();
    let address = other.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut connection, _) = other.accept().unwrap();
        let _ = connection.write_all(format!("220 {SECRET}\r\n").as_bytes());
        let _ = connection.read(&mut [0; 4_096]);
    });
    refused(&classify(&service, &format!("http://{address}/")), 422, "image-not-fetched");
    // It accepts the connection, and says nothing.
    let silent = TcpListener::bind("127.0.0.2:0").unwrap();
    refused(&classify(&service, &format!("http://{}/", silent.local_addr().unwrap())), 422, "image-not-fetched");
    assert_eq!(service.images().len(), 0);
}

#[test]
fn private_addresses_are_never_reached() {
    let shim = Shim::new();
    let service = Service::start_on(&["--backend", "local"], shim.environment(), 0, &ONLY_SECOND, &[]);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let private = serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Answer::text(200, "text/plain", SECRET)
    });
    let port = private.port();
    let public =
        serve_on(TcpListener::bind(format!("127.0.0.2:{port}")).unwrap(), move |request| match request.path.as_str() {
            "/by-address" => redirect(format!("http://127.0.0.1:{port}/")),
            "/mapped" => redirect(format!("http://[::ffff:7f00:1]:{port}/")),
            "/number" => redirect(format!("http://2130706433:{port}/")),
            "/without-scheme" => redirect(format!("//127.0.0.1:{port}/")),
            "/backslash" => redirect(format!("http:\\\\127.0.0.1:{port}\\")),
            "/scheme" => redirect("file:///etc/passwd".to_owned()),
            "/by-name" => redirect("/again".to_owned()),
            "/loop" => redirect("/loop".to_owned()),
            _ => Answer::text(404, "text/plain", SECRET),
        });
    for path in ["by-address", "mapped", "number", "without-scheme", "backslash", "scheme", "loop"] {
        refused(&classify(&service, &format!("http://{public}/{path}")), 422, "image-not-fetched");
    }
    for url in
        [format!("http://127.0.0.1:{port}/"), format!("http://0x7f.1:{port}/"), format!("http://localhost:{port}/")]
    {
        let answer = classify(&service, &url);
        assert!(matches!(answer.status, 400 | 422), "{url}: {}", answer.text());
        assert!(!answer.text().contains("private page"), "{}", answer.text());
    }
    // The name stands for a public address in the first answer, and for a private one in the second.
    shim.answer_look_ups("images.example", &["127.0.0.2", "127.0.0.1", "127.0.0.2 127.0.0.1"]);
    for _ in 0..2 {
        refused(&classify(&service, &format!("http://images.example:{port}/by-name")), 422, "image-not-fetched");
    }
    shim.answer_look_ups("unknown.example", &[]);
    let unknown = classify(&service, &format!("http://unknown.example:{port}/"));
    let private_name = classify(&service, &format!("http://images.example:{port}/"));
    assert_eq!(unknown.json()["detail"], private_name.json()["detail"], "nobody learns which names exist");
    assert_eq!(count.load(Ordering::SeqCst), 0, "a private address was reached");
}

#[test]
fn object_of_an_allowed_bucket_is_classified_and_no_other_is_read() {
    let flags = ["--read-bucket", "archive", "--max-upload-bytes", "1MiB"];
    let service = Service::start(1, &flags, &[]);
    block_on(async {
        let backend = Backend::Local { data_dir: service.data_dir() };
        for (bucket, key, body) in [
            ("archive", "2024/cup of coffee.jpg", test_image("cup.jpg")),
            ("archive", "notes.txt", SECRET.into()),
            ("archive", "large.jpg", [test_image("cup.jpg"), vec![0; 2 << 20]].concat()),
            ("private", "cup.jpg", test_image("cup.jpg")),
        ] {
            let bucket = transport::open_bucket(&backend, bucket).await.unwrap();
            let _ = bucket.put(key, Bytes::from(body), PutOptions::default()).await.unwrap();
        }
    });
    let answer = classify(&service, "s3://archive/2024/cup of coffee.jpg");
    assert_eq!((answer.status, &answer.json()["filename"]), (200, &json!("cup of coffee.jpg")), "{}", answer.text());
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("cup.jpg"));
    let (content_type, body) = form_with("url", "s3://archive/2024/cup of coffee.jpg");
    let answer = service.request("POST", "/v1/classify", &[("Content-Type", &content_type)], &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    refused(&classify(&service, "s3://archive/notes.txt"), 415, "unsupported-type");
    refused(&classify(&service, "s3://archive/large.jpg"), 413, "too-large");
    refused(&classify(&service, "s3://archive/missing.jpg"), 422, "image-not-fetched");
    for location in
        ["s3://private/cup.jpg", "s3://input/images/x", "s3://archive", "s3://archive/", "s3://", "s3:///cup.jpg"]
    {
        refused(&classify(&service, location), 400, "malformed");
    }
    refused(&classify(&service, &format!("s3://archive/{}", "k".repeat(1_100))), 400, "malformed");
}
