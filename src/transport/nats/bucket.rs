//! Buckets on JetStream. Beyond the contract of [`ObjectStore`]:
//!
//! - A bucket is up to three streams of JetStream's key-value form: images, which expire after a week, results and records,
//!   which expire after a month, and documents that are kept. `nats kv` lists and reads them.
//! - An object is one message, with its size and checksum. Of a larger one that message names pieces, which are written
//!   first, so that it appears as a whole. JetStream's own object store has neither conditional writes nor one call for a
//!   small object.
//! - A conditional write expects that the subject has no message, or the message that was read.
//! - Reads ask the leader of the stream, so that each sees every earlier write.

use std::sync::Arc;

use async_nats::{HeaderMap, HeaderValue};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::connection::{Connection, Fault, codes, connect};
use super::key;
use super::object::{ABOUT, Pieces, Record, Shelf, body_of, record_of};
use crate::config::NatsLocation;
use crate::transport::error::TransportError;
use crate::transport::queued::object::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::transport::reader::ObjectReader;

/// Objects up to this size are one message, and pieces of larger ones have it.
const MAX_PIECE_BYTES: usize = 256 << 10;
/// Pieces of one object that are written or read at the same time.
const PIECES_AT_ONCE: usize = 8;
/// Begins the subjects of pieces. No key begins with it.
const PIECES: &str = "=c";
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
/// The most keys that one call returns.
const MAX_LISTED: usize = 1_000;

/// One bucket.
pub struct NatsBucket {
    connection: Arc<Connection>,
    bucket: String,
    /// Filled when the stream is known to exist.
    created: [OnceCell<()>; 3],
}

impl NatsBucket {
    /// Connects to NATS. The streams are created when something is written to them.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] if NATS cannot be used; it says what to do.
    pub async fn open(location: &NatsLocation, bucket: &str) -> Result<NatsBucket, StoreError> {
        let connected = connect(location).await;
        let connection = connected.map_err(|reason| StoreError::Fatal { bucket: bucket.to_owned(), reason })?;
        Ok(NatsBucket::on(connection, bucket))
    }

    pub(super) fn on(connection: Arc<Connection>, bucket: &str) -> NatsBucket {
        NatsBucket { connection, bucket: bucket.to_owned(), created: Default::default() }
    }

    /// The name in JetStream's key-value store, which has no dots.
    fn store(&self, shelf: Shelf) -> String {
        format!("imgcls-{}-{}", self.bucket.replace('.', "_"), shelf.name())
    }

    fn stream(&self, shelf: Shelf) -> String {
        format!("KV_{}", self.store(shelf))
    }

    fn subject(&self, shelf: Shelf, below: &str) -> String {
        format!("$KV.{}.{below}", self.store(shelf))
    }

    fn piece_bytes(&self) -> usize {
        // A piece is read in base64, which is a third more.
        (self.connection.max_body_bytes() / 2).clamp(1, MAX_PIECE_BYTES)
    }

    fn check_key(&self, key: &str) -> Result<(), StoreError> {
        check_key_length(key)
            .map_err(|why| StoreError::Fatal { bucket: self.bucket.clone(), reason: format!("the key {why}") })
    }

    fn error(&self, fault: &Fault) -> StoreError {
        let (bucket, reason) = (self.bucket.clone(), fault.to_string());
        if fault.is_transient() {
            StoreError::Unavailable { bucket, reason }
        } else {
            StoreError::Fatal { bucket, reason }
        }
    }

    fn damaged(&self, key: &str, reason: &str) -> StoreError {
        StoreError::Damaged { bucket: self.bucket.clone(), key: key.to_owned(), reason: reason.to_owned() }
    }

    async fn create(&self, shelf: Shelf) -> Result<(), Fault> {
        let config = json!({
            "name": self.stream(shelf),
            "subjects": [self.subject(shelf, ">")],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "max_age": u64::try_from(shelf.keep().as_nanos()).unwrap_or_default(),
            "num_replicas": self.connection.replicas,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "description": "objects of imgcls",
        });
        self.connection.create_stream(&self.stream(shelf), &config).await
    }

