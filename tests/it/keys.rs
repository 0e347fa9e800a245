//! Keys of clients, limits per client and TLS, through the real binary and real sockets.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use imgcls::keys::KeyHash;
use imgcls::protocol;
use serde_json::{Value, json};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use uuid::Uuid;

use crate::emulators::moto;
use crate::harness::{DEADLINE, Process, Response, Service, form, free_port, imgcls, request, test_image, until};

/// Runs `imgcls keys …` for a data directory.
fn keys(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = imgcls();
    command.arg("keys").args(arguments).args(["--backend", "local", "--data-dir"]).arg(data_dir);
    command.output().unwrap()
}

/// Creates a key, and returns it.
pub fn create_key(data_dir: &Path, name: &str, scope: &str, more: &[&str]) -> String {
    let output = keys(data_dir, &[&["create", "--name", name, "--scope", scope][..], more].concat());
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    let key = stdout.trim_end();
    assert!(key.starts_with("imgcls_") && key.len() == 71 && stdout.lines().count() == 1, "{stdout}");
    assert!(!stderr.contains(key), "the key is in the log: {stderr}");
    key.to_owned()
}

/// Starts a web tier that requires keys, with one worker.
pub fn keyed_service(worker_count: usize, flags: &[&str], make_keys: impl FnOnce(&Path)) -> Service {
    let dir = tempfile::tempdir().unwrap();
    make_keys(&dir.path().join("data"));
    Service::start_in(dir, worker_count, &[&["--auth", "required"][..], flags].concat(), &[])
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

/// Sends a request with a key; an empty one is none.
fn send(address: SocketAddr, key: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let authorization = bearer(key);
    let mut headers = headers.to_vec();
    if !key.is_empty() {
        headers.push(("Authorization", &authorization));
    }
    request(address, method, path, &headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

fn get(address: SocketAddr, key: &str, path: &str) -> Response {
    send(address, key, "GET", path, &[], b"")
}

/// A method, a path, headers, a body, and the status for each kind of key.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], [u16; 8]);

/// The kinds of keys, in the order of the statuses of a row.
const KINDS: [&str; 8] = ["none", "wrong", "expired", "revoked", "owner", "other", "read", "admin"];

/// A line for each route and kind of key whose status is not that of the table.
fn wrong_statuses(address: SocketAddr, keys_by_kind: &[String], table: &[Row<'_>]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (method, path, headers, body, expected) in table {
        for ((key, expected), kind) in keys_by_kind.iter().zip(expected).zip(KINDS) {
            // An answer to HEAD has no body, although it has its length.
            let status = if *method == "HEAD" {
                head_status(address, key, path)
            } else {
                send(address, key, method, path, headers, body).status
            };
            if status != *expected {
                wrong.push(format!("{method} {path} with {kind}: {status}, not {expected}"));
            }
        }
    }
    wrong
}

/// Every route with every kind of key. One line is one route: the status for no key, a wrong one, an expired one, a
/// revoked one, the owner's, that of another client, one that may read, and one that may do everything.
#[test]
fn every_route_is_decided_for_every_kind_of_key() {
    let mut keys_by_kind = vec![String::new(), "imgcls_wrong".to_owned()];
    let service = keyed_service(1, &[], |data_dir| {
        keys_by_kind.push(create_key(data_dir, "expired", "admin", &["--expires", "1ms"]));
        keys_by_kind.push(create_key(data_dir, "revoked", "admin", &[]));
        assert!(keys(data_dir, &["revoke", "revoked"]).status.success());
        for (name, scope) in [("owner", "classify"), ("other", "classify"), ("read", "read"), ("admin", "admin")] {
            keys_by_kind.push(create_key(data_dir, name, scope, &[]));
        }
    });
    let address = service.address;
    let image = test_image("cat.jpg");
    let (content_type, form_body) = form("image", "cat.jpg", &image);
    let form_type = [("Content-Type", content_type.as_str())];
    let owner = &keys_by_kind[4];
    let classified = send(address, owner, "POST", "/v1/classify?wait=60", &[], &image);
    assert_eq!(classified.status, 200, "{}", classified.text());
    let id = classified.json()["id"].as_str().unwrap().to_owned();
    let coded = id.replace('-', "%2D");
    let (job, coded_job) = (format!("/v1/jobs/{id}"), format!("/v1/jobs/{coded}"));
    let (job_image, coded_image) = (format!("{job}/image"), format!("{coded_job}/image"));
    let simple_job = format!("/v1/jobs/{}", id.replace('-', ""));
    let unknown_job = format!("/v1/jobs/{}", Uuid::now_v7());
    let (job_events, unknown_events) = (format!("{job}/events"), format!("{unknown_job}/events"));
    let (result_page, events) = (format!("/results/{id}"), format!("/v1/events?jobs={id}"));
    let prediction = format!("/v1/predictions/{id}");
    let unknown_cancel = format!("/v1/predictions/{}/cancel", Uuid::now_v7());
    let (json_type, json_body) = json_image(&image);
    let json_type = [("Content-Type", json_type)];
    let (list_type, list_body) = form_of_two(&image);
    let list_type = [("Content-Type", list_type.as_str())];

    let nobody: &[u8] = b"";
    let plain: &[(&str, &str)] = &[];
    let table: [Row<'_>; 45] = [
        ("GET", "/", plain, nobody, [200; 8]),
        ("GET", "/assets/app.js", plain, nobody, [200; 8]),
        ("GET", "/favicon.svg", plain, nobody, [200; 8]),
        ("HEAD", "/healthz", plain, nobody, [200; 8]),
        ("GET", "/healthz", plain, nobody, [200; 8]),
        ("GET", "/readyz", plain, nobody, [200; 8]),
        ("GET", "/metrics", plain, nobody, [401, 401, 401, 401, 403, 403, 403, 200]),
        ("GET", "/v1/models", plain, nobody, [401, 401, 401, 401, 200, 200, 200, 200]),
        ("GET", "/v1/models/efficientnet-lite0", plain, nobody, [401, 401, 401, 401, 200, 200, 200, 200]),
        ("GET", "/v1/jobs", plain, nobody, [401, 401, 401, 401, 200, 200, 200, 200]),
        ("GET", "/v1/jobs?limit=0", plain, nobody, [401, 401, 401, 401, 400, 400, 400, 400]),
        ("POST", "/v1/jobs", plain, &image, [401, 401, 401, 401, 202, 202, 403, 202]),
        ("PUT", "/v1/jobs", plain, &image, [401, 401, 401, 401, 202, 202, 403, 202]),
        ("POST", "/v1/classify?wait=60", plain, &image, [401, 401, 401, 401, 200, 200, 403, 200]),
        ("PUT", "/v1/classify/cat.jpg?wait=60", plain, &image, [401, 401, 401, 401, 200, 200, 403, 200]),
        ("POST", "/", &form_type, &form_body, [401, 401, 401, 401, 200, 200, 403, 200]),
        ("GET", &job, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("HEAD", &job, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &coded_job, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &simple_job, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &job_image, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &coded_image, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &unknown_job, plain, nobody, [401, 401, 401, 401, 404, 404, 404, 404]),
        ("GET", "/v1/jobs/no-id", plain, nobody, [401, 401, 401, 401, 404, 404, 404, 404]),
        ("GET", "/openapi.json", plain, nobody, [200; 8]),
        ("GET", "/docs", plain, nobody, [200; 8]),
        ("GET", "/assets/docs.css", plain, nobody, [200; 8]),
        // The page of a result shows nothing by itself.
        ("GET", &result_page, plain, nobody, [200; 8]),
        ("GET", &events, plain, nobody, [401, 401, 401, 401, 200, 200, 200, 200]),
        ("GET", "/v1/fleet", plain, nobody, [401, 401, 401, 401, 403, 403, 403, 200]),
        ("OPTIONS", "/v1/jobs", plain, nobody, [405; 8]),
        ("POST", "/v1/jobs", &json_type, &json_body, [401, 401, 401, 401, 202, 202, 403, 202]),
        ("POST", "/v1/jobs", &list_type, &list_body, [401, 401, 401, 401, 202, 202, 403, 202]),
        ("PUT", "/v1/jobs/cat.jpg", plain, &image, [401, 401, 401, 401, 202, 202, 403, 202]),
        // The name of a file, not the id of a job.
        ("PUT", &job, plain, &image, [401, 401, 401, 401, 202, 202, 403, 202]),
        ("GET", &job_events, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("GET", &unknown_events, plain, nobody, [401, 401, 401, 401, 404, 404, 404, 404]),
        ("DELETE", &unknown_job, plain, nobody, [401, 401, 401, 401, 404, 404, 403, 404]),
        ("GET", &prediction, plain, nobody, [401, 401, 401, 401, 200, 404, 200, 200]),
        ("POST", &unknown_cancel, plain, nobody, [401, 401, 401, 401, 404, 404, 403, 404]),
        ("POST", "/v1/models/efficientnet-lite0", plain, nobody, [401, 401, 401, 401, 405, 405, 403, 405]),
        ("GET", "/v2", plain, nobody, [401, 401, 401, 401, 200, 200, 200, 200]),
        ("GET", "/nowhere", plain, nobody, [401, 401, 401, 401, 404, 404, 404, 404]),
        ("POST", "/nowhere", plain, nobody, [401, 401, 401, 401, 404, 404, 403, 404]),
        ("POST", "/healthz", plain, nobody, [401, 401, 401, 401, 405, 405, 403, 405]),
    ];
    let wrong = wrong_statuses(address, &keys_by_kind, &table);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // A job of another key looks like one that does not exist.
    let other = get(address, &keys_by_kind[5], &job);
    let unknown = get(address, &keys_by_kind[5], &unknown_job);
    let blank = |answer: &Response| answer.text().replace(&id, "ID").replace(&unknown_job["/v1/jobs/".len()..], "ID");
    assert_eq!(blank(&other), blank(&unknown));
    // A stream of several jobs has the same rule.
    assert!(get(address, owner, &events).text().contains("\"succeeded\""));
    let hidden = get(address, &keys_by_kind[5], &events).text();
    assert!(hidden.contains("event: unknown") && !hidden.contains("succeeded"), "{hidden}");
    let page = get(address, "", &result_page).text();
    assert!(!page.contains("cat.jpg") && !page.contains("succeeded"), "{page}");
    let refused = get(address, "", "/v1/models");
    assert_eq!(refused.header("WWW-Authenticate"), Some("Bearer realm=\"imgcls\""));
    assert_eq!(refused.header("Content-Type"), Some("application/problem+json"));
    assert!(get(address, &keys_by_kind[2], "/v1/models").text().contains("expired"));
}

/// An image in JSON: its media type and the body.
fn json_image(image: &[u8]) -> (&'static str, Vec<u8>) {
    ("application/json", json!({"image": BASE64_STANDARD.encode(image)}).to_string().into_bytes())
}

/// A form with the same image twice: its media type and the body.
fn form_of_two(image: &[u8]) -> (String, Vec<u8>) {
    let (content_type, body) = form("image", "cat.jpg", image);
    let end = body.windows(2).rposition(|window| window == b"--").unwrap();
    let boundary = body[..end].windows(4).rposition(|window| window == b"\r\n--").unwrap();
    (content_type, [&body[..boundary + 2], &body].concat())
}

/// Returns the ids of all jobs whose images are in the store.
fn stored_jobs(service: &Service) -> Vec<Uuid> {
    service.images().iter().filter_map(|key| Some(key.strip_prefix("images/")?.parse().unwrap())).collect()
}

/// Method, path, headers, body and the number of jobs.
type Way<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, Vec<u8>, usize);

fn content_type(value: &str) -> Vec<(&str, &str)> {
    vec![("Content-Type", value)]
}

#[test]
fn every_way_to_submit_makes_a_job_of_the_key() {
    let mut key = String::new();
    let service = keyed_service(1, &[], |data_dir| key = create_key(data_dir, "owner", "classify", &[]));
    let image = test_image("cat.jpg");
    let encoded = BASE64_STANDARD.encode(&image);
    let (form_type, form_body) = form("image", "cat.jpg", &image);
    let (list_type, list_body) = form_of_two(&image);
    let (json_type, json_body) = json_image(&image);
    let infer = json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": [encoded, encoded]}]});
    let rekognition = json!({"Image": {"Bytes": encoded}});
    let replicate = json!({"input": {"image": encoded}});
    let predict = json!({"instances": [{"b64": encoded}]});
    let photo = json!({"images": [format!("data:image/jpeg;base64,{encoded}")]});
    let text = |value: &Value| value.to_string().into_bytes();
    let ways: Vec<Way<'_>> = vec![
        ("POST", "/", content_type(&form_type), form_body.clone(), 1),
        ("POST", "/v1/classify", vec![], image.clone(), 1),
        ("PUT", "/v1/classify/cat.jpg", vec![], image.clone(), 1),
        ("POST", "/v1/jobs", content_type(&form_type), form_body, 1),
        ("PUT", "/v1/jobs/cat.jpg", vec![], image.clone(), 1),
        ("POST", "/v1/jobs", content_type(json_type), json_body.clone(), 1),
        ("POST", "/v1/classify", content_type(json_type), json_body, 1),
        ("POST", "/v1/jobs", content_type(&list_type), list_body.clone(), 2),
        ("POST", "/v1/classify", content_type(&list_type), list_body.clone(), 2),
        ("POST", "/v1/jobs", vec![("Idempotency-Key", "one")], image.clone(), 1),
        ("POST", "/v1/jobs", [content_type(&list_type), vec![("Idempotency-Key", "two")]].concat(), list_body, 2),
        ("POST", "/", vec![("X-Amz-Target", "RekognitionService.DetectLabels")], text(&rekognition), 1),
        ("POST", "/models/efficientnet-lite0", vec![], image.clone(), 1),
        ("POST", "/v1/models/efficientnet-lite0:predict", vec![], text(&predict), 1),
        ("POST", "/v2/models/efficientnet-lite0/infer", vec![], text(&infer), 2),
        ("POST", "/predictions/efficientnet-lite0", vec![], image.clone(), 1),
        ("POST", "/endpoints/efficientnet-lite0/invocations", vec![("Content-Type", "image/jpeg")], image, 1),
        ("POST", "/api/v1/vision/labels", vec![], text(&photo), 1),
        ("POST", "/v1/predictions", vec![], text(&replicate), 1),
    ];
    let owner = KeyHash::of(key.as_bytes());
    let mut known = 0;
    for (method, path, headers, body, jobs) in ways {
        let answer = send(service.address, &key, method, path, &headers, &body);
        assert!((200..300).contains(&answer.status), "{method} {path} {headers:?}: {}", answer.text());
        let stored = stored_jobs(&service);
        assert_eq!(stored.len(), known + jobs, "{method} {path} {headers:?}: {}", answer.text());
        assert!(stored.iter().all(|id| owner.owns(*id)), "{method} {path} {headers:?} makes a job of nobody");
        known = stored.len();
    }
}

#[test]
fn an_idempotency_key_belongs_to_the_key_of_its_client() {
    let (mut one, mut two) = (String::new(), String::new());
    let service = keyed_service(1, &[], |data_dir| {
        one = create_key(data_dir, "one", "classify", &[]);
        two = create_key(data_dir, "two", "classify", &[]);
    });
    let address = service.address;
    let (cat, cup) = (test_image("cat.jpg"), test_image("cup.jpg"));
    let order = [("Idempotency-Key", "order-7")];
    let submit = |key: &str, image: &[u8]| {
        let answer = send(address, key, "POST", "/v1/classify?wait=60", &order, image);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        (id, answer.header("Idempotency-Replayed").is_some())
    };
    // Another image is no conflict with the request of another client.
    let (of_one, is_repeated) = submit(&one, &cat);
    let (of_two, is_also_repeated) = submit(&two, &cup);
    assert!(of_one != of_two && !is_repeated && !is_also_repeated, "{of_one} {of_two}");
    for (key, own, other) in [(&one, &of_one, &of_two), (&two, &of_two, &of_one)] {
        assert_eq!(get(address, key, &format!("/v1/jobs/{own}")).status, 200);
        assert_eq!(get(address, key, &format!("/v1/jobs/{other}")).status, 404);
    }
    // The header in which a client sends its key makes no difference.
    let headers = [order[0], ("X-Api-Key", one.as_str())];
    let repeated = request(address, "POST", "/v1/classify", &headers, &cat).unwrap();
    assert_eq!(
        (repeated.json()["id"].as_str(), repeated.header("Idempotency-Replayed")),
        (Some(&*of_one), Some("true"))
    );
    let refused = send(address, &two, "POST", "/v1/jobs", &order, &cat);
    assert!(refused.status == 422 && refused.json()["id"] == of_two.as_str(), "{}", refused.text());
}

#[test]
fn a_job_is_deleted_by_its_owner_and_by_an_administrator() {
    let mut of_kind = Vec::new();
    let service = keyed_service(0, &[], |data_dir| {
        for (name, scope) in [("owner", "classify"), ("other", "classify"), ("read", "read"), ("admin", "admin")] {
            of_kind.push(create_key(data_dir, name, scope, &[]));
        }
    });
    let address = service.address;
    let image = test_image("cat.jpg");
    let [owner, other, read, admin] = of_kind.as_slice() else { panic!("four keys") };
    for deleter in [owner, admin] {
        let accepted = send(address, owner, "POST", "/v1/jobs", &[], &image).json();
        let id = accepted["id"].as_str().unwrap();
        let delete = |key: &str| send(address, key, "DELETE", &format!("/v1/jobs/{id}"), &[], b"").status;
        let cancel = |key: &str| send(address, key, "POST", &format!("/v1/predictions/{id}/cancel"), &[], b"").status;
        for (key, status) in [("", 401), (other, 404), (read, 403)] {
            assert_eq!((delete(key), cancel(key)), (status, status));
            assert_eq!(get(address, owner, &format!("/v1/jobs/{id}")).json()["status"], "queued");
        }
        assert_eq!(delete(deleter), 200);
        assert_eq!(get(address, owner, &format!("/v1/jobs/{id}")).status, 404);
    }
}

#[test]
fn pages_of_named_origins_send_keys_and_read_refusals() {
    const ORIGIN: &str = "https://app.example";
    let (mut classify, mut other, mut read) = (String::new(), String::new(), String::new());
    let service = keyed_service(0, &["--cors-origin", ORIGIN, "--rate-limit", "2/h"], |data_dir| {
        classify = create_key(data_dir, "classify", "classify", &[]);
        other = create_key(data_dir, "other", "classify", &[]);
        read = create_key(data_dir, "read", "read", &[]);
    });
    let address = service.address;
    let image = test_image("cat.jpg");
    // A preflight has no key, and is never limited.
    for method in ["POST", "DELETE", "POST"] {
        let headers = [
            ("Origin", ORIGIN),
            ("Access-Control-Request-Method", method),
            ("Access-Control-Request-Headers", "authorization,x-api-key,idempotency-key"),
        ];
        let preflight = request(address, "OPTIONS", "/v1/jobs", &headers, b"").unwrap();
        assert_eq!(preflight.status, 200, "{}", preflight.text());
        assert_eq!(preflight.header("access-control-allow-origin"), Some(ORIGIN));
        let allowed = preflight.header("access-control-allow-headers").unwrap();
        assert!(allowed.contains("authorization") && allowed.contains("x-api-key"), "{allowed}");
    }
    let from_page = [("Origin", ORIGIN), ("Sec-Fetch-Site", "cross-site"), ("X-Request-Id", "of-the-page")];
    let accepted = send(address, &classify, "POST", "/v1/jobs", &from_page, &image);
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let job = accepted.header("Location").unwrap().to_owned();
    assert_eq!(send(address, &classify, "GET", &job, &from_page, b"").status, 200);
    for (key, method, path, status) in [
        ("", "POST", "/v1/jobs", 401),
        (&read, "POST", "/v1/jobs", 403),
        (&other, "GET", &job, 404),
        (&classify, "GET", &job, 429),
    ] {
        let refused = send(address, key, method, path, &from_page, if method == "POST" { &image } else { b"" });
        assert_eq!(refused.status, status, "{}", refused.text());
        assert_eq!(refused.header("access-control-allow-origin"), Some(ORIGIN), "{status}");
        assert_eq!(refused.header("x-request-id"), Some("of-the-page"), "{status}");
        assert_eq!(refused.header("content-type"), Some("application/problem+json"), "{status}");
        assert_eq!(refused.json()["status"], status);
        let readable = refused.header("access-control-expose-headers").unwrap();
        assert!(["retry-after", "ratelimit", "www-authenticate"].into_iter().all(|name| readable.contains(name)));
    }
}

fn head_status(address: SocketAddr, key: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let key = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
    write!(stream, "HEAD {path} HTTP/1.1\r\nHost: {address}\r\n{key}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

#[test]
fn a_key_is_taken_from_every_header_that_clients_use() {
    let mut key = String::new();
    let service = keyed_service(0, &[], |data_dir| key = create_key(data_dir, "any", "classify", &[]));
    let headers_with = |key: &str| {
        let basic = |text: String| format!("Basic {}", BASE64_STANDARD.encode(text));
        [
            ("Authorization", bearer(key)),
            ("authorization", format!("bearer {key}")),
            ("Authorization", basic(format!("anybody:{key}"))),
            ("Authorization", basic(format!("{key}:"))),
            ("Authorization", format!("AWS4-HMAC-SHA256 Credential={key}/20260101/us-east-1/rekognition/aws4_request")),
            ("X-Api-Key", key.to_owned()),
        ]
    };
    for (key, expected) in [(&key[..], 200), (&key[..key.len() - 1], 401)] {
        for (name, value) in headers_with(key) {
            let answer = service.request("GET", "/v1/models", &[(name, &value)], b"");
            assert_eq!(answer.status, expected, "{name}: {value}: {}", answer.text());
        }
    }
}

#[test]
fn keys_are_made_listed_and_revoked_while_several_web_processes_run() {
    let mut first = String::new();
    let mut service = keyed_service(0, &[], |data_dir| first = create_key(data_dir, "first", "classify", &[]));
    let second_web = service.add_web();
    let data_dir = service.data_dir();
    let second = create_key(&data_dir, "second", "read,classify", &["--expires", "90d"]);
    for address in [service.address, second_web] {
        until("the new key", || (get(address, &second, "/v1/models").status == 200).then_some(()));
    }

    // Any process knows whose job it is.
    let accepted = send(service.address, &first, "POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let id: Uuid = accepted.json()["id"].as_str().unwrap().parse().unwrap();
    assert!(protocol::submitted_at(id).is_some(), "the id of the job has no time");
    let job = format!("/v1/jobs/{id}");
    assert_eq!(get(second_web, &first, &job).json()["status"], "queued");
    let third = create_key(&data_dir, "third", "classify", &[]);
    until("the third key", || (get(second_web, &third, "/v1/models").status == 200).then_some(()));
    assert_eq!(get(second_web, &third, &job).status, 404);

    let listed = keys(&data_dir, &["list"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("classify,read") && text.contains("first") && text.contains("never"), "{text}");
    assert!(![&first, &second, &third].into_iter().any(|key| text.contains(&key[7..20])), "{text}");
    let json: Value = serde_json::from_slice(&keys(&data_dir, &["list", "--json"]).stdout).unwrap();
    assert_eq!(json["keys"].as_array().unwrap().len(), 3);
    assert_eq!(json["keys"][1]["scopes"], serde_json::json!(["classify", "read"]));
    let id = json["keys"][0]["id"].as_str().unwrap();
    assert!(keys(&data_dir, &["revoke", id]).status.success());
    for address in [service.address, second_web] {
        until("the revocation", || (get(address, &first, "/v1/models").status == 401).then_some(()));
        assert_eq!(get(address, &second, "/v1/models").status, 200);
    }
    let again = keys(&data_dir, &["revoke", id]);
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.code() == Some(1) && error.contains("no key has the id"), "{error}");
    let wrong = keys(&data_dir, &["create", "--name", "x", "--scope", "everything"]);
    assert_eq!(wrong.status.code(), Some(2));

    // Only hashes are stored, and pruning keeps them.
    let prune = ["data", "prune", "--older-than", "0s", "--backend", "local", "--data-dir"];
    assert!(imgcls().args(prune).arg(&data_dir).output().unwrap().status.success());
    let made: Value =
        serde_json::from_slice(&keys(&data_dir, &["create", "--name", "fourth", "--json"]).stdout).unwrap();
    assert!(made["key"].as_str().unwrap().starts_with("imgcls_") && made["expires_at"].is_null(), "{made}");
    let json: Value = serde_json::from_slice(&keys(&data_dir, &["list", "--json"]).stdout).unwrap();
    assert_eq!(json["keys"].as_array().unwrap().len(), 3);
    service.web.signal("TERM");
    service.web.wait();
    for file in std::fs::read_dir(&data_dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |key: &str| bytes.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(![&first, &second, &third].into_iter().any(|key| holds(key)), "{} has a key", file.display());
    }
}

#[test]
fn a_server_without_any_key_refuses_to_start_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let command = |flags: &[&str]| {
        let mut command = imgcls();
        command.args(["serve-web", "--backend", "local"]).args(flags).arg("--data-dir").arg(&data_dir);
        command
    };
    let refuses = |flags: &[&str]| {
        let output = command(flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {error}");
        let line = error.lines().last().unwrap();
        assert!(line.contains("imgcls keys create") && line.contains("--auth none"), "{flags:?}: {error}");
    };
    refuses(&["--listen", "0.0.0.0:0"]);
    refuses(&["--listen", "127.0.0.1:0", "--auth", "required"]);
    let expired = create_key(&data_dir, "expired", "admin", &["--expires", "1ms"]);
    refuses(&["--listen", "0.0.0.0:0"]);

    // Without keys everything works as before, except for what is for operators.
    let (port, admin_port) = (free_port(), free_port());
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let (listen, admin) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{admin_port}"));
    let flags = ["--listen", &listen, "--auth", "none", "--admin-listen", &admin];
    let _web = Process::start(command(&flags), &dir.path().join("web.log"));
    until("the web tier", || request(address, "GET", "/healthz", &[], b"").ok());
    assert_eq!(send(address, &expired, "POST", "/v1/jobs", &[], &test_image("cat.jpg")).status, 202);
    assert_eq!(get(address, "", "/v1/models").status, 200);
    let refused = get(address, "", "/metrics");
    assert!(refused.status == 401 && refused.text().contains("--admin-listen"), "{}", refused.text());
    let metrics = get(SocketAddr::from(([127, 0, 0, 1], admin_port)), "", "/metrics");
    assert!(metrics.status == 200 && metrics.text().contains("imgcls_web_denied_total{reason=\"no_key\"} 1"));
    let admin = create_key(&data_dir, "admin", "admin", &[]);
    until("the key of the operator", || (get(address, &admin, "/metrics").status == 200).then_some(()));

    for (flags, expected) in [
        (&["--tls-cert", "a.pem"][..], "--tls-key"),
        (&["--rate-burst", "3"], "--rate-limit"),
        (&["--rate-limit", "fast"], "10/s"),
        (&["--listen", "127.0.0.1:8099", "--admin-listen", "127.0.0.1:8099"], "--admin-listen"),
    ] {
        let output = command(flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(expected), "{flags:?}: {error}");
    }
}

#[test]
fn keys_are_never_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let valid = create_key(&data_dir, "valid", "classify", &[]);
    let expired = create_key(&data_dir, "expired", "classify", &["--expires", "1ms"]);
    let last = if valid.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &valid[..valid.len() - 1]);
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = imgcls();
    command.args(["serve-web", "--backend", "local", "--auth", "required", "--listen", &address.to_string()]);
    command.arg("--data-dir").arg(&data_dir).env("IMGCLS_LOG", "trace");
    let mut web = Process::start(command, &dir.path().join("web.log"));
    until("the web tier", || request(address, "GET", "/healthz", &[], b"").ok());
    for key in [&valid, &expired, &wrong] {
        get(address, key, "/v1/models");
        send(address, key, "POST", "/v1/jobs", &[], &test_image("cat.jpg"));
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("user:{key}")));
        let aws = format!("AWS4-HMAC-SHA256 Credential={key}/20260101/us-east-1/sagemaker/aws4_request");
        for (name, value) in [("X-Api-Key", key), ("Authorization", &basic), ("Authorization", &aws)] {
            request(address, "GET", "/metrics", &[(name, value)], b"").unwrap();
        }
    }
    web.signal("TERM");
    web.wait();
    let log = web.log();
    assert!(log.contains("DEBUG") && log.contains("wrong_key"), "the log has no details: {log}");
    for key in [&valid, &expired, &wrong] {
        let secret = &key["imgcls_".len()..];
        let coded = BASE64_STANDARD.encode(format!("user:{key}"));
        assert!(!log.contains(secret) && !log.contains(&coded[8..40]), "a key is in the log");
    }
}

#[test]
fn requests_of_a_client_are_limited_in_a_time_and_at_a_time() {
    let service = Service::start(0, &["--rate-limit", "3/h"], &[]);
    for left in [2, 1, 0] {
        let answer = service.request("GET", "/v1/models", &[], b"");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("RateLimit-Policy"), Some("\"client\";q=3;w=3600"));
        assert!(answer.header("RateLimit").unwrap().starts_with(&format!("\"client\";r={left};t=")), "{answer:?}");
    }
    let refused = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["type"], "urn:imgcls:problem:too-many-requests");
    let seconds: u32 = refused.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=1_200).contains(&seconds) && refused.header("RateLimit").unwrap().contains("r=0"), "{refused:?}");
    for path in ["/", "/healthz", "/readyz", "/assets/app.js"] {
        assert_eq!(service.request("GET", path, &[], b"").status, 200, "{path}");
    }

    let service = Service::start(0, &["--max-requests-per-client", "1"], &[]);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    let address = service.address;
    // It may meet one of the requests below, and then tries again.
    let waiting = std::thread::spawn(move || {
        let poll = || request(address, "GET", &format!("/v1/jobs/{id}?wait=600"), &[], b"").unwrap();
        until("an answer to the long poll", || Some(poll()).filter(|answer| answer.status != 429))
    });
    let refused = until("a refusal", || {
        let answer = service.request("GET", "/v1/models", &[], b"");
        (answer.status == 429).then_some(answer)
    });
    assert_eq!(refused.header("Retry-After"), Some("1"));
    // The drain ends the long poll.
    service.web.signal("TERM");
    assert_eq!(waiting.join().unwrap().status, 200);
}

