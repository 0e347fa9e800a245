//! The local store: objects are rows of the SQLite file that the local queues live in, for any number of processes on
//! this machine. A put shares its transaction and its syncs with whatever else waits at that moment: the message that
//! follows an image, the reply that follows a result.
//!
//! A small body, as a result is, stands in its row, with a checksum. An image would go through the write-ahead log and again through its
//! checkpoint; it is appended to a segment ([`super::segments`]), and the row says where.
//!
//! Every key that S3 takes is a key here, and never a path. The media type is not kept.

mod retention;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension as _, Row, params};

pub use self::retention::{
    Candidate, Deleted, Kind, LocalData, Page, Position, SeenSegments, Swept, Totals, Usage, Walk,
};

use super::segments::{Appended, Place, Segments};
use super::{ObjectInfo, ObjectReader, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, Session};

/// Larger bodies are in segments.
const MAX_ROW_BYTES: usize = 4 << 10;
/// Larger bodies are written and read beside the thread of the file, so that nobody waits for them there.
const MAX_BYTES_IN_LINE: usize = 128 << 10;

type Failure = sqlite::Failure<Error>;

/// One bucket.
pub struct SqliteStore {
    bucket: Arc<str>,
    database: Arc<Database>,
    segments: Arc<Segments>,
}

/// A [`StoreError`] that does not name the bucket yet.
enum Error {
    TooLarge { size: u64 },
    Damaged { reason: String },
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
        let segments = Segments::open(data_dir, Arc::clone(&database)).map_err(|fault| named(bucket, fault))?;
        Ok(SqliteStore { bucket: name.into(), database, segments: Arc::new(segments) })
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
            Error::Damaged { reason } => {
                StoreError::Damaged { bucket: self.bucket.to_string(), key: key.to_owned(), reason }
            }
            Error::Fault(fault) => named(&self.bucket, fault),
        }
    }

    async fn put_body(&self, names: Names, body: Bytes, options: PutOptions) -> Result<Put, Error> {
        let body = self.new_body(body).await?;
        let work = move |session: &mut Session| put(session, &names, body, options.if_none_match);
        let durability = Durability::FullWithin(options.durable_within);
        let put = self.finish(self.database.engine.write(durability, work).await?).await;
        // Never before the write: a message that names this object may follow it in the same line.
        self.settle_doubtful().await;
        Ok(put)
    }

    /// After the transaction of a put was committed.
    async fn finish(&self, Done { put, unused, appended }: Done) -> Put {
        if let Some(appended) = appended {
            appended.commit();
        }
        self.segments.release(unused.into_iter().collect()).await;
        put
    }

    /// Frees the space of puts that failed. Which those are only the rows say: a put may report an error although its
    /// transaction was committed.
    async fn settle_doubtful(&self) {
        settle_doubtful(&self.database, &self.segments).await;
    }

    /// In one transaction. An error of one object leaves the others standing; one of the file is all objects'.
    async fn put_bodies(&self, objects: Vec<(Names, Bytes)>, options: PutOptions) -> Vec<Result<Put, Error>> {
        self.settle_doubtful().await;
        let count = objects.len();
        let mut bodies = Vec::with_capacity(count);
        for (names, body) in objects {
            bodies.push((names, self.new_body(body).await));
        }
        let work = move |session: &mut Session| {
            let puts = bodies.into_iter().map(|(names, body)| put_one(session, &names, body, options.if_none_match));
            puts.collect::<Result<Vec<_>, _>>()
        };
        let done = match self.database.engine.write(Durability::FullWithin(options.durable_within), work).await {
            Ok(done) => done,
            Err(fault) => return (0..count).map(|_| Err(Error::Fault(fault.clone()))).collect(),
        };
        let mut puts = Vec::with_capacity(count);
        for done in done {
            puts.push(match done {
                Ok(done) => Ok(self.finish(done).await),
                Err(error) => Err(error),
            });
        }
        puts
    }

    async fn new_body(&self, body: Bytes) -> Result<NewBody, Error> {
        Ok(if body.len() <= MAX_ROW_BYTES {
            NewBody::Row(body)
        } else if body.len() <= MAX_BYTES_IN_LINE {
            NewBody::ToAppend(Arc::clone(&self.segments), body)
        } else {
            NewBody::Appended(self.segments.append_synced(body).await?)
        })
    }

    async fn find(&self, key: &str, max_bytes: u64) -> Result<Option<Found>, StoreError> {
        let names = self.names(key)?;
        let segments = Arc::clone(&self.segments);
        let found = self.database.engine.read(move |session| get(session, &names, &segments, max_bytes)).await;
        found.map_err(|error| self.error(error, key, max_bytes))
    }
}

