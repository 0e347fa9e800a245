//! One call: its two phases, and how its caller is answered.

use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::fault::Fault;
use super::session::{Durability, Failure, ReadPhase, Session};

/// A call of any type, as the writer thread sees it.
pub(super) trait Job: Send {
    fn durability(&self) -> Durability;
    /// When the caller began to wait.
    fn since(&self) -> Instant;
    /// Returns true if the call has a read phase that has not run.
    fn has_read_phase(&self) -> bool;
    /// Runs the read phase. Returns whether that completed the call.
    fn read(&mut self, session: &Session) -> bool;
    /// Runs the write phase.
    fn write(&mut self, session: &mut Session) -> rusqlite::Result<()>;
    /// Returns true if the call failed for a reason of its own, so that it needs no sync.
    fn has_failed(&self) -> bool;
    /// Answers the caller with the outcome of the call, or with the failure of its transaction.
    fn answer(self: Box<Self>, failure: Option<&Fault>);
}

pub(super) type ReadFn<T, E> = Box<dyn FnOnce(&Session) -> Result<ReadPhase<T>, Failure<E>> + Send>;
pub(super) type WriteFn<T, E> = Box<dyn FnOnce(&mut Session) -> Result<T, Failure<E>> + Send>;

pub(super) struct Call<T, E> {
    durability: Durability,
    since: Instant,
    /// `None` once it has run, and for a call that always writes.
    read: Option<ReadFn<T, E>>,
    /// `None` once it has run.
    write: Option<WriteFn<T, E>>,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
    /// Held until the caller is answered.
    permit: Option<OwnedSemaphorePermit>,
}

impl<T, E> Call<T, E> {
    /// Makes a call, and the receiver of its answer.
    pub(super) fn new(
        durability: Durability,
        read: Option<ReadFn<T, E>>,
        write: WriteFn<T, E>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> (Call<T, E>, oneshot::Receiver<Result<T, E>>) {
        let (reply, answer) = oneshot::channel();
        let call = Call { durability, since: Instant::now(), read, write: Some(write), outcome: None, reply, permit };
        (call, answer)
    }

    /// The outcome of a completed call.
    pub(super) fn into_outcome(self) -> Result<T, E> {
        self.outcome.expect("a call has an outcome after its last phase; this is a bug")
    }
}

impl<T: Send, E: From<Fault> + Send> Job for Call<T, E> {
    fn durability(&self) -> Durability {
        self.durability
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn has_read_phase(&self) -> bool {
        self.read.is_some()
    }

    fn read(&mut self, session: &Session) -> bool {
        let Some(read) = self.read.take() else { return false };
        self.outcome = match read(session) {
            Ok(ReadPhase::Write) => None,
            Ok(ReadPhase::Answer(answer)) => Some(Ok(answer)),
            Err(Failure::Call(error)) => Some(Err(error)),
            Err(Failure::Sql(error)) => Some(Err(Fault::of(&error).into())),
        };
        self.outcome.is_some()
    }

    fn write(&mut self, session: &mut Session) -> rusqlite::Result<()> {
        let write = self.write.take().expect("a write phase runs once; this is a bug");
        self.outcome = Some(match write(session) {
            Ok(answer) => Ok(answer),
            Err(Failure::Call(error)) => Err(error),
            Err(Failure::Sql(error)) => return Err(error),
        });
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.outcome.as_ref().is_some_and(Result::is_err)
    }

    fn answer(mut self: Box<Self>, failure: Option<&Fault>) {
        if let Some(failure) = failure {
            self.outcome = Some(Err(failure.clone().into()));
        }
        let Call { reply, outcome, permit, .. } = *self;
        let outcome = outcome.expect("a call is answered after its last phase; this is a bug");
        // If the caller has gone away, its answer is dropped here, which releases the messages in it.
        let _ = reply.send(outcome);
        drop(permit);
    }
}
