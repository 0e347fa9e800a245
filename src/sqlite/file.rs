//! The file: where it lies, how it is opened, what is in it.

use std::cell::Cell;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::Rng as _;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::Fault;

pub const FILE_NAME: &str = "imgcls.sqlite3";

/// "imgq": tells our file from any other SQLite file.
const APPLICATION_ID: i32 = 0x696d_6771;
/// The version that [`SCHEMA`] makes, the oldest that is migrated.
const FIRST_VERSION: i32 = 4;
const SCHEMA_VERSION: i32 = FIRST_VERSION + (MIGRATIONS.len() as u32).cast_signed();

/// How long an operation waits for other processes before it answers `Unavailable`: longer than any transaction of ours,
/// shorter than a client waits. A process that was stopped (SIGSTOP) in the middle of a transaction holds its lock.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Rows are small, and every page that a transaction touches goes into the log whole.
pub(super) const PAGE_BYTES: i32 = 4 << 10;
/// Pages that a connection keeps: what a handful of queues touches.
const CACHE_KIB: u32 = 1 << 10;
/// A longer log (64 MiB) is not copied by a process that ends.
const LONGEST_COPY_AT_CLOSE_BYTES: u64 = 64 << 20;
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

/// What each version adds to the one before, in one transaction. Only appended to. A process of an older release that has
/// the file open goes on while it is migrated, so a step adds tables and nullable columns, and changes none that stand.
const MIGRATIONS: [&str; 1] = [
    // Version 5: which process received a message last, so that what a dead one held is visible again at once; the clock of
    // the data directory (`anchor`). A body in its row has a checksum too, in the column of those in segments.
    "ALTER TABLE messages ADD COLUMN receiver_pid INTEGER;
     ALTER TABLE messages ADD COLUMN receiver_started INTEGER;
     CREATE TABLE clock (
         id INTEGER PRIMARY KEY CHECK (id = 1),
         boot_id TEXT NOT NULL,
         offset_us INTEGER NOT NULL,
         seen_us INTEGER NOT NULL
     ) STRICT;",
];

/// Readable and writable by the user alone.
pub(super) const PRIVATE: u32 = 0o600;

/// Makes the data directory and the file where they are missing, and takes the files of an older release away from other
/// users. SQLite gives its log and shared memory the mode of the file.
pub(super) fn prepare(data_dir: &Path) -> Result<(), Fault> {
    let is_new = !data_dir.exists();
    make_directory(data_dir)?;
    if !is_new {
        warn_of_readers(data_dir);
    }
    let path = data_dir.join(FILE_NAME);
    match OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&path) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(not_writable(&path, &error)),
    }
    for path in files(data_dir) {
        make_private(&path);
    }
    Ok(())
}

/// Opens the file, and refuses one that is not ours.
pub(super) fn open(data_dir: &Path) -> Result<Connection, Fault> {
    let path = data_dir.join(FILE_NAME);
    open_file(&path).map_err(|error| open_error(&path, error))
}

/// Said once by the processes that have the directory open at the same time: by the first.
fn warn_of_readers(data_dir: &Path) {
    let is_first = !data_dir.join(format!("{FILE_NAME}-shm")).exists();
    if let Ok(found) = data_dir.metadata()
        && is_first
        && found.mode() & 0o066 != 0
    {
        tracing::warn!(
            directory = %data_dir.display(),
            mode = format!("{:o}", found.mode() & 0o777),
            "other users may list or change the data directory: run `chmod 700` on it"
        );
    }
}

/// All files with data of users, those of the store included.
fn files(data_dir: &Path) -> Vec<PathBuf> {
    let named = ["", "-wal", "-shm"].map(|end| data_dir.join(format!("{FILE_NAME}{end}")));
    let objects = std::fs::read_dir(data_dir.join("objects")).into_iter().flatten().flatten();
    named.into_iter().chain(objects.map(|entry| entry.path())).collect()
}

