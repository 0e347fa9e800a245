//! Data directories of earlier releases.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use imgcls::transport::MAX_BATCH;
use imgcls::transport::local::{SqliteQueues, SqliteStore};
use imgcls::transport::queued::object::ObjectStore as _;
use imgcls::transport::queued::queue::{Queues as _, ReceiveOptions};

/// The earlier release wrote schema 4.
#[tokio::test(flavor = "multi_thread")]
async fn data_directory_of_earlier_release_is_migrated_while_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let earlier = rusqlite::Connection::open(directory.path().join("imgcls.sqlite3")).unwrap();
    earlier.execute_batch(SCHEMA_4).unwrap();
    let send_as_before = |body: &str| {
        let sql =
            "INSERT INTO messages (queue_id, visible_at_ms, receive_count, sent_at_ms, message_id, attributes, body)
                   VALUES (1, ?1, 0, ?1, randomblob(16), NULL, ?2)";
        let now_ms = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        earlier.prepare_cached(sql).unwrap().execute(rusqlite::params![now_ms, body]).unwrap();
    };
    send_as_before("before");
    let queues = SqliteQueues::open(directory.path()).unwrap();
    send_as_before("after");
    let queue = queues.open("requests").await.unwrap();
    let now = ReceiveOptions { max: MAX_BATCH, wait: Duration::ZERO, visibility_timeout: Duration::ZERO };
    let deliveries = queue.receive(now).await.unwrap();
    assert_eq!(deliveries.iter().map(|delivery| &*delivery.body).collect::<Vec<_>>(), ["before", "after"]);
    let store = SqliteStore::open(directory.path(), "output").unwrap();
    assert_eq!(store.get("results/a", 100).await.unwrap(), Some(Bytes::from_static(b"without a checksum")));
}

const SCHEMA_4: &str = "
PRAGMA journal_mode = WAL;
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, visibility_timeout_ms INTEGER NOT NULL,
    retention_ms INTEGER NOT NULL, max_message_bytes INTEGER NOT NULL, dead_letter_queue TEXT, max_receive_count INTEGER
) STRICT;
CREATE TABLE tags (
    queue_id INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (queue_id, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, queue_id INTEGER NOT NULL, visible_at_ms INTEGER NOT NULL, receive_count INTEGER NOT NULL,
    sent_at_ms INTEGER NOT NULL, message_id BLOB NOT NULL, attributes TEXT, body TEXT NOT NULL
) STRICT;
CREATE INDEX messages_due ON messages (queue_id, visible_at_ms, receive_count, sent_at_ms);
CREATE TABLE objects (
    bucket TEXT NOT NULL, key TEXT NOT NULL, modified_ms INTEGER NOT NULL, size_bytes INTEGER NOT NULL, segment TEXT,
    offset INTEGER, checksum INTEGER, body BLOB NOT NULL, PRIMARY KEY (bucket, key)
) STRICT;
INSERT INTO queues VALUES (1, 'requests', 30000, 345600000, 1048576, NULL, NULL);
INSERT INTO objects VALUES ('output', 'results/a', 0, 18, NULL, NULL, NULL, CAST('without a checksum' AS BLOB));
PRAGMA application_id = 0x696d6771;
PRAGMA user_version = 4;
";
