//! The promises of the local store alone: many processes in one directory, kill -9, freed space, errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use imgcls::transport::local::SqliteStore;
use imgcls::transport::queued::object::{ObjectStore as _, Put, PutOptions, StoreError};
use rand::Rng as _;
use sha2::{Digest as _, Sha256};

use crate::children::{self, Worker, say};

const BUCKET: &str = "bucket";
const RACES: usize = 50;
const MANY: u64 = 1 << 30;
const ONCE: PutOptions = PutOptions { if_none_match: true, content_type: None };
const PLAIN: PutOptions = PutOptions { if_none_match: false, content_type: None };

#[test]
fn exactly_one_of_racing_processes_creates_an_object() {
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
fn killed_process_leaves_whole_objects_and_all_acknowledged_ones() {
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
    let found = bodies(directory.path());
    for (name, body) in &found {
        assert_eq!(*name, format!("images/{}", digest(body)), "a whole object");
    }
    let found: BTreeSet<String> = found.into_keys().map(|key| key["images/".len()..].to_owned()).collect();
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// No writer pauses, so that no checkpoint catches up by itself.
#[tokio::test(flavor = "multi_thread")]
async fn log_stays_short_while_objects_are_put() {
    /// Small enough for a row.
    const BYTES: usize = 4_000;
    const PUTS: usize = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()));
    let lanes = (0..4).map(|lane| {
        let store = Arc::clone(&store);
        async move {
            for number in 0..PUTS {
                let put = store.put(&format!("results/{lane}-{number}"), vec![7; BYTES].into(), ONCE).await.unwrap();
                assert_eq!(put, Put::Created);
            }
        }
    });
    futures::future::join_all(lanes).await;
    let written = (4 * PUTS * BYTES) as u64;
    let log = fs::metadata(directory.path().join("imgcls.sqlite3-wal")).unwrap().len();
    assert!(log < written / 4, "{log} bytes of the {written} written are still in the log, or were all at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_puts_until_killed() {
    let Some(data_dir) = children::data_dir() else { return };
    let store = Arc::new(open(&data_dir));
    let lanes = (0..4_u8).map(|lane| {
        let store = Arc::clone(&store);
        async move {
            loop {
                let mut body = vec![lane; [2_000, 60_000, 60_000, 200_000][usize::from(lane)]];
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

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_never_paths() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("data"));
    fs::write(directory.path().join("secret"), "secret").unwrap();
    for key in ["/etc/passwd", "../secret", "a/../../secret", "a//b", "a/", "./a", "..", ".", "a", "a/b", "a\0b"] {
        for size in [10, 200_000] {
            let body = Bytes::from(format!("{key} ").repeat(size / 10));
            assert_eq!(store.get(key, MANY).await.unwrap().is_none(), size == 10, "{key:?}");
            let _ = store.put(key, body.clone(), PLAIN).await.unwrap();
            assert!(store.get(key, MANY).await.unwrap() == Some(body), "{key:?}");
        }
    }
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_objects_take_no_space() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let room = || segments(directory.path()).iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum::<u64>();
    // One size that is written in the thread of the database, and one that is not. Both are whole blocks.
    for large in [vec![7; 64 << 10], vec![7; 256 << 10]].map(Bytes::from) {
        let once = room() + large.len() as u64;
        let _ = store.put("a", large.clone(), PLAIN).await.unwrap();
        assert_eq!(room(), once);
        let _ = store.put("a", large.clone(), PLAIN).await.unwrap();
        assert_eq!(room(), once, "what was replaced");
        assert_eq!(store.put("a", large.clone(), ONCE).await.unwrap(), Put::AlreadyExists);
        assert_eq!(room(), once, "what came too late");
        assert!(store.get("a", MANY).await.unwrap().as_ref() == Some(&large));
        let _ = store.put("a", Bytes::from_static(b"small"), PLAIN).await.unwrap();
        assert_eq!(room(), 0, "what became small enough for a row");
        let _ = store.put("a", large, PLAIN).await.unwrap();
        assert_eq!(room(), once);
        store.delete("a").await.unwrap();
        assert_eq!(room(), 0, "what was deleted");
    }
    assert_eq!(segments(directory.path()).len(), 1, "and all of it was one file");
}

/// A file that is open keeps its blocks after it is deleted, and a descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_segments_are_not_kept_open() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let body = Bytes::from(vec![7; 256 << 10]);
    for round in 0..3 {
        for key in ["a", "b"].map(|name| format!("{name}{round}")) {
            let _ = store.put(&key, body.clone(), PLAIN).await.unwrap();
            assert!(store.get(&key, MANY).await.unwrap().as_ref() == Some(&body));
            assert_eq!(deleted_and_open(directory.path()), Vec::<PathBuf>::new(), "{key}");
            // As another process does that collects garbage.
            for segment in segments(directory.path()) {
                fs::remove_file(segment).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_one_body_or_the_other_during_a_replacement() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()));
    for size in [20_000, 200_000] {
        let put = async |value: u8| store.put("a", vec![value; size].into(), PLAIN).await.unwrap();
        assert_eq!(put(0).await, Put::Created);
        let reading = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                loop {
                    let body = store.get("a", MANY).await.unwrap().expect("it is only ever replaced");
                    assert!(body.len() == size && body.iter().all(|value| *value == body[0]));
                    if body[0] == 100 {
                        return;
                    }
                }
            }
        });
        for value in 1..=100 {
            let _ = put(value).await;
        }
        reading.await.unwrap();
    }
}

/// After a fault of the disk, or a power loss before the put returned: an error that names the object, never other bytes.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_changed_on_disk_are_an_error() {
    for size in [20_000, 200_000] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let body = Bytes::from(vec![7; size]);
        let _ = store.put("images/a", body.clone(), ONCE).await.unwrap();
        let [segment] = &segments(directory.path())[..] else { panic!("one segment") };
        let mut bytes = fs::read(segment).unwrap();
        bytes[size / 2] ^= 1;
        fs::write(segment, &bytes).unwrap();
        let damaged = store.get("images/a", MANY).await.unwrap_err();
        assert!(matches!(&damaged, StoreError::Damaged { key, .. } if key == "images/a"), "{damaged}");
        fs::write(segment, &bytes[..size / 2]).unwrap();
        let cut = store.get("images/a", MANY).await.unwrap_err();
        assert!(matches!(cut, StoreError::Damaged { .. }), "{cut}");
        bytes[size / 2] ^= 1;
        fs::write(segment, &bytes).unwrap();
        assert!(store.get("images/a", MANY).await.unwrap() == Some(body));
    }
}

