//! Work beside the calls, by one thread of each process with its own connection: it copies the write-ahead log, adjusts the
//! clock of the data directory, checks the files, and runs chores of the queue and the store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::busy::waiting_at_most;
use super::checkpoint::{Checkpointer, STEP_PAGES};
use super::fault::Fault;
use super::health::Health;
use super::thread::{OwnedThread, lock};
use super::{anchor, file};
use crate::clock::ServiceClock;

/// How often the files and the clock are checked.
const TICK: Duration = Duration::from_secs(1);
/// How long a chore may wait for a lock. It is called again later.
const CHORE_LIMIT: Duration = Duration::from_millis(100);
/// A chore with more to do gets a fifth of the time; the rest is left to the calls.
const CHORE_SHARE: u32 = 5;
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Work that takes a few milliseconds at most. It is called with the service time in milliseconds and returns the time until
/// it wants to be called again, which is zero if there is more to do.
pub type Chore = Box<dyn FnMut(&mut Connection, i64) -> rusqlite::Result<Duration> + Send>;

/// Handle on the thread. Dropping it waits until the thread has ended.
pub struct Upkeep {
    stop: Arc<AtomicBool>,
    wake: SyncSender<()>,
    chores: Chores,
    thread: OwnedThread,
}

type Chores = Arc<Mutex<Vec<Scheduled>>>;

struct Scheduled {
    name: &'static str,
    due: Instant,
    chore: Chore,
}

impl Upkeep {
    /// Starts the thread. `commits` is the connection whose commits extend the log, `own` another one on the same database.
    pub(super) fn start(
        commits: &mut Connection,
        own: Connection,
        clock: Arc<ServiceClock>,
        health: Arc<Health>,
    ) -> Result<Upkeep, Fault> {
        let (wake, woken) = mpsc::sync_channel(1);
        wake_when_log_grows(commits, wake.clone())?;
        let (stop, chores) = (Arc::<AtomicBool>::default(), Chores::default());
        let thread =
            Thread { connection: own, clock, health, woken, stop: Arc::clone(&stop), chores: Arc::clone(&chores) };
        let thread = OwnedThread::start("upkeep", move || thread.run())?;
        Ok(Upkeep { stop, wake, chores, thread })
    }

    /// Adds a chore, unless there is one with this name.
    pub fn add(&self, name: &'static str, chore: impl FnOnce() -> Chore) {
        let mut chores = lock(&self.chores);
        if chores.iter().all(|other| other.name != name) {
            chores.push(Scheduled { name, due: Instant::now(), chore: chore() });
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // If the channel is full, the thread is awake already.
        let _ = self.wake.try_send(());
        self.thread.join();
    }
}

fn wake_when_log_grows(commits: &mut Connection, wake: SyncSender<()>) -> Result<(), Fault> {
    let mut woken_at = 0;
    let hook = move |_: &mut _, pages| {
        // The log is shorter than before if it has restarted.
        woken_at = if pages < woken_at { 0 } else { woken_at };
        if pages - woken_at >= STEP_PAGES {
            woken_at = pages;
            // If the channel is full, the thread is awake; if it is disconnected, the thread has logged why it ended.
            let _ = wake.try_send(());
        }
        Ok(())
    };
    commits.wal_hook(Some(hook)).map_err(|error| Fault::of(&error))
}

struct Thread {
    connection: Connection,
    clock: Arc<ServiceClock>,
    health: Arc<Health>,
    woken: Receiver<()>,
    stop: Arc<AtomicBool>,
    chores: Chores,
}

impl Thread {
    fn run(mut self) {
        let mut checkpointer = Checkpointer::new();
        let mut tick_at = Instant::now() + TICK;
        loop {
            // While the files are missing, the thread only checks whether they are back.
            let work_at = || [checkpointer.retry_at(), self.chore_due()].into_iter().flatten().min();
            let next = self.health.fault().is_none().then(work_at).flatten().map_or(tick_at, |at| at.min(tick_at));
            let wait = next.saturating_duration_since(Instant::now());
            let woken = self.woken.recv_timeout(wait);
            if self.stop.load(Ordering::Acquire) || matches!(woken, Err(RecvTimeoutError::Disconnected)) {
                break;
            }
            if self.health.fault().is_none() {
                let is_copy_due = woken.is_ok() || checkpointer.retry_at().is_some_and(|at| Instant::now() >= at);
                if is_copy_due && let Err(error) = checkpointer.run(&self.connection) {
                    self.health.fail(&format!("the database cannot be synced to disk: {error}"));
                    continue;
                }
                self.run_chore();
            }
            if Instant::now() >= tick_at {
                tick_at = Instant::now() + TICK;
                self.tick();
            }
        }
        file::prepare_to_close(&self.connection);
    }

    fn tick(&mut self) {
        if self.health.check_files().is_some() {
            return;
        }
        let kept = waiting_at_most(CHORE_LIMIT, || anchor::keep(&mut self.connection, &self.clock));
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot adjust the clock of the data directory; it continues unadjusted");
        }
    }

    fn chore_due(&self) -> Option<Instant> {
        lock(&self.chores).iter().map(|chore| chore.due).min()
    }

    /// Runs the first chore that is due.
    fn run_chore(&mut self) {
        let mut chores = lock(&self.chores);
        let Some(next) = chores.iter_mut().min_by_key(|chore| chore.due) else { return };
        let started = Instant::now();
        if next.due > started {
            return;
        }
        let now_ms = self.clock.now_ms();
        let done = waiting_at_most(CHORE_LIMIT, || (next.chore)(&mut self.connection, now_ms));
        let again_in = done.unwrap_or_else(|error| {
            tracing::debug!(%error, chore = next.name, "a chore has failed; it is called again");
            TICK
        });
        let pause = (started.elapsed() * (CHORE_SHARE - 1)).max(MIN_PAUSE);
        next.due = Instant::now() + again_in.max(pause);
    }
}
