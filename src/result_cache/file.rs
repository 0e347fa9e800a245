//! The answers in an SQLite database: a file that all processes of a machine share, or the memory of this process.
//!
//! The folder of the file belongs to this user alone, so that nobody else can give answers. Answers are written without a
//! sync for each; a power failure costs the newest ones.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::{AnswerKey, CacheConfig, CachedAnswer};
use crate::model::Prediction;
use crate::protocol::ImageFacts;

/// The folder in the cache directory.
pub(super) const FOLDER: &str = "answers";
/// The name says the version of the tables.
pub(super) const NAME: &str = "answers-1.sqlite3";

/// A use is recorded when the last recorded one is so long ago.
const USE_RESOLUTION: Duration = Duration::from_secs(60);
/// A write waits so long for one of another process. The answer is not kept then.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// The share of the answers that is deleted when the limit is reached.
const DELETED_SHARE: i64 = 8;
/// An answer and its place in the index take new pages, at most so many beside those of its content.
const PAGES_OF_A_WRITE: u64 = 8;
const PAGE_BYTES: u64 = 4096;
/// The write-ahead log beside the file is cut to this length.
const LOG_BYTES: u64 = 4 << 20;

pub(super) struct AnswerFile {
    connection: Connection,
    /// `None` if the answers are in memory.
    path: Option<PathBuf>,
    max_bytes: u64,
    has_warned: bool,
}

/// The content of an answer. Scores are stored as their bits, so that they are exactly the same when they are read.
#[derive(Serialize, Deserialize)]
struct Stored {
    predictions: Vec<StoredPrediction>,
    labels: Vec<StoredPrediction>,
    facts: ImageFacts,
}

#[derive(Serialize, Deserialize)]
struct StoredPrediction(Option<u32>, String, Option<u32>);

impl AnswerFile {
    /// Opens the file. If that is not possible, answers are kept in memory.
    pub(super) fn open(config: &CacheConfig) -> AnswerFile {
        let max_bytes = config.max_bytes;
        let Some(folder) = &config.folder else { return AnswerFile::in_memory(max_bytes) };
        let path = folder.join(FOLDER).join(NAME);
        let opened = open_file(&path).or_else(|error| {
            if !is_damaged(&error) {
                return Err(error);
            }
            tracing::warn!(path = %path.display(), %error, "the file of answers is damaged; it is made again");
            remove(&path);
            open_file(&path)
        });
        match opened {
            Ok(connection) => {
                let mut file = AnswerFile { connection, path: Some(path), max_bytes, has_warned: false };
                let shrunk = file.shrink();
                file.warn_of(shrunk.map(|()| None::<()>));
                file
            }
            Err(error) => {
                tracing::warn!(
                    path = %path.display(),
                    error = format!("{error:#}"),
                    "cannot use the file of answers; they are kept in the memory of this process"
                );
                AnswerFile::in_memory(max_bytes)
            }
        }
    }

    fn in_memory(max_bytes: u64) -> AnswerFile {
        let connection = Connection::open_in_memory().and_then(|connection| {
            create_tables(&connection)?;
            Ok(connection)
        });
        let connection = connection.expect("a database in memory needs no file; this is a bug");
        AnswerFile { connection, path: None, max_bytes, has_warned: false }
    }

    /// The answer with this key.
    pub(super) fn find(&mut self, key: AnswerKey) -> Option<CachedAnswer> {
        let found = self.try_find(key);
        let (content, used) = self.warn_of(found)?;
        let answer = decode(&content);
        let now = milliseconds();
        if answer.is_some() && used.saturating_add(USE_RESOLUTION.as_millis() as i64) < now {
            let touched = self.touch(key, now);
            self.warn_of(touched.map(Some));
        }
        answer
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, key: AnswerKey, answer: &CachedAnswer) {
        let kept = self.try_keep(key, &encode(answer));
        self.warn_of(kept.map(Some));
    }

