//! Batches over HTTP and by `imgcls batch`: uploads and lists of keys, any web process, counts, rows, cancelling, retrying.

use std::process::Output;

use bytes::Bytes;
use imgcls::config::Backend;
use imgcls::transport;
use imgcls::transport::queued::object::PutOptions;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Response, Service, block_on, imgcls, request, test_image, until};
use crate::keys::{create_key, keyed_service};

/// Begins like a JPEG, and is none.
const BROKEN: &[u8] = b"\xff\xd8\xff\xe0 this is no image at all, whatever its first bytes say";

/// A form with several files in one field.
fn form(files: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let boundary = "----imgcls-batch-boundary";
    let mut body = Vec::new();
    for (name, bytes) in files {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"images\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// Creates a batch of uploads, and returns its id.
fn create(service: &Service, path: &str, files: &[(&str, &[u8])]) -> String {
    let (content_type, body) = form(files);
    let answer = service.request("POST", path, &[("Content-Type", &content_type)], &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let state = answer.json();
    let id = state["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("Location"), Some(&*format!("/v1/batches/{id}")));
    assert_eq!((&state["status"], &state["images"]), (&json!("running"), &json!(files.len())));
    id
}

fn state(service: &Service, id: &str) -> Value {
    service.request("GET", &format!("/v1/batches/{id}"), &[], b"").json()
}

fn finished(service: &Service, id: &str) -> Value {
    until("the end of the batch", || Some(state(service, id)).filter(|state| state["status"] == "finished"))
}

fn batch(service: &Service, arguments: &[&str]) -> Output {
    imgcls().arg("batch").args(arguments).arg("--data-dir").arg(service.data_dir()).output().unwrap()
}

/// The text of an answer that is sent in chunks.
fn text_of(answer: &Response) -> String {
    assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"), "{}", answer.text());
    let (mut text, mut rest) = (Vec::new(), &answer.body[..]);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("the size of a chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return String::from_utf8(text).unwrap();
        }
        text.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

fn rows(csv: &str) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    reader.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[test]
fn any_web_process_answers_for_a_batch_of_uploads() {
    let mut service = Service::start(1, &[], &[]);
    let (cup, cat) = (test_image("cup.jpg"), test_image("cat.jpg"));
    let id = create(&service, "/v1/batches?top_k=2", &[("=cup.jpg", &cup), ("broken.jpg", BROKEN), ("cat.jpg", &cat)]);
    service.restart_web();
    let other = service.add_web();
    let counts = finished(&service, &id)["counts"].clone();
    assert_eq!(counts, json!({"queued": 0, "succeeded": 2, "failed": 1, "expired": 0, "cancelled": 0}));

    let path = format!("/v1/batches/{id}/results?format=csv");
    let answer = request(other, "GET", &path, &[], b"").unwrap();
    assert_eq!(answer.header("Content-Type"), Some("text/csv; charset=utf-8"));
    let table = rows(&text_of(&answer));
    let of = |column: usize| table.iter().map(|row| row[column].as_str()).collect::<Vec<_>>();
    assert_eq!(of(0), ["'=cup.jpg", "broken.jpg", "cat.jpg"], "the order is that of the request");
    assert_eq!(of(1), ["succeeded", "failed", "succeeded"]);
    assert_eq!((table[0][3].as_str(), table[1][13].as_str()), ("espresso", "undecodable"));
    assert!(table[0][8].parse::<u32>().unwrap() > 0, "{:?}", table[0]);
    let lines = text_of(&service.request("GET", &format!("/v1/batches/{id}/results?format=jsonl"), &[], b""));
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["path"], &first["predictions"][0]["label"]), (&json!("=cup.jpg"), &json!("espresso")));
    assert_eq!(first["predictions"].as_array().unwrap().len(), 2);
    // Each image is a job, too.
    assert_eq!(service.finished(first["id"].as_str().unwrap())["status"], "succeeded");

    let wrong = service.request("GET", &format!("/v1/batches/{id}/results?format=xml"), &[], b"");
    assert_eq!(wrong.status, 400);
    for unknown in ["0198c0de-7a5e-7000-8000-1d2c3b4a5f60", "nonsense"] {
        assert_eq!(service.request("GET", &format!("/v1/batches/{unknown}"), &[], b"").status, 404);
    }
    let (content_type, body) = form(&[("a.jpg", &cup), ("b.txt", b"text")]);
    let refused = service.request("POST", "/v1/batches", &[("Content-Type", &content_type)], &body);
    assert_eq!(refused.status, 415, "{}", refused.text());
}

#[test]
fn cancelled_images_are_never_classified() {
    let mut service = Service::start(0, &[], &[]);
    let image = test_image("cup.jpg");
    let id = create(&service, "/v1/batches", &[("a.jpg", &image), ("b.jpg", &image)]);
    let answer = service.request("DELETE", &format!("/v1/batches/{id}"), &[], b"");
    assert_eq!(answer.json(), json!({"id": id, "cancelled": 2}));
    service.add_worker();
    let depth = || {
        let output =
            imgcls().args(["queue", "depth", "--json", "--data-dir"]).arg(service.data_dir()).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["queues"]
            .as_array()
            .unwrap()
            .iter()
            .map(|queue| queue["visible"].as_u64().unwrap_or(0) + queue["in_flight"].as_u64().unwrap_or(0))
            .sum::<u64>()
    };
    until("empty queues", || (depth() == 0).then_some(()));
    assert_eq!(state(&service, &id)["counts"]["cancelled"], 2);
    assert_eq!(service.images(), Vec::<String>::new());
}

#[test]
fn operators_list_and_retry_batches() {
    let service = Service::start(1, &[], &[]);
    let id = create(&service, "/v1/batches", &[("broken.jpg", BROKEN), ("cup.jpg", &test_image("cup.jpg"))]);
    finished(&service, &id);
    let retried = batch(&service, &["retry", &id, "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&retried.stdout).unwrap(), json!({"sent": 1, "without_image": 0}));
    let again = finished(&service, &id);
    assert_eq!(again["counts"]["failed"], 1);
    let listed: Value = serde_json::from_slice(&batch(&service, &["list", "--json"]).stdout).unwrap();
    assert_eq!(listed["batches"].as_array().unwrap().len(), 1);
    assert_eq!(listed["batches"][0]["id"], json!(id));
    let status = String::from_utf8(batch(&service, &["status", &id]).stdout).unwrap();
    assert!(status.contains("2 images: 1 succeeded, 1 failed"), "{status}");
    let results = String::from_utf8(batch(&service, &["results", &id]).stdout).unwrap();
    assert_eq!(rows(&results).len(), 2);
    let unknown = batch(&service, &["status", "0198c0de-7a5e-7000-8000-1d2c3b4a5f60"]);
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("there is no batch"));
}

#[test]
fn images_of_allowed_buckets_are_read_where_they_are() {
    let service = Service::start(1, &["--read-bucket", "archive"], &["--read-bucket", "archive"]);
    block_on(async {
        let backend = Backend::Local { data_dir: service.data_dir() };
        let bucket = transport::open_bucket(&backend, "archive").await.unwrap();
        let image = Bytes::from(test_image("cup.jpg"));
        let _ = bucket.put("2024/cup of coffee.jpg", image, PutOptions::default()).await.unwrap();
    });
    let list = json!({"images": [
        {"bucket": "archive", "key": "2024/cup of coffee.jpg"},
        {"bucket": "archive", "key": "missing.jpg", "name": "gone.jpg"},
    ]});
    let answer =
        service.request("POST", "/v1/batches", &[("Content-Type", "application/json")], list.to_string().as_bytes());
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    finished(&service, &id);
    let table = rows(&text_of(&service.request("GET", &format!("/v1/batches/{id}/results"), &[], b"")));
    assert_eq!((table[0][0].as_str(), table[0][3].as_str()), ("2024/cup of coffee.jpg", "espresso"));
    assert_eq!((table[1][0].as_str(), table[1][1].as_str()), ("gone.jpg", "failed"));
    assert!(table[1].contains(&"input_missing".to_owned()), "{:?}", table[1]);
    assert_eq!(service.images(), Vec::<String>::new(), "nothing is copied");
    // An object that comes later is found by a retry.
    let retried = batch(&service, &["retry", &id]);
    assert!(retried.status.success(), "{retried:?}");
    assert_eq!(finished(&service, &id)["counts"]["failed"], 1);

    for (images, detail) in [
        (json!([{"bucket": "other", "key": "a"}]), "may not be read"),
        (json!([]), "1 to 10000"),
        (json!([{"bucket": "archive", "key": ""}]), "a key has"),
    ] {
        let body = json!({"images": images}).to_string();
        let refused = service.request("POST", "/v1/batches", &[("Content-Type", "application/json")], body.as_bytes());
        assert!(refused.status == 400 && refused.text().contains(detail), "{}", refused.text());
    }
}

#[test]
fn batch_of_another_key_looks_like_one_that_does_not_exist() {
    let (mut owner, mut other, mut reader) = (String::new(), String::new(), String::new());
    let mut service = keyed_service(0, &[], |data_dir| {
        owner = create_key(data_dir, "owner", "classify", &[]);
        other = create_key(data_dir, "other", "classify", &[]);
        reader = create_key(data_dir, "reader", "read", &[]);
    });
    let send = |key: &str, method: &str, path: &str, content_type: &str, body: &[u8]| {
        let authorization = format!("Bearer {key}");
        let mut headers = vec![("Authorization", authorization.as_str())];
        headers.extend((!content_type.is_empty()).then_some(("Content-Type", content_type)));
        request(service.address, method, path, &headers, body).unwrap()
    };
    let get = |key: &str, path: &str| send(key, "GET", path, "", b"");
    let (content_type, body) = form(&[("cup.jpg", &test_image("cup.jpg")), ("cat.jpg", &test_image("cat.jpg"))]);
    assert_eq!(send(&reader, "POST", "/v1/batches", &content_type, &body).status, 403);
    let created = send(&owner, "POST", "/v1/batches", &content_type, &body);
    assert_eq!(created.status, 202, "{}", created.text());
    let id = created.json()["id"].as_str().unwrap().to_owned();
    let unknown = Uuid::now_v7().to_string();

    for end in ["", "/results?format=csv", "/results?format=jsonl"] {
        let (path, nowhere) = (format!("/v1/batches/{id}{end}"), format!("/v1/batches/{unknown}{end}"));
        let hidden = get(&other, &path);
        assert_eq!(hidden.status, 404, "{path}: {}", hidden.text());
        assert_eq!(hidden.text().replace(&id, "ID"), get(&other, &nowhere).text().replace(&unknown, "ID"));
        assert!(hidden.text().contains("no-such-batch"), "{}", hidden.text());
        for key in [&owner, &reader] {
            assert_eq!(get(key, &path).status, 200, "{path}");
        }
        assert_eq!(request(service.address, "GET", &path, &[], b"").unwrap().status, 401);
    }
    // Nobody else cancels it, and its jobs are those of its key.
    assert_eq!(send(&other, "DELETE", &format!("/v1/batches/{id}"), "", b"").status, 404);
    assert_eq!(send(&reader, "DELETE", &format!("/v1/batches/{id}"), "", b"").status, 403);
    let lines = text_of(&get(&owner, &format!("/v1/batches/{id}/results?format=jsonl")));
    let jobs: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(jobs.len(), 2);
    for job in &jobs {
        assert_eq!(get(&other, &format!("/v1/jobs/{job}")).status, 404);
        assert_eq!(get(&owner, &format!("/v1/jobs/{job}")).status, 200);
    }
    let cancelled = send(&owner, "DELETE", &format!("/v1/batches/{id}"), "", b"");
    assert_eq!((cancelled.status, &cancelled.json()["cancelled"]), (200, &json!(2)));
    // A batch of the owner that others tried to cancel is classified.
    let again = send(&owner, "POST", "/v1/batches", &content_type, &body).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(send(&other, "DELETE", &format!("/v1/batches/{again}"), "", b"").status, 404);
    service.add_worker();
    let authorization = format!("Bearer {owner}");
    let headers = [("Authorization", authorization.as_str())];
    let state = until("the end of the batch", || {
        let state = request(service.address, "GET", &format!("/v1/batches/{again}"), &headers, b"").unwrap().json();
        Some(state).filter(|state| state["status"] == "finished")
    });
    assert_eq!(state["counts"]["succeeded"], 2, "{state}");
}
