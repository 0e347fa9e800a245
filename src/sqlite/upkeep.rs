//! What is done beside the calls, by one thread of each process with a connection of its own: the write-ahead log is
//! copied, the clock of the data directory is kept, the files are looked after, and the users of the file have chores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::checkpoint::{Checkpointer, STEP_PAGES};
use super::health::Health;
use super::{Fault, OwnedThread, anchor, file, lock};
use crate::clock::ServiceClock;

/// How often files and clock are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How long a chore may wait for a lock; it comes again.
const CHORE_LIMIT: Duration = Duration::from_millis(100);
/// A chore that has more to do gets a fifth of the time, and the calls the rest.
const CHORE_SHARE: u32 = 5;
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// A piece of work that takes a few milliseconds at most, called with the service time in milliseconds. Returns how long
/// until it is to be called again; zero: there is more to do.
pub type Chore = Box<dyn FnMut(&mut Connection, i64) -> rusqlite::Result<Duration> + Send>;

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
    /// `commits`: the connection whose commits make the log longer. `own`: another one on the same file.
    pub(super) fn start(
        commits: &mut Connection,
        own: Connection,
        clock: Arc<ServiceClock>,
        health: Arc<Health>,
    ) -> Result<Upkeep, Fault> {
        let (wake, woken) = mpsc::sync_channel(1);
        wake_when_the_log_grows(commits, wake.clone())?;
        let (stop, chores) = (Arc::<AtomicBool>::default(), Chores::default());
        let thread =
            Thread { connection: own, clock, health, woken, stop: Arc::clone(&stop), chores: Arc::clone(&chores) };
        let thread = OwnedThread::start("upkeep", move || thread.run())?;
        Ok(Upkeep { stop, wake, chores, thread })
    }

    /// Has a chore done from now on. One of that name stays the only one.
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
        // Full: it is awake, or about to be.
        let _ = self.wake.try_send(());
        self.thread.join();
    }
}

fn wake_when_the_log_grows(commits: &mut Connection, wake: SyncSender<()>) -> Result<(), Fault> {
    let mut told = 0;
    let hook = move |_: &mut _, pages| {
        // Shorter than before: it has started again.
        told = if pages < told { 0 } else { told };
        if pages - told >= STEP_PAGES {
            told = pages;
            // Full: it is awake. Disconnected: it has ended with an error in the log.
            let _ = wake.try_send(());
        }
        Ok(())
    };
    commits.wal_hook(Some(hook)).map_err(|error| file::fault(&error))
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
            // While the files are not in their places nothing is done but to look for them.
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
                    self.health.fail(&format!("the database cannot be synced to the disk: {error}"));
                    continue;
                }
                self.do_chore();
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
        let kept = file::waiting_at_most(CHORE_LIMIT, || anchor::keep(&mut self.connection, &self.clock));
        if let Err(error) = kept {
            tracing::debug!(%error, "the clock of the data directory is not adjusted; it goes on as it was");
        }
    }

    fn chore_due(&self) -> Option<Instant> {
        lock(&self.chores).iter().map(|chore| chore.due).min()
    }

    /// The first that is due.
    fn do_chore(&mut self) {
        let mut chores = lock(&self.chores);
        let Some(next) = chores.iter_mut().min_by_key(|chore| chore.due) else { return };
        let started = Instant::now();
        if next.due > started {
            return;
        }
        let now_ms = self.clock.now_ms();
        let done = file::waiting_at_most(CHORE_LIMIT, || (next.chore)(&mut self.connection, now_ms));
        let again_in = done.unwrap_or_else(|error| {
            tracing::debug!(%error, chore = next.name, "not done; it comes again");
            TICK
        });
        let pause = (started.elapsed() * (CHORE_SHARE - 1)).max(MIN_PAUSE);
        next.due = Instant::now() + again_in.max(pause);
    }
}
