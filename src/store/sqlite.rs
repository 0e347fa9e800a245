//! The local store: objects are rows of the SQLite file that the local queues live in, for any number of processes on
//! this machine. A put is a row, and shares its transaction and its sync with whatever else waits at that moment: the
//! message that follows an image, the reply that follows a result.
//!
//! The body of a large object, which would go through the write-ahead log and again through its checkpoint, is a file
//! beside it ([`super::files`]), written and synced before its row. A file that no row names yet, or any more, is in
//! `loose_files`; whoever was killed in between leaves it to a later put.
//!
//! Every key that S3 takes is a key here, and never a path. The media type is not kept.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension as _, Row, params};

use super::files::Files;
use super::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, Session, millis};

/// Here a row and a file cost the same processor time.
const MAX_ROW_BYTES: usize = 128 << 10;
/// A file that was loose for so long belongs to no living put.
const STALE_AFTER: Duration = Duration::from_secs(3_600);
/// Stale files that one put removes.
const STALE_AT_A_TIME: u32 = 8;

type Failure = sqlite::Failure<Error>;

/// One bucket.
pub struct SqliteStore {
    bucket: Arc<str>,
    database: Arc<Database>,
    files: Files,
}

/// A [`StoreError`] that does not name the bucket yet.
enum Error {
    TooLarge { size: u64 },
    Fault(Fault),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Fault(fault)
    }
}

impl SqliteStore {
    /// Opens, or makes, the bucket under `data_dir`.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] where the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path, bucket: &str) -> Result<SqliteStore, StoreError> {
        let fatal = |reason| StoreError::Fatal { bucket: bucket.to_owned(), reason };
        let name = config::bucket_name(bucket).map_err(fatal)?;
        let database = sqlite::open(data_dir).map_err(|fault| named(bucket, fault))?;
        let files = Files::open(data_dir).map_err(|fault| named(bucket, fault))?;
        Ok(SqliteStore { bucket: name.into(), database, files })
    }

    fn names(&self, key: &str) -> Result<Names, StoreError> {
        check_key_length(key).map_err(|why| StoreError::Fatal {
            bucket: self.bucket.to_string(),
            reason: format!("the key {key:?} {why}"),
        })?;
        Ok(Names { bucket: Arc::clone(&self.bucket), key: key.to_owned() })
    }

    fn error(&self, error: Error, key: &str, limit: u64) -> StoreError {
        match error {
            Error::TooLarge { size } => StoreError::TooLarge { key: key.to_owned(), size, limit },
            Error::Fault(fault) => named(&self.bucket, fault),
        }
    }

    async fn put_body(&self, names: Names, body: Bytes, if_none_match: bool) -> Result<Put, Error> {
        let body = if body.len() <= MAX_ROW_BYTES { Body::Row(body) } else { self.write_file(body).await? };
        let name = body.file_name();
        let work = move |session: &mut Session| put(session, &names, &body, if_none_match);
        let Replaced { put, file } = self.database.engine.write(Durability::Full, work).await?;
        // What was there before, or what came too late.
        let unused = file.or_else(|| name.filter(|_| put == Put::AlreadyExists));
        self.remove_files(unused.into_iter().collect()).await;
        Ok(put)
    }

    /// A file that no row names yet.
    async fn write_file(&self, body: Bytes) -> Result<Body, Error> {
        let name = Files::new_name();
        let noted = name.clone();
        let work = move |session: &mut Session| Ok(note_and_take_stale(session, &noted)?);
        let stale: Vec<String> = self.database.engine.write::<_, Error>(Durability::Normal, work).await?;
        self.remove_files(stale).await;
        let size_bytes = body.len() as u64;
        self.files.write(&name, body).await?;
        Ok(Body::File { name, size_bytes })
    }

    /// Files that are in `loose_files`. A failure is no harm: they stay there, and a later put tries again.
    async fn remove_files(&self, names: Vec<String>) {
        for name in names {
            let removed = async {
                self.files.remove(&name).await?;
                let name = name.clone();
                let work = move |session: &mut Session| Ok(forget_loose(session, &name)?);
                self.database.engine.write::<_, Error>(Durability::Lazy, work).await
            };
            if let Err(Error::Fault(error)) = removed.await {
                tracing::debug!(%error, name, "a file that nothing names is left for later");
            }
        }
    }

    async fn find(&self, key: &str, max_bytes: u64) -> Result<Option<Body>, StoreError> {
        let names = self.names(key)?;
        let found = self.database.engine.read(move |session| get(session, &names, max_bytes)).await;
        found.map_err(|error| self.error(error, key, max_bytes))
    }
}

/// What tells one object.
struct Names {
    bucket: Arc<str>,
    key: String,
}

enum Body {
    Row(Bytes),
    File { name: String, size_bytes: u64 },
}

/// What a put did, and the file of the object that it replaced.
struct Replaced {
    put: Put,
    file: Option<String>,
}

impl Body {
    fn file_name(&self) -> Option<String> {
        match self {
            Body::Row(_) => None,
            Body::File { name, .. } => Some(name.clone()),
        }
    }
}