#[test]
fn each_key_has_a_limit_of_its_own() {
    let (mut one, mut two) = (String::new(), String::new());
    let service = keyed_service(0, &["--rate-limit", "2/h"], |data_dir| {
        one = create_key(data_dir, "one", "classify", &[]);
        two = create_key(data_dir, "two", "classify", &[]);
    });
    let statuses = |key: &str| [(); 3].map(|()| get(service.address, key, "/v1/models").status);
    assert_eq!(statuses(&one), [200, 200, 429]);
    assert_eq!(statuses(&two), [200, 200, 429]);
    assert_eq!(statuses(""), [401, 401, 429], "requests without a key count for their address");
    assert_eq!(statuses("imgcls_wrong"), [429, 429, 429]);
}

#[test]
fn the_port_speaks_tls_and_follows_a_renewed_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("web.crt"), dir.path().join("web.key"));
    let install = |name: &str| {
        for (extension, path) in [("crt", &cert), ("key", &key)] {
            let new = path.with_extension("new");
            std::fs::copy(test_certificate(name, extension), &new).unwrap();
            std::fs::rename(&new, path).unwrap();
        }
    };
    install("one");
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = imgcls();
    command.args(["serve-web", "--backend", "local", "--listen", &address.to_string(), "--data-dir"]);
    command.arg(dir.path().join("data")).arg("--tls-cert").arg(&cert).arg("--tls-key").arg(&key);
    let web = Process::start(command, &dir.path().join("web.log"));
    let (status, body) = until("the web tier", || tls_get(address, "one", "/v1/models").ok());
    assert!(status == 200 && body.contains("efficientnet-lite0"), "{status} {body}");

    // A client that begins no handshake, and one that does not speak TLS, cost the others nothing.
    let silent = TcpStream::connect(address).unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.set_read_timeout(Some(DEADLINE)).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "an answer without TLS: {}", String::from_utf8_lossy(&answer));
    assert_eq!(tls_get(address, "one", "/healthz").unwrap().0, 200);

    assert!(tls_get(address, "two", "/healthz").is_err(), "the certificate is not that of the file");
    // A pair that does not fit together changes nothing.
    std::fs::copy(test_certificate("two", "key"), &key).unwrap();
    web.wait_for_log("the old one stays in use");
    assert_eq!(tls_get(address, "one", "/healthz").unwrap().0, 200);
    install("two");
    until("the new certificate", || tls_get(address, "two", "/healthz").ok());
    assert!(tls_get(address, "one", "/healthz").is_err());
    drop(silent);

    let mut refused = imgcls();
    refused.args(["serve-web", "--backend", "local", "--listen", "127.0.0.1:0", "--data-dir"]);
    refused.arg(dir.path().join("data")).arg("--tls-cert").arg(test_certificate("one", "crt"));
    let output = refused.arg("--tls-key").arg(dir.path().join("missing.key")).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("missing.key (--tls-key)"), "{error}");
}

