//! The documents of the keys of a service, in its input bucket. Workers may not write them there, since they could
//! otherwise give keys out.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::queued::object::{ObjectStore, Put, PutOptions, StoreError};
use super::registry::open_bucket;
use crate::config::{Backend, Names};
use crate::keys::{Documents, KeysError};

/// Larger than any table of keys.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

struct InBucket(Arc<dyn ObjectStore>);

/// Opens the documents. The bucket is created when it does not exist.
///
/// # Errors
/// If the bucket cannot be used.
pub async fn open_key_documents(backend: &Backend, names: &Names) -> Result<Arc<dyn Documents>, KeysError> {
    let bucket = open_bucket(backend, &names.input_bucket).await.map_err(|error| unusable(&error))?;
    Ok(Arc::new(InBucket(bucket)))
}

#[async_trait]
impl Documents for InBucket {
    async fn read(&self, name: &str) -> Result<Option<Bytes>, KeysError> {
        self.0.get(name, MAX_DOCUMENT_BYTES).await.map_err(|error| unusable(&error))
    }

    async fn create(&self, name: &str, body: Bytes) -> Result<bool, KeysError> {
        let put = self.0.put(name, body, options(true)).await.map_err(|error| unusable(&error))?;
        Ok(put == Put::Created)
    }

    async fn replace(&self, name: &str, body: Bytes) -> Result<(), KeysError> {
        self.0.put(name, body, options(false)).await.map(drop).map_err(|error| unusable(&error))
    }
}

fn options(if_none_match: bool) -> PutOptions {
    PutOptions { if_none_match, content_type: Some("application/json") }
}

fn unusable(error: &StoreError) -> KeysError {
    KeysError(format!("the keys cannot be read or changed: {error}"))
}
