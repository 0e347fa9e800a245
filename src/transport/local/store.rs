//! The local store: objects are rows of the SQLite file that the local queues are in, for any number of processes on this
//! machine. So an image and its message, or a result and the deletion of its message, can share one transaction.
//!
//! A small body, such as a result, is in its row, with a checksum. An image would be written to the write-ahead log and
//! again at a checkpoint; it is appended to a segment (`super::segments`), and the row says where.
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
    Candidate, Collected, Deleted, FailedResult, Kind, LocalData, Page, Position, SeenSegments, Totals, Usage, Walk,
};

use super::segments::{Appended, PendingSync, Place, Segments};
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, Session};
use crate::transport::error::TransportError;
use crate::transport::queued::object::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::transport::reader::ObjectReader;

/// Larger bodies are stored in segments.
const MAX_ROW_BYTES: usize = 4 << 10;
/// Larger bodies are written and read outside of the thread of the database, so that no call waits for them there.
const MAX_BYTES_IN_LINE: usize = 128 << 10;

/// Keys that one call lists; S3's number.
const LISTED_AT_ONCE: usize = 1_000;

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
    /// Opens the bucket under `data_dir`, and creates the file when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when the directory or file cannot be used; it says what to do.
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

    /// Stores an object. `within` is the maximum delay of the return, so that several puts can share one sync.
    ///
    /// # Errors
    /// As [`ObjectStore::put`].
    pub async fn put_within(
        &self,
        key: &str,
        body: Bytes,
        options: PutOptions,
        within: Duration,
    ) -> Result<Put, StoreError> {
        let put = self.put_prepared(self.prepare(key, body).await?, options, within).await;
        put.map_err(|error| self.error(error, key, 0))
    }

    async fn put_prepared(&self, new: NewObject, options: PutOptions, within: Duration) -> Result<Put, Error> {
        let work = move |session: &mut Session| new.append::<Error>(session)?.insert(session, options.if_none_match);
        let put = self.finish(self.database.engine.write(Durability::FullWithin(within), work).await?).await;
        self.release_doubtful().await;
        Ok(put)
    }

    /// Prepares an object that a transaction is to store. A large body is on disk when this returns, so that no call waits for
    /// it on the thread of the database.
    pub(super) async fn prepare(&self, key: &str, body: Bytes) -> Result<NewObject, StoreError> {
        let names = self.names(key)?;
        let body = if body.len() <= MAX_ROW_BYTES {
            NewBody::Row(body)
        } else if body.len() <= MAX_BYTES_IN_LINE {
            NewBody::ToAppend(Arc::clone(&self.segments), body)
        } else {
            let appended = self.segments.append_synced(body).await;
            NewBody::Appended(appended.map_err(|fault| named(&self.bucket, fault))?)
        };
        Ok(NewObject { names, body })
    }

    /// As [`SqliteStore::prepare`], but a large body is not on disk yet: the second value is the sync that is left to do.
    pub(super) async fn prepare_unsynced(
        &self,
        key: &str,
        body: Bytes,
    ) -> Result<(NewObject, Option<PendingSync>), StoreError> {
        if body.len() <= MAX_BYTES_IN_LINE {
            return Ok((self.prepare(key, body).await?, None));
        }
        let names = self.names(key)?;
        let appended = self.segments.append_aside(body).await.map_err(|fault| named(&self.bucket, fault))?;
        let sync = appended.pending_sync();
        Ok((NewObject { names, body: NewBody::Appended(appended) }, Some(sync)))
    }

    /// Names an object that a transaction is to read or delete.
    pub(super) fn existing(&self, key: &str) -> Result<ExistingObject, StoreError> {
        Ok(ExistingObject { names: self.names(key)?, segments: Arc::clone(&self.segments) })
    }

    /// Finishes a put after its transaction was committed.
    pub(super) async fn finish(&self, Done { put, unused, appended }: Done) -> Put {
        if let Some(appended) = appended {
            appended.commit();
        }
        self.segments.release(unused.into_iter().collect()).await;
        put
    }

    /// Does the sync of a large body.
    pub(super) async fn sync(&self, sync: PendingSync) -> Result<(), StoreError> {
        sync.run().await.map_err(|fault| named(&self.bucket, fault))
    }

    /// Frees the space that deleted objects had.
    pub(super) async fn release(&self, place: Option<Place>) {
        self.segments.release(place.into_iter().collect()).await;
    }

    /// Frees the space of puts that failed. Only the rows say which those are: a put may report an error although its
    /// transaction was committed.
    pub(super) async fn release_doubtful(&self) {
        release_doubtful(&self.database, &self.segments).await;
    }

    async fn find(&self, key: &str, max_bytes: u64) -> Result<Option<Found>, StoreError> {
        let names = self.names(key)?;
        let segments = Arc::clone(&self.segments);
        let found = self.database.engine.read(move |session| get(session, &names, &segments, max_bytes)).await;
        found.map_err(|error| self.error(error, key, max_bytes))
    }
}

