//! The inbox of a web process: a queue of its own, or the result queue that all web processes share.
//!
//! An own queue is new at every start, is tagged every quarter of an hour to say that its owner lives, is deleted at
//! drain, and is made again if somebody removed it. Queues whose owners died are deleted an hour later by any other.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::parts::Parts;
use super::queue::{LONGEST_POLL, MAX_BATCH, Queue, QueueAttributes, QueueError, Queues, ReceiveOptions};
use super::steps::Steps;
use crate::clock;
use crate::protocol::{self, TAG_ALIVE_AT, TAG_STACK};
use crate::transport::error::TransportError;
use crate::transport::message::{Delivery, Receipt};
use crate::transport::port::{Inbox, InboxMode, ReceivedReply};

const ALIVE_EVERY: Duration = Duration::from_secs(15 * 60);
const DEAD_AFTER: Duration = Duration::from_secs(3600);
/// A reply is read, handed over and deleted at once.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(30);
/// On the shared queue a reply that is held here is hidden from others, should this process die.
const SHARED_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reply for another process stays invisible to this one too.
const RELEASE_FOR: Duration = Duration::from_secs(2);
/// Replies are worthless once nobody waits; the result is the truth.
const RETENTION: Duration = Duration::from_secs(3600);
/// At the end of a drain, which may take 10 s in all.
const DELETE_TIMEOUT: Duration = Duration::from_secs(1);
/// Random part of an inbox's name, in hexadecimal digits. Garbage collection deletes no queue whose name ends otherwise.
const RANDOM_DIGITS: usize = 16;

pub(crate) struct QueueInbox {
    parts: Arc<Parts>,
    steps: Arc<dyn Steps>,
    /// A tag of the queue, so that the command that removes the stack finds it.
    stack: String,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    mode: InboxMode,
    queue: Arc<dyn Queue>,
}

impl QueueInbox {
    pub(crate) async fn open(
        parts: Arc<Parts>,
        steps: Arc<dyn Steps>,
        mode: InboxMode,
        stack: &str,
    ) -> Result<QueueInbox, TransportError> {
        let current = match mode {
            InboxMode::Own => open_own(&parts, &*steps, stack).await?,
            InboxMode::Shared => Current { mode, queue: Arc::clone(parts.results().await?) },
        };
        Ok(QueueInbox { parts, steps, stack: stack.to_owned(), current: RwLock::new(current) })
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes an inbox again that somebody removed. Returns whether there is one now.
    async fn recreate(&self) -> bool {
        let created = match self.current().mode {
            InboxMode::Own => open_own(&self.parts, &*self.steps, &self.stack).await,
            mode @ InboxMode::Shared => {
                let attributes = QueueAttributes::default();
                let created = self.parts.queues.create(&self.parts.names.result_queue, &attributes);
                created.await.map(|queue| Current { mode, queue })
            }
        };
        match created {
            Ok(current) => {
                tracing::info!(queue = current.queue.name(), "the reply queue was missing and is created again");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make a reply queue");
                false
            }
        }
    }
}

#[async_trait]
impl Inbox for QueueInbox {
    fn address(&self) -> String {
        self.current().queue.name().to_owned()
    }

    fn is_shared(&self) -> bool {
        self.current().mode == InboxMode::Shared
    }

    async fn receive(&self) -> Result<Vec<ReceivedReply>, TransportError> {
        let Current { mode, queue } = self.current();
        let received = queue.receive(options(mode)).await;
        if matches!(received, Err(QueueError::NotFound(_))) && self.recreate().await {
            return Ok(Vec::new());
        }
        let reply = |Delivery { receipt, body, sent_at_ms, .. }| ReceivedReply { receipt, text: body, sent_at_ms };
        Ok(received?.into_iter().map(reply).collect())
    }

    async fn acknowledge(&self, handled: &[Receipt], released: &[Receipt]) {
        let queue = self.current().queue;
        for batch in handled.chunks(MAX_BATCH) {
            if let Err(error) = queue.ack(batch).await {
                tracing::debug!(%error, "cannot delete replies; they are delivered again and deleted then");
            }
        }
        let released: Vec<_> = released.iter().map(|receipt| (receipt.clone(), RELEASE_FOR)).collect();
        for batch in released.chunks(MAX_BATCH) {
            if let Err(error) = queue.set_visibility(batch).await {
                tracing::debug!(%error, "cannot release replies; they are delivered again after their visibility timeout");
            }
        }
    }