/// Takes a file away from other users, where it is ours and they can use it.
pub fn make_private(path: &Path) {
    let Ok(found) = path.symlink_metadata() else { return };
    let is_ours = found.uid() == rustix::process::geteuid().as_raw();
    let others = 0o077;
    if !is_ours || found.is_symlink() || found.mode() & others == 0 {
        return;
    }
    if let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(PRIVATE)) {
        tracing::warn!(path = %path.display(), %error, "other users can read this file: run `chmod 600` on it");
    }
}

fn not_writable(path: &Path, error: &io::Error) -> Fault {
    let text = format!("{} cannot be made ({error})", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Fault::Unavailable(format!("{text}: free some space there"))
        }
        _ => Fault::Fatal(format!("{text}: make it writable for this user, or give another directory with --data-dir")),
    }
}

/// The write-ahead log of an open file. It stays the same one as long as any connection is open. Unlike the file
/// itself it carries no locks, which closing another handle on it would take away.
pub(super) fn open_log(data_dir: &Path) -> Result<File, Fault> {
    let path = data_dir.join(format!("{FILE_NAME}-wal"));
    File::open(&path).map_err(|error| Fault::Fatal(format!("{} cannot be opened: {error}", path.display())))
}

/// A directory of the data directory, private to the user when it is new.
pub fn make_directory(directory: &Path) -> Result<(), Fault> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| not_writable(directory, &error))
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
    if check_identity(&connection)? == 0 {
        // Of a new file. For one that exists this would be a write, which waits for the lock.
        connection.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL"))?;
    }
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
        (APPLICATION_ID, version @ FIRST_VERSION..=SCHEMA_VERSION, _) => Ok(version),
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
    let mut version = check_identity(&transaction)?;
    if version < FIRST_VERSION {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        version = FIRST_VERSION;
    } else if version < SCHEMA_VERSION {
        tracing::info!(from = version, to = SCHEMA_VERSION, "the schema of the data directory is migrated");
    }
    for step in &MIGRATIONS[(version - FIRST_VERSION) as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
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

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

const FIRST_NAP: Duration = Duration::from_micros(50);
const MAX_NAP: Duration = Duration::from_millis(2);

thread_local! {
    static BUSY_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    static LIMIT: Cell<Duration> = const { Cell::new(BUSY_LIMIT) };
}

/// Does something with another limit on how long SQLite waits for other processes.
pub(super) fn waiting_at_most<T>(limit: Duration, act: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(limit);
    let done = act();
    LIMIT.set(before);
    done
}

/// The busy handler: naps until the limit. SQLite's own begins at 1 ms and grows to 100 ms, far longer than any of our
/// transactions lasts; several processes would mostly sleep beside a free lock.
fn wait_for_others(attempt: i32) -> bool {
    if attempt == 0 {
        BUSY_SINCE.set(Some(Instant::now()));
    }
    if BUSY_SINCE.get().is_some_and(|since| since.elapsed() >= LIMIT.get()) {
        return false;
    }
    nap(u32::try_from(attempt).unwrap_or(0));
    true
}

/// Sleeps before another attempt to get a lock, the first of which is 0: from 50 µs, doubling to 2 ms.
pub(super) fn nap(attempt: u32) {
    std::thread::sleep(jittered((FIRST_NAP * 2_u32.pow(attempt.min(6))).min(MAX_NAP)));
}

/// Between half of it and all of it, so that processes that were turned away together do not come back together.
fn jittered(nap: Duration) -> Duration {
    nap.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Called before a connection is dropped. The last one on the file copies the log into it, unless that would take long:
/// then the log stays for the next process that opens the file.
pub(super) fn prepare_to_close(connection: &Connection) {
    let log = connection.path().map(|path| format!("{path}-wal"));
    let log_bytes = log.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |found| found.len());
    if log_bytes > LONGEST_COPY_AT_CLOSE_BYTES
        && let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
    {
        tracing::debug!(%error, "the write-ahead log is copied before this process ends");
    }
}

/// For a caller that has only an I/O error to tell.
pub(super) fn thread_error(error: &io::Error) -> Fault {
    Fault::Unavailable(format!("no thread for the local backend: {error}"))
}
