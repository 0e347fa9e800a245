//! The one thread of a process that writes the database: it takes calls and groups them into transactions.
//!
//! Calls that wait while a transaction commits form the next one, so the longer a commit takes, the more calls share it
//! (group commit). The thread first runs the read phases, in one snapshot and without the write lock. Most receives that
//! wait are complete after that and do not delay a writer. The write phases of the others run in one `BEGIN IMMEDIATE`.
//!
//! If a call of the transaction asks for it, this thread syncs the log to disk after the commit. SQLite would sync inside
//! the commit and delay all other processes meanwhile. Other processes may therefore see a change that a power loss can
//! still undo. Their own changes that depend on it come later in the log and are lost with it. A caller that asked
//! for durability is answered only after the sync.
//!
//! A call that fails for a reason of its own must not have written anything; the others continue. If SQL fails, the
//! transaction is rolled back and all its calls fail.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;

use super::busy::{BUSY_LIMIT, LockWait, is_busy, waiting_at_most};
use super::call::Job;
use super::fault::Fault;
use super::file;
use super::health::Health;
use super::notifier::Notifier;
use super::session::{Durability, Session, execute};
use super::sync::{Unsynced, fail};
use super::thread::lock;
use crate::clock::ServiceClock;

/// The largest number of calls in one transaction, so that other processes get the lock too.
const MAX_GROUP: usize = 128;
/// How long a call waits for the lock on the database when this process ends: a process that was stopped may hold it.
const LOCK_LIMIT_AT_END: Duration = Duration::from_millis(300);

/// Calls that join the next transaction and do not wake the thread.
pub(super) type Deferred = Arc<Mutex<Vec<Box<dyn Job>>>>;

/// The state of the thread.
pub(super) struct Writer {
    /// Locked during the phases of calls, not during a sync.
    pub connection: Arc<Mutex<Connection>>,
    pub log: File,
    pub calls: Receiver<Box<dyn Job>>,
    pub deferred: Deferred,
    pub notifier: Arc<Notifier>,
    pub clock: Arc<ServiceClock>,
    pub health: Arc<Health>,
    pub is_ending: Arc<AtomicBool>,
    /// True if calls have failed because they did not get the lock since the last transaction, so that it is logged once.
    pub is_locked_out: Cell<bool>,
}

