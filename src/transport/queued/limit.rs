//! The largest message that a queue takes, as far as this process knows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::queue::DEFAULT_MAX_MESSAGE_BYTES;

/// How long a limit is taken to be what it was when it was read.
const LIMIT_KEPT_FOR: Duration = Duration::from_secs(10);

/// Learned when the queue refuses a message, and read again now and then while images do not fit.
pub(crate) struct MessageLimit {
    bytes: AtomicUsize,
    read_at: Mutex<Option<Instant>>,
}

impl Default for MessageLimit {
    fn default() -> Self {
        MessageLimit { bytes: DEFAULT_MAX_MESSAGE_BYTES.into(), read_at: Mutex::new(None) }
    }
}

impl MessageLimit {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The queue refused a message, and named its limit.
    pub(crate) fn learn(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The limit was read.
    pub(crate) fn set(&self, bytes: usize) {
        self.learn(bytes);
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns true if it is time to read the limit. Only one caller gets true; it then reads the limit.
    pub(crate) fn is_due(&self) -> bool {
        let mut read_at = self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = read_at.is_none_or(|read_at| read_at.elapsed() >= LIMIT_KEPT_FOR);
        if is_due {
            *read_at = Some(Instant::now());
        }
        is_due
    }
}
