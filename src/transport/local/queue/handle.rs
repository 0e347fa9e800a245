//! A handle on one queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::claim::Claim;
use super::direct::{Direct, Inbox};
use super::messages::{self, Taking};
use crate::sqlite::{Database, Durability, RECHECK, ReadPhase, Session, WakeToken};
use crate::transport::message::{Delivery, Depth, Receipt, ReceivingProcess};
use crate::transport::queued::queue::{
    LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, ReceiveOptions, Redrive,
};

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
    /// A handle on a queue. `inbox` is that of its datagrams, if only this handle receives from the queue.
    pub(super) fn new(
        name: String,
        database: Arc<Database>,
        direct: Option<Arc<Direct>>,
        inbox: Option<Inbox>,
    ) -> SqliteQueue {
        let own = inbox.map(|inbox| Own { inbox, file_due: Mutex::new(Instant::now()) });
        SqliteQueue { name, database, has_more: AtomicBool::new(false), direct, own }
    }

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

    /// Returns true if a message can be received now.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is no such queue.
    pub async fn has_visible(&self) -> Result<bool, QueueError> {
        let name = self.name.clone();
        self.database.engine.read(move |session| messages::has_visible(session, &name)).await
    }

    /// Acknowledges deliveries, together with the next transaction of this process or soon after.
    ///
    /// # Errors
    /// As [`Queue::ack`].
    pub async fn ack_soon(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.delete(receipts, Durability::Deferred).await
    }

    /// Makes deliveries visible again after `delay`. This process does not hold them any more, so its death does not change
    /// the delay.
    ///
    /// # Errors
    /// As [`Queue::set_visibility`].
    pub async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), QueueError> {
        check_batch(receipts.len())?;
        let (name, receipts) = (self.name.clone(), receipts.to_vec());
        let work = move |session: &mut Session| messages::release(session, &name, &receipts, delay);
        self.database.engine.write(Durability::Normal, work).await
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

/// Deletes the messages that are in a queue now, some at a time, so that no other call waits for all of them.
pub(super) async fn purge(database: &Database, name: &str) -> Result<(), QueueError> {
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
