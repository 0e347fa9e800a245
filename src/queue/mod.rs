//! The queue port: what SQS promises, as a trait, and the backends that keep it.
//!
//! Every backend passes the same conformance suite (`tests/it/queue_conformance.rs`); the contract in words:
//!
//! - A send that returned is durable, unless the message is transient. Order is not promised.
//! - A received message is invisible to others for its visibility timeout, then comes again with a higher
//!   `receive_count`. At least once: every consumer must bear a second delivery.
//! - A [`Receipt`] belongs to one delivery. Used after the message was delivered again or deleted it does nothing
//!   and is no error.
//! - A message received more than `max_receive_count` times moves to the dead-letter queue, if the queue has one;
//!   one older than the retention is gone.
//! - Batches are of at most [`MAX_BATCH`].

mod coalesce;
mod service;
mod sqlite;
mod sqs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use service::ServiceQueues;
pub use sqlite::{SqliteQueues, named_jobs};
pub use sqs::SqsQueues;

use crate::clock;
use crate::config::Backend;
use crate::readiness::Probe;

/// Most messages that one send, receive, ack or extend takes; SQS's limit.
pub const MAX_BATCH: usize = 10;
/// The longest that a receive waits; SQS's limit. An idle receiver costs three calls a minute.
pub const LONGEST_POLL: Duration = Duration::from_secs(20);
/// What a queue takes when nothing else was said; SQS's default.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The queues that the configuration asks for.
///
/// # Errors
/// [`QueueError::Fatal`] where they cannot be used; it says what to do.
pub async fn open(backend: &Backend) -> Result<Arc<dyn Queues>, QueueError> {
    match backend {
        Backend::Local { data_dir } => Ok(Arc::new(SqliteQueues::open(data_dir)?)),
        Backend::Aws { region, endpoint_url } => {
            // From here on a step of the wall clock is not followed.
            clock::now();
            // The SDK's futures are large; who runs locally does not carry them.
            Ok(Arc::new(Box::pin(SqsQueues::connect(region.as_deref(), endpoint_url.as_deref())).await?))
        }
    }
}

/// All queues of one backend: made, found, tagged and removed by name.
#[async_trait]
pub trait Queues: Send + Sync {
    /// Makes the queue, or leaves it as it is where it stands already (its attributes are then not changed).
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError>;
    /// As [`Queues::create`], and says that this handle alone will receive from it: a backend may then bring transient
    /// messages a shorter way, as long as the handle is kept.
    async fn create_own(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        self.create(name, attributes).await
    }
    /// # Errors
    /// [`QueueError::NotFound`] where there is none of that name.
    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError>;
    /// Removes the queue and what is in it. A queue that is not there is removed already.
    async fn delete(&self, name: &str) -> Result<(), QueueError>;
    /// Names that start with `prefix`, sorted.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError>;
    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError>;
    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError>;
    /// Resolves when this process cannot go on with the backend and has to end; says why. Otherwise never.
    async fn failure(&self) -> String {
        std::future::pending().await
    }
}

/// Sends one message; its own failure and that of the call are one.
pub async fn send_one(queue: &dyn Queue, message: Outgoing) -> Result<(), QueueError> {
    let answers = queue.send(&[message]).await?;
    answers.into_iter().next().unwrap_or_else(|| Err(QueueError::Unavailable("no answer to a send".to_owned())))
}

/// Asks whether the queue is there and answers.
pub fn probe(queue: &dyn Queue) -> Probe<'_> {
    let call = async { queue.attributes().await.map(drop).map_err(|error| error.to_string()) };
    Probe { of: format!("queue {:?}", queue.name()), call: Box::pin(call) }
}

/// One queue.
#[async_trait]
pub trait Queue: Send + Sync {
    fn name(&self) -> &str;
    /// Sends up to [`MAX_BATCH`] messages; one answer for each, in order. The outer error: none was sent.
    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError>;
    /// Waits up to `wait` for the first message, then takes what is there, at most `max` (1..=[`MAX_BATCH`]).
    /// Empty when nothing came. Dropping the future never loses a message that it had not returned: such a message
    /// is visible again at once or after its visibility timeout.
    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError>;
    /// Whether a receive that finds nothing costs next to nothing: then who is busy looks now and then, instead of
    /// standing in line before who is idle.
    fn is_cheap_to_look(&self) -> bool {
        false
    }
    /// Deletes delivered messages.
    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError>;
    /// The same, but it may take a moment longer where that costs less: for a caller whose next step does not hang on it.
    async fn ack_soon(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.ack(receipts).await
    }
    /// Sets how long from now each delivered message stays invisible; zero hands it back.
    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError>;
    async fn depth(&self) -> Result<Depth, QueueError>;
    /// How long the oldest message has been there, found out without receiving. None where there is no message, or the
    /// backend does not tell.
    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError>;
    async fn attributes(&self) -> Result<QueueAttributes, QueueError>;
    /// Changes where messages go that were received too often, and when.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] where this process may not change the queue.
    async fn set_redrive(&self, redrive: &Redrive) -> Result<(), QueueError>;
    /// Makes the messages visible that a process received and neither acked nor released: called when it is dead. Each keeps
    /// its receive count. Does nothing on a backend that does not know who received what.
    async fn release_held_by(&self, _process: ReceivingProcess) -> Result<(), QueueError> {
        Ok(())
    }
    /// Deletes every message.
    async fn purge(&self) -> Result<(), QueueError>;
}

