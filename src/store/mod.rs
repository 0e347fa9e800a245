//! The object store port: what S3 promises, as a trait, and the backends that keep it.
//!
//! Every backend passes the same conformance suite (`tests/it/store_conformance.rs`); the contract in words:
//!
//! - A put that returned is durable, and all or nothing: no reader ever sees half an object.
//! - A get after a put sees it, in every process.
//! - Of several puts with `if_none_match`, exactly one returns [`Put::Created`].

mod reader;
mod s3;
mod segments;
mod space;
mod sqlite;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;

pub use reader::ObjectReader;
pub use s3::S3Store;
pub use space::{Admitted, Measuring, NoSpace, Space, SpaceState};
pub use sqlite::{
    Candidate, Deleted, Kind, LocalData, Page, Position, SeenSegments, SqliteStore, Swept, Totals, Usage, Walk,
};

use crate::config::Backend;
use crate::readiness::Probe;

/// The bucket, as the configuration asks for it; made where it is not there.
///
/// # Errors
/// [`StoreError::Fatal`] where it cannot be used; it says what to do.
pub async fn open(backend: &Backend, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match backend {
        Backend::Local { data_dir } => Ok(Arc::new(SqliteStore::open(data_dir, bucket)?)),
        Backend::Aws { region, endpoint_url } => {
            // The SDK's futures are large; who runs locally does not carry them.
            Ok(Arc::new(Box::pin(S3Store::open(region.as_deref(), endpoint_url.as_deref(), bucket)).await?))
        }
    }
}

/// S3's limit on a key, in bytes of UTF-8.
const MAX_KEY_BYTES: usize = 1_024;

/// Of every backend, so that a key of one is a key of all.
fn check_key_length(key: &str) -> Result<(), String> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Ok(());
    }
    Err(format!("must have 1 to {MAX_KEY_BYTES} bytes, not {}", key.len()))
}

/// A key that nothing writes.
const PROBE_KEY: &str = "images/readiness-probe";

/// Asks whether the bucket is there and may be read.
pub fn probe(store: &dyn ObjectStore) -> Probe<'_> {
    let call = async { store.head(PROBE_KEY).await.map(drop).map_err(|error| error.to_string()) };
    Probe { of: format!("bucket {:?}", store.bucket()), call: Box::pin(call) }
}

/// One bucket.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The bucket's name, for messages.
    fn bucket(&self) -> &str;
    /// Whether a put of that size, begun before a send to a queue of the same backend, stands before that message can be
    /// received, although nobody waited for the put: then both may be waited for together, and cost one transaction.
    fn is_put_in_line_with_sends(&self, _size_bytes: usize) -> bool {
        false
    }
    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError>;
    /// Several at a time, one answer for each in order: a backend may make them stand with one sync.
    async fn put_all(&self, objects: Vec<(String, Bytes)>, options: PutOptions) -> Vec<Result<Put, StoreError>> {
        join_all(objects.iter().map(|(key, body)| self.put(key, body.clone(), options))).await
    }
    /// None where there is no such object.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] before reading more than `max_bytes`; [`StoreError::Damaged`] instead of other bytes than
    /// those that were put.
    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError>;
    /// Opens an object to read it in pieces, so that a slow reader holds a piece and not the whole. None where there is
    /// no such object. One that is replaced or deleted meanwhile may end the reading with an error.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] where it has more than `max_bytes`.
    async fn read(&self, key: &str, max_bytes: u64) -> Result<Option<ObjectReader>, StoreError>;
    /// Size and time of an object, without its bytes.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError>;
    /// An object that is not there is deleted already.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}

#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions {
    /// Only where no object of that key stands (`If-None-Match: *`).
    pub if_none_match: bool,
    /// Media type, where the backend keeps one.
    pub content_type: Option<&'static str>,
    /// How much later the caller can bear to hear that it is durable, so that others may share what that takes. It can be
    /// read before.
    pub durable_within: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Put {
    Created,
    /// With `if_none_match`: an object stood there already and was left as it is.
    AlreadyExists,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    pub size_bytes: u64,
    pub modified: SystemTime,
}

/// Typed by what the caller has to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Refuse the object.
    #[error("object {key:?} has {size} bytes, at most {limit} are read")]
    TooLarge { key: String, size: u64, limit: u64 },
    /// Wait and try again.
    #[error("store {bucket:?} unavailable: {reason}")]
    Unavailable { bucket: String, reason: String },
    /// The bytes of this object are not those that were put: trying again will not help, and other objects are well.
    #[error("store {bucket:?}: object {key:?} is damaged: {reason}")]
    Damaged { bucket: String, key: String, reason: String },
    /// Trying again will not help: a bad key, no permission, a read-only disk.
    #[error("store {bucket:?}: {reason}")]
    Fatal { bucket: String, reason: String },
}