    /// Publishes to a stream of the bucket, which is created if it is missing.
    async fn publish(&self, shelf: Shelf, below: &str, headers: HeaderMap, body: Bytes) -> Result<u64, Fault> {
        self.created[shelf as usize].get_or_try_init(|| self.create(shelf)).await?;
        let publish = || self.connection.publish(self.subject(shelf, below), headers.clone(), body.clone());
        let published = match publish().await {
            // Somebody deleted it.
            Err(Fault::NoResponders) if self.connection.is_missing(&self.stream(shelf)).await => {
                self.create(shelf).await?;
                publish().await
            }
            published => published,
        };
        published.map_err(|fault| fault.of_stream(&self.stream(shelf)))
    }

    /// Writes an object. With `expected` only if its last message has this number; 0 is for none.
    async fn write(&self, key: &str, body: Bytes, expected: Option<u64>) -> Result<Put, StoreError> {
        let shelf = Shelf::of(key);
        let mut about = format!("{} {:08x}", body.len(), crc32fast::hash(&body));
        let mut inline = body.clone();
        let mut pieces = None;
        if body.len() > self.piece_bytes() {
            let written = self.write_pieces(shelf, &body).await?;
            about = format!("{about} {} {}", written.folder, written.count);
            inline = Bytes::new();
            pieces = Some(written);
        }
        let mut headers = HeaderMap::new();
        headers.insert(ABOUT, about.parse::<HeaderValue>().unwrap_or_default());
        if let Some(expected) = expected {
            headers.insert(EXPECTED, HeaderValue::from(expected));
        }
        let Err(fault) = self.publish(shelf, &key::encoded(key), headers, inline).await else {
            return Ok(Put::Created);
        };
        let is_other = fault.is(codes::WRONG_LAST_SEQUENCE) || fault.is(codes::WRONG_LAST_SEQUENCE_CONSTANT);
        // After a lost answer the object may exist, and its pieces stay until they expire.
        if let Some(pieces) = pieces
            && (is_other || !fault.is_transient())
        {
            self.remove_pieces(shelf, &pieces).await;
        }
        if is_other { Ok(Put::AlreadyExists) } else { Err(self.error(&fault)) }
    }

    async fn write_pieces(&self, shelf: Shelf, body: &Bytes) -> Result<Pieces, StoreError> {
        let folder = format!("{:016x}", rand::random::<u64>());
        let size = self.piece_bytes();
        let pieces: Vec<Bytes> =
            (0..body.len()).step_by(size).map(|at| body.slice(at..body.len().min(at + size))).collect();
        let count = pieces.len() as u64;
        let writes = pieces.into_iter().enumerate().map(|(number, piece)| {
            let below = format!("{PIECES}.{folder}.{number}");
            async move { self.publish(shelf, &below, HeaderMap::new(), piece).await }
        });
        let mut writes = stream::iter(writes).buffer_unordered(PIECES_AT_ONCE);
        while let Some(written) = writes.next().await {
            written.map_err(|fault| self.error(&fault))?;
        }
        drop(writes);
        Ok(Pieces { folder, count })
    }

    /// Removes pieces that no object names. Those that cannot be removed expire.
    async fn remove_pieces(&self, shelf: Shelf, pieces: &Pieces) {
        if let Err(fault) = self.purge(shelf, &format!("{PIECES}.{}.*", pieces.folder)).await {
            tracing::debug!(%fault, bucket = self.bucket, "cannot remove pieces of an object; they expire");
        }
    }

    async fn purge(&self, shelf: Shelf, below: &str) -> Result<(), Fault> {
        let filter = json!({"filter": self.subject(shelf, below)});
        match self.connection.api(&format!("STREAM.PURGE.{}", self.stream(shelf)), &filter).await {
            Err(fault) if fault.is(codes::STREAM_NOT_FOUND) => Ok(()),
            purged => purged.map(drop),
        }
    }

    /// The last message of a subject, as JetStream describes it.
    async fn last(&self, shelf: Shelf, below: &str) -> Result<Option<Value>, StoreError> {
        let wanted = json!({"last_by_subj": self.subject(shelf, below)});
        match self.connection.api(&format!("STREAM.MSG.GET.{}", self.stream(shelf)), &wanted).await {
            Ok(mut answer) => Ok(Some(answer["message"].take())),
            Err(fault) if fault.is(codes::MESSAGE_NOT_FOUND) || fault.is(codes::STREAM_NOT_FOUND) => Ok(None),
            Err(fault) => Err(self.error(&fault)),
        }
    }

