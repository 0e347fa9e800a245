//! The schema of the database: its identity, its tables, and the migrations from earlier releases.

use rusqlite::{Connection, TransactionBehavior};

/// "imgq". It distinguishes our database from those of other programs.
const APPLICATION_ID: i32 = 0x696d_6771;
/// The version that [`SCHEMA`] creates, and the oldest that is migrated.
const FIRST_VERSION: i32 = 4;
pub(super) const SCHEMA_VERSION: i32 = FIRST_VERSION + (MIGRATIONS.len() as u32).cast_signed();

/// - The id of a queue is never used twice (`AUTOINCREMENT`), so that a receipt of a removed queue fits no other queue.
/// - A message is identified by its `message_id`. Sending it writes two pages: its row and its entry in `messages_due`.
/// - `messages_due` answers what can be received, when the next message is due, the depth and the ages, without reading a
///   body.
/// - The body of an object is in its row or, if `segment` is set, in that segment.
const SCHEMA: &str = "
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    visibility_timeout_ms INTEGER NOT NULL,
    retention_ms INTEGER NOT NULL,
    max_message_bytes INTEGER NOT NULL,
    dead_letter_queue TEXT,
    max_receive_count INTEGER
) STRICT;
CREATE TABLE tags (
    queue_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (queue_id, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    queue_id INTEGER NOT NULL,
    visible_at_ms INTEGER NOT NULL,
    receive_count INTEGER NOT NULL,
    sent_at_ms INTEGER NOT NULL,
    message_id BLOB NOT NULL,
    attributes TEXT,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX messages_due ON messages (queue_id, visible_at_ms, receive_count, sent_at_ms);
CREATE TABLE objects (
    bucket TEXT NOT NULL,
    key TEXT NOT NULL,
    modified_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    segment TEXT,
    offset INTEGER,
    checksum INTEGER,
    body BLOB NOT NULL,
    PRIMARY KEY (bucket, key)
) STRICT;
";

/// The step to each version from the one before, in one transaction. Steps are only appended. Processes of an earlier
/// release that have the file open continue while it is migrated, so a step may add tables and nullable columns, and must
/// not change what is there.
const MIGRATIONS: [&str; 1] = [
    // Version 5:
    // - the process that received a message last, so that messages of a dead process become visible at once;
    // - the clock of the data directory (`anchor`).
    // From here on a body in its row has a checksum as well, in the column that bodies in segments use.
    "ALTER TABLE messages ADD COLUMN receiver_pid INTEGER;
     ALTER TABLE messages ADD COLUMN receiver_started INTEGER;
     CREATE TABLE clock (
         id INTEGER PRIMARY KEY CHECK (id = 1),
         boot_id TEXT NOT NULL,
         offset_us INTEGER NOT NULL,
         seen_us INTEGER NOT NULL
     ) STRICT;",
];

/// Why a database cannot be used.
pub(super) enum SchemaError {
    Sql(rusqlite::Error),
    /// It belongs to another program.
    NotOurs,
    /// It has a version that this release does not know.
    UnknownVersion(i32),
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        SchemaError::Sql(error)
    }
}

/// Returns the version of the schema, 0 for an empty file, and refuses a database that this release cannot use. Writes
/// nothing. It is one statement, and so one snapshot, because another process may be creating the schema at the moment.
pub(super) fn version(connection: &Connection) -> Result<i32, SchemaError> {
    let sql = "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
               FROM pragma_application_id, pragma_user_version";
    let identity = connection.query_row(sql, [], |row| <(i32, i32, i64)>::try_from(row))?;
    match identity {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, version @ FIRST_VERSION..=SCHEMA_VERSION, _) => Ok(version),
        (APPLICATION_ID, other, _) => Err(SchemaError::UnknownVersion(other)),
        _ => Err(SchemaError::NotOurs),
    }
}

/// Creates or migrates the schema. A database that is up to date is not written, since a write would wait for the lock.
pub(super) fn update(connection: &mut Connection) -> Result<(), SchemaError> {
    create_or_migrate(connection)?;
    Ok(add_retention(connection)?)
}

fn create_or_migrate(connection: &mut Connection) -> Result<(), SchemaError> {
    if version(connection)? == SCHEMA_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut found = version(&transaction)?;
    if found < FIRST_VERSION {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        found = FIRST_VERSION;
    } else if found < SCHEMA_VERSION {
        tracing::info!(from = found, to = SCHEMA_VERSION, "migrating the schema of the data directory");
    }
    for step in &MIGRATIONS[(found - FIRST_VERSION) as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    Ok(transaction.commit()?)
}

/// Adds what the retention of stored data needs to a database of any earlier release: objects by age and by segment, and
/// the limits that a service last ran with, for `imgcls data`.
fn add_retention(connection: &mut Connection) -> rusqlite::Result<()> {
    let exists = "SELECT count(*) = 3 FROM sqlite_schema
                  WHERE name IN ('objects_by_age', 'objects_by_segment', 'retention')";
    if connection.query_row(exists, [], |row| row.get(0))? {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE INDEX IF NOT EXISTS objects_by_age ON objects (bucket, modified_ms, size_bytes);
         CREATE INDEX IF NOT EXISTS objects_by_segment ON objects (segment, offset, size_bytes) WHERE segment IS NOT NULL;
         CREATE TABLE IF NOT EXISTS retention (
             service TEXT PRIMARY KEY,
             keep_images_ms INTEGER NOT NULL,
             keep_results_ms INTEGER NOT NULL,
             max_data_bytes INTEGER NOT NULL
         ) STRICT;",
    )?;
    transaction.commit()
}
