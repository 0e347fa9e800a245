//! The local queue: SQS's semantics in the SQLite file that any number of processes on this machine share.
//!
//! `messages` says in SQL what a queue does; `crate::sqlite` shares the file and groups calls into transactions.
//!
//! Beyond the contract of [`Queue`]:
//!
//! - A send returns when the message is synced to disk. A power loss may undo a receive, an extension or an
//!   acknowledgement; each only means one more delivery. A killed process undoes nothing that had returned.
//! - A handle is a name. When the queue was removed, every call returns `NotFound`. When it is created again under that
//!   name, the same handle works on the new queue, and receipts of the old one do nothing.
//! - Messages come by the time at which they became visible, which is the order of sending unless one is redelivered.
//! - Time is the service time of the data directory ([`crate::clock`]), which no step of the wall clock moves.
//! - A transient message ([`Sending::Transient`]) to a queue that one process owns ([`SqliteQueues::create_own`]) is sent
//!   as a datagram that bypasses the database when that is possible (`direct`). It is not part of the depth, and is lost
//!   with the process that received it.

mod claim;
mod direct;
mod expiry;
pub(in crate::transport::local) mod messages;
#[cfg(test)]
mod model_test;
mod named;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::clock::Source;
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, RECHECK, ReadPhase, Session, WakeToken};
use crate::transport::message::{Delivery, Depth, Receipt, ReceivingProcess};
use crate::transport::queued::queue::{
    LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, Queues, ReceiveOptions, Redrive,
};
use claim::Claim;
use direct::{Direct, Inbox};
use messages::Taking;
pub use named::named_jobs;

/// The queues of one data directory.
pub struct SqliteQueues {
    database: Arc<Database>,
    direct: Option<Arc<Direct>>,
}

/// The guarantee that a send gives when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// The messages are on disk. They can be received before the call returns.
    Durable {
        /// Maximum delay of the return, so that several sends can share one sync.
        within: Duration,
    },
    /// A power loss, or the death of the process that received a message, may lose it.
    Transient,
}

/// One queue, by its name.
pub struct SqliteQueue {
    name: String,
    database: Arc<Database>,
    /// True if the last receive left visible messages, so that the next one can skip the read phase. This is only a hint.
    has_more: AtomicBool,
    direct: Option<Arc<Direct>>,
    own: Option<Own>,
}

/// The parts of a handle on a queue that this process alone receives from.
struct Own {
    inbox: Inbox,
    /// Time of the next read of the database, unless a notification comes before.
    file_due: Mutex<Instant>,
}

impl From<Fault> for QueueError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable(reason) => QueueError::Unavailable(reason),
            Fault::Fatal(reason) => QueueError::Fatal(reason),
        }
    }
}