    async fn record(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.check_key(key)?;
        let message = self.last(Shelf::of(key), &key::encoded(key)).await?;
        let damaged = || self.damaged(key, "its message is not one of an object");
        message.map(|message| record_of(&message).ok_or_else(damaged)).transpose()
    }

    async fn piece(&self, key: &str, pieces: &Pieces, number: u64) -> Result<Bytes, StoreError> {
        let below = format!("{PIECES}.{}.{number}", pieces.folder);
        let message = self.last(Shelf::of(key), &below).await?;
        let body = message.as_ref().and_then(body_of);
        body.ok_or_else(|| self.damaged(key, &format!("piece {number} of {} is missing", pieces.count)))
    }

    /// The bytes of an object, which are those that were written.
    async fn body(&self, key: &str, record: &Record) -> Result<Bytes, StoreError> {
        let body = match &record.pieces {
            None => record.body.clone(),
            Some(pieces) => {
                let reads = (0..pieces.count).map(|number| self.piece(key, pieces, number));
                let joined = BytesMut::with_capacity(usize::try_from(record.size_bytes).unwrap_or_default());
                let read =
                    stream::iter(reads).buffered(PIECES_AT_ONCE).try_fold(joined, |mut joined, piece| async move {
                        joined.extend_from_slice(&piece);
                        Ok(joined)
                    });
                read.await?.freeze()
            }
        };
        let is_whole = body.len() as u64 == record.size_bytes;
        if is_whole && record.crc32.is_none_or(|crc32| crc32fast::hash(&body) == crc32) {
            Ok(body)
        } else {
            Err(self.damaged(key, "its bytes are not those that were written"))
        }
    }

    /// An object of at most `max_bytes`, with the number of its message.
    async fn whole(&self, key: &str, max_bytes: u64) -> Result<Option<(Bytes, u64)>, StoreError> {
        let Some(mut record) = self.small_record(key, max_bytes).await? else { return Ok(None) };
        loop {
            let damage = match self.body(key, &record).await {
                Err(damage @ StoreError::Damaged { .. }) => damage,
                body => return body.map(|body| Some((body, record.sequence))),
            };
            // The object may have been replaced or deleted meanwhile, and its pieces with it.
            match self.small_record(key, max_bytes).await? {
                Some(newer) if newer.sequence != record.sequence => record = newer,
                Some(_) => return Err(damage),
                None => return Ok(None),
            }
        }
    }

    async fn small_record(&self, key: &str, max_bytes: u64) -> Result<Option<Record>, StoreError> {
        match self.record(key).await? {
            Some(record) if record.size_bytes > max_bytes => {
                Err(StoreError::TooLarge { key: key.to_owned(), size: record.size_bytes, limit: max_bytes })
            }
            record => Ok(record),
        }
    }

    /// Writes an object in place of `old`, whose pieces are removed.
    async fn write_over(
        &self,
        key: &str,
        body: Bytes,
        old: Option<Record>,
        expected: Option<u64>,
    ) -> Result<Put, StoreError> {
        let put = self.write(key, body, expected).await?;
        if put == Put::Created
            && let Some(pieces) = old.and_then(|old| old.pieces)
        {
            self.remove_pieces(Shelf::of(key), &pieces).await;
        }
        Ok(put)
    }

    /// The keys of a stream of the bucket that begin with `prefix`, in no order.
    async fn keys(&self, shelf: Shelf, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (all, call) = (self.subject(shelf, ""), format!("STREAM.INFO.{}", self.stream(shelf)));
        let mut keys = Vec::new();
        let mut offset = 0;
        loop {
            let wanted = json!({"subjects_filter": format!("{all}{}", key::wildcard(prefix)), "offset": offset});
            let answer = match self.connection.api(&call, &wanted).await {
                Err(fault) if fault.is(codes::STREAM_NOT_FOUND) => return Ok(keys),
                answer => answer.map_err(|fault| self.error(&fault))?,
            };
            let Some(subjects) = answer["state"]["subjects"].as_object() else { return Ok(keys) };
            let found = subjects.keys().filter_map(|subject| key::decoded(subject.strip_prefix(&all)?));
            keys.extend(found.filter(|key| key.starts_with(prefix)));
            offset += subjects.len() as u64;
            if subjects.is_empty() || offset >= answer["total"].as_u64().unwrap_or_default() {
                return Ok(keys);
            }
        }
    }
}

