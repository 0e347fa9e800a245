//! Syncs the log for calls whose transaction is committed but not yet durable. They share one fsync.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::call::Job;
use super::fault::Fault;
use super::health::{Health, is_deleted};

/// Calls that may wait for one sync. They are a fraction of the calls that may wait for the writer thread, so that other
/// calls still find capacity.
const MAX_UNSYNCED: usize = 256;

/// The calls that wait for the next sync, and the files that it covers.
#[derive(Default)]
pub(super) struct Unsynced {
    /// Files that are synced with the log.
    files: Vec<Arc<File>>,
    waiting: Vec<Box<dyn Job>>,
    /// `None` while no call waits.
    due: Option<Instant>,
}

impl Unsynced {
    /// Waits for the next call, until a sync is due.
    pub(super) fn next_call(&self, calls: &Receiver<Box<dyn Job>>) -> Result<Box<dyn Job>, RecvTimeoutError> {
        match self.due {
            Some(due) => calls.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => calls.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// Adds a call, which is answered after a sync that begins within this time.
    pub(super) fn add(&mut self, job: Box<dyn Job>, within: Duration) {
        let due = Instant::now() + within;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        self.waiting.push(job);
    }

    pub(super) fn add_file(&mut self, file: Arc<File>) {
        if !self.files.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.files.push(file);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() >= due) || self.waiting.len() >= MAX_UNSYNCED
    }

    /// Syncs the log and the files, and answers the calls that waited for it.
    pub(super) fn sync(&mut self, log: &File, health: &Health) {
        let Unsynced { files, waiting, .. } = std::mem::take(self);
        if waiting.is_empty() {
            return;
        }
        match sync(&files, log, health) {
            Ok(()) => waiting.into_iter().for_each(|job| job.answer(None)),
            Err(failure) => fail(waiting, &failure),
        }
    }
}

/// Answers all calls of a group with the failure of their transaction.
pub(super) fn fail(group: Vec<Box<dyn Job>>, failure: &Fault) {
    tracing::warn!(%failure, calls = group.len(), "a transaction of the local backend failed");
    for job in group {
        job.answer(Some(failure));
    }
}

/// Returns an error if it is not certain that the log and these files are on disk.
fn sync(files: &[Arc<File>], log: &File, health: &Health) -> Result<(), Fault> {
    // After one failed sync a successful one proves nothing.
    if let Some(failure) = health.fault() {
        return Err(failure);
    }
    if let Err(error) = files.iter().try_for_each(|file| file.sync_data()).and_then(|()| log.sync_data()) {
        return Err(health.fail(&format!("the local backend cannot be synced to disk: {error}")));
    }
    if files.iter().any(|file| is_deleted(file)) {
        return Err(Fault::Unavailable("a file of objects was removed while it was written".to_owned()));
    }
    health.check_files().map_or(Ok(()), Err)
}
