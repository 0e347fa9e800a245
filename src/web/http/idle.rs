//! Tracks whether a connection waits for a request, and since when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::web::metrics::METRICS;

/// Value of [`IdleTracker::idle_since`] while a request is answered.
const BUSY: u64 = u64::MAX;
/// Value of [`IdleTracker::idle_since`] once the connection was asked to close. No request begins any more.
const CLOSING: u64 = u64::MAX - 1;

/// Tracks whether one connection waits for a request. The server may close a connection only while it does.
pub(super) struct IdleTracker {
    /// Milliseconds since `epoch`, or [`BUSY`], or [`CLOSING`].
    idle_since: AtomicU64,
    is_write_blocked: AtomicBool,
    /// True from the beginning of a request until the last byte of the handler's answer is written.
    writes_answer: AtomicBool,
    is_spare: AtomicBool,
    close: CancellationToken,
    epoch: Instant,
}

impl IdleTracker {
    /// Tracks a new connection, which is idle from now on. All trackers of a server share one `epoch`.
    pub(super) fn new(epoch: Instant, is_spare: bool) -> IdleTracker {
        IdleTracker {
            idle_since: AtomicU64::new(millis_since(epoch)),
            is_write_blocked: AtomicBool::new(false),
            writes_answer: AtomicBool::new(false),
            is_spare: AtomicBool::new(is_spare),
            close: CancellationToken::new(),
            epoch,
        }
    }

    /// Marks the connection as busy. Returns `false` when it was asked to close: it then closes without an answer.
    pub(super) fn begin_request(&self) -> bool {
        self.writes_answer.store(true, Ordering::Release);
        self.idle_since
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |since| (since != CLOSING).then_some(BUSY))
            .is_ok()
    }

    /// Marks the connection as idle again. A connection that was asked to close stays so.
    pub(super) fn end_request(&self) {
        let now = millis_since(self.epoch);
        let _ = self.idle_since.compare_exchange(BUSY, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Call it when the write buffer of the connection is empty.
    pub(super) fn flushed(&self) {
        if self.idle_since.load(Ordering::Acquire) != BUSY {
            self.writes_answer.store(false, Ordering::Release);
        }
    }

    /// Returns whether bytes that are written now may belong to a handler's answer.
    pub(super) fn writes_answer(&self) -> bool {
        self.writes_answer.load(Ordering::Acquire)
    }

    /// Records whether the client has stopped reading. Such a connection does not count as idle, even if its request
    /// has ended.
    pub(super) fn set_write_blocked(&self, is_blocked: bool) {
        self.is_write_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// Returns whether the connection holds one of the spare permits.
    pub(super) fn is_spare(&self) -> bool {
        self.is_spare.load(Ordering::Relaxed)
    }

    /// Records that the connection got a regular permit in place of a spare one.
    pub(super) fn became_regular(&self) {
        self.is_spare.store(false, Ordering::Relaxed);
    }

    /// Completes once the connection has to close.
    pub(super) async fn close_requested(&self) {
        self.close.cancelled().await;
    }

    /// Returns how long the connection has been idle at `now`, or `None` when it is not idle.
    pub(super) fn idle_time(&self, now: Instant) -> Option<Duration> {
        let since = self.idle_since.load(Ordering::Acquire);
        let is_idle = since != BUSY && since != CLOSING && !self.is_write_blocked.load(Ordering::Relaxed);
        is_idle.then(|| now.saturating_duration_since(self.epoch).saturating_sub(Duration::from_millis(since)))
    }

    /// Asks an idle connection to close. Returns `false` when it is busy or was asked before.
    pub(super) fn request_close(&self) -> bool {
        let since = self.idle_since.load(Ordering::Acquire);
        if since == BUSY || since == CLOSING {
            return false;
        }
        let is_requested =
            self.idle_since.compare_exchange(since, CLOSING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_requested {
            METRICS.closed.with_label_values(&["waited_too_long"]).inc();
            self.close.cancel();
        }
        is_requested
    }
}

fn millis_since(epoch: Instant) -> u64 {
    epoch.elapsed().as_millis() as u64
}