impl SqliteQueues {
    /// Opens the queues under `data_dir`, and creates the file when it is missing.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path) -> Result<SqliteQueues, QueueError> {
        Ok(SqliteQueues::over(sqlite::open(data_dir)?, data_dir))
    }

    /// As [`SqliteQueues::open`], with another clock than that of the machine. Meant for tests.
    ///
    /// # Errors
    /// As [`SqliteQueues::open`].
    pub fn open_with(data_dir: &Path, clock: Arc<dyn Source>) -> Result<SqliteQueues, QueueError> {
        Ok(SqliteQueues::over(sqlite::open_with(data_dir, clock)?, data_dir))
    }

    fn over(database: Arc<Database>, data_dir: &Path) -> SqliteQueues {
        database.upkeep.add("remove expired messages", || Box::new(expiry::remove_some));
        SqliteQueues { database, direct: Direct::open(data_dir).map(Arc::new) }
    }

    /// Creates the queue, or leaves it as it is when it exists.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when the name is not valid.
    pub async fn create_queue(&self, name: &str, attributes: &QueueAttributes) -> Result<SqliteQueue, QueueError> {
        let name = self.make(name, attributes).await?;
        Ok(self.queue(name, None))
    }

    /// As [`SqliteQueues::create_queue`], for a queue that only this handle receives from. Transient messages reach it as
    /// datagrams for as long as the handle lives.
    ///
    /// # Errors
    /// As [`SqliteQueues::create_queue`].
    pub async fn create_own(&self, name: &str, attributes: &QueueAttributes) -> Result<SqliteQueue, QueueError> {
        let name = self.make(name, attributes).await?;
        let inbox = self.direct.as_ref().and_then(|direct| direct.own(&name, &self.database.clock));
        Ok(self.queue(name, inbox))
    }

    /// Returns a handle on a queue, whether the queue exists or not.
    pub(in crate::transport::local) fn handle(&self, name: &str) -> SqliteQueue {
        self.queue(name.to_owned(), None)
    }

    pub(in crate::transport::local) fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// Returns true if a transient message with this text is likely to reach its queue as a datagram.
    pub(in crate::transport::local) fn may_send_direct(&self, queue: &str, body: &str) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.may_reach(queue, body))
    }

    fn queue(&self, name: String, inbox: Option<Inbox>) -> SqliteQueue {
        SqliteQueue {
            name,
            database: Arc::clone(&self.database),
            has_more: AtomicBool::new(false),
            direct: self.direct.clone(),
            own: inbox.map(|inbox| Own { inbox, file_due: Mutex::new(Instant::now()) }),
        }
    }

    /// Creates the queue. Returns its name.
    async fn make(&self, name: &str, attributes: &QueueAttributes) -> Result<String, QueueError> {
        let name = config::queue_name(name).map_err(|why| QueueError::Fatal(format!("{why}: not {name:?}")))?;
        let (looked_for, created, attributes) = (name.clone(), name.clone(), attributes.clone());
        let look = move |session: &Session| {
            Ok(if messages::exists(session, &looked_for)? { ReadPhase::Answer(()) } else { ReadPhase::Write })
        };
        let work = move |session: &mut Session| messages::create(session, &created, &attributes);
        self.database.engine.call(Durability::FULL, look, work).await?;
        Ok(name)
    }
}

#[async_trait]
impl Queues for SqliteQueues {
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        Ok(Arc::new(self.create_queue(name, attributes).await?))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let wanted = name.to_owned();
        if self.database.engine.read(move |session| messages::exists(session, &wanted)).await? {
            Ok(Arc::new(self.handle(name)))
        } else {
            Err(QueueError::NotFound(name.to_owned()))
        }
    }

    async fn delete(&self, name: &str) -> Result<(), QueueError> {
        match purge(&self.database, name).await {
            Ok(()) => {}
            Err(QueueError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let (name, deleted) = (name.to_owned(), name.to_owned());
        let work = move |session: &mut Session| {
            messages::delete(session, &deleted)?;
            Ok(session.removed.contains(&deleted))
        };
        // Only the socket of a queue that existed is removed: its name was checked at creation, so it cannot be a path.
        if self.database.engine.write::<_, QueueError>(Durability::FULL, work).await?
            && let Some(direct) = &self.direct
        {
            direct.remove(&name);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError> {
        let prefix = prefix.to_owned();
        self.database.engine.read(move |session| messages::list(session, &prefix)).await
    }

    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError> {
        let name = name.to_owned();
        self.database.engine.read(move |session| messages::tags(session, &name)).await
    }

    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError> {
        let (name, key, value) = (name.to_owned(), key.to_owned(), value.to_owned());
        let work = move |session: &mut Session| messages::set_tag(session, &name, &key, &value);
        self.database.engine.write(Durability::FULL, work).await
    }

    async fn failure(&self) -> String {
        self.database.failure().await
    }
}

/// Deletes the messages that are in a queue now, some at a time, so that no other call waits for all of them.
async fn purge(database: &Database, name: &str) -> Result<(), QueueError> {
    let looked_at = name.to_owned();
    let last = database.engine.read(move |session| messages::last_row(session, &looked_at)).await?;
    let Some(last) = last else { return Ok(()) };
    loop {
        let name = name.to_owned();
        let work = move |session: &mut Session| messages::purge_some(session, &name, last);
        if database.engine.write::<_, QueueError>(Durability::FULL, work).await? {
            return Ok(());
        }
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        self.send_as(messages, Sending::Durable { within: Duration::ZERO }).await
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        self.receive_as(options, Taking::UpToMax).await
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.delete(receipts, Durability::Normal).await
    }

    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError> {
        check_batch(changes.len())?;
        let (mut in_file, mut released) = (Vec::new(), Vec::new());
        for (receipt, delay) in changes {
            match self.end_direct(receipt) {
                // The message becomes visible again through the database.
                Some(body) => released.push(Outgoing { delay: *delay, ..Outgoing::new(body) }),
                None => in_file.push((receipt.clone(), *delay)),
            }
        }
        if !released.is_empty() {
            self.send_by_file(released, Durability::Normal).await?;
        }
        if in_file.is_empty() {
            return Ok(());
        }
        let name = self.name.clone();
        let work = move |session: &mut Session| messages::set_visibility(session, &name, &in_file);
        self.database.engine.write(Durability::Normal, work).await
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::depth(session, &name)).await
    }

    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::oldest_age(session, &name)).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::attributes(session, &name)).await
    }

    async fn set_redrive(&self, redrive: &Redrive) -> Result<(), QueueError> {
        let (name, redrive) = (self.name.clone(), redrive.clone());
        let work = move |session: &mut Session| messages::set_redrive(session, &name, &redrive);
        self.database.engine.write(Durability::FULL, work).await
    }

    async fn purge(&self) -> Result<(), QueueError> {
        purge(&self.database, &self.name).await
    }
}