    fn try_find(&self, key: AnswerKey) -> rusqlite::Result<Option<(Vec<u8>, i64)>> {
        let mut find = self.connection.prepare_cached("SELECT answer, used FROM answers WHERE key = ?1")?;
        find.query_row([key.0.as_slice()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
    }

    fn touch(&self, key: AnswerKey, now: i64) -> rusqlite::Result<()> {
        let mut touch = self.connection.prepare_cached("UPDATE answers SET used = ?2 WHERE key = ?1")?;
        touch.execute(params![key.0.as_slice(), now]).map(drop)
    }

    fn try_keep(&self, key: AnswerKey, content: &[u8]) -> rusqlite::Result<()> {
        let needed = content.len() as u64 + PAGES_OF_A_WRITE * PAGE_BYTES;
        if needed > self.max_bytes {
            return Ok(());
        }
        self.delete_down_to(self.max_bytes - needed)?;
        let mut keep = self.connection.prepare_cached("INSERT OR REPLACE INTO answers VALUES (?1, ?2, ?3)")?;
        keep.execute(params![key.0.as_slice(), content, milliseconds()]).map(drop)
    }

    /// Deletes the least recently used answers until the others take at most so many bytes.
    fn delete_down_to(&self, bytes: u64) -> rusqlite::Result<()> {
        while self.used_bytes()? > bytes {
            let mut delete = self.connection.prepare_cached(
                "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used
                 LIMIT 1 + (SELECT count(*) FROM answers) / ?1)",
            )?;
            if delete.execute([DELETED_SHARE])? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The bytes of all pages that are in use. The file may have further ones, which the next answers take.
    fn used_bytes(&self) -> rusqlite::Result<u64> {
        let mut pages = self.connection.prepare_cached(
            "SELECT (page_count - freelist_count) * page_size
             FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()",
        )?;
        pages.query_row([], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    }

    /// Makes a file that is larger than the limit smaller, as after the limit was lowered.
    fn shrink(&self) -> rusqlite::Result<()> {
        let pages: i64 = self.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        if pages.unsigned_abs() * PAGE_BYTES <= self.max_bytes {
            return Ok(());
        }
        self.delete_down_to(self.max_bytes.saturating_sub(PAGES_OF_A_WRITE * PAGE_BYTES))?;
        self.connection.execute_batch("VACUUM")
    }

    /// The value. The first error is logged; a file that is damaged is left for memory, and made again by the next process.
    fn warn_of<T>(&mut self, outcome: rusqlite::Result<Option<T>>) -> Option<T> {
        let error = match outcome {
            Ok(value) => return value,
            Err(error) => error,
        };
        // Another process writes. That costs an answer of the cache, and happens in a service under load.
        if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) {
            return None;
        }
        if !self.has_warned {
            self.has_warned = true;
            let path = self.path.as_deref().unwrap_or(Path::new("memory"));
            tracing::warn!(path = %path.display(), %error, "cannot use the cache of answers; images are classified");
        }
        if let (true, Some(path)) = (is_damage(&error), &self.path) {
            remove(path);
            let max_bytes = self.max_bytes;
            *self = AnswerFile { has_warned: true, ..AnswerFile::in_memory(max_bytes) };
        }
        None
    }
}

/// Opens the file in a folder of this user.
fn open_file(path: &Path) -> anyhow::Result<Connection> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = folder.symlink_metadata()?;
    let is_private =
        found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode().trailing_zeros() >= 6;
    ensure!(is_private, "other users may use {}: run `chmod 700` on it, or remove it", folder.display());
    // SQLite gives its log and its shared memory the mode of the database.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}"))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    ensure!(mode == "wal", "its file system has no shared memory (a network share?)");
    connection.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = {LOG_BYTES}; PRAGMA trusted_schema = OFF"
    ))?;
    create_tables(&connection)?;
    connection.busy_timeout(LONGEST_WAIT)?;
    Ok(connection)
}

fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL, used INTEGER NOT NULL)
             WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS answers_by_use ON answers (used)",
    )
}

fn is_damaged(error: &anyhow::Error) -> bool {
    error.downcast_ref::<rusqlite::Error>().is_some_and(is_damage)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Removes the file with its log and its shared memory.
fn remove(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        let _ = std::fs::remove_file(name);
    }
}

fn encode(answer: &CachedAnswer) -> Vec<u8> {
    let stored = |predictions: &[Prediction]| {
        let one = |one: &Prediction| StoredPrediction(one.class_index, one.label.clone(), one.score.map(f32::to_bits));
        predictions.iter().map(one).collect()
    };
    let CachedAnswer { predictions, labels, facts } = answer;
    let content = Stored { predictions: stored(predictions), labels: stored(labels), facts: facts.clone() };
    serde_json::to_vec(&content).expect("strings and numbers serialise; this is a bug")
}

/// `None` if it is not the content of an answer.
fn decode(content: &[u8]) -> Option<CachedAnswer> {
    let predictions = |stored: Vec<StoredPrediction>| {
        let one = |StoredPrediction(class_index, label, score)| Prediction {
            class_index,
            label,
            score: score.map(f32::from_bits),
        };
        stored.into_iter().map(one).collect()
    };
    let Stored { predictions: best, labels, facts } = serde_json::from_slice(content).ok()?;
    Some(CachedAnswer { predictions: predictions(best), labels: predictions(labels), facts })
}

/// Milliseconds since 1970. Only the order of uses depends on it.
fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
