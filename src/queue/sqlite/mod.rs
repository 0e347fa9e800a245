//! The local queue: SQS's semantics in the SQLite file that any number of processes on this machine share.
//!
//! `messages` says in SQL what a queue does; how the file is shared and grouped into transactions, `crate::sqlite`.
//!
//! Beside the contract of the port:
//!
//! - A send returns when the message is on disk, synced, unless it is transient. A power loss may undo a receive, an
//!   extension or an ack; each only means one more delivery. A killed process undoes nothing that had returned.
//! - A handle is a name. Where the queue was removed every call answers `NotFound`; made again under that name, the
//!   same handle works on the new one, and receipts of the old one do nothing.
//! - Messages come by the time they became visible, which is the order of sending as long as nothing is redelivered.
//! - Time is the service time of the data directory ([`crate::clock`]), which no step of the wall clock moves.
//! - A transient message to a queue that one process owns ([`Queues::create_own`]) goes past the file where it can
//!   (`direct`). It has no part in the depth, and is lost with the process that received it.

mod direct;
mod expiry;
mod messages;
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

use super::{
    Delivery, Depth, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, Queues, Receipt, ReceiveOptions,
    ReceivingProcess, Redrive,
};
use crate::clock::Source;
use crate::config;
use crate::sqlite::{self, Calls, Database, Durability, Fault, RECHECK, ReadPhase, Session, WakeToken};
use direct::{Direct, Inbox};
use messages::Taken;
pub use named::named_jobs;

/// SQS's long poll.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The queues of one data directory.
pub struct SqliteQueues {
    database: Arc<Database>,
    direct: Option<Arc<Direct>>,
}

struct SqliteQueue {
    name: String,
    database: Arc<Database>,
    /// The last receive left more behind, so the next need not look first. Only a hint.
    has_more: AtomicBool,
    direct: Option<Arc<Direct>>,
    own: Option<Own>,
}

