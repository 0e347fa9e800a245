//! What only the local store promises: many processes in one directory, kill -9, keys that stay inside, its errors.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use imgcls::store::{DirStore, ObjectStore as _, Put, PutOptions, StoreError};
use rand::Rng as _;
use sha2::{Digest as _, Sha256};

use crate::children::{self, Worker, say};

const BUCKET: &str = "bucket";
const RACES: usize = 50;
const MANY: u64 = 1 << 30;
const ONCE: PutOptions = PutOptions { if_none_match: true, content_type: None };
const PLAIN: PutOptions = PutOptions { if_none_match: false, content_type: None };

#[test]
fn of_racing_processes_exactly_one_creates() {
    let directory = tempfile::tempdir().unwrap();
    let mut workers: Vec<Worker> =
        (0..4).map(|_| Worker::start("local_store::worker_races", directory.path())).collect();
    for worker in &mut workers {
        worker.expect_line("ready");
    }
    workers.iter_mut().for_each(Worker::go);
    let mut created: Vec<String> = workers.iter_mut().flat_map(Worker::rest).collect();
    created.sort();
    let mut expected: Vec<String> = (0..RACES).map(|race| format!("created results/{race}")).collect();
    expected.sort();
    assert_eq!(created, expected, "each key by one process");
    workers.into_iter().for_each(Worker::expect_success);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_races() {
    let Some(data_dir) = children::data_dir() else { return };
    let store = open(&data_dir);
    say("ready");
    children::wait_for_go();
    for race in 0..RACES {
        let key = format!("results/{race}");
        if store.put(&key, Bytes::from(std::process::id().to_string()), ONCE).await.unwrap() == Put::Created {
            say(&format!("created {key}"));
        }
    }
}

#[test]
fn a_killed_process_leaves_whole_objects_and_all_that_were_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for _ in 0..5 {
        let mut worker = Worker::start("local_store::worker_puts_until_killed", directory.path());
        for _ in 0..rand::rng().random_range(10..60) {
            acknowledged.insert(worker.line().expect("it puts until killed"));
        }
        worker.kill();
        acknowledged.extend(worker.rest());
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory.path().join(BUCKET).join("images")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(name, digest(&fs::read(entry.path()).unwrap()), "a whole object");
        found.insert(name);
    }
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_puts_until_killed() {
    let Some(data_dir) = children::data_dir() else { return };
    let store = Arc::new(open(&data_dir));
    let lanes = (0..4_u8).map(|lane| {
        let store = Arc::clone(&store);
        async move {
            loop {
                let mut body = vec![lane; 200_000];
                rand::rng().fill(&mut body[..32]);
                let name = digest(&body);
                let options = if lane % 2 == 0 { ONCE } else { PLAIN };
                let _ = store.put(&format!("images/{name}"), body.into(), options).await.unwrap();
                say(&name);
            }
        }
    });
    futures::future::join_all(lanes).await;
}

#[tokio::test]
async fn no_key_leads_out_of_the_bucket() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let store = open(directory.path());
    let bad = [
        "",
        "/etc/passwd",
        "../outside/secret",
        "a/../../outside/secret",
        "a//b",
        "a/",
        "./a",
        "a/.",
        "a\0b",
        "..",
        ".",
    ];
    let long_segment = "s".repeat(256);
    for key in bad.into_iter().chain([long_segment.as_str()]) {
        assert!(matches!(store.put(key, Bytes::new(), PLAIN).await, Err(StoreError::Fatal { .. })), "{key:?}");
        assert!(matches!(store.get(key, MANY).await, Err(StoreError::Fatal { .. })), "{key:?}");
        assert!(matches!(store.head(key).await, Err(StoreError::Fatal { .. })), "{key:?}");
        assert!(matches!(store.delete(key).await, Err(StoreError::Fatal { .. })), "{key:?}");
    }
    let bucket = directory.path().join(BUCKET);
    std::os::unix::fs::symlink(&outside, bucket.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), bucket.join("file-link")).unwrap();
    for key in ["link/secret", "file-link"] {
        assert_eq!(store.get(key, MANY).await.unwrap(), None, "{key}");
        assert_eq!(store.head(key).await.unwrap(), None, "{key}");
        store.delete(key).await.unwrap();
    }
    assert!(store.put("link/new", Bytes::new(), PLAIN).await.is_err());
    assert_eq!(store.put("file-link", Bytes::from_static(b"mine"), PLAIN).await.unwrap(), Put::Created);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn a_key_below_an_object_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let _ = store.put("a", Bytes::new(), PLAIN).await.unwrap();
    let _ = store.put("b/c", Bytes::new(), PLAIN).await.unwrap();
    assert!(matches!(store.put("a/b", Bytes::new(), PLAIN).await, Err(StoreError::Fatal { .. })));
    assert!(matches!(store.put("b", Bytes::new(), PLAIN).await, Err(StoreError::Fatal { .. })));
}

#[tokio::test]
async fn nothing_temporary_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().join(".tmp");
    let store = open(directory.path());
    for _ in 0..3 {
        let _ = store.put("a/b", Bytes::from_static(b"x"), ONCE).await.unwrap();
        let _ = store.put("a/c", Bytes::from_static(b"x"), PLAIN).await.unwrap();
    }
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    // What a killed process left goes when it is old, and not before.
    let two_hours_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7_200);
    fs::File::create(temporary.join("old")).unwrap().set_modified(two_hours_ago).unwrap();
    fs::File::create(temporary.join("young")).unwrap();
    open(directory.path());
    let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["young"]);
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    for (data_dir, bucket) in [("file", BUCKET), ("fine", ".."), ("fine", "a/b")] {
        match DirStore::open(&directory.path().join(data_dir), bucket) {
            Err(StoreError::Fatal { reason, .. }) => assert!(!reason.contains('\n'), "{reason}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{data_dir} {bucket} was opened"),
        }
    }
}

fn open(data_dir: &Path) -> DirStore {
    DirStore::open(data_dir, BUCKET).unwrap()
}

fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}