/// Identifies one object.
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

/// An object that is to be put.
pub(super) struct NewObject {
    names: Names,
    body: NewBody,
}

/// A [`NewObject`] whose body is stored where its row will say. A transaction appends first and inserts rows afterwards: a
/// call that fails must not have written rows.
pub(super) struct AppendedObject {
    names: Names,
    bytes: Bytes,
    appended: Option<Appended>,
}

/// An object that may exist.
pub(super) struct ExistingObject {
    names: Names,
    segments: Arc<Segments>,
}

impl NewObject {
    pub(crate) fn append<E: From<Fault>>(self, session: &mut Session) -> Result<AppendedObject, sqlite::Failure<E>> {
        let (bytes, appended) = match self.body {
            NewBody::Row(bytes) => (bytes, None),
            NewBody::ToAppend(segments, body) => {
                let appended = segments.append(&body).map_err(|fault| sqlite::Failure::Call(E::from(fault)))?;
                session.sync(appended.file());
                (Bytes::new(), Some(appended))
            }
            NewBody::Appended(appended) => (Bytes::new(), Some(appended)),
        };
        Ok(AppendedObject { names: self.names, bytes, appended })
    }
}

impl AppendedObject {
    pub(crate) fn insert<E>(self, session: &mut Session, if_none_match: bool) -> Result<Done, sqlite::Failure<E>> {
        Ok(insert(session, self, if_none_match)?)
    }
}

impl ExistingObject {
    /// Returns the whole body, or `None` when there is no such object.
    ///
    /// # Errors
    /// The inner error is one of this object: it is too large, or damaged.
    pub(crate) fn get<E: From<Fault>>(
        &self,
        session: &Session,
        max_bytes: u64,
    ) -> Result<Result<Option<Bytes>, String>, sqlite::Failure<E>> {
        let found = match get(session, &self.names, &self.segments, max_bytes) {
            Ok(found) => found,
            Err(Failure::Call(Error::TooLarge { size })) => {
                return Ok(Err(format!("it has {size} bytes, at most {max_bytes} are read")));
            }
            Err(Failure::Call(Error::Damaged { reason })) => return Ok(Err(reason)),
            Err(Failure::Call(Error::Fault(fault))) => return Err(sqlite::Failure::Call(fault.into())),
            Err(Failure::Sql(error)) => return Err(sqlite::Failure::Sql(error)),
        };
        match found {
            None => Ok(Ok(None)),
            Some(Found::Body(body)) => Ok(Ok(Some(body))),
            Some(Found::At(place)) => match self.segments.read(&place) {
                Ok(Some(body)) => Ok(Ok(Some(body))),
                Ok(None) => Ok(Err("its bytes are not where they were written".to_owned())),
                Err(fault) => Err(sqlite::Failure::Call(fault.into())),
            },
        }
    }

    /// Returns where its body was.
    pub(crate) fn delete<E>(&self, session: &Session) -> Result<Option<Place>, sqlite::Failure<E>> {
        Ok(delete(session, &self.names)?)
    }
}