/// A process of this machine that receives messages. The start time tells it from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivingProcess {
    pub pid: u32,
    /// In clock ticks since boot; 0 where the system does not tell.
    pub started: u64,
}

impl ReceivingProcess {
    pub fn current() -> Self {
        ReceivingProcess::of(std::process::id())
    }

    /// A process that has not been waited for yet.
    pub fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `<pid> (<name>) <state> …`; the name may hold anything. The start time is the 22nd field.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let started = fields.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or_default();
        ReceivingProcess { pid, started }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAttributes {
    /// Used by a receive that says none.
    pub visibility_timeout: Duration,
    pub retention: Duration,
    pub max_message_bytes: usize,
    /// Where messages go that were received too often.
    pub redrive: Option<Redrive>,
}

impl Default for QueueAttributes {
    fn default() -> Self {
        QueueAttributes {
            visibility_timeout: Duration::from_secs(30),
            retention: Duration::from_secs(4 * 24 * 3600),
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            redrive: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    pub dead_letter_queue: String,
    /// A message that was received this many times is moved instead of being delivered once more.
    pub max_receive_count: u32,
}

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    pub body: String,
    /// Beside the body: string attributes, as SQS has them (a dead letter's `id`, `reason`, `attempts`).
    pub attributes: BTreeMap<String, String>,
    /// How long until it can be received first.
    pub delay: Duration,
    /// A power loss may lose it, or the death of the process that received it, and little is lost with it: a reply, whose
    /// result stands in the store. A backend may keep it as well as any other.
    pub is_transient: bool,
    /// How much later the sender can bear to hear that it is durable, so that others may share what that takes. It can be
    /// received before.
    pub durable_within: Duration,
}

impl Outgoing {
    pub fn new(body: impl Into<String>) -> Self {
        Outgoing { body: body.into(), ..Outgoing::default() }
    }

    /// As SQS counts it against a queue's limit: the body, and of each attribute name, data type and value.
    pub fn size_bytes(&self) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + "String".len() + value.len());
        self.body.len() + attributes.sum::<usize>()
    }

    /// See [`Outgoing::is_transient`].
    pub fn transient(body: impl Into<String>) -> Self {
        Outgoing { is_transient: true, ..Outgoing::new(body) }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct ReceiveOptions {
    pub max: usize,
    /// At most [`LONGEST_POLL`].
    pub wait: Duration,
    pub visibility_timeout: Duration,
    /// Take no more than a [`fair_share`] of what can be received: there are others who may do the rest sooner. A backend
    /// that does not know how much there is takes up to `max`.
    pub is_fair: bool,
}

/// What one receiver of several takes of `visible` messages: a quarter; of few messages up to two, as long as that is no
/// more than half. At least one, at most `max`.
pub fn fair_share(visible: usize, max: usize) -> usize {
    let of_few = visible.div_ceil(2).min(2);
    of_few.max(visible / 4).clamp(1, max)
}

/// One delivery of one message.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub message_id: String,
    pub receipt: Receipt,
    pub body: String,
    pub attributes: BTreeMap<String, String>,
    /// 1 at the first delivery.
    pub receive_count: u32,
    /// When it was sent, milliseconds since the Unix epoch, by the queue's clock.
    pub sent_at_ms: i64,
}

/// The right to ack or extend one delivery. Opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be received.
    pub visible: u64,
    /// Received and not yet acked or timed out.
    pub in_flight: u64,
    /// Sent with a delay that still runs.
    pub delayed: u64,
}

/// Typed by what the caller has to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// Make it again, or say so: the queue was never made or somebody removed it.
    #[error("queue {0:?} does not exist")]
    NotFound(String),
    /// Send less: by reference, or the cut reply.
    #[error("the message has {size} bytes, queue {queue:?} takes {limit}")]
    TooLarge { queue: String, size: usize, limit: usize },
    /// Wait and try again.
    #[error("queue unavailable: {0}")]
    Unavailable(String),
    /// Trying again will not help: a bad name, no permission, a broken file.
    #[error("{0}")]
    Fatal(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_share_leaves_half_of_few_and_three_quarters_of_many() {
        let shares = [0, 1, 2, 3, 4, 11, 12, 15, 16, 40].map(|visible| fair_share(visible, 10));
        assert_eq!(shares, [1, 1, 1, 2, 2, 2, 3, 3, 4, 10]);
        assert_eq!([fair_share(40, 3), fair_share(3, 1)], [3, 1]);
    }
}
