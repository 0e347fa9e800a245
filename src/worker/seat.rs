//! The session of one model in one thread, and how another version takes its place between two batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch_policy::TunedVersion;
use crate::model::{ModelPackage, Session};

/// A session with the package that it runs, and what was measured of it.
pub(crate) struct Active {
    pub package: Arc<ModelPackage>,
    pub tuned: Arc<TunedVersion>,
    pub session: Session,
}

/// The session of one thread. The thread locks it for the time of a batch, so that a batch ends on the version on which
/// it began.
pub(crate) struct Seat {
    active: Mutex<Active>,
    /// The session of another version that is ready to take over.
    next: Mutex<Option<Active>>,
}

impl Seat {
    pub(crate) fn new(active: Active) -> Seat {
        Seat { active: Mutex::new(active), next: Mutex::new(None) }
    }

    /// Locks the session for a batch, after switching to another version that is ready.
    pub(crate) fn begin_batch(&self) -> MutexGuard<'_, Active> {
        let mut active = lock(&self.active);
        self.switch(&mut active);
        active
    }

    /// Makes the session of another version ready to take over.
    pub(crate) fn offer(&self, next: Active) {
        *lock(&self.next) = Some(next);
    }

    /// Switches now if no batch runs, and returns true if no other version is waiting to take over. A busy thread
    /// switches at its next batch by itself; this is for threads that are idle.
    pub(crate) fn has_switched(&self) -> bool {
        if let Ok(mut active) = self.active.try_lock() {
            self.switch(&mut active);
        }
        lock(&self.next).is_none()
    }

    fn switch(&self, active: &mut Active) {
        if let Some(next) = lock(&self.next).take() {
            *active = next;
        }
    }
}

/// Locks also after a panic: a session that panicked ends its worker, and nothing else leaves a lock half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
