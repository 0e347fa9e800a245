//! The contract of the buckets on which the local transport and the one on AWS are built. The contract of transports is
//! in `conformance`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::join_all;
use imgcls::transport::local::SqliteStore;
use imgcls::transport::queued::object::{ObjectStore, Put, PutOptions, StoreError};
use uuid::Uuid;

use crate::conformance::{self, Exception, checks};

const MANY: u64 = 64 << 20;
const ONCE: PutOptions = PutOptions { if_none_match: true, content_type: Some("application/json") };
const PLAIN: PutOptions = PutOptions { if_none_match: false, content_type: None };

#[tokio::test(flavor = "multi_thread")]
async fn local_store_conforms() {
    let directory = tempfile::tempdir().unwrap();
    all(|| Arc::new(SqliteStore::open(directory.path(), "bucket").unwrap()), &[]).await;
}

/// Runs the suite. Each call of `store` opens another handle of the same bucket. The suite uses only new keys.
pub async fn all(store: impl Fn() -> Arc<dyn ObjectStore>, exceptions: &[Exception]) {
    let store: &Handles<'_> = &store;
    let checks = checks![
        store:
        object_is_read_as_written,
        other_handles_see_a_put,
        missing_object_is_none,
        put_replaces_an_object,
        only_one_conditional_put_creates,
        get_refuses_objects_that_are_too_large,
        object_is_read_in_pieces,
        head_returns_size_and_time,
        odd_keys_are_valid,
    ];
    conformance::run(checks, exceptions).await;
}

type Handles<'a> = dyn Fn() -> Arc<dyn ObjectStore> + 'a;

async fn object_is_read_as_written(handles: &Handles<'_>) {
    let store = handles();
    for size in [0, 1, 600, 92_000, 3 << 20] {
        let key = new_key("images");
        let body: Bytes = (0..size).map(|index: u32| (index % 251) as u8).collect();
        assert_eq!(store.put(&key, body.clone(), PLAIN).await.unwrap(), Put::Created);
        assert!(store.get(&key, MANY).await.unwrap() == Some(body), "{size} bytes");
        store.delete(&key).await.unwrap();
        assert_eq!(store.get(&key, MANY).await.unwrap(), None);
    }
}

async fn other_handles_see_a_put(handles: &Handles<'_>) {
    let (one, other) = (handles(), handles());
    let key = new_key("images");
    let _ = one.put(&key, Bytes::from_static(b"seen"), PLAIN).await.unwrap();
    assert_eq!(other.get(&key, MANY).await.unwrap(), Some(Bytes::from_static(b"seen")));
    other.delete(&key).await.unwrap();
    assert_eq!(one.get(&key, MANY).await.unwrap(), None);
}

async fn missing_object_is_none(handles: &Handles<'_>) {
    let store = handles();
    for key in [new_key("images"), new_key("no/such/prefix"), Uuid::now_v7().to_string()] {
        assert_eq!(store.get(&key, MANY).await.unwrap(), None);
        assert_eq!(store.head(&key).await.unwrap(), None);
        store.delete(&key).await.unwrap();
    }
    // The prefix of a key is not an object.
    let key = new_key("prefix");
    let _ = store.put(&key, Bytes::new(), PLAIN).await.unwrap();
    assert_eq!(store.get("prefix", MANY).await.unwrap(), None);
    assert_eq!(store.head("prefix").await.unwrap(), None);
    store.delete("prefix").await.unwrap();
    assert!(store.head(&key).await.unwrap().is_some());
    assert_eq!(store.get(&format!("{key}/below"), MANY).await.unwrap(), None, "there is no object below another");
    store.delete(&key).await.unwrap();
}

async fn put_replaces_an_object(handles: &Handles<'_>) {
    let store = handles();
    let key = new_key("results");
    let large = |byte: u8| Bytes::from(vec![byte; 300_000]);
    let bodies = ["first and longer".into(), "second".into(), large(1), large(2), "small again".into()];
    for body in bodies {
        assert_eq!(store.put(&key, Bytes::clone(&body), PLAIN).await.unwrap(), Put::Created);
        assert!(store.get(&key, MANY).await.unwrap() == Some(body));
    }
    store.delete(&key).await.unwrap();
}

