//! Retention on the local backend: limits by age and size, data that is never deleted, `imgcls data`, and bytes that
//! belong to no object.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use imgcls::cli::{self, Cli};
use imgcls::config::{Backend, Machines, Names};
use imgcls::protocol::{self, ClassifyRequest, ClassifyResult, ErrorCode, ImageRef, Status};
use imgcls::transport;
use imgcls::transport::local::{LocalData, SeenSegments, SqliteStore};
use imgcls::transport::queued::ServiceQueues;
use imgcls::transport::queued::object::{ObjectStore as _, PutOptions};
use imgcls::transport::queued::queue::{self, Outgoing};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::children::{self, Worker, say};
use crate::harness::{Service, count_results, imgcls, metric, test_image, until};

const MIB: u64 = 1 << 20;
const FULL_MIB: &str = "1MiB";

#[test]
fn images_and_then_results_are_deleted_by_age() {
    let service = Service::start(1, &["--keep-images", "2s", "--keep-results", "8s"], &[]);
    let ids: Vec<String> = (0..5).map(|_| service.submit("cup.jpg", &test_image("cup.jpg"))).collect();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    until("no image", || service.images().is_empty().then_some(()));
    let id = &ids[0];
    let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"");
    assert_eq!((job.status, &job.json()["status"]), (200, &"succeeded".into()), "the result is kept longer");
    let image = service.request("GET", &format!("/v1/jobs/{id}/image"), &[], b"");
    assert_eq!((image.status, image.json()["type"].as_str()), (404, Some("urn:imgcls:problem:image-not-kept")));
    until("no block of an image on disk", || (segment_blocks(&service.data_dir()) == 0).then_some(()));
    until("no result", || (count_results(&service.database()) == 0).then_some(()));
    for path in [format!("/v1/jobs/{id}"), format!("/v1/jobs/{id}/image")] {
        let gone = service.request("GET", &path, &[], b"");
        assert_eq!(
            (gone.status, gone.json()["type"].as_str()),
            (404, Some("urn:imgcls:problem:no-such-job")),
            "{path}"
        );
    }
    assert!(metric(service.address, "imgcls_data_deleted_total{kind=\"images\"}") >= 5.0);
    assert!(metric(service.address, "imgcls_data_bytes{kind=\"database\"}") > 0.0);
}

#[test]
fn waiting_image_is_never_deleted_by_age() {
    let mut service = Service::start(0, &["--keep-images", "1s", "--keep-results", "1s"], &[]);
    let id = service.submit("cup.jpg", &test_image("cup.jpg"));
    until_younger_objects_are_deleted(&service);
    let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
    assert_eq!(job["status"], "queued");
    service.add_worker();
    // Its image and its result are old enough as soon as it is complete, so the result may be gone already.
    until("the outcome of the job", || service.images().is_empty().then_some(()));
    let log = service.workers[0].log();
    assert!(!log.contains("input_missing"), "{log}");
}

