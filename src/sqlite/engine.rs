//! The one thread of a process that writes the file: calls in, transactions out.
//!
//! Calls that wait while a transaction commits form the next one: the dearer a commit, the more calls share it
//! (group commit). A call first *looks*, without the write lock; most waiting receives end there and never stand in
//! the way of a writer. Where the connection is free it looks from where it is called: two threads that wake each other
//! take longer than the look. What is left runs in one `BEGIN IMMEDIATE`.
//!
//! Where one of its calls asks for it, the log is synced to disk, by this thread and after the commit: SQLite would sync
//! inside it, and hold up every other process meanwhile. So others may see what may yet be undone by a power loss; with
//! it goes whatever they made of it, which stands behind it in the log. Only who was told that it stands relies on it,
//! and that is after the sync.
//!
//! A call that fails for a reason of its own must not have written yet; the others go on. When SQL fails, nothing of
//! the transaction happened and all its calls hear so.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::health::{Health, is_deleted};
use super::notifier::Notifier;
use super::{Fault, OwnedThread, file, lock};
use crate::clock::ServiceClock;

/// Calls that may wait for the thread; more wait outside.
const MAX_WAITING: usize = 1_024;
/// Calls in one transaction, so that other processes get their turn.
const MAX_GROUP: usize = 128;

/// Calls that may wait for one sync: a fraction of [`MAX_WAITING`], so that there is room for others.
const MAX_UNSYNCED: usize = 256;

/// How long a lazy call waits for another, whose transaction it shares, before it wakes the thread itself. In the flow of
/// work the next receive or send comes sooner.
const LINGER: Duration = Duration::from_millis(20);
/// How long a call waits for the lock on the file once this process ends: another may be stopped while it holds it.
const LOCK_LIMIT_AT_END: Duration = Duration::from_millis(300);

/// Whether a power loss may undo a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// It may, and nobody's next step hangs on it: an ack that is asked for soon, not now.
    Lazy,
    /// It may: of a receive, an extension or an ack that only means one more delivery.
    Normal,
    /// It may not: on disk before the caller hears of it, which may be so much later.
    FullWithin(Duration),
}

impl Durability {
    /// On disk as soon as can be.
    pub const FULL: Durability = Durability::FullWithin(Duration::ZERO);
}

/// What a call sees of the file.
pub struct Session<'a> {
    pub connection: &'a Connection,
    /// The service time. Read under the lock, so that it never runs backwards between two transactions.
    pub now_ms: i64,
    /// Queues to notify once the transaction is committed.
    pub notify: BTreeSet<String>,
    /// Queues that the transaction removes.
    pub removed: BTreeSet<String>,
    /// Files that are synced with the log.
    unsynced: Vec<Arc<File>>,
    /// True once the transaction stands.
    pub committed: Arc<AtomicBool>,
}

/// Why a call did not do what it should.
pub enum Failure<E> {
    /// Its own reason, found before it wrote anything.
    Call(E),
    /// The whole transaction's.
    Sql(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for Failure<E> {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sql(error)
    }
}

/// What a look found.
pub enum Look<T> {
    Answer(T),
    /// There is something to write.
    Write,
}

/// Handle on the thread. The last one dropped waits for its end.
pub struct Engine {
    connection: Arc<Mutex<Connection>>,
    /// None only while dropping.
    calls: Option<Calls>,
    room: Arc<Semaphore>,
    clock: Arc<ServiceClock>,
    health: Arc<Health>,
    is_ending: Arc<AtomicBool>,
    thread: OwnedThread,
}

/// The way to the thread. Unbounded by itself: [`Engine`] bounds callers by its permits, and what comes beside them
/// (a message handed back) stems from one call that had a permit.
#[derive(Clone)]
pub struct Calls {
    sender: mpsc::Sender<Box<dyn Job>>,
    lazy: Lazy,
}

/// Calls that the thread takes along when it is awake, and that do not wake it.
type Lazy = Arc<Mutex<Vec<Box<dyn Job>>>>;

impl Engine {
    /// `log`: the write-ahead log of the connection's file.
    pub(super) fn start(
        connection: Connection,
        log: File,
        notifier: Arc<Notifier>,
        clock: Arc<ServiceClock>,
        health: Arc<Health>,
    ) -> Result<Engine, Fault> {
        let connection = Arc::new(Mutex::new(connection));
        let lazy = Lazy::default();
        let is_ending = Arc::<AtomicBool>::default();
        let (sender, receiver) = mpsc::channel();
        let thread = Thread {
            connection: Arc::clone(&connection),
            log,
            calls: receiver,
            lazy: Arc::clone(&lazy),
            notifier,
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            is_ending: Arc::clone(&is_ending),
            is_locked_out: Cell::new(false),
        };
        let thread = OwnedThread::start("sqlite", move || thread.run())?;
        let room = Arc::new(Semaphore::new(MAX_WAITING));
        let calls = Some(Calls { sender, lazy });
        Ok(Engine { connection, calls, room, clock, health, is_ending, thread })
    }

