//! The list of jobs through the real binary: whose jobs it has, its order and pages, and its states.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;
use uuid::Uuid;

use crate::api::assert_problem;
use crate::emulators::moto;
use crate::harness::{Response, Service, request, test_image, until};
use crate::keys::{create_key, keyed_service};

/// Asks with a key, or without one.
fn get(address: SocketAddr, key: &str, path: &str) -> Response {
    let authorization = format!("Bearer {key}");
    let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("Authorization", &authorization)] };
    request(address, "GET", path, headers, b"").unwrap()
}

fn submit(address: SocketAddr, key: &str, name: &str, image: &[u8]) -> String {
    let authorization = format!("Bearer {key}");
    let disposition = format!("attachment; filename=\"{name}\"");
    let mut headers = vec![("Content-Disposition", disposition.as_str())];
    if !key.is_empty() {
        headers.push(("Authorization", &authorization));
    }
    let answer = request(address, "POST", "/v1/jobs", &headers, image).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn ids(page: &Value) -> Vec<String> {
    let jobs = page["jobs"].as_array().expect("a list of jobs");
    jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

/// All jobs of a list, page after page. Each page but the last has a cursor.
fn all(address: SocketAddr, key: &str, parameters: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = get(address, key, &format!("/v1/jobs?{parameters}{cursor}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = answer.json();
        found.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { return found };
        cursor = format!("&after={next}");
    }
}

fn reversed(ids: &[String]) -> Vec<String> {
    ids.iter().rev().cloned().collect()
}

#[test]
fn list_has_the_jobs_of_its_key_and_no_other() {
    let mut keys = Vec::new();
    let service = keyed_service(0, &[], |data_dir| {
        for (name, scope) in [("one", "classify"), ("two", "classify"), ("reader", "read"), ("admin", "admin")] {
            keys.push(create_key(data_dir, name, scope, &[]));
        }
    });
    let (address, image) = (service.address, test_image("cat.jpg"));
    let mut own: [Vec<String>; 2] = Default::default();
    for round in 0..5 {
        for (key, own) in keys.iter().zip(&mut own) {
            own.push(submit(address, key, &format!("{round}.jpg"), &image));
        }
    }
    for (key, own) in keys.iter().zip(&own) {
        for parameters in ["", "limit=1", "limit=2", "limit=100", "status=queued&limit=3"] {
            assert_eq!(all(address, key, parameters), reversed(own), "{parameters}");
        }
        assert_eq!(all(address, key, "status=succeeded"), Vec::<String>::new());
    }
    // Keys that may read every job have none of their own.
    for key in &keys[2..] {
        assert_eq!(all(address, key, ""), Vec::<String>::new());
    }
    // The cursor of another key shows nothing of it.
    let page = get(address, &keys[0], &format!("/v1/jobs?after={}", own[1][2])).json();
    assert_eq!(ids(&page), reversed(&own[0][..3]));
}

#[test]
fn list_tells_the_state_of_each_job_and_follows_changes() {
    let mut service = Service::start(0, &[], &[]);
    let address = service.address;
    let good = submit(address, "", "cup.jpg", &test_image("cup.jpg"));
    let bad = submit(address, "", "half.jpg", &test_image("hostile/half.jpg"));
    assert_eq!(all(address, "", "status=queued"), [bad.clone(), good.clone()]);
    service.add_worker();
    until("the end of both jobs", || (all(address, "", "status=queued").is_empty()).then_some(()));
    assert_eq!(
        (all(address, "", "status=succeeded"), all(address, "", "status=failed")),
        (vec![good.clone()], vec![bad.clone()])
    );
    let page = get(address, "", "/v1/jobs").json();
    let (newest, oldest) = (&page["jobs"][0], &page["jobs"][1]);
    assert_eq!((&newest["id"], &newest["error"]["code"]), (&Value::from(bad.clone()), &Value::from("undecodable")));
    let result = service.finished(&good);
    for member in ["status", "filename"] {
        assert_eq!(oldest[member], result[member], "{member}");
    }
    assert_eq!((&oldest["prediction"], &oldest["model"]), (&result["predictions"][0], &result["model"]["name"]));
    assert_eq!(page["next"], Value::Null);

    let removed = service.request("DELETE", &format!("/v1/jobs/{good}"), &[], b"");
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(all(address, "", ""), [bad]);
}

#[test]
fn parameters_of_the_list_are_checked() {
    let service = Service::start(0, &[], &[]);
    let page = |parameters: &str| service.request("GET", &format!("/v1/jobs?{parameters}"), &[], b"");
    assert_eq!(page("").json(), serde_json::json!({"jobs": [], "next": null}));
    for (parameters, names) in [
        ("status=done", "queued, succeeded, failed, expired"),
        ("status=", "queued"),
        ("limit=0", "between 1 and 100"),
        ("limit=101", "between 1 and 100"),
        ("limit=-1", "between 1 and 100"),
        ("limit=99999999999999999999", "between 1 and 100"),
        ("after=nonsense", "next"),
        ("after=", "next"),
        ("after=%ff", "UTF-8"),
        ("limit=1&limit=1", "twice"),
    ] {
        assert_problem(&page(parameters), 400, names);
    }
    // An id from before the first job, and ids that no clock makes.
    for id in [Uuid::nil(), Uuid::max(), Uuid::from_u128(1), Uuid::from_u128(u128::MAX / 2)] {
        assert_eq!(page(&format!("after={id}")).status, 200, "{id}");
    }
}

#[test]
fn page_of_many_jobs_that_were_sent_at_once_is_complete() {
    let service = Service::start(0, &[], &[]);
    let database = service.database();
    service.submit("cat.jpg", &test_image("cat.jpg"));
    // Jobs of the same millisecond, and of years before. Their rows are those of the job that was sent.
    let template: String =
        database.query_row("SELECT bucket FROM objects WHERE key LIKE 'images/%'", [], |row| row.get(0)).unwrap();
    let mut expected: BTreeSet<Uuid> =
        service.images().iter().filter_map(|key| key.strip_prefix("images/")?.parse().ok()).collect();
    let at = |millis: u128, number: u128| Uuid::from_u128((millis << 80) | (7 << 76) | (2 << 62) | number);
    let now = expected.first().unwrap().as_u128() >> 80;
    expected.extend((0..2_500).map(|number| at(now - 5_000, number)));
    expected.extend((0..3).map(|number| at(now - 1_000 * 60 * 60 * 24 * 900 * (number + 1), number)));
    let copy = "INSERT OR IGNORE INTO objects (bucket, key, modified_ms, size_bytes, segment, offset, checksum, body)
         SELECT bucket, ?1, modified_ms, size_bytes, segment, offset, checksum, body FROM objects
         WHERE bucket = ?2 AND key LIKE 'images/%' ORDER BY key DESC LIMIT 1";
    database.execute_batch("BEGIN").unwrap();
    for id in &expected {
        database.execute(copy, (format!("images/{id}"), &template)).unwrap();
    }
    database.execute_batch("COMMIT").unwrap();
    let found = all(service.address, "", "limit=100");
    let expected: Vec<String> = expected.iter().rev().map(Uuid::to_string).collect();
    assert_eq!(found.len(), expected.len());
    assert_eq!(found, expected);
}

#[test]
fn list_is_the_same_on_aws() {
    let url = moto().url();
    let buckets = ["--input-bucket", "list-test-input", "--output-bucket", "list-test-output"];
    let queues = ["--request-queue", "list-test-requests", "--result-queue", "list-test-results"];
    let shared = [&["--endpoint-url", url.as_str()][..], &buckets, &queues].concat();
    let mut service = Service::start_on(&shared, moto().environment(), 0, &["--auth", "none"], &[]);
    let image = test_image("cat.jpg");
    let own: Vec<String> = (0..3).map(|_| submit(service.address, "", "cat.jpg", &image)).collect();
    assert_eq!(all(service.address, "", "limit=2"), reversed(&own));
    service.add_worker();
    until("the end of all jobs", || (all(service.address, "", "status=succeeded").len() == 3).then_some(()));
    assert_eq!(all(service.address, "", "status=succeeded&limit=1"), reversed(&own));
    assert_eq!(all(service.address, "", "status=queued"), Vec::<String>::new());
}
