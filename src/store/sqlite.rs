//! Small objects as rows of the SQLite file that the local queues live in: results of about a kilobyte, each of which
//! would cost a file, two changes of directories and two syncs. Here a put is a row, and shares its transaction and its
//! sync with whatever else waits at that moment.
//!
//! Every key that S3 takes is a key here. The media type is not kept.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};

use super::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, Session};

type Failure = sqlite::Failure<Error>;

/// One bucket.
pub struct SqliteStore {
    bucket: Arc<str>,
    database: Arc<Database>,
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
        Ok(SqliteStore { bucket: name.into(), database })
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
}

/// What tells one object.
struct Names {
    bucket: Arc<str>,
    key: String,
}

#[async_trait]
impl ObjectStore for SqliteStore {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        let names = self.names(key)?;
        let work = move |session: &mut Session| put(session, &names, &body, options.if_none_match);
        let put = self.database.engine.write(Durability::Full, work).await;
        put.map_err(|error| self.error(error, key, 0))
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let names = self.names(key)?;
        let got = self.database.engine.read(move |session| get(session, &names, max_bytes)).await;
        got.map_err(|error| self.error(error, key, max_bytes))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let names = self.names(key)?;
        let info = self.database.engine.read(move |session| head(session, &names)).await;
        info.map_err(|error| self.error(error, key, 0))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let names = self.names(key)?;
        let work = move |session: &mut Session| delete(session, &names);
        self.database.engine.write(Durability::Full, work).await.map_err(|error| self.error(error, key, 0))
    }
}

fn put(session: &Session, names: &Names, body: &[u8], if_none_match: bool) -> Result<Put, Failure> {
    let sql = if if_none_match {
        "INSERT INTO objects (bucket, key, modified_ms, body) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING"
    } else {
        "INSERT OR REPLACE INTO objects (bucket, key, modified_ms, body) VALUES (?1, ?2, ?3, ?4)"
    };
    let mut insert = session.connection.prepare_cached(sql)?;
    let rows = insert.execute(params![&*names.bucket, names.key, session.now_ms, body])?;
    Ok(if rows > 0 { Put::Created } else { Put::AlreadyExists })
}

fn get(session: &Session, names: &Names, max_bytes: u64) -> Result<Option<Bytes>, Failure> {
    // The size is in the head of the row: what is too large is not read.
    let mut select = session.connection.prepare_cached(
        "SELECT length(body), iif(length(body) <= ?3, body, NULL) FROM objects WHERE bucket = ?1 AND key = ?2",
    )?;
    let limit = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let found: Option<(u64, Option<Vec<u8>>)> =
        select.query_row(params![&*names.bucket, names.key, limit], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match found {
        None => Ok(None),
        Some((_, Some(body))) => Ok(Some(body.into())),
        Some((size, None)) => Err(Failure::Call(Error::TooLarge { size })),
    }
}

fn head(session: &Session, names: &Names) -> Result<Option<ObjectInfo>, Failure> {
    let mut select = session
        .connection
        .prepare_cached("SELECT length(body), modified_ms FROM objects WHERE bucket = ?1 AND key = ?2")?;
    let info = select.query_row(params![&*names.bucket, names.key], |row| {
        let modified_ms: u64 = row.get(1)?;
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(modified_ms);
        Ok(ObjectInfo { size_bytes: row.get(0)?, modified })
    });
    Ok(info.optional()?)
}

fn delete(session: &Session, names: &Names) -> Result<(), Failure> {
    let mut delete = session.connection.prepare_cached("DELETE FROM objects WHERE bucket = ?1 AND key = ?2")?;
    delete.execute(params![&*names.bucket, names.key])?;
    Ok(())
}

fn named(bucket: &str, fault: Fault) -> StoreError {
    let bucket = bucket.to_owned();
    match fault {
        Fault::Unavailable(reason) => StoreError::Unavailable { bucket, reason },
        Fault::Fatal(reason) => StoreError::Fatal { bucket, reason },
    }
}