/// What tells one object.
struct Names {
    bucket: Arc<str>,
    key: String,
}

/// A body that is to be put.
enum NewBody {
    Row(Bytes),
    ToAppend(Arc<Segments>, Bytes),
    Appended(Appended),
}

/// What a put did.
struct Done {
    put: Put,
    /// A place that nothing names: of the object that it replaced, or of what came too late.
    unused: Option<Place>,
    /// Holds the lock of the segment until the transaction is committed.
    appended: Option<Appended>,
}

enum Found {
    Body(Bytes),
    At(Place),
}

#[async_trait]
impl ObjectStore for SqliteStore {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Such a put waits in one line with the sends.
    fn is_put_in_line_with_sends(&self, size_bytes: usize) -> bool {
        size_bytes <= MAX_BYTES_IN_LINE
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        let put = self.put_body(self.names(key)?, body, options).await;
        put.map_err(|error| self.error(error, key, 0))
    }

    async fn put_all(&self, objects: Vec<(String, Bytes)>, options: PutOptions) -> Vec<Result<Put, StoreError>> {
        let keys: Vec<String> = objects.iter().map(|(key, _)| key.clone()).collect();
        let named = objects.into_iter().map(|(key, body)| Ok((self.names(&key)?, body)));
        let puts = match named.collect::<Result<Vec<_>, StoreError>>() {
            Ok(objects) => self.put_bodies(objects, options).await,
            // A key that no bucket takes is a fault of the caller's, and so all of them are.
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        puts.into_iter().zip(keys).map(|(put, key)| put.map_err(|error| self.error(error, &key, 0))).collect()
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let mut unread = None;
        loop {
            match self.find(key, max_bytes).await? {
                None => return Ok(None),
                Some(Found::Body(body)) => return Ok(Some(body)),
                Some(Found::At(place)) if unread.as_ref() == Some(&place) => {
                    let Place { segment, offset, size_bytes, .. } = place;
                    let reason = format!(
                        "its {size_bytes} bytes are not at {offset} of {segment} in the data directory any more: the disk \
                         is damaged, or lost power before they were accepted"
                    );
                    return Err(self.error(Error::Damaged { reason }, key, max_bytes));
                }
                Some(Found::At(place)) => {
                    let read = self.segments.read_aside(place.clone()).await;
                    if let Some(body) = read.map_err(|fault| named(&self.bucket, fault))? {
                        return Ok(Some(body));
                    }
                    // Replaced or deleted meanwhile: what is there now lies elsewhere.
                    unread = Some(place);
                }
            }
        }
    }

    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError> {
        match self.find(key, max_bytes).await? {
            Some(Found::At(place)) if place.size_bytes > MAX_BYTES_IN_LINE as u64 => {
                let bucket = Arc::clone(&self.bucket);
                let pieces = self.segments.pieces(place.clone(), move |fault| named(&bucket, fault));
                Ok(Some(ObjectReader::new(place.size_bytes, pieces)))
            }
            // A small one that is not where it was: `get` looks again.
            Some(Found::At(_)) => Ok(self.get(key, max_bytes).await?.map(ObjectReader::whole)),
            None => Ok(None),
            Some(Found::Body(body)) => Ok(Some(ObjectReader::whole(body))),
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
        let deleted = self.database.engine.write(Durability::FULL, work).await;
        let unused = deleted.map_err(|error| self.error(error, key, 0))?;
        self.segments.release(unused.into_iter().collect()).await;
        Ok(())
    }
}

/// Frees the space of puts of these segments that failed, unless a row names it.
async fn settle_doubtful(database: &Database, segments: &Arc<Segments>) {
    let doubtful = segments.take_doubtful();
    if doubtful.is_empty() {
        return;
    }
    let asked = doubtful.clone();
    match database.engine.read::<_, Fault>(move |session: &Session| unnamed(session, asked)).await {
        Ok(unnamed) => segments.release(unnamed).await,
        Err(_) => segments.return_doubtful(doubtful),
    }
}

/// An error of this object is its answer; one of the file is all objects'.
fn put_one(
    session: &mut Session,
    names: &Names,
    body: Result<NewBody, Error>,
    if_none_match: bool,
) -> Result<Result<Done, Error>, sqlite::Failure<Fault>> {
    match body.map_err(Failure::Call).and_then(|body| put(session, names, body, if_none_match)) {
        Ok(done) => Ok(Ok(done)),
        Err(Failure::Call(error)) => Ok(Err(error)),
        Err(Failure::Sql(error)) => Err(sqlite::Failure::Sql(error)),
    }
}

fn put(session: &mut Session, names: &Names, body: NewBody, if_none_match: bool) -> Result<Done, Failure> {
    let (bytes, appended) = match body {
        NewBody::Row(bytes) => (bytes, None),
        NewBody::ToAppend(segments, body) => {
            let appended = segments.append(&body).map_err(|fault| Failure::Call(Error::Fault(fault)))?;
            session.sync(appended.file());
            (Bytes::new(), Some(appended))
        }
        NewBody::Appended(appended) => (Bytes::new(), Some(appended)),
    };
    let place = appended.as_ref().map(|appended| appended.place().clone());
    let replaced = if if_none_match { None } else { place_of(session, names)? };
    let sql = if if_none_match {
        "INSERT INTO objects (bucket, key, modified_ms, size_bytes, segment, offset, checksum, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING"
    } else {
        "INSERT OR REPLACE INTO objects (bucket, key, modified_ms, size_bytes, segment, offset, checksum, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
    };
    let size_bytes = place.as_ref().map_or(bytes.len() as u64, |place| place.size_bytes);
    let segment = place.as_ref().map(|place| &place.segment);
    let offset = place.as_ref().map(|place| place.offset);
    let checksum = place.as_ref().map_or_else(|| crc32fast::hash(&bytes), |place| place.checksum);
    let mut insert = session.connection.prepare_cached(sql)?;
    let (bucket, key) = (&*names.bucket, &names.key);
    let rows = insert.execute(params![bucket, key, session.now_ms, size_bytes, segment, offset, checksum, &*bytes])?;
    Ok(if rows == 0 {
        Done { put: Put::AlreadyExists, unused: place, appended }
    } else {
        Done { put: Put::Created, unused: replaced, appended }
    })
}

/// Those of the places that no row names.
fn unnamed(session: &Session, places: Vec<Place>) -> Result<Vec<Place>, sqlite::Failure<Fault>> {
    let sql = "SELECT 1 FROM objects WHERE segment = ?1 AND offset = ?2";
    let mut select = session.connection.prepare_cached(sql)?;
    let mut unnamed = Vec::new();
    for place in places {
        if !select.exists(params![place.segment, place.offset])? {
            unnamed.push(place);
        }
    }
    Ok(unnamed)
}

/// Where the body of an object lies that is about to be no more.
fn place_of(session: &Session, names: &Names) -> Result<Option<Place>, Failure> {
    let sql = "SELECT size_bytes, segment, offset, checksum FROM objects WHERE bucket = ?1 AND key = ?2";
    let mut select = session.connection.prepare_cached(sql)?;
    Ok(select.query_row(params![&*names.bucket, names.key], place).optional()?.flatten())
}

/// Of `size_bytes, segment, offset, checksum`.
fn place(row: &Row) -> rusqlite::Result<Option<Place>> {
    let Some(segment) = row.get(1)? else { return Ok(None) };
    Ok(Some(Place { size_bytes: row.get(0)?, segment, offset: row.get(2)?, checksum: row.get(3)? }))
}

fn get(session: &Session, names: &Names, segments: &Segments, max_bytes: u64) -> Result<Option<Found>, Failure> {
    // The size is in the head of the row: what is too large is not read.
    let mut select = session.connection.prepare_cached(
        "SELECT size_bytes, segment, offset, checksum, iif(size_bytes <= ?3, body, NULL)
         FROM objects WHERE bucket = ?1 AND key = ?2",
    )?;
    let limit = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let read = |row: &Row| {
        let checksum = row.get::<_, Option<u32>>(3)?;
        Ok((row.get::<_, u64>(0)?, place(row)?, checksum, row.get::<_, Option<Vec<u8>>>(4)?))
    };
    match select.query_row(params![&*names.bucket, names.key, limit], read).optional()? {
        None => Ok(None),
        Some((size, _, _, None)) => Err(Failure::Call(Error::TooLarge { size })),
        Some((size, None, checksum, Some(body))) => whole_row(size, checksum, body).map(|body| Some(Found::Body(body))),
        Some((size, Some(place), _, Some(_))) if size > MAX_BYTES_IN_LINE as u64 => Ok(Some(Found::At(place))),
        Some((_, Some(place), _, Some(_))) => {
            let body = segments.read(&place).map_err(|fault| Failure::Call(Error::Fault(fault)))?;
            Ok(Some(body.map_or(Found::At(place), Found::Body)))
        }
    }
}

/// The body of a row. One that an earlier release wrote has no checksum.
fn whole_row(size: u64, checksum: Option<u32>, body: Vec<u8>) -> Result<Bytes, Failure> {
    let is_whole = body.len() as u64 == size && checksum.is_none_or(|checksum| checksum == crc32fast::hash(&body));
    if is_whole {
        return Ok(body.into());
    }
    let reason = format!("its {size} bytes in the database are not those that were written: the disk is damaged");
    Err(Failure::Call(Error::Damaged { reason }))
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

/// Returns where its body lay.
fn delete(session: &Session, names: &Names) -> Result<Option<Place>, Failure> {
    let place = place_of(session, names)?;
    let mut delete = session.connection.prepare_cached("DELETE FROM objects WHERE bucket = ?1 AND key = ?2")?;
    delete.execute(params![&*names.bucket, names.key])?;
    Ok(place)
}

fn named(bucket: &str, fault: Fault) -> StoreError {
    let bucket = bucket.to_owned();
    match fault {
        Fault::Unavailable(reason) => StoreError::Unavailable { bucket, reason },
        Fault::Fatal(reason) => StoreError::Fatal { bucket, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store cannot make its own put fail; what a failed one leaves is an appended body that is dropped.
    #[tokio::test]
    async fn space_of_a_failed_put_is_freed_by_the_next_and_that_of_a_committed_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(directory.path(), "input").unwrap();
        let body = Bytes::from(vec![7; 64 << 10]);
        let allocated = || store.segments.usage().unwrap().allocated_bytes;
        drop(store.segments.append_synced(body.clone()).await.unwrap());
        assert_eq!(allocated(), 64 << 10);
        let put = store.put("a", body.clone(), PutOptions::default()).await.unwrap();
        assert_eq!((put, allocated()), (Put::Created, 64 << 10), "one of the two");
        // As if its answer had been an error although it was committed.
        let names = store.names("a").unwrap();
        let of_a = store.database.engine.read(move |session| place_of(session, &names)).await;
        store.segments.return_doubtful(of_a.ok().flatten().into_iter().collect());
        let _ = store.put("b", Bytes::from_static(b"small"), PutOptions::default()).await.unwrap();
        assert!(store.get("a", 1 << 20).await.unwrap() == Some(body));
    }
}