/// Of a queue that this process alone receives from.
struct Own {
    inbox: Inbox,
    /// When the file is looked at next, if no bell rings before.
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
    /// Opens, or makes, the queues under `data_dir`.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] where the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path) -> Result<SqliteQueues, QueueError> {
        Ok(SqliteQueues::over(sqlite::open(data_dir)?, data_dir))
    }

    /// The same by another clock than the machine's: for tests.
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

    fn queue(&self, name: String, inbox: Option<Inbox>) -> Arc<dyn Queue> {
        Arc::new(SqliteQueue {
            name,
            database: Arc::clone(&self.database),
            has_more: AtomicBool::new(false),
            direct: self.direct.clone(),
            own: inbox.map(|inbox| Own { inbox, file_due: Mutex::new(Instant::now()) }),
        })
    }

    /// The name, where it is a good one.
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
        let name = self.make(name, attributes).await?;
        Ok(self.queue(name, None))
    }

    async fn create_own(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        let name = self.make(name, attributes).await?;
        let inbox = self.direct.as_ref().and_then(|direct| direct.own(&name, &self.database.clock));
        Ok(self.queue(name, inbox))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let name = name.to_owned();
        let looked_for = name.clone();
        if self.database.engine.read(move |session| messages::exists(session, &looked_for)).await? {
            Ok(self.queue(name, None))
        } else {
            Err(QueueError::NotFound(name))
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
        // Only of a queue that was there: its name was checked when it was made, so it is no path.
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

/// Deletes what is in a queue now, some messages at a time, so that nobody waits for all of them.
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
        check_batch(messages.len())?;
        let mut answers: Vec<_> = messages.iter().map(|_| Ok(())).collect();
        let by_file = self.send_direct(messages);
        if !by_file.is_empty() {
            let left = by_file.iter().map(|&at| messages[at].clone()).collect();
            for (at, answer) in by_file.into_iter().zip(self.send_by_file(left).await?) {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        if options.max == 0 {
            return Err(QueueError::Fatal("a receive takes at least one message".to_owned()));
        }
        check_batch(options.max)?;
        let deadline = Instant::now() + options.wait.min(MAX_WAIT);
        match &self.own {
            None => self.receive_from_file(options, deadline).await,
            Some(own) => own.receive(self, options, deadline).await,
        }
    }

    fn is_cheap_to_look(&self) -> bool {
        true
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.delete(receipts, Durability::Normal).await
    }

    async fn ack_soon(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.delete(receipts, Durability::Deferred).await
    }

    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError> {
        check_batch(changes.len())?;
        let (mut in_file, mut handed_back) = (Vec::new(), Vec::new());
        for (receipt, delay) in changes {
            match self.end_direct(receipt) {
                // It is visible again by way of the file.
                Some(body) => handed_back.push(Outgoing { delay: *delay, ..Outgoing::transient(body) }),
                None => in_file.push((receipt.clone(), *delay)),
            }
        }
        if !handed_back.is_empty() {
            self.send_by_file(handed_back).await?;
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

    async fn release_held_by(&self, process: ReceivingProcess) -> Result<(), QueueError> {
        let name = self.name.clone();
        let work = move |session: &mut Session| messages::release_held_by(session, &name, process);
        self.database.engine.write(Durability::Normal, work).await
    }

    async fn purge(&self) -> Result<(), QueueError> {
        purge(&self.database, &self.name).await
    }
}

impl SqliteQueue {
    /// Sends past the file what can go; the places of the others.
    fn send_direct(&self, messages: &[Outgoing]) -> Vec<usize> {
        match &self.direct {
            Some(direct) => direct.send(&self.name, messages),
            None => (0..messages.len()).collect(),
        }
    }

    async fn send_by_file(&self, messages: Vec<Outgoing>) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let name = self.name.clone();
        let bearable = messages.iter().filter(|message| !message.is_transient).map(|message| message.durable_within);
        let durability = bearable.min().map_or(Durability::Normal, Durability::FullWithin);
        let work = move |session: &mut Session| messages::send(session, &name, &messages);
        self.database.engine.write(durability, work).await
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

    async fn receive_from_file(&self, options: ReceiveOptions, deadline: Instant) -> Result<Vec<Delivery>, QueueError> {
        let mut wake_token: Option<WakeToken> = None;
        loop {
            let claim = self.take(options).await?;
            claim.settle(wake_token.take());
            if !claim.deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(claim.accept());
            }
            wake_token = self.rung(claim.next_due, deadline).await;
        }
    }

    /// The message of a receipt that did not come by the file.
    fn end_direct(&self, receipt: &Receipt) -> Option<String> {
        self.own.as_ref()?.inbox.end(receipt)
    }

    /// Waits for news, at most until the deadline or until the next message is due. None where it was not the bell.
    async fn rung(&self, next_due: Option<Duration>, deadline: Instant) -> Option<WakeToken> {
        let bell = self.database.notifier.subscribe(&self.name);
        if bell.is_new {
            return None;
        }
        let again = Instant::now() + next_due.map_or(bell.recheck, |due| due.min(bell.recheck));
        tokio::time::timeout_at(deadline.min(again), bell.notified()).await.ok()
    }

    /// What is there now, without waiting.
    async fn take(&self, options: ReceiveOptions) -> Result<Claim, QueueError> {
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
            let taken = messages::receive(session, &name, options)?;
            Ok(Claim::new(&name, taken, session, calls_too))
        };
        let claim = self.database.engine.call(Durability::Normal, look, work).await?;
        self.has_more.store(claim.has_more(), Ordering::Relaxed);
        Ok(claim)
    }
}

impl Own {
    /// From the socket; when its bell rings, and every second in case it was missed, from the file too.
    async fn receive(
        &self,
        queue: &SqliteQueue,
        options: ReceiveOptions,
        deadline: Instant,
    ) -> Result<Vec<Delivery>, QueueError> {
        let mut wake_token: Option<WakeToken> = None;
        loop {
            let mut deliveries = Vec::new();
            if Instant::now() >= self.file_due() {
                let claim = queue.take(options).await?;
                claim.settle(wake_token.take());
                self.set_file_due(Instant::now() + claim.next_due.map_or(RECHECK, |due| due.min(RECHECK)));
                deliveries = claim.accept();
            }
            deliveries.extend(self.inbox.take(options.max - deliveries.len()));
            if !deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(deliveries);
            }
            tokio::select! {
                () = self.inbox.filled() => {}
                rung = queue.rung(None, deadline.min(self.file_due())) => {
                    wake_token = rung;
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

/// Messages on their way from the thread to the caller. Dropped on the way, since the caller's future was, they are
/// visible again at once, and nobody counts a delivery that never was.
struct Claim {
    queue: String,
    deliveries: Vec<Delivery>,
    /// In how long the next message will be visible.
    next_due: Option<Duration>,
    /// Where the transaction came to nothing, nothing was taken.
    committed: Arc<AtomicBool>,
    calls: Calls,
}

impl Claim {
    fn new(queue: &str, taken: Taken, session: &Session, calls: Calls) -> Claim {
        Claim {
            queue: queue.to_owned(),
            deliveries: taken.deliveries,
            next_due: taken.next_due_ms.map(|due_ms| duration(due_ms.saturating_sub(session.now_ms))),
            committed: Arc::clone(&session.committed),
            calls,
        }
    }

    /// Whether messages were left that can be received now.
    fn has_more(&self) -> bool {
        self.next_due.is_some_and(|due| due.is_zero())
    }

    /// What the bell was rung for is taken: where nothing is left, nobody else need come.
    fn settle(&self, wake_token: Option<WakeToken>) {
        if let Some(wake_token) = wake_token
            && !self.has_more()
        {
            wake_token.release();
        }
    }

    fn accept(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.deliveries.is_empty() || !self.committed.load(Ordering::Acquire) {
            return;
        }
        let queue = std::mem::take(&mut self.queue);
        let receipts: Vec<Receipt> = self.deliveries.drain(..).map(|delivery| delivery.receipt).collect();
        self.calls.post_write(move |session| messages::hand_back(session, &queue, &receipts));
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