#[async_trait]
impl ObjectStore for SqliteStore {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    /// A row, whose put waits in one line with the sends.
    fn is_put_in_line_with_sends(&self, size_bytes: usize) -> bool {
        size_bytes <= MAX_ROW_BYTES
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        let put = self.put_body(self.names(key)?, body, options.if_none_match).await;
        put.map_err(|error| self.error(error, key, 0))
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let mut missing = None;
        loop {
            match self.find(key, max_bytes).await? {
                None => return Ok(None),
                Some(Body::Row(body)) => return Ok(Some(body)),
                Some(Body::File { name, .. }) if missing.as_ref() == Some(&name) => {
                    let reason = format!("the file {name} of {key:?} is missing in the data directory");
                    return Err(StoreError::Fatal { bucket: self.bucket.to_string(), reason });
                }
                Some(Body::File { name, size_bytes }) => {
                    let read = self.files.read(&name, size_bytes).await;
                    if let Some(body) = read.map_err(|fault| named(&self.bucket, fault))? {
                        return Ok(Some(body));
                    }
                    // Replaced or deleted meanwhile: what is there now has another name.
                    missing = Some(name);
                }
            }
        }
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let names = self.names(key)?;
        let info = self.database.engine.read(move |session| head(session, &names)).await;
        info.map_err(|error| self.error(error, key, 0))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let names = self.names(key)?;
        let work = move |session: &mut Session| delete(session, &names);
        let file = self.database.engine.write(Durability::Full, work).await;
        let file: Option<String> = file.map_err(|error| self.error(error, key, 0))?;
        self.remove_files(file.into_iter().collect()).await;
        Ok(())
    }
}

fn put(session: &Session, names: &Names, body: &Body, if_none_match: bool) -> Result<Replaced, Failure> {
    let replaced = if if_none_match { None } else { loosen(session, names)? };
    let sql = if if_none_match {
        "INSERT INTO objects (bucket, key, modified_ms, size_bytes, file, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO NOTHING"
    } else {
        "INSERT OR REPLACE INTO objects (bucket, key, modified_ms, size_bytes, file, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    };
    let (size_bytes, file, bytes): (u64, Option<&str>, &[u8]) = match body {
        Body::Row(bytes) => (bytes.len() as u64, None, bytes),
        Body::File { name, size_bytes } => (*size_bytes, Some(name), &[]),
    };
    let mut insert = session.connection.prepare_cached(sql)?;
    let rows = insert.execute(params![&*names.bucket, names.key, session.now_ms, size_bytes, file, bytes])?;
    if rows == 0 {
        return Ok(Replaced { put: Put::AlreadyExists, file: None });
    }
    if let Some(name) = file {
        forget_loose(session, name)?;
    }
    Ok(Replaced { put: Put::Created, file: replaced })
}

/// Of an object that is a file and will be no more: its name, which is loose from here on.
fn loosen(session: &Session, names: &Names) -> Result<Option<String>, Failure> {
    let sql = "SELECT file FROM objects WHERE bucket = ?1 AND key = ?2";
    let mut select = session.connection.prepare_cached(sql)?;
    let found =
        select.query_row(params![&*names.bucket, names.key], |row| row.get::<_, Option<String>>(0)).optional()?;
    let file = found.flatten();
    if let Some(name) = &file {
        note_loose(session, name)?;
    }
    Ok(file)
}

fn note_loose(session: &Session, name: &str) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO loose_files (name, since_ms) VALUES (?1, ?2)";
    session.connection.prepare_cached(sql)?.execute(params![name, session.now_ms]).map(drop)
}

fn forget_loose(session: &Session, name: &str) -> rusqlite::Result<()> {
    session.connection.prepare_cached("DELETE FROM loose_files WHERE name = ?1")?.execute([name]).map(drop)
}

/// Notes a file that is about to be written; returns some that were left.
fn note_and_take_stale(session: &Session, name: &str) -> rusqlite::Result<Vec<String>> {
    note_loose(session, name)?;
    let sql = "SELECT name FROM loose_files WHERE since_ms < ?1 LIMIT ?2";
    let before_ms = session.now_ms.saturating_sub(millis(STALE_AFTER));
    let mut select = session.connection.prepare_cached(sql)?;
    select.query_map(params![before_ms, STALE_AT_A_TIME], |row| row.get(0))?.collect()
}

fn get(session: &Session, names: &Names, max_bytes: u64) -> Result<Option<Body>, Failure> {
    // The size is in the head of the row: what is too large is not read.
    let mut select = session.connection.prepare_cached(
        "SELECT size_bytes, file, iif(size_bytes <= ?3, body, NULL) FROM objects WHERE bucket = ?1 AND key = ?2",
    )?;
    let limit = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let read = |row: &Row| <(u64, Option<String>, Option<Vec<u8>>)>::try_from(row);
    match select.query_row(params![&*names.bucket, names.key, limit], read).optional()? {
        None => Ok(None),
        Some((size, _, None)) => Err(Failure::Call(Error::TooLarge { size })),
        Some((size_bytes, Some(name), Some(_))) => Ok(Some(Body::File { name, size_bytes })),
        Some((_, None, Some(body))) => Ok(Some(Body::Row(body.into()))),
    }
}

fn head(session: &Session, names: &Names) -> Result<Option<ObjectInfo>, Failure> {
    let sql = "SELECT size_bytes, modified_ms FROM objects WHERE bucket = ?1 AND key = ?2";
    let info = session.connection.prepare_cached(sql)?.query_row(params![&*names.bucket, names.key], |row| {
        let modified_ms: u64 = row.get(1)?;
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(modified_ms);
        Ok(ObjectInfo { size_bytes: row.get(0)?, modified })
    });
    Ok(info.optional()?)
}

/// Returns the file that the object was.
fn delete(session: &Session, names: &Names) -> Result<Option<String>, Failure> {
    let file = loosen(session, names)?;
    let mut delete = session.connection.prepare_cached("DELETE FROM objects WHERE bucket = ?1 AND key = ?2")?;
    delete.execute(params![&*names.bucket, names.key])?;
    Ok(file)
}

fn named(bucket: &str, fault: Fault) -> StoreError {
    let bucket = bucket.to_owned();
    match fault {
        Fault::Unavailable(reason) => StoreError::Unavailable { bucket, reason },
        Fault::Fatal(reason) => StoreError::Fatal { bucket, reason },
    }
}