#[async_trait]
impl ObjectStore for NatsBucket {
    fn bucket(&self) -> &str {
        &self.bucket
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        self.check_key(key)?;
        if options.if_none_match {
            return self.write(key, body, Some(0)).await;
        }
        // Its pieces would stay otherwise.
        let old = match self.record(key).await {
            Err(StoreError::Damaged { .. }) => None,
            old => old?,
        };
        self.write_over(key, body, old, None).await
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.whole(key, max_bytes).await?.map(|(body, _)| body))
    }

    async fn get_tagged(&self, key: &str, max_bytes: u64) -> Result<Option<(Bytes, String)>, StoreError> {
        Ok(self.whole(key, max_bytes).await?.map(|(body, sequence)| (body, sequence.to_string())))
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &str) -> Result<Put, StoreError> {
        let Some(expected) = tag.parse::<u64>().ok().filter(|sequence| *sequence > 0) else {
            return Ok(Put::AlreadyExists);
        };
        match self.record(key).await? {
            Some(old) if old.sequence == expected => self.write_over(key, body, Some(old), Some(expected)).await,
            _ => Ok(Put::AlreadyExists),
        }
    }

    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError> {
        let Some(record) = self.small_record(key, max_bytes).await? else { return Ok(None) };
        let size = record.size_bytes;
        let Some(pieces) = record.pieces.clone() else {
            let body = self.body(key, &record).await?;
            return Ok(Some(ObjectReader::new(size, stream::once(async { Ok(body) }).boxed())));
        };
        let reader = PieceReader {
            bucket: NatsBucket::on(Arc::clone(&self.connection), &self.bucket),
            key: key.to_owned(),
            pieces,
            crc32: record.crc32,
            next: 0,
            hasher: crc32fast::Hasher::new(),
        };
        let pieces = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await.map_err(TransportError::from)?.map(|piece| (piece, reader)))
        });
        Ok(Some(ObjectReader::new(size, pieces.boxed())))
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let record = self.record(key).await?;
        Ok(record.map(|record| ObjectInfo { size_bytes: record.size_bytes, modified: record.modified }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError> {
        let mut keys = Vec::new();
        for shelf in Shelf::ALL {
            keys.extend(self.keys(shelf, prefix).await?);
        }
        keys.retain(|key| after.is_none_or(|after| key.as_str() > after));
        keys.sort_unstable();
        keys.truncate(MAX_LISTED);
        Ok(keys)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let old = match self.record(key).await {
            Err(StoreError::Damaged { .. }) => None,
            Ok(None) => return Ok(()),
            old => old?,
        };
        let shelf = Shelf::of(key);
        self.purge(shelf, &key::encoded(key)).await.map_err(|fault| self.error(&fault))?;
        if let Some(pieces) = old.and_then(|old| old.pieces) {
            self.remove_pieces(shelf, &pieces).await;
        }
        Ok(())
    }
}

/// Reads an object piece by piece. The checksum is compared before the last piece is returned.
struct PieceReader {
    bucket: NatsBucket,
    key: String,
    pieces: Pieces,
    crc32: Option<u32>,
    next: u64,
    hasher: crc32fast::Hasher,
}

impl PieceReader {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.next == self.pieces.count {
            return Ok(None);
        }
        let piece = self.bucket.piece(&self.key, &self.pieces, self.next).await?;
        self.hasher.update(&piece);
        self.next += 1;
        let is_last = self.next == self.pieces.count;
        if is_last && self.crc32.is_some_and(|crc32| crc32 != self.hasher.clone().finalize()) {
            return Err(self.bucket.damaged(&self.key, "its bytes are not those that were written"));
        }
        Ok(Some(piece))
    }
}