async fn only_one_conditional_put_creates(handles: &Handles<'_>) {
    let key = new_key("results");
    // The bodies are small and large, since a store may keep the two kinds in different ways.
    let body_of =
        |racer: usize| Bytes::from(format!("racer {racer} ").repeat(if racer.is_multiple_of(2) { 1 } else { 30_000 }));
    let racers = (0..16).map(|racer| {
        let (store, key, body) = (handles(), key.clone(), body_of(racer));
        async move { (racer, store.put(&key, body, ONCE).await.unwrap()) }
    });
    let created: Vec<usize> =
        join_all(racers).await.into_iter().filter(|(_, put)| *put == Put::Created).map(|(racer, _)| racer).collect();
    assert_eq!(created.len(), 1, "{created:?}");
    let winner = body_of(created[0]);
    assert!(
        handles().get(&key, MANY).await.unwrap() == Some(winner.clone()),
        "a put that lost the race changed the object"
    );
    assert_eq!(handles().put(&key, Bytes::from_static(b"late"), ONCE).await.unwrap(), Put::AlreadyExists);
    assert!(handles().get(&key, MANY).await.unwrap() == Some(winner));
    handles().delete(&key).await.unwrap();
    assert_eq!(handles().put(&key, Bytes::from_static(b"again"), ONCE).await.unwrap(), Put::Created);
    handles().delete(&key).await.unwrap();
}

async fn get_refuses_objects_that_are_too_large(handles: &Handles<'_>) {
    let store = handles();
    let key = new_key("images");
    for length in [1_000, 400_000] {
        let _ = store.put(&key, Bytes::from(vec![1; length]), PLAIN).await.unwrap();
        let bytes = length as u64;
        assert_eq!(store.get(&key, bytes).await.unwrap().map(|body| body.len()), Some(length));
        match store.get(&key, bytes - 1).await {
            Err(StoreError::TooLarge { size, limit, .. }) => assert_eq!((size, limit), (bytes, bytes - 1)),
            other => panic!("{other:?}"),
        }
    }
    store.delete(&key).await.unwrap();
}

async fn object_is_read_in_pieces(handles: &Handles<'_>) {
    let store = handles();
    let key = new_key("images");
    for size in [0, 1, 600, 92_000, 131_072, 131_073, 3 << 20] {
        let body: Bytes = (0..size).map(|index: u32| (index % 251) as u8).collect();
        let _ = store.put(&key, body.clone(), PLAIN).await.unwrap();
        let mut reader = handles().read(&key, MANY).await.unwrap().unwrap();
        assert_eq!(reader.size_bytes, u64::from(size));
        let mut read = Vec::new();
        while let Some(piece) = reader.next().await {
            let piece = piece.unwrap();
            assert!(piece.len() < 1 << 20, "{} bytes at once", piece.len());
            read.extend_from_slice(&piece);
        }
        assert!(read == body, "{size} bytes");
    }
    assert!(matches!(store.read(&key, 1_000).await, Err(StoreError::TooLarge { limit: 1_000, .. })));
    store.delete(&key).await.unwrap();
    assert!(store.read(&key, MANY).await.unwrap().is_none());
}

async fn head_returns_size_and_time(handles: &Handles<'_>) {
    let store = handles();
    for size in [1_234, 500_000] {
        let key = new_key("images");
        let _ = store.put(&key, Bytes::from(vec![1; size]), PLAIN).await.unwrap();
        let info = store.head(&key).await.unwrap().unwrap();
        assert_eq!(info.size_bytes, size as u64);
        let now = SystemTime::now();
        let away = now.duration_since(info.modified).or_else(|_| info.modified.duration_since(now)).unwrap();
        assert!(away < Duration::from_secs(60), "modified {away:?} from now");
        store.delete(&key).await.unwrap();
    }
}

async fn odd_keys_are_valid(handles: &Handles<'_>) {
    let store = handles();
    let unique = Uuid::now_v7();
    for name in ["test 0.JPEG", "ünï-漢字", "a\\b", "..a", "a..b", "#?%&+", "-rf", ".hidden"] {
        let key = format!("odd/{unique}{name}");
        let _ = store.put(&key, Bytes::from(key.clone()), PLAIN).await.unwrap();
        assert_eq!(store.get(&key, MANY).await.unwrap(), Some(Bytes::from(key.clone())), "{key}");
        store.delete(&key).await.unwrap();
    }
    assert!(matches!(store.get(&"k".repeat(1_025), MANY).await, Err(StoreError::Fatal { .. })), "longer than S3 takes");
}

fn new_key(prefix: &str) -> String {
    format!("{prefix}/{}", Uuid::now_v7())
}
