//! Syncs of a segment that several callers share: each covers everything that was written before it began.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::{Segments, fault};
use crate::sqlite::{self, Fault};

/// A segment's file, and the syncs that callers asked for.
pub(super) struct SharedSync {
    name: String,
    file: Arc<File>,
    asked: AtomicU64,
    /// The last request that a sync covered. Locked while a sync runs.
    covered: Mutex<u64>,
}

impl SharedSync {
    pub(super) fn new(name: String, file: Arc<File>) -> SharedSync {
        SharedSync { name, file, asked: AtomicU64::new(0), covered: Mutex::default() }
    }
}

impl Segments {
    /// Returns once everything that was written to the segment before is on disk.
    pub(super) async fn sync(self: &Arc<Self>, shared: Arc<SharedSync>) -> Result<(), Fault> {
        let request = shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut covered = shared.covered.lock().await;
        if *covered >= request {
            return Ok(());
        }
        let all_so_far = shared.asked.load(Ordering::Acquire);
        let synced = Arc::clone(&shared);
        self.blocking(move |segments| segments.sync_now(&synced)).await?;
        *covered = all_so_far;
        Ok(())
    }

    fn sync_now(&self, shared: &SharedSync) -> Result<(), Fault> {
        if let Err(error) = shared.file.sync_data() {
            // The system reports this error only once although other calls wait for the same file, so nothing in it may
            // count as durable.
            return Err(self.database.fail(&format!("a segment of images cannot be synced to the disk: {error}")));
        }
        if sqlite::is_deleted(&shared.file) {
            self.abandon(&shared.file);
            return Err(fault(&self.directory.join(&shared.name), &ErrorKind::NotFound.into()));
        }
        Ok(())
    }
}