#[test]
fn image_and_result_are_kept_as_long_as_a_dead_letter_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let names = Names::local("imgcls");
    let (with_dead_letter, without_dead_letter) = (Uuid::now_v7(), Uuid::now_v7());
    run(async {
        let store = |bucket: &str| SqliteStore::open(&dir.path().join("data"), bucket).unwrap();
        let (input, output) = (store(&names.input_bucket), store(&names.output_bucket));
        for id in [with_dead_letter, without_dead_letter] {
            let image = Bytes::from(test_image("cup.jpg"));
            let _ = input.put(&protocol::image_key(id), image, PutOptions::default()).await.unwrap();
            let result =
                ClassifyResult::ended(id, "cup.jpg", Status::Failed, ErrorCode::AttemptsExhausted, "store down");
            let body = result.to_json().into();
            let _ = output.put(&protocol::result_key(id), body, PutOptions::default()).await.unwrap();
        }
        let queues = transport::open_queues(&Backend::Local { data_dir: dir.path().join("data") }).await.unwrap();
        let service = ServiceQueues::open_or_create(&*queues, &names, Duration::from_secs(30), 5).await.unwrap();
        let dead_letter = Outgoing::new(serde_json::to_string(&request(with_dead_letter)).unwrap());
        queue::send_one(&*service.dead_letters, dead_letter).await.unwrap();
    });
    let mut service = Service::start_in(dir, 0, &["--keep-images", "1s", "--keep-results", "1s"], &[]);
    let kept = [protocol::image_key(with_dead_letter)];
    until("only the image of the dead letter", || (service.images() == kept).then_some(()));
    until("only the result of the dead letter", || (count_results(&service.database()) == 1).then_some(()));
    until_younger_objects_are_deleted(&service);
    assert_eq!((service.images(), count_results(&service.database())), (kept.to_vec(), 1));
    let shown = command(&service, &["queue", "show", &with_dead_letter.to_string()]);
    assert!(text(&shown).contains("attempts_exhausted") && text(&shown).contains("image/jpeg"), "{shown:?}");
    let sent = command(&service, &["queue", "redrive", "--all"]);
    assert!(text(&sent).contains("1 sent again"), "{sent:?}");
    service.add_worker();
    until("its image is deleted after its outcome", || service.images().is_empty().then_some(()));
    let log = service.workers[0].log();
    assert!(!log.contains("ended without an answer"), "{log}");
}

#[test]
fn stored_bytes_stay_within_the_limit_and_oldest_images_go_first() {
    let limit = 2 * MIB;
    let service = Service::start(1, &["--max-data-bytes", &limit.to_string()], &[]);
    let image = test_image("grey-16bit.png");
    let mut ids = Vec::new();
    for _ in 0..60 {
        let response = service.request("POST", "/v1/classify", &[], &image);
        assert_eq!(response.status, 200, "{}", response.text());
        ids.push(response.json()["id"].as_str().unwrap().to_owned());
        let used = used_bytes(&service);
        assert!(used <= limit, "{used} bytes");
    }
    let kept = service.images();
    assert!((10..40).contains(&kept.len()), "{} of 60 images of 64 KiB fit 2 MiB", kept.len());
    let newest: Vec<String> = ids[60 - kept.len()..].iter().map(|id| format!("images/{id}")).collect();
    assert_eq!(kept, newest);
    assert_eq!(count_results(&service.database()), 60, "results are deleted only if deleting images is not enough");
    let ready = service.request("GET", "/readyz", &[], b"");
    assert_eq!(ready.status, 200, "{}", ready.text());
    let warnings = service.web.log().matches("--max-data-bytes); the oldest").count();
    assert_eq!(warnings, 1, "{}", service.web.log());
}

