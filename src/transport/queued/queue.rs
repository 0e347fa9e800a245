//! Queues, as the transports that are made of queues use them: what SQS promises, as a trait.
//!
//! The suite `tests/it/queue_conformance.rs` holds the contract for every implementation:
//!
//! - A message whose send returned is durable. The order of messages is not promised.
//! - A received message is invisible to others until its visibility timeout has passed. Then it is delivered again with a
//!   higher `receive_count`. Delivery is at least once: every consumer accepts a second delivery.
//! - A [`Receipt`] belongs to one delivery. Used after the message was delivered again or deleted it does nothing,
//!   which is no error.
//! - A message received more than `max_receive_count` times moves to the dead-letter queue, if the queue has one. A
//!   message older than the retention is gone.
//! - A batch has at most [`MAX_BATCH`] entries.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::readiness::Probe;
use crate::transport::error::TransportError;
pub use crate::transport::message::MAX_BATCH;
use crate::transport::message::{Delivery, Depth, Receipt};

/// The longest that a receive waits; SQS's limit. An idle receiver costs three calls a minute.
pub const LONGEST_POLL: Duration = Duration::from_secs(20);
/// The message limit of a queue that is made without one; SQS's default.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 1 << 20;

/// All queues of one backend, which are created, opened, tagged and deleted by name.
#[async_trait]
pub trait Queues: Send + Sync {
    /// Creates the queue. A queue that exists stays as it is, with its attributes.
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError>;
    /// Opens a queue.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when there is none of that name.
    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError>;
    /// Deletes the queue and its messages. Deleting a queue that does not exist succeeds.
    async fn delete(&self, name: &str) -> Result<(), QueueError>;
    /// Names that start with `prefix`, sorted.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError>;
    /// The tags of a queue.
    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError>;
    /// Sets one tag of a queue.
    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError>;
    /// Resolves with the reason when this process cannot go on with the backend and must end. Otherwise never.
    async fn failure(&self) -> String {
        std::future::pending().await
    }
}

/// Sends one message. Returns its own failure as well as that of the call.
pub async fn send_one(queue: &dyn Queue, message: Outgoing) -> Result<(), QueueError> {
    let answers = queue.send(&[message]).await?;
    answers.into_iter().next().unwrap_or_else(|| Err(QueueError::Unavailable("no answer to a send".to_owned())))
}

/// A probe that asks whether the queue exists and answers.
pub fn probe(queue: &dyn Queue) -> Probe<'_> {
    let call = async { queue.attributes().await.map(drop).map_err(|error| error.to_string()) };
    Probe { of: format!("queue {:?}", queue.name()), call: Box::pin(call) }
}

/// One queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Sends up to [`MAX_BATCH`] messages. Returns one answer for each, in order; the outer error means that none was sent.
    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError>;
    /// Waits up to `wait` for the first message, then takes those that are visible, at most `max` (1..=[`MAX_BATCH`]).
    /// Returns none when none came. Dropping the future never loses a message that it had not returned: such a message
    /// is visible again at once or after its visibility timeout.
    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError>;
    /// Deletes delivered messages.
    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError>;
    /// Sets how long from now each delivered message stays invisible. Zero releases it.
    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError>;
    /// How many messages there are.
    async fn depth(&self) -> Result<Depth, QueueError>;
    /// The age of the oldest message, found without receiving. `None` when there is no message, or the backend does not
    /// know.
    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError>;
    /// The attributes of the queue.
    async fn attributes(&self) -> Result<QueueAttributes, QueueError>;
    /// Changes the dead-letter queue, and after how many receives a message moves there.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when this process may not change the queue.
    async fn set_redrive(&self, redrive: &Redrive) -> Result<(), QueueError>;
    /// Deletes every message.
    async fn purge(&self) -> Result<(), QueueError>;
}

/// The attributes of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAttributes {
    /// For receives that set none.
    pub visibility_timeout: Duration,
    /// Older messages are removed.
    pub retention: Duration,
    /// Larger messages are refused.
    pub max_message_bytes: usize,
    /// The policy that moves messages that were received too often to another queue.
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

/// The redrive policy of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redrive {
    /// Its dead-letter queue.
    pub dead_letter_queue: String,
    /// A message that was received this many times is moved instead of being delivered once more.
    pub max_receive_count: u32,
}

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Its text.
    pub body: String,
    /// String attributes beside the body, as SQS has them (`id`, `reason` and `attempts` of a dead letter).
    pub attributes: BTreeMap<String, String>,
    /// How long it is invisible at first.
    pub delay: Duration,
}

impl Outgoing {
    /// A message without attributes and delay.
    pub fn new(body: impl Into<String>) -> Self {
        Outgoing { body: body.into(), ..Outgoing::default() }
    }

    /// The size that SQS counts against a queue's limit: the body, and of each attribute name, data type and value.
    pub fn size_bytes(&self) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + "String".len() + value.len());
        self.body.len() + attributes.sum::<usize>()
    }
}

/// The parameters of a receive.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveOptions {
    /// At most this many messages.
    pub max: usize,
    /// How long to wait for the first, at most [`LONGEST_POLL`].
    pub wait: Duration,
    /// How long the messages are invisible to others.
    pub visibility_timeout: Duration,
}

/// Why a call failed, by what the caller must do.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the error texts name the fields")]
pub enum QueueError {
    /// Create the queue again, or report it: it was never created, or somebody deleted it.
    #[error("queue {0:?} does not exist; a web process or worker creates it at its start")]
    NotFound(String),
    /// Send a smaller message: by reference, or a cut reply.
    #[error("the message has {size} bytes, queue {queue:?} takes {limit}")]
    TooLarge { queue: String, size: usize, limit: usize },
    /// Retry later.
    #[error("queue unavailable: {0}")]
    Unavailable(String),
    /// A retry does not help: a bad name, no permission, a broken file.
    #[error("{0}")]
    Fatal(String),
}

impl From<QueueError> for TransportError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::NotFound(queue) => TransportError::Missing(queue),
            QueueError::TooLarge { queue, size, limit } => TransportError::MessageTooLarge { queue, size, limit },
            error @ QueueError::Unavailable(_) => TransportError::Unavailable(error.to_string()),
            QueueError::Fatal(reason) => TransportError::Fatal(reason),
        }
    }
}
