//! Which backends there are. One that is part of the program is a variant of [`Backend`]; a process can register others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::aws::{self, S3Store, SqsQueues};
use super::error::TransportError;
use super::local::{self, SqliteQueues, SqliteStore};
use super::nats::{self, NatsBucket, NatsQueues};
use super::port::{Opener, Transport};
use super::queued::object::{ObjectStore, StoreError};
use super::queued::queue::{QueueError, Queues};
use crate::config::{Backend, Names};

/// Backends of this process that are not part of the program.
static REGISTERED: Mutex<BTreeMap<String, Arc<dyn Opener>>> = Mutex::new(BTreeMap::new());

/// Makes a backend known under a name, for [`Backend::Named`]: for tests, and for programs that use this crate.
pub fn register(name: &str, opener: Arc<dyn Opener>) {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), opener);
}

/// Opens the transport of a service on the backend that the configuration selects.
///
/// # Errors
/// [`TransportError::Fatal`] when there is no such backend or it cannot be used; it says what to do.
pub async fn open(backend: &Backend, names: &Names) -> Result<Arc<dyn Transport>, TransportError> {
    match backend {
        Backend::Local { data_dir } => local::open(data_dir, names),
        Backend::Aws { region, endpoint_url } => {
            Box::pin(aws::open(region.as_deref(), endpoint_url.as_deref(), names)).await
        }
        Backend::Nats(location) => Box::pin(nats::open(location, names)).await,
        Backend::Named { name, .. } => match registered(name) {
            Some(opener) => opener.open(backend, names).await,
            None => Err(TransportError::Fatal(format!(
                "no backend is registered as {name:?}; register it before you open it"
            ))),
        },
    }
}

fn registered(name: &str) -> Option<Arc<dyn Opener>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
}

/// The queues below the transport of a backend that is made of queues: for tests and benchmarks that look below it.
///
/// # Errors
/// [`QueueError::Fatal`] when they cannot be used.
#[allow(clippy::match_wildcard_for_single_variants, reason = "a backend that is not made of queues needs no line here")]
pub async fn open_queues(backend: &Backend) -> Result<Arc<dyn Queues>, QueueError> {
    match backend {
        Backend::Local { data_dir } => Ok(Arc::new(SqliteQueues::open(data_dir)?)),
        Backend::Aws { region, endpoint_url } => {
            Ok(Arc::new(Box::pin(SqsQueues::connect(region.as_deref(), endpoint_url.as_deref())).await?))
        }
        Backend::Nats(location) => Ok(Arc::new(Box::pin(NatsQueues::connect(location)).await?)),
        other => Err(QueueError::Fatal(format!("backend {:?} is not made of queues", other.name()))),
    }
}

/// A bucket below the transport, as [`open_queues`]. It is made when it is missing.
///
/// # Errors
/// [`StoreError::Fatal`] when it cannot be used.
#[allow(
    clippy::match_wildcard_for_single_variants,
    reason = "a backend that is not made of buckets needs no line here"
)]
pub async fn open_bucket(backend: &Backend, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match backend {
        Backend::Local { data_dir } => Ok(Arc::new(SqliteStore::open(data_dir, bucket)?)),
        Backend::Aws { region, endpoint_url } => {
            Ok(Arc::new(Box::pin(S3Store::open(region.as_deref(), endpoint_url.as_deref(), bucket)).await?))
        }
        Backend::Nats(location) => Ok(Arc::new(Box::pin(NatsBucket::open(location, bucket)).await?)),
        other => {
            let reason = format!("backend {:?} is not made of buckets", other.name());
            Err(StoreError::Fatal { bucket: bucket.to_owned(), reason })
        }
    }
}