#[test]
fn unusable_directory_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    for (data_dir, bucket) in [("file", BUCKET), ("fine", ".."), ("fine", "a/b")] {
        match SqliteStore::open(&directory.path().join(data_dir), bucket) {
            Err(StoreError::Fatal { reason, .. }) => assert!(!reason.contains('\n'), "{reason}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{data_dir} {bucket} was opened"),
        }
    }
}

fn open(data_dir: &Path) -> SqliteStore {
    SqliteStore::open(data_dir, BUCKET).unwrap()
}

fn segments(data_dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(data_dir.join("objects")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The files in the directory that are deleted and that this process has open.
fn deleted_and_open(data_dir: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let files = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    files.filter(|file| file.starts_with(data_dir) && file.to_string_lossy().ends_with(" (deleted)")).collect()
}

/// Key and body of every object.
fn bodies(data_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let database = rusqlite::Connection::open(data_dir.join("imgcls.sqlite3")).unwrap();
    let mut select = database.prepare("SELECT key, segment, offset, size_bytes, body FROM objects").unwrap();
    let rows =
        select.query_map([], |row| <(String, Option<String>, Option<usize>, usize, Vec<u8>)>::try_from(row)).unwrap();
    let whole = |(key, segment, offset, size, body): (String, Option<String>, Option<usize>, usize, Vec<u8>)| {
        let Some(segment) = segment else { return (key, body) };
        let bytes = fs::read(data_dir.join("objects").join(segment)).unwrap();
        (key, bytes[offset.unwrap()..][..size].to_vec())
    };
    rows.map(|row| whole(row.unwrap())).collect()
}

fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}