    pub async fn read<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        look: impl FnOnce(&Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.call(Durability::Normal, move |session| look(session).map(Look::Answer), |_| unreachable_write()).await
    }

    pub async fn write<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.submit(durability, None, work).await
    }

    /// Looks, and writes only where the look found that it must.
    pub async fn call<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        look: impl FnOnce(&Session) -> Result<Look<T>, Failure<E>> + Send + 'static,
        work: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.submit(durability, Some(Box::new(look)), work).await
    }

    async fn submit<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        look: Option<LookFn<T, E>>,
        work: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        if let Some(fault) = self.health.fault() {
            return Err(fault.into());
        }
        let permit = Arc::clone(&self.room).acquire_owned().await.expect("never closed; this is a bug");
        let (reply, mut answer) = oneshot::channel();
        let work: WorkFn<T, E> = Box::new(work);
        let since = Instant::now();
        let mut call = Call { durability, since, look, work: Some(work), outcome: None, reply, _permit: Some(permit) };
        if call.looks()
            && let Ok(connection) = self.connection.try_lock()
            && call.look(&Session::new(&connection, &self.clock))
        {
            return call.outcome.expect(NO_OUTCOME);
        }
        let calls = self.calls();
        let answer = if durability == Durability::Lazy {
            calls.leave(Box::new(call));
            match tokio::time::timeout(LINGER, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    calls.hurry();
                    answer.await
                }
            }
        } else {
            calls.post(Box::new(call));
            answer.await
        };
        let ended = |_| Err(Fault::Fatal("the thread of the local backend has ended".to_owned()).into());
        answer.unwrap_or_else(ended)
    }

    pub fn calls(&self) -> &Calls {
        self.calls.as_ref().expect("taken only by drop; this is a bug")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Release);
        self.calls = None;
        self.thread.join();
    }
}

impl Calls {
    /// Writes without anybody waiting for it; a failure is only logged.
    pub fn post_write<E: From<Fault> + Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<(), Failure<E>> + Send + 'static,
    ) {
        self.post(Box::new(Call {
            durability: Durability::Normal,
            since: Instant::now(),
            look: None,
            work: Some(Box::new(work)),
            outcome: None,
            reply: oneshot::channel().0,
            _permit: None,
        }));
    }

    fn post(&self, job: Box<dyn Job>) {
        // The thread has ended only when it panicked; the dropped `reply` then tells the caller.
        let _ = self.sender.send(job);
    }

    /// For the thread to take along.
    fn leave(&self, job: Box<dyn Job>) {
        lock(&self.lazy).push(job);
    }

    /// Wakes the thread for what was left and is left still.
    fn hurry(&self) {
        let left = std::mem::take(&mut *lock(&self.lazy));
        for job in left {
            self.post(job);
        }
    }
}

fn unreachable_write<T>() -> T {
    unreachable!("a read answers when it looks; this is a bug")
}

