//! A limit on the memory of image files that are read ahead.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The memory that image files may take together until they are decoded.
pub(super) struct InputMemory {
    limit: u64,
    used: Mutex<u64>,
    changed: Condvar,
}

/// A share of the memory. Dropping it releases the share.
pub(super) struct Held {
    memory: Arc<InputMemory>,
    bytes: u64,
}

impl InputMemory {
    pub(super) fn new(limit: u64) -> Arc<InputMemory> {
        Arc::new(InputMemory { limit, used: Mutex::new(0), changed: Condvar::new() })
    }

    /// Waits until `bytes` are free. A file that is larger than the limit waits until no other is held.
    pub(super) fn hold(self: &Arc<InputMemory>, bytes: u64) -> Held {
        let bytes = bytes.min(self.limit);
        let mut used = self.used();
        while *used + bytes > self.limit {
            used = self.changed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        Held { memory: Arc::clone(self), bytes }
    }

    /// Each change is one assignment, so the number is valid even if the lock is poisoned.
    fn used(&self) -> MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.memory.used() -= self.bytes;
        self.memory.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_stay_within_the_limit_and_large_files_pass_alone() {
        let memory = InputMemory::new(100);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    for turn in 0..100 {
                        let held = memory.hold(if thread == 0 { 1_000 } else { 10 + turn });
                        assert!(*memory.used() <= 100);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(*memory.used(), 0);
    }
}