#[test]
fn images_are_refused_while_unfinished_jobs_take_the_whole_limit() {
    let mut service = Service::start(0, &["--max-data-bytes", FULL_MIB], &[]);
    let image = test_image("grey-16bit.png");
    let mut accepted = Vec::new();
    let refused = loop {
        let response = service.request("POST", "/v1/jobs", &[], &image);
        if response.status != 202 {
            break response;
        }
        accepted.push(response.json()["id"].as_str().unwrap().to_owned());
        assert!(accepted.len() < 20, "1 MiB takes fewer than 20 images of 64 KiB");
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(
        refused.header("retry-after").is_some() && refused.text().contains("--max-data-bytes"),
        "{}",
        refused.text()
    );
    assert!(used_bytes(&service) <= MIB);
    assert!(accepted.len() >= 8, "{} images were accepted", accepted.len());
    assert_eq!(service.images().len(), accepted.len());
    service.add_worker();
    for id in &accepted {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    until("space for another image", || (service.request("POST", "/v1/jobs", &[], &image).status == 202).then_some(()));
}

#[test]
fn second_web_tier_takes_over_retention_when_the_first_ends() {
    let mut service = Service::start(1, &["--keep-images", "1s", "--keep-results", "2s"], &[]);
    let second = service.add_web();
    for address in [service.address, second] {
        service.address = address;
        service.submit("cup.jpg", &test_image("cup.jpg"));
        until("its image is deleted", || service.images().is_empty().then_some(()));
        until("its result is deleted", || (count_results(&service.database()) == 0).then_some(()));
        // The first web tier held the lock, so the second takes over.
        service.web.kill();
    }
    for web in [&service.web, &service.other_webs[0]] {
        assert!(!web.log().contains("ERROR") && !web.log().contains("cannot delete"), "{}", web.log());
    }
}

#[test]
fn empty_segments_of_ended_processes_are_removed() {
    let mut service = Service::start(1, &["--keep-images", "1s", "--keep-results", "1s"], &[]);
    for _ in 0..3 {
        service.submit("cup.jpg", &test_image("cup.jpg"));
        until("its image is deleted", || service.images().is_empty().then_some(()));
        service.restart_web();
    }
    until("at most the segment of the last web tier", || (segments(&service.data_dir()).len() <= 1).then_some(()));
}

/// The test holds the write lock, so that the bytes of the put are on disk while its transaction cannot commit.
#[test]
fn bytes_of_a_killed_put_are_freed() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    drop(SqliteStore::open(&data_dir, "input").unwrap());
    let database = rusqlite::Connection::open(data_dir.join("imgcls.sqlite3")).unwrap();
    let mut worker = Worker::start("retention::worker_puts_one_large_object", &data_dir);
    worker.expect_line("stored");
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    worker.go();
    until("the bytes of the second put", || (segment_blocks(&data_dir) >= 2 * 400_000).then_some(()));
    worker.kill();
    database.execute_batch("ROLLBACK").unwrap();
    let mut prune = imgcls();
    prune.args(["data", "prune", "--older-than", "1d", "--backend", "local", "--data-dir"]).arg(&data_dir);
    let pruned = prune.output().unwrap();
    assert_eq!(pruned.status.code(), Some(0), "{pruned:?}");
    let blocks = segment_blocks(&data_dir);
    assert!((400_000..500_000).contains(&blocks), "{blocks} bytes for one object of 400,000");
    run(async {
        let store = SqliteStore::open(&data_dir, "input").unwrap();
        assert_eq!(store.get("first", MIB).await.unwrap().unwrap(), vec![7; 400_000]);
        assert_eq!(store.get("second", MIB).await.unwrap(), None);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_puts_one_large_object() {
    let Some(data_dir) = children::data_dir() else { return };
    let store = SqliteStore::open(&data_dir, "input").unwrap();
    let _ = store.put("first", vec![7; 400_000].into(), PutOptions::default()).await.unwrap();
    say("stored");
    children::wait_for_go();
    let _ = store.put("second", vec![8; 400_000].into(), PutOptions::default()).await;
}

#[test]
fn live_bodies_of_mostly_dead_segment_are_moved_and_segment_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let mut worker = Worker::start("retention::worker_puts_many_objects", &data_dir);
    worker.expect_line("stored");
    worker.expect_success();
    let [first] = &segments(&data_dir)[..] else { panic!("one segment") };
    run(async {
        let store = SqliteStore::open(&data_dir, "input").unwrap();
        for number in 0..40 {
            if number % 10 != 0 {
                store.delete(&format!("{number}.jpg")).await.unwrap();
            }
        }
        let data = LocalData::open(&data_dir, Names::local("imgcls")).unwrap();
        let mut seen = SeenSegments::default();
        assert_eq!(
            data.collect_garbage(&mut seen, &CancellationToken::new()).await.unwrap().moved_bodies,
            0,
            "bodies that may soon be deleted are not moved"
        );
        let moved = data.collect_garbage(&mut seen, &CancellationToken::new()).await.unwrap();
        assert_eq!(moved.moved_bodies, 4);
        assert!(!segments(&data_dir).contains(first), "the old segment is removed");
        for number in [0, 10, 20, 30] {
            let body = store.get(&format!("{number}.jpg"), MIB).await.unwrap();
            assert_eq!(body.unwrap(), vec![number; 20_000]);
        }
    });
    assert_eq!(segment_blocks(&data_dir), 4 * 20_480);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_puts_many_objects() {
    let Some(data_dir) = children::data_dir() else { return };
    let store = SqliteStore::open(&data_dir, "input").unwrap();
    for number in 0..40_u8 {
        let body = vec![number; 20_000].into();
        let _ = store.put(&format!("{number}.jpg"), body, PutOptions::default()).await.unwrap();
    }
    say("stored");
    children::wait_for_go();
}

#[test]
fn deleting_many_old_objects_fails_no_request() {
    const DUE: usize = 20_000;
    let service = Service::start(1, &["--keep-images", "50s", "--keep-results", "50s"], &[]);
    service
        .database()
        .execute_batch(&format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {DUE})
             INSERT INTO objects (bucket, key, modified_ms, size_bytes, body)
             SELECT 'output', 'old-' || n, n, 40, zeroblob(40) FROM numbers"
        ))
        .unwrap();
    let left = || -> usize {
        let sql = "SELECT count(*) FROM objects WHERE bucket = 'output' AND key GLOB 'old-*'";
        service.database().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let mut answered = 0;
    until("all of them are deleted", || {
        let response = service.request("POST", "/v1/classify", &[], &test_image("cup.jpg"));
        assert_eq!(response.status, 200, "{}", response.text());
        answered += 1;
        (left() == 0).then_some(())
    });
    assert!(answered > 0);
    let before = count_results(&service.database());
    assert_eq!(before, answered, "only old objects are deleted");
}

#[test]
fn data_status_and_prune_report_stored_and_deleted_data() {
    let mut service = Service::start(1, &["--keep-images", "3d", "--max-data-bytes", "64MiB"], &[]);
    for _ in 0..3 {
        let id = service.submit("cup.jpg", &test_image("cup.jpg"));
        service.finished(&id);
    }
    // A result is kept while its message may be delivered again.
    let unacknowledged =
        || -> usize { service.database().query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap() };
    until("all messages are deleted", || (unacknowledged() == 0).then_some(()));
    service.workers.clear();
    let waiting = service.submit("cup.jpg", &test_image("cup.jpg"));
    let status = json(&command(&service, &["data", "status", "--json"]));
    assert_eq!((&status["images"]["count"], &status["results"]["count"]), (&4.into(), &3.into()), "{status}");
    assert_eq!(status["images"]["bytes"], 4 * 17_437);
    assert_eq!(status["images"]["finished"]["count"], 3);
    assert_eq!(status["images"]["prunable"]["count"], 0);
    assert_eq!(status["limits"]["keep_images_seconds"], 3 * 86_400);
    assert_eq!(status["limits"]["max_data_bytes"], 64 * MIB);
    let printed = text(&command(&service, &["data", "status"]));
    let names: Vec<&str> = printed.lines().skip(1).filter_map(|line| line.get(..9)).map(str::trim_end).collect();
    let expected =
        ["images", "results", "segments", "database", "log", "used", "disk free", "kept", "prunable", "finished"];
    assert_eq!(names, expected, "{printed}");
    assert!(printed.contains("images    4, 68.1 KiB, the oldest "), "{printed}");
    assert!(printed.contains("kept      images 3d, results 30d\n"), "{printed}");

    let dry = command(&service, &["data", "prune", "--older-than", "0s", "--dry-run"]);
    assert_eq!(text(&dry), "would delete 3 images (51.1 KiB), 0 results (0 B)\n");
    assert_eq!(service.images().len(), 4);
    let pruned = command(&service, &["data", "prune", "--older-than", "0s", "--images"]);
    assert!(
        text(&pruned).starts_with("deleted 3 images (51.1 KiB), 0 results (0 B)\nfreed 60.0 KiB on disk"),
        "{pruned:?}"
    );
    assert_eq!(service.images(), [format!("images/{waiting}")]);
    let results = json(&command(&service, &["data", "prune", "--older-than", "0", "--results", "--json"]));
    assert_eq!((&results["results"]["count"], &results["images"]["count"]), (&3.into(), &0.into()));
    service.add_worker();
    assert_eq!(service.finished(&waiting)["status"], "succeeded");
    assert_eq!(json(&command(&service, &["data", "prune", "--json"]))["images"]["count"], 0, "kept by default for 3 d");
}

#[test]
fn data_commands_refuse_aws_and_missing_directories() {
    for (arguments, expected) in [
        (&["data", "prune", "--region", "us-east-1"][..], "lifecycle rules"),
        (&["data", "status", "--backend", "local", "--data-dir", "nowhere"], "there is no data directory nowhere"),
    ] {
        let output = imgcls().args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn deprecated_retention_flags_count_in_days_on_aws() {
    let names = "--request-queue q --result-queue r --input-bucket in-1 --output-bucket out-1";
    for (flags, days) in [
        ("", (7, 30)),
        ("--keep-images 36h --keep-results 2d", (2, 2)),
        ("--keep-images-days 3 --keep-results-days 90", (3, 90)),
    ] {
        let line = format!("imgcls provision plan {names} {flags}");
        let cli::Command::Provision(provision) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("{line}")
        };
        let settings = provision.config(Names::local("imgcls"), Machines::default()).unwrap().settings;
        assert_eq!((settings.keep_images_days, settings.keep_results_days), days, "{line}");
    }
}

/// Stores an image and a result that belong to no job, and waits until they are deleted by age. Everything older that may
/// be deleted is then deleted too.
fn until_younger_objects_are_deleted(service: &Service) {
    run(async {
        for (bucket, key) in [("input", "younger.jpg"), ("output", "younger")] {
            let store = Arc::new(SqliteStore::open(&service.data_dir(), bucket).unwrap());
            let _ = store.put(key, Bytes::from_static(b"x"), PutOptions::default()).await.unwrap();
        }
    });
    let left = || -> usize {
        let sql = "SELECT count(*) FROM objects WHERE key GLOB 'younger*'";
        service.database().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    until("younger objects are deleted", || (left() == 0).then_some(()));
}

fn request(id: Uuid) -> ClassifyRequest {
    let submitted_at = jiff::Timestamp::now();
    ClassifyRequest {
        v: 1,
        id,
        filename: "cup.jpg".to_owned(),
        content_type: None,
        image: Some(ImageRef { bucket: "input".to_owned(), key: protocol::image_key(id) }),
        image_data: None,
        top_k: 3,
        model: None,
        submitted_at,
        expires_at: submitted_at + Duration::from_secs(3_600),
        reply_to: None,
        traceparent: None,
    }
}

fn command(service: &Service, arguments: &[&str]) -> Output {
    let mut command: Command = imgcls();
    command.args(arguments).args(["--backend", "local", "--data-dir"]).arg(service.data_dir());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn segments(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data_dir.join("objects")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The bytes that the file system has allocated for all segments.
fn segment_blocks(data_dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(data_dir.join("objects")) else { return 0 };
    // A segment may be removed meanwhile.
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// The bytes of segments and of used pages of the database.
fn used_bytes(service: &Service) -> u64 {
    let database = service.database();
    let pragma = |name: &str| database.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u64>(0)).unwrap();
    let pages = pragma("page_count") - pragma("freelist_count");
    segment_blocks(&service.data_dir()) + pages * pragma("page_size")
}