impl Writer {
    /// Serves calls until the last sender of calls is dropped.
    pub(super) fn run(self) {
        let mut unsynced = Unsynced::default();
        loop {
            match unsynced.next_call(&self.calls) {
                Ok(first) => self.serve(first, &mut unsynced),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if unsynced.is_due() {
                unsynced.sync(&self.log, &self.health);
            }
        }
        // The callers of these have gone away.
        self.write(std::mem::take(&mut *lock(&self.deferred)), &mut unsynced);
        unsynced.sync(&self.log, &self.health);
        file::prepare_to_close(&lock(&self.connection));
    }

    /// Serves a call, together with those that wait and with deferred ones.
    fn serve(&self, first: Box<dyn Job>, unsynced: &mut Unsynced) {
        let group = std::iter::once(first).chain(self.calls.try_iter()).take(MAX_GROUP).collect();
        let mut writers = self.read(group);
        if writers.is_empty() {
            return;
        }
        let mut deferred = lock(&self.deferred);
        let joining = deferred.len().min(MAX_GROUP - writers.len());
        writers.extend(deferred.drain(..joining));
        drop(deferred);
        self.write(writers, unsynced);
    }

    /// Runs the read phases, answers the calls that are complete, and returns the others.
    fn read(&self, group: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        if !group.iter().any(|job| job.has_read_phase()) {
            return group;
        }
        let (complete, writers): (Vec<_>, Vec<_>) = read_phases(&lock(&self.connection), &self.clock, group)
            .into_iter()
            .partition(|(is_complete, _)| *is_complete);
        for (_, job) in complete {
            job.answer(None);
        }
        writers.into_iter().map(|(_, job)| job).collect()
    }

    /// Runs the write phases of a group in one transaction. While another process holds the lock, calls that have waited too
    /// long fail, the connection is free for reads, and new calls join the group.
    fn write(&self, mut group: Vec<Box<dyn Job>>, unsynced: &mut Unsynced) {
        let mut wait = LockWait::start();
        while !group.is_empty() {
            let written = transaction(&lock(&self.connection), &self.clock, &mut group);
            match written {
                Ok(Some(committed)) => return self.finish(committed, group, unsynced),
                Ok(None) => {
                    group = self.fail_late(group);
                    wait.sleep();
                    let capacity = MAX_GROUP.saturating_sub(group.len());
                    group.extend(self.read(self.calls.try_iter().take(capacity).collect()));
                    if unsynced.is_due() {
                        unsynced.sync(&self.log, &self.health);
                    }
                }
                Err(error) => return fail(group, &Fault::of(&error)),
            }
        }
    }

    /// Notifies the queues of a committed transaction, and answers its calls or leaves them to the next sync.
    fn finish(&self, committed: Committed, group: Vec<Box<dyn Job>>, unsynced: &mut Unsynced) {
        if self.is_locked_out.replace(false) {
            tracing::info!("the database of the local backend can be written again");
        }
        let Committed { notify, removed, files } = committed;
        for name in &removed {
            self.notifier.remove(name);
        }
        for name in &notify {
            self.notifier.notify(name);
        }
        for file in files {
            unsynced.add_file(file);
        }
        for job in group {
            match job.durability() {
                Durability::FullWithin(within) if !job.has_failed() => unsynced.add(job, within),
                _ => job.answer(None),
            }
        }
    }

    /// Fails the calls that have waited too long for the lock on the database, and returns the others.
    fn fail_late(&self, group: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let limit = if self.is_ending.load(Ordering::Acquire) { LOCK_LIMIT_AT_END } else { BUSY_LIMIT };
        let (late, others): (Vec<_>, Vec<_>) = group.into_iter().partition(|job| job.since().elapsed() >= limit);
        if late.is_empty() {
            return others;
        }
        let seconds = BUSY_LIMIT.as_secs();
        let failure = Fault::Unavailable(format!("another process has held the lock on the database for {seconds} s"));
        if !self.is_locked_out.replace(true) {
            tracing::warn!(
                "{failure}: look for a process that is stopped, or a tool with an open write transaction; calls fail until \
                 it is gone"
            );
        }
        for job in late {
            job.answer(Some(&failure));
        }
        others
    }
}

/// Runs the read phases of a group in one snapshot. Returns each call, and whether it is complete.
fn read_phases(connection: &Connection, clock: &ServiceClock, group: Vec<Box<dyn Job>>) -> Vec<(bool, Box<dyn Job>)> {
    // If it fails, each statement takes its own snapshot, and reports what is wrong.
    let _ = execute(connection, "BEGIN");
    let session = Session::new(connection, clock);
    let done = group.into_iter().map(|mut job| (job.read(&session), job)).collect();
    // The next transaction must not begin in this snapshot.
    if !connection.is_autocommit() && execute(connection, "COMMIT").is_err() {
        let _ = execute(connection, "ROLLBACK");
    }
    done
}

/// The work that is left to do for a committed transaction.
struct Committed {
    notify: BTreeSet<String>,
    removed: BTreeSet<String>,
    files: Vec<Arc<File>>,
}

/// Returns `None` if another process holds the lock: then nothing has happened.
fn transaction(
    connection: &Connection,
    clock: &ServiceClock,
    group: &mut [Box<dyn Job>],
) -> rusqlite::Result<Option<Committed>> {
    match waiting_at_most(Duration::ZERO, || execute(connection, "BEGIN IMMEDIATE")) {
        Err(error) if is_busy(&error) => return Ok(None),
        begun => begun?,
    }
    let committed = write_and_commit(connection, clock, group);
    if committed.is_err() && !connection.is_autocommit() {
        execute(connection, "ROLLBACK")?;
    }
    committed.map(Some)
}

fn write_and_commit(
    connection: &Connection,
    clock: &ServiceClock,
    group: &mut [Box<dyn Job>],
) -> rusqlite::Result<Committed> {
    let mut session = Session::new(connection, clock);
    for job in group {
        job.write(&mut session)?;
    }
    execute(connection, "COMMIT")?;
    session.committed.store(true, Ordering::Release);
    Ok(Committed { notify: session.notify, removed: session.removed, files: session.unsynced })
}
