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
//! - Time is the system's clock. Set back, it delays what waits by as much.

mod messages;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    Delivery, Depth, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, Queues, Receipt, ReceiveOptions,
};
use crate::config;
use crate::sqlite::{self, Baton, Calls, Database, Durability, Fault, Look, Session};
use messages::Taken;

/// SQS's long poll.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The queues of one data directory.
pub struct SqliteQueues {
    database: Arc<Database>,
}

struct SqliteQueue {
    name: String,
    database: Arc<Database>,
    /// The last receive left more behind, so the next need not look first. Only a hint.
    has_more: AtomicBool,
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
        Ok(SqliteQueues { database: sqlite::open(data_dir)? })
    }

    fn queue(&self, name: String) -> Arc<dyn Queue> {
        Arc::new(SqliteQueue { name, database: Arc::clone(&self.database), has_more: AtomicBool::new(false) })
    }
}

#[async_trait]
impl Queues for SqliteQueues {
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        let name = config::queue_name(name).map_err(|why| QueueError::Fatal(format!("{why}: not {name:?}")))?;
        let (looked_for, created, attributes) = (name.clone(), name.clone(), attributes.clone());
        let look = move |session: &Session| {
            Ok(if messages::exists(session, &looked_for)? { Look::Answer(()) } else { Look::Write })
        };
        let work = move |session: &mut Session| messages::create(session, &created, &attributes);
        self.database.engine.call(Durability::Full, look, work).await?;
        Ok(self.queue(name))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let name = name.to_owned();
        let looked_for = name.clone();
        if self.database.engine.read(move |session| messages::exists(session, &looked_for)).await? {
            Ok(self.queue(name))
        } else {
            Err(QueueError::NotFound(name))
        }
    }

    async fn delete(&self, name: &str) -> Result<(), QueueError> {
        let name = name.to_owned();
        self.database.engine.write(Durability::Full, move |session| messages::delete(session, &name)).await
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
        self.database.engine.write(Durability::Full, work).await
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        check_batch(messages.len())?;
        let (name, messages) = (self.name.clone(), messages.to_vec());
        let transient = messages.iter().all(|message| message.is_transient);
        let durability = if transient { Durability::Normal } else { Durability::Full };
        let work = move |session: &mut Session| messages::send(session, &name, &messages);
        self.database.engine.write(durability, work).await
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        if options.max == 0 {
            return Err(QueueError::Fatal("a receive takes at least one message".to_owned()));
        }
        check_batch(options.max)?;
        let deadline = Instant::now() + options.wait.min(MAX_WAIT);
        let mut baton: Option<Baton> = None;
        loop {
            let claim = self.take(options).await?;
            if let Some(baton) = baton.take()
                && !claim.has_more()
            {
                baton.lay_down();
            }
            if !claim.deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(claim.accept());
            }
            baton = self.rung(claim.next_due, deadline).await;
        }
    }

    fn is_cheap_to_look(&self) -> bool {
        true
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        check_batch(receipts.len())?;
        let (name, receipts) = (self.name.clone(), receipts.to_vec());
        let work = move |session: &mut Session| messages::ack(session, &name, &receipts);
        self.database.engine.write(Durability::Lazy, work).await
    }

    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError> {
        check_batch(changes.len())?;
        let (name, changes) = (self.name.clone(), changes.to_vec());
        let work = move |session: &mut Session| messages::set_visibility(session, &name, &changes);
        self.database.engine.write(Durability::Normal, work).await
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let (looked_at, name) = (self.name.clone(), self.name.clone());
        let look = move |session: &Session| messages::look_at_depth(session, &looked_at);
        let work = move |session: &mut Session| messages::depth(session, &name);
        self.database.engine.call(Durability::Normal, look, work).await
    }

    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::oldest_age(session, &name)).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::attributes(session, &name)).await
    }

    async fn purge(&self) -> Result<(), QueueError> {
        let name = self.name.clone();
        self.database.engine.write(Durability::Full, move |session| messages::purge(session, &name)).await
    }
}

impl SqliteQueue {
    /// Waits for news, at most until the deadline or until the next message is due. None where it was not the bell.
    async fn rung(&self, next_due: Option<Duration>, deadline: Instant) -> Option<Baton> {
        let bell = self.database.bells.listen(&self.name);
        if bell.is_new {
            return None;
        }
        let again = Instant::now() + next_due.map_or(bell.recheck, |due| due.min(bell.recheck));
        tokio::time::timeout_at(deadline.min(again), bell.rung()).await.ok()
    }

    /// What is there now, without waiting.
    async fn take(&self, options: ReceiveOptions) -> Result<Claim, QueueError> {
        let (looked_at, name) = (self.name.clone(), self.name.clone());
        let (calls, calls_too) = (self.database.engine.calls().clone(), self.database.engine.calls().clone());
        let is_likely = self.has_more.load(Ordering::Relaxed);
        let look = move |session: &Session| {
            if is_likely {
                return Ok(Look::Write);
            }
            Ok(match messages::look_for_due(session, &looked_at)? {
                Look::Write => Look::Write,
                Look::Answer(nothing) => Look::Answer(Claim::new(&looked_at, nothing, session, calls)),
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