    async fn maintain(&self) {
        let mut ticks = tokio::time::interval(ALIVE_EVERY);
        loop {
            ticks.tick().await;
            let Current { mode: InboxMode::Own, queue } = self.current() else { continue };
            if let Err(error) = tag_alive(&*self.parts.queues, queue.name()).await {
                tracing::warn!(%error, queue = queue.name(), "cannot tag the reply queue as alive");
            }
            if let Err(error) = collect_garbage(&*self.parts.queues, &self.parts.names.result_queue, clock::now()).await
            {
                tracing::warn!(%error, "cannot delete the reply queues of dead processes");
            }
        }
    }

    async fn close(&self) {
        let Current { mode: InboxMode::Own, queue } = self.current() else { return };
        let deleted = tokio::time::timeout(DELETE_TIMEOUT, self.parts.queues.delete(queue.name())).await;
        let reason = match deleted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(
            reason,
            queue = queue.name(),
            "cannot delete the reply queue; another web process deletes it within two hours"
        );
    }
}

/// An own queue, or the shared one when none may be made.
async fn open_own(parts: &Parts, steps: &dyn Steps, stack: &str) -> Result<Current, QueueError> {
    match create(parts, steps, stack).await {
        Ok(queue) => Ok(Current { mode: InboxMode::Own, queue }),
        Err(QueueError::Fatal(reason)) => {
            let queue = Arc::clone(parts.results().await?);
            tracing::warn!(
                reason,
                queue = queue.name(),
                "cannot make a reply queue for this process; sharing the result queue (--result-queue-mode shared)"
            );
            Ok(Current { mode: InboxMode::Shared, queue })
        }
        Err(error) => Err(error),
    }
}

async fn create(parts: &Parts, steps: &dyn Steps, stack: &str) -> Result<Arc<dyn Queue>, QueueError> {
    let random = format!("{:0width$x}", rand::random::<u64>(), width = RANDOM_DIGITS);
    let name = protocol::reply_queue(&parts.names.result_queue, &random);
    let attributes =
        QueueAttributes { visibility_timeout: VISIBILITY_TIMEOUT, retention: RETENTION, ..QueueAttributes::default() };
    let queue = steps.create_inbox(&name, &attributes).await?;
    parts.queues.set_tag(&name, TAG_STACK, stack).await?;
    tag_alive(&*parts.queues, &name).await?;
    Ok(queue)
}

async fn tag_alive(queues: &dyn Queues, name: &str) -> Result<(), QueueError> {
    queues.set_tag(name, TAG_ALIVE_AT, &clock::now().to_string()).await
}

/// Deletes reply queues whose owner has not tagged them for an hour.
async fn collect_garbage(queues: &dyn Queues, result_queue: &str, now: Timestamp) -> Result<(), QueueError> {
    for name in queues.list(&protocol::reply_queue(result_queue, "")).await? {
        if !is_own_inbox(&name, result_queue) {
            continue;
        }
        let tags = match queues.tags(&name).await {
            Err(QueueError::NotFound(_)) => continue,
            tags => tags?,
        };
        match tags.get(TAG_ALIVE_AT).and_then(|at| at.parse::<Timestamp>().ok()) {
            // Its owner died between making and tagging it: it gets an hour from now.
            None => tag_alive(queues, &name).await?,
            Some(alive_at) if is_dead(alive_at, now) => {
                tracing::info!(queue = name, "reply queue deleted: its owner has been silent for an hour");
                queues.delete(&name).await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn is_own_inbox(name: &str, result_queue: &str) -> bool {
    let random = name.strip_prefix(result_queue).and_then(|rest| rest.strip_prefix('-'));
    random.is_some_and(|random| random.len() == RANDOM_DIGITS && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_dead(alive_at: Timestamp, now: Timestamp) -> bool {
    now.as_second().saturating_sub(alive_at.as_second()) > DEAD_AFTER.as_secs().cast_signed()
}

fn options(mode: InboxMode) -> ReceiveOptions {
    let visibility_timeout = match mode {
        InboxMode::Own => VISIBILITY_TIMEOUT,
        InboxMode::Shared => SHARED_VISIBILITY_TIMEOUT,
    };
    ReceiveOptions { max: MAX_BATCH, wait: LONGEST_POLL, visibility_timeout }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_collection_recognises_own_inboxes_by_name() {
        assert!(is_own_inbox("results-0123456789abcdef", "results"));
        for foreign in ["results", "results-dead", "results-0123456789abcdeg", "other-0123456789abcdef"] {
            assert!(!is_own_inbox(foreign, "results"), "{foreign}");
        }
    }

    #[test]
    fn an_owner_is_dead_after_an_hour_of_silence() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(!is_dead(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00Z")));
        assert!(is_dead(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:01Z")));
        assert!(!is_dead(at("2026-01-01T01:00:00Z"), at("2026-01-01T00:00:00Z")), "a clock behind ours");
    }
}
