//! Threads that end with their owner, and locks that survive a panic.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::fault::Fault;

/// How long a process that ends waits for a thread, which may be stuck in a disk or behind another process's lock.
const JOIN_LIMIT: Duration = Duration::from_secs(1);

/// A thread that its owner stops and joins.
pub(super) struct OwnedThread {
    name: &'static str,
    /// `None` after [`OwnedThread::join`].
    handle: Option<JoinHandle<()>>,
    /// Disconnected once the thread has ended.
    ended: Mutex<Receiver<()>>,
}

impl OwnedThread {
    pub(super) fn start(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<OwnedThread, Fault> {
        let (has_ended, ended) = mpsc::channel();
        let run = move || {
            run();
            drop(has_ended);
        };
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let handle = handle.map_err(|error| cannot_start(name, &error))?;
        Ok(OwnedThread { name, handle: Some(handle), ended: Mutex::new(ended) })
    }

    /// Waits until the thread has ended, but not forever. The owner has told it to end before.
    pub(super) fn join(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if lock(&self.ended).recv_timeout(JOIN_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(thread = self.name, "a thread of the local backend did not end in time; exiting without it");
        } else if handle.join().is_err() {
            tracing::error!(thread = self.name, "a thread of the local backend panicked; this is a bug");
        }
    }
}

/// Locks a mutex of this module, also after a panic: no state is left half changed under it, and a connection whose thread
/// panicked in a transaction is not used again.
pub(super) fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cannot_start(name: &str, error: &io::Error) -> Fault {
    Fault::Unavailable(format!("cannot start the thread {name} of the local backend: {error}"))
}
