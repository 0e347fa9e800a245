//! The database file: where it is, who may read it, and how a connection to it is opened.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::busy::{self, BUSY_LIMIT, LockWait, is_busy};
use super::fault::Fault;
use super::schema::{self, SCHEMA_VERSION, SchemaError};

/// The name of the database in the data directory.
pub const FILE_NAME: &str = "imgcls.sqlite3";

/// A transaction appends every page that it touches to the log, and rows are small, so pages are small too.
pub(super) const PAGE_BYTES: i32 = 4 << 10;
/// The page cache of a connection holds what a handful of queues touches.
const CACHE_KIB: u32 = 1 << 10;
/// A process that ends does not copy a longer log into the database.
const LONGEST_COPY_AT_CLOSE_BYTES: u64 = 64 << 20;
/// The write-ahead log is truncated to this size after a burst.
const WAL_LIMIT_BYTES: u32 = 16 << 20;

/// The mode of files that only the user may read and write.
pub(super) const PRIVATE: u32 = 0o600;

/// Creates the data directory and the database file if they are missing, and takes files of an earlier release away from
/// other users. SQLite gives its log and its shared memory the mode of the database.
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

/// Opens a connection, and refuses a database that is not ours.
pub(super) fn open(data_dir: &Path) -> Result<Connection, Fault> {
    let path = data_dir.join(FILE_NAME);
    open_file(&path).map_err(|error| open_fault(&path, error))
}

/// Opens the write-ahead log, which stays the same file as long as any connection is open. Unlike the database it carries
/// no locks, which closing another handle would release.
pub(super) fn open_log(data_dir: &Path) -> Result<File, Fault> {
    let path = data_dir.join(format!("{FILE_NAME}-wal"));
    File::open(&path).map_err(|error| Fault::Fatal(format!("cannot open {}: {error}", path.display())))
}

/// Prepares a connection to be dropped. The last connection of all processes copies the log into the database, unless
/// that would take long: then the log stays for the next process that opens the database.
pub(super) fn prepare_to_close(connection: &Connection) {
    let log = connection.path().map(|path| format!("{path}-wal"));
    let log_bytes = log.and_then(|path| std::fs::metadata(path).ok()).map_or(0, |found| found.len());
    if log_bytes > LONGEST_COPY_AT_CLOSE_BYTES
        && let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
    {
        tracing::debug!(%error, "cannot skip the checkpoint at the end of this process; it may take long");
    }
}

/// Creates a directory in the data directory if it is missing, private to the user.
///
/// # Errors
/// [`Fault::Fatal`] if it cannot be created, [`Fault::Unavailable`] if the disk is full.
pub fn make_directory(directory: &Path) -> Result<(), Fault> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| not_writable(directory, &error))
}

/// Takes a file away from other users, if it is ours and they can use it.
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

/// Warns if other users can read the data directory. Only the first of the processes that have it open does so.
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

/// All files that hold data of users, those of the store included.
fn files(data_dir: &Path) -> Vec<PathBuf> {
    let named = ["", "-wal", "-shm"].map(|end| data_dir.join(format!("{FILE_NAME}{end}")));
    let objects = std::fs::read_dir(data_dir.join("objects")).into_iter().flatten().flatten();
    named.into_iter().chain(objects.map(|entry| entry.path())).collect()
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

enum OpenError {
    Schema(SchemaError),
    NoSharedMemory,
}

impl From<SchemaError> for OpenError {
    fn from(error: SchemaError) -> Self {
        OpenError::Schema(error)
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        OpenError::Schema(error.into())
    }
}

fn open_file(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    busy::handle_busy(&mut connection)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Plans do not depend on bound values, so no statement is compiled again when a value changes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if schema::version(&connection)? == 0 {
        // These settings are those of a new file. On an existing one they would be a write, which waits for the lock.
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
    schema::update(&mut connection)?;
    Ok(connection)
}

/// Switches to the write-ahead log, in which readers never wait for the writer and a commit is one append. The mode is
/// stored in the file. Only the first process really changes it; meanwhile the others are refused without a call of the
/// busy handler.
fn set_write_ahead_log(connection: &Connection) -> Result<(), OpenError> {
    let mut wait = LockWait::start();
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(_) => return Err(OpenError::NoSharedMemory),
            Err(error) if is_busy(&error) && wait.elapsed() < BUSY_LIMIT => wait.sleep(),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_fault(path: &Path, error: OpenError) -> Fault {
    let path = path.display();
    Fault::Fatal(match error {
        OpenError::Schema(SchemaError::NotOurs) => {
            format!("{path} is a database of another program: move it away, or give another directory with --data-dir")
        }
        OpenError::Schema(SchemaError::UnknownVersion(version)) => format!(
            "{path} belongs to another release of imgcls (schema {version}; this one knows {SCHEMA_VERSION}): use that \
             release, or give another directory with --data-dir"
        ),
        OpenError::NoSharedMemory => format!(
            "{path} is on a file system without shared memory (a network share?): give a local directory with --data-dir"
        ),
        OpenError::Schema(SchemaError::Sql(error)) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => format!(
                "{path} is not a file of imgcls, or it is damaged ({error}): move it away, or give another directory with \
                 --data-dir"
            ),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => format!(
                "{path} is not writable ({error}): make it writable for this user, or give another directory with \
                 --data-dir"
            ),
            _ => return Fault::of(&error),
        },
    })
}
