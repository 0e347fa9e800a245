//! Buckets, as the transports that are made of queues and buckets use them: what S3 promises, as a trait.
//!
//! The suite `tests/it/store_conformance.rs` holds the contract for every implementation:
//!
//! - An object whose put returned is durable, and complete: no reader ever sees half an object.
//! - A get after a put sees it, in every process.
//! - Of several puts with `if_none_match`, exactly one returns [`Put::Created`].

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::readiness::Probe;
use crate::transport::error::TransportError;
use crate::transport::reader::ObjectReader;

/// S3's limit on a key, in bytes of UTF-8.
const MAX_KEY_BYTES: usize = 1_024;

/// Checked for every backend, so that a key of one is a key of all.
pub(in crate::transport) fn check_key_length(key: &str) -> Result<(), String> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Ok(());
    }
    Err(format!("must have 1 to {MAX_KEY_BYTES} bytes, not {}", key.len()))
}

/// A key that nothing writes.
const PROBE_KEY: &str = "images/readiness-probe";

/// A probe that asks whether the bucket exists and may be read.
pub fn probe(store: &dyn ObjectStore) -> Probe<'_> {
    let call = async { store.head(PROBE_KEY).await.map(drop).map_err(|error| error.to_string()) };
    Probe { of: format!("bucket {:?}", store.bucket()), call: Box::pin(call) }
}

/// One bucket.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The name of the bucket, for messages.
    fn bucket(&self) -> &str;
    /// Finds out how conditions are kept. A service calls this at its start; otherwise it happens before the first put with a
    /// condition.
    ///
    /// # Errors
    /// The store does not answer.
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }
    /// Stores an object.
    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError>;
    /// The whole object. `None` when there is no such object.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] before more than `max_bytes` are read; [`StoreError::Damaged`] instead of bytes other than
    /// those that were put.
    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError>;
    /// The whole object with the tag of its content, for [`ObjectStore::replace`]. `None` when there is no such object.
    ///
    /// # Errors
    /// Those of [`ObjectStore::get`]; [`StoreError::Fatal`] on a backend without tags.
    async fn get_tagged(&self, _key: &str, _max_bytes: u64) -> Result<Option<(Bytes, String)>, StoreError> {
        Err(without_tags(self.bucket()))
    }
    /// Stores an object in place of the one whose content has this tag. [`Put::AlreadyExists`] when another one is there, or
    /// none.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] on a backend without tags.
    async fn replace(&self, _key: &str, _body: Bytes, _tag: &str) -> Result<Put, StoreError> {
        Err(without_tags(self.bucket()))
    }
    /// Opens an object to read it in pieces, so that a slow reader holds one piece and not the whole. `None` when there
    /// is no such object. When the object is replaced or deleted meanwhile, reading may end with an error.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] when it has more than `max_bytes`.
    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError>;
    /// Size and time of an object, without its bytes.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError>;
    /// Keys that begin with `prefix`, in their order, from the first after `after` on. Returns some of them, and none if
    /// there are no more.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, StoreError>;
    /// Deletes an object. Deleting one that does not exist succeeds.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}

fn without_tags(bucket: &str) -> StoreError {
    StoreError::Fatal { bucket: bucket.to_owned(), reason: "this backend has no tags of objects".to_owned() }
}

/// How an object is put.
#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions {
    /// Only when there is no object of that key (`If-None-Match: *`).
    pub if_none_match: bool,
    /// The media type, which some backends keep.
    pub content_type: Option<&'static str>,
}

/// The outcome of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    /// The object is stored.
    Created,
    /// With `if_none_match`: an object of that key exists and stays as it is.
    AlreadyExists,
}

/// Size and time of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its size.
    pub size_bytes: u64,
    /// When it was put.
    pub modified: SystemTime,
}

/// Why a call failed, by what the caller must do.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the error texts name the fields")]
pub enum StoreError {
    /// Refuse the object.
    #[error("object {key:?} has {size} bytes, at most {limit} are read")]
    TooLarge { key: String, size: u64, limit: u64 },
    /// Retry later.
    #[error("store {bucket:?} unavailable: {reason}")]
    Unavailable { bucket: String, reason: String },
    /// The bytes of this object are not those that were put. A retry does not help, and other objects are not affected.
    #[error("store {bucket:?}: object {key:?} is damaged: {reason}")]
    Damaged { bucket: String, key: String, reason: String },
    /// A retry does not help: a bad key, no permission, a read-only disk.
    #[error("store {bucket:?}: {reason}")]
    Fatal { bucket: String, reason: String },
}

impl From<StoreError> for TransportError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::TooLarge { key, size, limit } => TransportError::ObjectTooLarge { key, size, limit },
            StoreError::Unavailable { .. } => TransportError::Unavailable(text),
            StoreError::Damaged { key, .. } => TransportError::Damaged { key, reason: text },
            StoreError::Fatal { .. } => TransportError::Fatal(text),
        }
    }
}