#[test]
fn load_and_status_speak_tls_with_a_trusted_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = imgcls();
    command.args(["up", "--max-workers", "1", "--listen", &address.to_string(), "--data-dir"]);
    command.arg(dir.path().join("data")).args(["--tls-cert", &test_certificate("one", "crt")]);
    command.args(["--tls-key", &test_certificate("one", "key")]);
    let _up = Process::start(command, &dir.path().join("up.log"));
    until("the service", || tls_get(address, "one", "/readyz").ok().filter(|(status, _)| *status == 200));
    let url = format!("https://localhost:{}/", address.port());
    let client = |name: &str, trusted: &str, args: &[&str]| {
        let mut command = imgcls();
        command.args([name, "--url", &url]).args(args).env("SSL_CERT_FILE", test_certificate(trusted, "crt"));
        command.env_remove("SSL_CERT_DIR").output().unwrap()
    };
    let data = dir.path().join("data");
    let output = client("loadgen", "one", &["-n", "3", "-c", "2"]);
    assert!(output.status.success(), "{output:?}");
    let status = ["--refresh", "100ms", "--data-dir", data.to_str().unwrap()];
    let output = client("status", "one", &status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains(&url) && text.contains("ready, version"), "{output:?}");

    let output = client("loadgen", "two", &["-n", "1"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && error.contains("certificate"), "{error}");
    let output = client("status", "two", &status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("certificate"), "{output:?}");
}

