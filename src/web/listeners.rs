//! The limit on clients that wait for jobs that exist, by long polls and event streams.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The clients of this process that wait for a job that exists. Each of them holds a connection.
#[derive(Clone)]
pub(super) struct Listeners(Arc<Semaphore>);

impl Listeners {
    /// Half of the connections may wait, so that the others can submit images.
    pub(super) fn new(max_connections: usize) -> Listeners {
        Listeners(Arc::new(Semaphore::new((max_connections / 2).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Returns `None` when too many clients wait.
    pub(super) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}