impl SqliteQueue {
    /// Sends messages with the guarantee that `sending` names.
    ///
    /// # Errors
    /// As [`Queue::send`].
    pub async fn send_as(
        &self,
        messages: &[Outgoing],
        sending: Sending,
    ) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        check_batch(messages.len())?;
        let within = match sending {
            Sending::Durable { within } => within,
            Sending::Transient => return self.send_transient(messages).await,
        };
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        self.send_by_file(messages.to_vec(), Durability::FullWithin(within)).await
    }

    /// Receives a share of the messages, so that other workers get some too.
    ///
    /// # Errors
    /// As [`Queue::receive`].
    pub async fn receive_share(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        self.receive_as(options, Taking::Share).await
    }

    /// Acknowledges deliveries, together with the next transaction of this process or soon after.
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub async fn ack_soon(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.delete(receipts, Durability::Deferred).await
    }

    /// Makes the messages that a dead process held visible again.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is no such queue.
    pub async fn release_held_by(&self, process: ReceivingProcess) -> Result<(), QueueError> {
        let name = self.name.clone();
        let work = move |session: &mut Session| messages::release_held_by(session, &name, process);
        self.database.engine.write(Durability::Normal, work).await
    }

    async fn send_transient(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let mut answers: Vec<_> = messages.iter().map(|_| Ok(())).collect();
        let by_file = match &self.direct {
            Some(direct) => direct.send(&self.name, messages),
            None => (0..messages.len()).collect(),
        };
        if !by_file.is_empty() {
            let left = by_file.iter().map(|&at| messages[at].clone()).collect();
            for (at, answer) in by_file.into_iter().zip(self.send_by_file(left, Durability::Normal).await?) {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }

    async fn send_by_file(
        &self,
        messages: Vec<Outgoing>,
        durability: Durability,
    ) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let name = self.name.clone();
        let work = move |session: &mut Session| messages::send(session, &name, &messages);
        self.database.engine.write(durability, work).await
    }

    async fn receive_as(&self, options: ReceiveOptions, taking: Taking) -> Result<Vec<Delivery>, QueueError> {
        if options.max == 0 {
            return Err(QueueError::Fatal("a receive takes at least one message".to_owned()));
        }
        check_batch(options.max)?;
        let deadline = Instant::now() + options.wait.min(LONGEST_POLL);
        match &self.own {
            None => self.receive_from_file(options, taking, deadline).await,
            Some(own) => own.receive(self, options, taking, deadline).await,
        }
    }

    async fn delete(&self, receipts: &[Receipt], durability: Durability) -> Result<(), QueueError> {
        check_batch(receipts.len())?;
        let receipts: Vec<Receipt> =
            receipts.iter().filter(|receipt| self.end_direct(receipt).is_none()).cloned().collect();
        if receipts.is_empty() {
            return Ok(());
        }
        let name = self.name.clone();
        let work = move |session: &mut Session| messages::ack(session, &name, &receipts);
        self.database.engine.write(durability, work).await
    }

    async fn receive_from_file(
        &self,
        options: ReceiveOptions,
        taking: Taking,
        deadline: Instant,
    ) -> Result<Vec<Delivery>, QueueError> {
        let mut wake_token: Option<WakeToken> = None;
        loop {
            let claim = self.take(options, taking).await?;
            claim.release_wake_token(wake_token.take());
            if !claim.is_empty() || Instant::now() >= deadline {
                return Ok(claim.accept());
            }
            wake_token = self.notified(claim.next_due, deadline).await;
        }
    }

    /// Takes the message of a receipt that came as a datagram.
    fn end_direct(&self, receipt: &Receipt) -> Option<String> {
        self.own.as_ref()?.inbox.end(receipt)
    }

    /// Waits for a notification, at most until the deadline or until the next message is due. Returns the wake token of the
    /// notification, if there was one.
    async fn notified(&self, next_due: Option<Duration>, deadline: Instant) -> Option<WakeToken> {
        let subscription = self.database.notifier.subscribe(&self.name);
        if subscription.is_new {
            return None;
        }
        let again = Instant::now() + next_due.map_or(subscription.recheck, |due| due.min(subscription.recheck));
        tokio::time::timeout_at(deadline.min(again), subscription.notified()).await.ok()
    }

    /// Takes visible messages, without waiting.
    async fn take(&self, options: ReceiveOptions, taking: Taking) -> Result<Claim, QueueError> {
        let (looked_at, name) = (self.name.clone(), self.name.clone());
        let (calls, calls_too) = (self.database.engine.calls().clone(), self.database.engine.calls().clone());
        let is_likely = self.has_more.load(Ordering::Relaxed);
        let look = move |session: &Session| {
            if is_likely {
                return Ok(ReadPhase::Write);
            }
            Ok(match messages::look_for_due(session, &looked_at)? {
                ReadPhase::Write => ReadPhase::Write,
                ReadPhase::Answer(nothing) => ReadPhase::Answer(Claim::new(&looked_at, nothing, session, calls)),
            })
        };
        let work = move |session: &mut Session| {
            let taken = messages::receive(session, &name, options, taking)?;
            Ok(Claim::new(&name, taken, session, calls_too))
        };
        let claim = self.database.engine.call(Durability::Normal, look, work).await?;
        self.has_more.store(claim.has_more(), Ordering::Relaxed);
        Ok(claim)
    }
}

