//! Passes calls to the database.
//!
//! A call has a read phase, a write phase or both. If the connection is free, the read phase runs on the caller's thread:
//! waking the writer thread and being woken by it takes longer than the read. Everything else goes to the writer thread
//! (`writer`).

use std::cell::Cell;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use super::call::{Call, Job, ReadFn};
use super::fault::Fault;
use super::health::Health;
use super::notifier::Notifier;
use super::session::{Durability, Failure, ReadPhase, Session};
use super::thread::{OwnedThread, lock};
use super::writer::{Deferred, Writer};
use crate::clock::ServiceClock;

/// Calls that may wait for the writer thread. Callers beyond that wait for a permit.
const MAX_WAITING: usize = 1_024;

/// How long a deferred call waits for another whose transaction it can join, before it wakes the writer thread itself.
/// Under load the next receive or send comes sooner.
const FLUSH_DELAY: Duration = Duration::from_millis(20);

/// The connection of this process and the thread that writes through it. Dropping it waits until the thread has ended.
pub struct Engine {
    connection: Arc<Mutex<Connection>>,
    /// `None` while it is dropped.
    calls: Option<Calls>,
    permits: Arc<Semaphore>,
    clock: Arc<ServiceClock>,
    health: Arc<Health>,
    is_ending: Arc<AtomicBool>,
    thread: OwnedThread,
}

/// Sends calls to the writer thread. It is unbounded by itself: [`Engine`] bounds its callers by permits, and each write that
/// is posted without one (a message that is released) comes from a call that had a permit.
#[derive(Clone)]
pub struct Calls {
    sender: mpsc::Sender<Box<dyn Job>>,
    deferred: Deferred,
}

impl Engine {
    /// Starts the writer thread. `log` is the write-ahead log of the connection's database.
    pub(super) fn start(
        connection: Connection,
        log: File,
        notifier: Arc<Notifier>,
        clock: Arc<ServiceClock>,
        health: Arc<Health>,
    ) -> Result<Engine, Fault> {
        let connection = Arc::new(Mutex::new(connection));
        let deferred = Deferred::default();
        let is_ending = Arc::<AtomicBool>::default();
        let (sender, receiver) = mpsc::channel();
        let writer = Writer {
            connection: Arc::clone(&connection),
            log,
            calls: receiver,
            deferred: Arc::clone(&deferred),
            notifier,
            clock: Arc::clone(&clock),
            health: Arc::clone(&health),
            is_ending: Arc::clone(&is_ending),
            is_locked_out: Cell::new(false),
        };
        let thread = OwnedThread::start("sqlite", move || writer.run())?;
        let permits = Arc::new(Semaphore::new(MAX_WAITING));
        let calls = Some(Calls { sender, deferred });
        Ok(Engine { connection, calls, permits, clock, health, is_ending, thread })
    }

    /// Reads, in one snapshot.
    ///
    /// # Errors
    /// The error of `read`, or a fault of the database.
    pub async fn read<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        read: impl FnOnce(&Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.call(Durability::Normal, move |session| read(session).map(ReadPhase::Answer), |_| unreachable_write())
            .await
    }

    /// Writes, in one transaction.
    ///
    /// # Errors
    /// The error of `write`, or a fault of the database: then nothing was written.
    pub async fn write<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        write: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.submit(durability, None, write).await
    }

    /// Reads, and writes only if the read phase found that it must. Other processes may write between the two phases.
    ///
    /// # Errors
    /// The error of a phase, or a fault of the database: then nothing was written.
    pub async fn call<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        read: impl FnOnce(&Session) -> Result<ReadPhase<T>, Failure<E>> + Send + 'static,
        write: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        self.submit(durability, Some(Box::new(read)), write).await
    }

    /// Returns the sender of writes that no caller waits for.
    pub fn calls(&self) -> &Calls {
        self.calls.as_ref().expect("taken only by drop; this is a bug")
    }

    async fn submit<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        durability: Durability,
        read: Option<ReadFn<T, E>>,
        write: impl FnOnce(&mut Session) -> Result<T, Failure<E>> + Send + 'static,
    ) -> Result<T, E> {
        if let Some(fault) = self.health.fault() {
            return Err(fault.into());
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("never closed; this is a bug");
        let (mut call, answer) = Call::new(durability, read, Box::new(write), Some(permit));
        if self.read_here(&mut call) {
            return call.into_outcome();
        }
        let answered = if durability == Durability::Deferred {
            self.defer(Box::new(call), answer).await
        } else {
            self.calls().post(Box::new(call));
            answer.await
        };
        answered.unwrap_or_else(|_| Err(Fault::Fatal("the thread of the local backend has ended".to_owned()).into()))
    }

    /// Runs the read phase on this thread if the connection is free. Returns whether that completed the call.
    fn read_here(&self, call: &mut impl Job) -> bool {
        call.has_read_phase()
            && self.connection.try_lock().is_ok_and(|connection| call.read(&Session::new(&connection, &self.clock)))
    }

    /// Leaves a call to the next transaction, and wakes the writer thread if none comes within the flush delay.
    async fn defer<A>(
        &self,
        job: Box<dyn Job>,
        mut answer: oneshot::Receiver<A>,
    ) -> Result<A, oneshot::error::RecvError> {
        let calls = self.calls();
        calls.defer(job);
        if let Ok(answered) = tokio::time::timeout(FLUSH_DELAY, &mut answer).await {
            return answered;
        }
        calls.flush();
        answer.await
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
    /// Posts a write that no caller waits for. A failure is only logged.
    pub fn post_write<E: From<Fault> + Send + 'static>(
        &self,
        write: impl FnOnce(&mut Session) -> Result<(), Failure<E>> + Send + 'static,
    ) {
        let (call, _) = Call::new(Durability::Normal, None, Box::new(write), None);
        self.post(Box::new(call));
    }

    fn post(&self, job: Box<dyn Job>) {
        // The thread ends early only if it panics; dropping the job then tells its caller.
        let _ = self.sender.send(job);
    }

    /// Leaves a call to the next transaction, without waking the writer thread.
    fn defer(&self, job: Box<dyn Job>) {
        lock(&self.deferred).push(job);
    }

    /// Wakes the writer thread for the deferred calls that are still waiting.
    fn flush(&self) {
        let deferred = std::mem::take(&mut *lock(&self.deferred));
        for job in deferred {
            self.post(job);
        }
    }
}

fn unreachable_write<T>() -> T {
    unreachable!("a read is complete after its read phase; this is a bug")
}
