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

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::bells::Bells;
use super::{Fault, file, lock, millis};

/// Calls that may wait for the thread; more wait outside.
const MAX_WAITING: usize = 1_024;
/// Calls in one transaction, so that other processes get their turn.
const MAX_GROUP: usize = 128;

/// Calls that may wait for one sync: a fraction of [`MAX_WAITING`], so that there is room for others.
const MAX_UNSYNCED: usize = 256;

/// How long a lazy call waits for another, whose transaction it shares, before it wakes the thread itself. In the flow of
/// work the next receive or send comes sooner.
const LINGER: Duration = Duration::from_millis(20);

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
    /// Read under the lock, so that time never runs backwards between two transactions.
    pub now_ms: i64,
    /// Queues to ring once the transaction stands.
    pub ring: BTreeSet<String>,
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
    thread: Option<JoinHandle<()>>,
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
    pub fn start(connection: Connection, log: File, bells: Arc<Bells>) -> Result<Engine, Fault> {
        let connection = Arc::new(Mutex::new(connection));
        let lazy = Lazy::default();
        let (sender, receiver) = mpsc::channel();
        let thread =
            Thread { connection: Arc::clone(&connection), log, calls: receiver, lazy: Arc::clone(&lazy), bells };
        let thread = std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || thread.run())
            .map_err(|error| file::thread_error(&error))?;
        let room = Arc::new(Semaphore::new(MAX_WAITING));
        Ok(Engine { connection, calls: Some(Calls { sender, lazy }), room, thread: Some(thread) })
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
        let permit = Arc::clone(&self.room).acquire_owned().await.expect("never closed; this is a bug");
        let (reply, mut answer) = oneshot::channel();
        let work: WorkFn<T, E> = Box::new(work);
        let mut call = Call { durability, look, work: Some(work), outcome: None, reply, _permit: Some(permit) };
        if call.looks()
            && let Ok(connection) = self.connection.try_lock()
            && call.look(&Session::new(&connection))
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
        self.calls = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the local backend panicked; this is a bug");
        }
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
    bells: Arc<Bells>,
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
                unsynced.sync(&self.log);
            }
        }
        // Of callers that went away.
        self.write(std::mem::take(&mut *lock(&self.lazy)), &mut unsynced);
        unsynced.sync(&self.log);
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
            look(&lock(&self.connection), group).into_iter().partition(|(has_answer, _)| *has_answer);
        for (_, job) in answered {
            job.answer(None);
        }
        writers.into_iter().map(|(_, job)| job).collect()
    }

    fn write(&self, mut group: Vec<Box<dyn Job>>, unsynced: &mut Unsynced) {
        if group.is_empty() {
            return;
        }
        let stands = transaction(&lock(&self.connection), &mut group);
        let Stands { ring, removed, files } = match stands {
            Ok(stands) => stands,
            Err(error) => return fail(group, &file::fault(&error)),
        };
        for name in &removed {
            self.bells.remove(name);
        }
        for name in &ring {
            self.bells.ring(name);
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

    fn sync(&mut self, log: &File) {
        let Unsynced { files, waiting, .. } = std::mem::take(self);
        if waiting.is_empty() {
            return;
        }
        if let Err(error) = files.iter().try_for_each(|file| file.sync_data()).and_then(|()| log.sync_data()) {
            return fail(waiting, &Fault::Unavailable(format!("the local backend is not synced to disk: {error}")));
        }
        for job in waiting {
            job.answer(None);
        }
    }
}

/// Each call, and whether it has its answer.
fn look(connection: &Connection, group: Vec<Box<dyn Job>>) -> Vec<(bool, Box<dyn Job>)> {
    // Should either fail, each statement takes a snapshot of its own, and says itself what is wrong.
    let _ = execute(connection, "BEGIN");
    let session = Session::new(connection);
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
    ring: BTreeSet<String>,
    removed: BTreeSet<String>,
    files: Vec<Arc<File>>,
}

fn transaction(connection: &Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<Stands> {
    execute(connection, "BEGIN IMMEDIATE")?;
    let worked = work_and_commit(connection, group);
    if worked.is_err() && !connection.is_autocommit() {
        execute(connection, "ROLLBACK")?;
    }
    worked
}

fn work_and_commit(connection: &Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<Stands> {
    let mut session = Session::new(connection);
    for job in group {
        job.work(&mut session)?;
    }
    execute(connection, "COMMIT")?;
    session.committed.store(true, Ordering::Release);
    Ok(Stands { ring: session.ring, removed: session.removed, files: session.unsynced })
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

    fn new(connection: &Connection) -> Session<'_> {
        Session::at(connection, now_ms())
    }

    /// On a clock of the caller's.
    pub fn at(connection: &Connection, now_ms: i64) -> Session<'_> {
        Session {
            connection,
            now_ms,
            ring: BTreeSet::new(),
            removed: BTreeSet::new(),
            unsynced: Vec::new(),
            committed: Arc::new(AtomicBool::new(false)),
        }
    }
}

/// Milliseconds since the Unix epoch: the one clock that all processes of this machine share.
pub fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    millis(since_epoch)
}