pub fn test_certificate(name: &str, extension: &str) -> String {
    format!("{}/tests/tls/{name}.{extension}", env!("CARGO_MANIFEST_DIR"))
}

/// Sends a request by TLS, trusting one of the test certificates alone.
fn tls_get(address: SocketAddr, trusted: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(test_certificate(trusted, "crt")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut stream = StreamOwned::new(connection, socket);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.map(|status| (status, answer)).ok_or_else(|| std::io::Error::other("not an HTTP answer"))
}

#[test]
fn keys_lie_in_the_bucket_on_aws() {
    let url = moto().url();
    let buckets = ["--input-bucket", "keys-test-input", "--output-bucket", "keys-test-output"];
    let queues = ["--request-queue", "keys-test-requests", "--result-queue", "keys-test-results"];
    let shared = [&["--endpoint-url", url.as_str()][..], &buckets, &queues].concat();
    let run = |arguments: &[&str]| {
        let mut command: Command = imgcls();
        command.arg("keys").args(arguments).args(&shared).envs(moto().environment());
        let output = command.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let first = run(&["create", "--name", "first"]);
    let flags = ["--auth", "required"];
    let service = Service::start_on(&shared, moto().environment(), 0, &flags, &[]);
    assert_eq!(get(service.address, &first, "/v1/models").status, 200);
    assert_eq!(get(service.address, "", "/v1/models").status, 401);
    let second = run(&["create", "--name", "second", "--scope", "admin"]);
    run(&["revoke", "first"]);
    until("the second key", || (get(service.address, &second, "/metrics").status == 200).then_some(()));
    until("the revocation", || (get(service.address, &first, "/v1/models").status == 401).then_some(()));
    let accepted = send(service.address, &second, "POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert!(run(&["list"]).contains("second"));
}
