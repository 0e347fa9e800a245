//! Waits for the locks of other processes.
//!
//! SQLite's own busy handler sleeps for 1 ms at first and up to 100 ms later, much longer than our transactions last, so
//! that processes would sleep beside a free lock most of the time.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::retry::{Backoff, Schedule};

/// How long an operation waits for other processes before it fails with `Unavailable`: longer than any transaction of ours,
/// shorter than a client waits. A process that was stopped (SIGSTOP) in a transaction keeps its lock.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// Delays between the attempts to get a lock.
const RETRY: Schedule = Schedule::new(Duration::from_micros(50), Duration::from_millis(2));

thread_local! {
    /// The wait that the busy handler is in.
    static WAIT: RefCell<Option<LockWait>> = const { RefCell::new(None) };
    static LIMIT: Cell<Duration> = const { Cell::new(BUSY_LIMIT) };
}

/// The attempts to get one lock.
pub(super) struct LockWait {
    since: Instant,
    backoff: Backoff,
}

impl LockWait {
    pub(super) fn start() -> LockWait {
        LockWait { since: Instant::now(), backoff: RETRY.start() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// Sleeps before the next attempt, with jitter, so that processes that were refused together do not retry together.
    pub(super) fn sleep(&mut self) {
        std::thread::sleep(self.backoff.next_delay_with_jitter());
    }
}

/// Makes a connection wait for locks as this module describes.
pub(super) fn handle_busy(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_handler(Some(wait_for_others))
}

/// Calls `operation` with another limit on how long SQLite waits for locks.
pub(super) fn waiting_at_most<T>(limit: Duration, operation: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(limit);
    let done = operation();
    LIMIT.set(before);
    done
}

/// Returns true if an operation failed because another process holds a lock.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// The busy handler. SQLite counts the attempts for one lock from zero.
fn wait_for_others(attempt: i32) -> bool {
    WAIT.with_borrow_mut(|wait| {
        let wait = match wait {
            Some(wait) if attempt > 0 => wait,
            _ => wait.insert(LockWait::start()),
        };
        if wait.elapsed() >= LIMIT.get() {
            return false;
        }
        wait.sleep();
        true
    })
}