/// A call of whatever answer, as the thread sees it.
trait Job: Send {
    fn durability(&self) -> Durability;
    /// When its caller began to wait.
    fn since(&self) -> Instant;
    /// Whether it may have its answer without writing.
    fn looks(&self) -> bool;
    /// True: it has its answer and writes nothing.
    fn look(&mut self, session: &Session) -> bool;
    fn work(&mut self, session: &mut Session) -> rusqlite::Result<()>;
    /// Whether it did not do what it should: then nothing of it is to be synced.
    fn has_failed(&self) -> bool;
    /// Its own outcome, or the failure of the transaction that it was part of.
    fn answer(self: Box<Self>, failure: Option<&Fault>);
}

type LookFn<T, E> = Box<dyn FnOnce(&Session) -> Result<Look<T>, Failure<E>> + Send>;
type WorkFn<T, E> = Box<dyn FnOnce(&mut Session) -> Result<T, Failure<E>> + Send>;

struct Call<T, E> {
    durability: Durability,
    since: Instant,
    /// Taken by the look. None: it writes in any case.
    look: Option<LookFn<T, E>>,
    /// Taken by the work.
    work: Option<WorkFn<T, E>>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
    /// Held until the answer.
    _permit: Option<OwnedSemaphorePermit>,
}

impl<T: Send, E: From<Fault> + Send> Job for Call<T, E> {
    fn durability(&self) -> Durability {
        self.durability
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn looks(&self) -> bool {
        self.look.is_some()
    }

    fn look(&mut self, session: &Session) -> bool {
        let Some(look) = self.look.take() else { return false };
        self.outcome = match look(session) {
            Ok(Look::Write) => None,
            Ok(Look::Answer(answer)) => Some(Ok(answer)),
            Err(Failure::Call(error)) => Some(Err(error)),
            Err(Failure::Sql(error)) => Some(Err(file::fault(&error).into())),
        };
        self.outcome.is_some()
    }

    fn work(&mut self, session: &mut Session) -> rusqlite::Result<()> {
        let work = self.work.take().expect("worked on once; this is a bug");
        self.outcome = Some(match work(session) {
            Ok(answer) => Ok(answer),
            Err(Failure::Call(error)) => Err(error),
            Err(Failure::Sql(error)) => return Err(error),
        });
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.outcome.as_ref().is_some_and(Result::is_err)
    }

    fn answer(self: Box<Self>, failure: Option<&Fault>) {
        let outcome = match failure {
            Some(failure) => Err(failure.clone().into()),
            None => self.outcome.expect(NO_OUTCOME),
        };
        // A caller that went away needs no answer; what it would have got is dropped here, which hands messages back.
        let _ = self.reply.send(outcome);
    }
}

const NO_OUTCOME: &str = "answered after look or work; this is a bug";

/// The thread, and what it works with.
struct Thread {
    /// Held while it looks and writes, not while it syncs.
    connection: Arc<Mutex<Connection>>,
    log: File,
    calls: Receiver<Box<dyn Job>>,
    lazy: Lazy,
    notifier: Arc<Notifier>,
    clock: Arc<ServiceClock>,
    health: Arc<Health>,
    is_ending: Arc<AtomicBool>,
    /// Whether calls were told that the lock cannot be had, and none has had it since: said once in the log.
    is_locked_out: Cell<bool>,
}

impl Thread {
    fn run(self) {
        let mut unsynced = Unsynced::default();
        loop {
            match unsynced.next(&self.calls) {
                Ok(first) => self.serve(first, &mut unsynced),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if unsynced.is_due() {
                unsynced.sync(&self.log, &self.health);
            }
        }
        // Of callers that went away.
        self.write(std::mem::take(&mut *lock(&self.lazy)), &mut unsynced);
        unsynced.sync(&self.log, &self.health);
        file::prepare_to_close(&lock(&self.connection));
    }

    /// A call, and what waits with it.
    fn serve(&self, first: Box<dyn Job>, unsynced: &mut Unsynced) {
        let group = std::iter::once(first).chain(self.calls.try_iter()).take(MAX_GROUP).collect();
        let mut writers = self.look(group);
        if writers.is_empty() {
            return;
        }
        let mut lazy = lock(&self.lazy);
        let room = MAX_GROUP - writers.len();
        let taken_along = lazy.len().min(room);
        writers.extend(lazy.drain(..taken_along));
        drop(lazy);
        self.write(writers, unsynced);
    }

    /// Answers whoever needs no write; returns the others. All look at one snapshot, so that it is taken once.
    fn look(&self, group: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        if !group.iter().any(|job| job.looks()) {
            return group;
        }
        let (answered, writers): (Vec<_>, Vec<_>) =
            look(&lock(&self.connection), &self.clock, group).into_iter().partition(|(has_answer, _)| *has_answer);
        for (_, job) in answered {
            job.answer(None);
        }
        writers.into_iter().map(|(_, job)| job).collect()
    }

    /// Writes a group in one transaction. Where another process holds the lock, calls that have waited for too long are
    /// told so; meanwhile the connection is free for reads, and calls that come join the group.
    fn write(&self, mut group: Vec<Box<dyn Job>>, unsynced: &mut Unsynced) {
        for attempt in 0.. {
            if group.is_empty() {
                return;
            }
            let written = transaction(&lock(&self.connection), &self.clock, &mut group);
            match written {
                Ok(Some(stands)) => return self.stand(stands, group, unsynced),
                Ok(None) => {
                    group = self.give_up_late(group);
                    file::nap(attempt);
                    let room = MAX_GROUP.saturating_sub(group.len());
                    group.extend(self.look(self.calls.try_iter().take(room).collect()));
                    if unsynced.is_due() {
                        unsynced.sync(&self.log, &self.health);
                    }
                }
                Err(error) => return fail(group, &file::fault(&error)),
            }
        }
    }

    fn stand(&self, stands: Stands, group: Vec<Box<dyn Job>>, unsynced: &mut Unsynced) {
        if self.is_locked_out.replace(false) {
            tracing::info!("the database of the local backend can be written again");
        }
        let Stands { notify, removed, files } = stands;
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

    /// Tells the calls that have waited for too long for the lock on the file; returns the others.
    fn give_up_late(&self, group: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let limit = if self.is_ending.load(Ordering::Acquire) { LOCK_LIMIT_AT_END } else { file::BUSY_LIMIT };
        let (late, others): (Vec<_>, Vec<_>) = group.into_iter().partition(|job| job.since().elapsed() >= limit);
        if late.is_empty() {
            return others;
        }
        let failure = Fault::Unavailable(format!(
            "another process has held the lock on the database for {} s",
            file::BUSY_LIMIT.as_secs()
        ));
        if !self.is_locked_out.replace(true) {
            tracing::warn!(
                "{failure}: look for one that is stopped, or a tool that has a write transaction open; calls are refused \
                 until it is gone"
            );
        }
        for job in late {
            job.answer(Some(&failure));
        }
        others
    }
}

/// What stands and is not on disk yet, and who waits for that.
#[derive(Default)]
struct Unsynced {
    /// Synced with the log.
    files: Vec<Arc<File>>,
    waiting: Vec<Box<dyn Job>>,
    /// None where nobody waits.
    due: Option<Instant>,
}

impl Unsynced {
    /// The next call, waited for until a sync is due.
    fn next(&self, calls: &Receiver<Box<dyn Job>>) -> Result<Box<dyn Job>, RecvTimeoutError> {
        match self.due {
            Some(due) => calls.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => calls.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn add(&mut self, job: Box<dyn Job>, within: Duration) {
        let due = Instant::now() + within;
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        self.waiting.push(job);
    }

    fn add_file(&mut self, file: Arc<File>) {
        if !self.files.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.files.push(file);
        }
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| Instant::now() >= due) || self.waiting.len() >= MAX_UNSYNCED
    }

    fn sync(&mut self, log: &File, health: &Health) {
        let Unsynced { files, waiting, .. } = std::mem::take(self);
        if waiting.is_empty() {
            return;
        }
        if let Some(failure) = sync(&files, log, health) {
            return fail(waiting, &failure);
        }
        for job in waiting {
            job.answer(None);
        }
    }
}

/// Why nobody may be told that these files are on the disk.
fn sync(files: &[Arc<File>], log: &File, health: &Health) -> Option<Fault> {
    // After one failure the next sync proves nothing.
    if let Some(failure) = health.fault() {
        return Some(failure);
    }
    if let Err(error) = files.iter().try_for_each(|file| file.sync_data()).and_then(|()| log.sync_data()) {
        return Some(health.fail(&format!("the local backend cannot be synced to disk: {error}")));
    }
    if files.iter().any(|file| is_deleted(file)) {
        return Some(Fault::Unavailable("a file of objects was removed while it was written".to_owned()));
    }
    health.check_files()
}

/// Each call, and whether it has its answer.
fn look(connection: &Connection, clock: &ServiceClock, group: Vec<Box<dyn Job>>) -> Vec<(bool, Box<dyn Job>)> {
    // Should either fail, each statement takes a snapshot of its own, and says itself what is wrong.
    let _ = execute(connection, "BEGIN");
    let session = Session::new(connection, clock);
    let looked = group.into_iter().map(|mut job| (job.look(&session), job)).collect();
    // A snapshot that does not end would be the next transaction's.
    if !connection.is_autocommit() && execute(connection, "COMMIT").is_err() {
        let _ = execute(connection, "ROLLBACK");
    }
    looked
}

fn fail(group: Vec<Box<dyn Job>>, failure: &Fault) {
    tracing::warn!(%failure, calls = group.len(), "a transaction of the local backend failed");
    for job in group {
        job.answer(Some(failure));
    }
}

/// What is to be done once a transaction stands.
struct Stands {
    notify: BTreeSet<String>,
    removed: BTreeSet<String>,
    files: Vec<Arc<File>>,
}

/// None where another process holds the lock: nothing happened.
fn transaction(
    connection: &Connection,
    clock: &ServiceClock,
    group: &mut [Box<dyn Job>],
) -> rusqlite::Result<Option<Stands>> {
    match file::waiting_at_most(Duration::ZERO, || execute(connection, "BEGIN IMMEDIATE")) {
        Err(error) if file::is_busy(&error) => return Ok(None),
        begun => begun?,
    }
    let worked = work_and_commit(connection, clock, group);
    if worked.is_err() && !connection.is_autocommit() {
        execute(connection, "ROLLBACK")?;
    }
    worked.map(Some)
}

fn work_and_commit(
    connection: &Connection,
    clock: &ServiceClock,
    group: &mut [Box<dyn Job>],
) -> rusqlite::Result<Stands> {
    let mut session = Session::new(connection, clock);
    for job in group {
        job.work(&mut session)?;
    }
    execute(connection, "COMMIT")?;
    session.committed.store(true, Ordering::Release);
    Ok(Stands { notify: session.notify, removed: session.removed, files: session.unsynced })
}

/// Parsed once: a transaction of one small call spends as long on parsing its `BEGIN` and `COMMIT` as on its work.
fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

impl Session<'_> {
    /// Whoever in this transaction needs it durable is answered after this file is synced too.
    pub fn sync(&mut self, file: &Arc<File>) {
        self.unsynced.push(Arc::clone(file));
    }

    fn new<'a>(connection: &'a Connection, clock: &ServiceClock) -> Session<'a> {
        Session::at(connection, clock.now_ms())
    }

    /// At a time of the caller's.
    pub fn at(connection: &Connection, now_ms: i64) -> Session<'_> {
        Session {
            connection,
            now_ms,
            notify: BTreeSet::new(),
            removed: BTreeSet::new(),
            unsynced: Vec::new(),
            committed: Arc::new(AtomicBool::new(false)),
        }
    }
}
