//! The file: where it lies, how it is opened, what is in it.

use std::cell::Cell;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::Fault;

pub const FILE_NAME: &str = "imgcls.sqlite3";

/// "imgq": tells our file from any other SQLite file.
const APPLICATION_ID: i32 = 0x696d_6771;
const SCHEMA_VERSION: i32 = 4;

/// How long an operation waits for other processes before it answers `Unavailable`.
const BUSY_LIMIT: Duration = Duration::from_secs(30);
/// Rows are small, and every page that a transaction touches goes into the log whole.
pub(super) const PAGE_BYTES: i32 = 4 << 10;
/// Pages that a connection keeps: what a handful of queues touches.
const CACHE_KIB: u32 = 1 << 10;
/// The write-ahead log is cut to this size after a burst.
const WAL_LIMIT_BYTES: u32 = 16 << 20;

/// `AUTOINCREMENT`: the id of a queue is never used twice, so that a receipt of a removed queue fits no other. A message
/// is told apart by its `message_id`, which is unique, so that sending writes two pages: its row and its place in
/// `messages_due`, which answers "what can be received", "when is the next due", the depth and the ages without
/// touching a body. The body of an object is either here or, where `segment` names one, in that segment.
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

/// Makes the data directory and the file where they are missing, and refuses a file that is not ours.
pub(super) fn open(data_dir: &Path) -> Result<Connection, Fault> {
    make_directory(data_dir)?;
    let path = data_dir.join(FILE_NAME);
    open_file(&path).map_err(|error| open_error(&path, error))
}

/// The write-ahead log of an open file. It stays the same one as long as any connection is open. Unlike the file
/// itself it carries no locks, which closing another handle on it would take away.
pub(super) fn open_log(data_dir: &Path) -> Result<File, Fault> {
    let path = data_dir.join(format!("{FILE_NAME}-wal"));
    File::open(&path).map_err(|error| Fault::Fatal(format!("{} cannot be opened: {error}", path.display())))
}

/// A directory of the data directory, private to the user when it is new.
pub fn make_directory(directory: &Path) -> Result<(), Fault> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let text = format!("the directory {} cannot be made ({error})", directory.display());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Fault::Unavailable(format!("{text}: free some space there"))
            }
            _ => Fault::Fatal(format!("{text}: make it writable for this user, or give another with --data-dir")),
        }
    })
}

/// Why an operation failed, for who waits for it.
pub fn fault(error: &rusqlite::Error) -> Fault {
    let text = format!("the file of the local backend: {error}");
    match error.sqlite_error_code() {
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::CannotOpen,
        ) => Fault::Fatal(text),
        _ => Fault::Unavailable(text),
    }
}

enum OpenError {
    Sql(rusqlite::Error),
    NotOurs,
    Newer(i32),
    NoSharedMemory,
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        OpenError::Sql(error)
    }
}

fn open_file(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(wait_for_others))?;
    connection.set_prepared_statement_cache_capacity(64);
    // A plan depends on no bound value, so that no statement is compiled again when one changes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    check_identity(&connection)?;
    // Of a new file; one that stands keeps its own.
    connection.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL"))?;
    set_write_ahead_log(&connection)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {WAL_LIMIT_BYTES};
         PRAGMA cache_size = -{CACHE_KIB};
         PRAGMA mmap_size = 0;
         PRAGMA temp_store = MEMORY;
         PRAGMA trusted_schema = OFF;"
    ))?;
    make_schema(&mut connection)?;
    retention_schema(&mut connection)?;
    Ok(connection)
}

/// Before anything is written: an empty file, or one of ours that this build understands. One statement, thus one
/// snapshot, since another process may be making the schema right now.
fn check_identity(connection: &Connection) -> Result<i32, OpenError> {
    let sql = "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
               FROM pragma_application_id, pragma_user_version";
    let identity = connection.query_row(sql, [], |row| <(i32, i32, i64)>::try_from(row))?;
    match identity {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, SCHEMA_VERSION, _) => Ok(SCHEMA_VERSION),
        (APPLICATION_ID, other, _) => Err(OpenError::Newer(other)),
        _ => Err(OpenError::NotOurs),
    }
}

/// Readers never wait for the writer, and a commit is one append. The mode stays in the file; only the first process
/// really changes it, and while it does, the others are turned away without the busy handler being asked.
fn set_write_ahead_log(connection: &Connection) -> Result<(), OpenError> {
    let start = Instant::now();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(_) => return Err(OpenError::NoSharedMemory),
            Err(error) if is_busy(&error) && start.elapsed() < BUSY_LIMIT => std::thread::sleep(jittered(MAX_NAP)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn make_schema(connection: &mut Connection) -> Result<(), OpenError> {
    if check_identity(connection)? == SCHEMA_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if check_identity(&transaction)? != SCHEMA_VERSION {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    Ok(transaction.commit()?)
}

/// What bounding the stored data needs, added to a file of any earlier release: objects by age and by segment, and the
/// limits that a service last ran with, for `imgcls data`.
fn retention_schema(connection: &mut Connection) -> Result<(), OpenError> {
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
    Ok(transaction.commit()?)
}

fn open_error(path: &Path, error: OpenError) -> Fault {
    let path = path.display();
    Fault::Fatal(match error {
        OpenError::NotOurs => {
            format!("{path} is a database of another program: move it away, or give another directory with --data-dir")
        }
        OpenError::Newer(version) => format!(
            "{path} was made by another release of imgcls (schema {version}, this one knows {SCHEMA_VERSION}): \
             use that release, or give another directory with --data-dir"
        ),
        OpenError::NoSharedMemory => {
            format!(
                "{path} lies on a file system without shared memory (a network share?): give a local directory with --data-dir"
            )
        }
        OpenError::Sql(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => format!(
                "{path} is not a file of imgcls, or a damaged one ({error}): move it away, or give another directory with --data-dir"
            ),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => format!(
                "{path} is not writable ({error}): make it writable for this user, or give another directory with --data-dir"
            ),
            _ => return fault(&error),
        },
    })
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

const FIRST_NAP: Duration = Duration::from_micros(50);
const MAX_NAP: Duration = Duration::from_millis(2);

thread_local! {
    static BUSY_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The busy handler: naps from 50 µs, doubling to 2 ms. SQLite's own begins at 1 ms and grows to 100 ms, far longer
/// than any of our transactions lasts; several processes would mostly sleep beside a free lock.
fn wait_for_others(attempt: i32) -> bool {
    let since = BUSY_SINCE.with(|cell| {
        if attempt == 0 {
            cell.set(Some(Instant::now()));
        }
        cell.get()
    });
    if since.is_some_and(|since| since.elapsed() > BUSY_LIMIT) {
        return false;
    }
    let doublings = u32::try_from(attempt).unwrap_or(0).min(6);
    std::thread::sleep(jittered((FIRST_NAP * 2_u32.pow(doublings)).min(MAX_NAP)));
    true
}

/// Between half of it and all of it, so that processes that were turned away together do not come back together.
fn jittered(nap: Duration) -> Duration {
    nap.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// For a caller that has only an I/O error to tell.
pub(super) fn thread_error(error: &io::Error) -> Fault {
    Fault::Unavailable(format!("no thread for the local backend: {error}"))
}
