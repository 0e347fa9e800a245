//! The transport on one machine: queues and objects in one SQLite file and its segments, shared by any number of processes.
//!
//! A submission is one transaction, and so is the completion of a batch ([`steps`]). Everything that makes that fast is
//! private to this folder and to `crate::sqlite`: calls share transactions and syncs, replies bypass the database as
//! datagrams, and a worker that is busy leaves messages to one that is idle.

mod complete;
mod queue;
mod segments;
mod steps;
mod store;

use std::path::Path;
use std::sync::Arc;

use futures::FutureExt as _;

pub use self::queue::{Sending, SqliteQueue, SqliteQueues, named_jobs};
use self::steps::LocalSteps;
pub use self::store::{
    Candidate, Collected, Deleted, FailedResult, Kind, LocalData, Page, Position, SeenSegments, SqliteStore, Totals,
    Usage, Walk,
};
use super::error::TransportError;
use super::port::Transport;
use super::queued::QueuedTransport;
use super::queued::object::{ObjectStore, StoreError};
use super::queued::parts::Parts;
use super::queued::queue::Queues;
use crate::config::Names;
use crate::sqlite::Fault;

impl From<Fault> for TransportError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable(reason) => TransportError::Unavailable(reason),
            Fault::Fatal(reason) => TransportError::Fatal(reason),
        }
    }
}

/// Opens the transport of a service in a data directory, which is made if it does not exist.
///
/// # Errors
/// [`TransportError::Fatal`] if the directory cannot be used.
pub(super) fn open(data_dir: &Path, names: &Names) -> Result<Arc<dyn Transport>, TransportError> {
    let queues = Arc::new(SqliteQueues::open(data_dir)?);
    let input = SqliteStore::open(data_dir, &names.input_bucket)?;
    let output = SqliteStore::open(data_dir, &names.output_bucket)?;
    let (bucket_dir, all) = (data_dir.to_owned(), Arc::clone(&queues) as Arc<dyn Queues>);
    // A bucket is a name in the database, so opening one makes nothing.
    let open_bucket = move |name: String| {
        let opened = SqliteStore::open(&bucket_dir, &name);
        async move { Ok::<_, StoreError>(Arc::new(opened?) as Arc<dyn ObjectStore>) }.boxed()
    };
    let parts = Parts::new(names.clone(), all, Box::new(open_bucket.clone()), Box::new(open_bucket));
    let parts = Arc::new(parts);
    let steps = LocalSteps::new(queues, input, output, names.clone());
    Ok(Arc::new(QueuedTransport::new(parts, Arc::new(steps))))
}