impl Own {
    /// Receives from the socket. Reads the database too after a notification, and every second in case one was missed.
    async fn receive(
        &self,
        queue: &SqliteQueue,
        options: ReceiveOptions,
        taking: Taking,
        deadline: Instant,
    ) -> Result<Vec<Delivery>, QueueError> {
        let mut wake_token: Option<WakeToken> = None;
        loop {
            let mut deliveries = Vec::new();
            if Instant::now() >= self.file_due() {
                let claim = queue.take(options, taking).await?;
                claim.release_wake_token(wake_token.take());
                self.set_file_due(Instant::now() + claim.next_due.map_or(RECHECK, |due| due.min(RECHECK)));
                deliveries = claim.accept();
            }
            deliveries.extend(self.inbox.take(options.max - deliveries.len()));
            if !deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(deliveries);
            }
            tokio::select! {
                () = self.inbox.filled() => {}
                notified = queue.notified(None, deadline.min(self.file_due())) => {
                    wake_token = notified;
                    self.set_file_due(Instant::now());
                }
            }
        }
    }

    fn file_due(&self) -> Instant {
        *self.file_due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_file_due(&self, at: Instant) {
        *self.file_due.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

fn check_batch(len: usize) -> Result<(), QueueError> {
    if len > MAX_BATCH {
        return Err(QueueError::Fatal(format!("a batch has at most {MAX_BATCH} entries, not {len}; this is a bug")));
    }
    Ok(())
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0).unsigned_abs())
}