/// The outcome of a put.
pub(super) struct Done {
    pub put: Put,
    /// A place in a segment that no row names any more: of the object that was replaced, or of one that came too late.
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

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        self.put_within(key, body, options, Duration::ZERO).await
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
                    // The object was replaced or deleted meanwhile, so its row is read again.
                    unread = Some(place);
                }
            }
        }
    }

    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError> {
        match self.find(key, max_bytes).await? {
            Some(Found::At(place)) if place.size_bytes > MAX_BYTES_IN_LINE as u64 => {
                let bucket = Arc::clone(&self.bucket);
                let pieces =
                    self.segments.pieces(place.clone(), move |fault| TransportError::from(named(&bucket, fault)));
                Ok(Some(ObjectReader::new(place.size_bytes, pieces)))
            }
            // A small object is no longer at its place: `get` reads the row again.
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

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        let bucket = Arc::clone(&self.bucket);
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        let listed = self.database.engine.read(move |session| list(session, &bucket, &prefix, &after)).await;
        listed.map_err(|error| self.error(error, "", 0))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let names = self.names(key)?;
        let work = move |session: &mut Session| Ok(delete(session, &names)?);
        let deleted = self.database.engine.write(Durability::FULL, work).await;
        let unused = deleted.map_err(|error| self.error(error, key, 0))?;
        self.segments.release(unused.into_iter().collect()).await;
        Ok(())
    }
}

/// Some keys of a bucket that begin with `prefix` and come after `after`.
fn list(session: &Session, bucket: &str, prefix: &str, after: &str) -> Result<Vec<String>, Failure> {
    // No key has this character, so the range ends with the last key that begins with the prefix.
    let end = format!("{prefix}\u{10ffff}");
    let mut select = session.connection.prepare_cached(
        "SELECT key FROM objects WHERE bucket = ?1 AND key >= ?2 AND key < ?3 AND key > ?4 ORDER BY key LIMIT ?5",
    )?;
    let keys = select.query_map(params![bucket, prefix, end, after, LISTED_AT_ONCE], |row| row.get(0))?;
    Ok(keys.collect::<rusqlite::Result<_>>()?)
}

/// Frees the space of failed puts, unless a row names it.
async fn release_doubtful(database: &Database, segments: &Arc<Segments>) {
    let doubtful = segments.take_doubtful();
    if doubtful.is_empty() {
        return;
    }
    let places = doubtful.clone();
    match database.engine.read::<_, Fault>(move |session: &Session| unnamed(session, places)).await {
        Ok(unnamed) => segments.release(unnamed).await,
        Err(_) => segments.return_doubtful(doubtful),
    }
}

fn insert(session: &mut Session, new: AppendedObject, if_none_match: bool) -> rusqlite::Result<Done> {
    let AppendedObject { names, bytes, appended } = new;
    let names = &names;
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

/// Returns the places that no row names.
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

/// Returns the place of the body of an object that is about to be replaced or deleted.
fn place_of(session: &Session, names: &Names) -> rusqlite::Result<Option<Place>> {
    let sql = "SELECT size_bytes, segment, offset, checksum FROM objects WHERE bucket = ?1 AND key = ?2";
    let mut select = session.connection.prepare_cached(sql)?;
    Ok(select.query_row(params![&*names.bucket, names.key], place).optional()?.flatten())
}

/// Reads a place from the columns `size_bytes, segment, offset, checksum`.
fn place(row: &Row) -> rusqlite::Result<Option<Place>> {
    let Some(segment) = row.get(1)? else { return Ok(None) };
    Ok(Some(Place { size_bytes: row.get(0)?, segment, offset: row.get(2)?, checksum: row.get(3)? }))
}

fn get(session: &Session, names: &Names, segments: &Segments, max_bytes: u64) -> Result<Option<Found>, Failure> {
    // The size is in the head of the row, so that a body that is too large is not read.
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

/// Verifies the body of a row. A row that an earlier release wrote has no checksum.
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

/// Deletes an object. Returns where its body was.
fn delete(session: &Session, names: &Names) -> rusqlite::Result<Option<Place>> {
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

    /// A failed put leaves an appended body that is dropped.
    #[tokio::test]
    async fn space_of_a_failed_put_is_freed_by_the_next_and_that_of_a_committed_put_is_not() {
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
        let of_a = store.database.engine.read::<_, Fault>(move |session| Ok(place_of(session, &names)?)).await;
        store.segments.return_doubtful(of_a.ok().flatten().into_iter().collect());
        let _ = store.put("b", Bytes::from_static(b"small"), PutOptions::default()).await.unwrap();
        assert!(store.get("a", 1 << 20).await.unwrap() == Some(body));
    }
}
