//! The port: what the tiers want of a transport.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::completion::{Completed, Completion};
use super::error::{CompletionError, TransportError};
use super::job::{NewJob, SubmitTimes};
use super::message::{Delivery, Depth, Receipt, ReceivingProcess};
use super::reader::ObjectReader;
use crate::config::{Backend, Names};

/// The transport of one service: its jobs on their way from a web process to a worker and back.
///
/// The contract of each call is part of the conformance suite (`tests/it/conformance/`), which every backend passes.
/// Every future may be dropped: a job is then submitted or completed as a whole or not at all, and a message that a
/// dropped receive had taken is visible again at once or after its visibility timeout.
#[async_trait]
pub trait Transport: Send + Sync {
    /// The service's request queue, as log lines name it.
    fn name(&self) -> &str;

    /// Makes the queues and buckets that are missing. Any tier may be the first to start. Nothing else makes anything, so
    /// that an operator who only looks changes nothing.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] when they cannot be made; it says what to do.
    async fn prepare(&self, service: ServiceOptions) -> Result<(), TransportError>;

    /// Whether everything that a tier needs answers, for readiness.
    ///
    /// # Errors
    /// Why not, in one line.
    async fn check(&self) -> Result<(), String>;

    /// Resolves with the reason when this process cannot go on with the backend and must end. Otherwise never.
    async fn failure(&self) -> String {
        std::future::pending().await
    }

    // Read by several tiers.

    /// The result of a job, as text. `None` when the job has none (yet), or is unknown.
    ///
    /// # Errors
    /// [`TransportError::Damaged`] instead of bytes that were not written.
    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, TransportError>;

    /// The whole image of a job. `None` when there is none.
    ///
    /// # Errors
    /// [`TransportError::ObjectTooLarge`] before more than `max_bytes` are read.
    async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<Bytes>, TransportError>;

    /// How many requests there are. Found without receiving; approximate on some backends.
    async fn depth(&self) -> Result<Depth, TransportError>;

    // For the web tier.

    /// Makes a job durable: its image and its message. The message can be received only when the image can be read. A job
    /// whose submission failed has no message, or at most one that nobody was told of.
    ///
    /// # Errors
    /// [`TransportError::MessageTooLarge`] in the legacy form, before anything is stored.
    async fn submit(&self, job: NewJob<'_>) -> Result<SubmitTimes, TransportError>;

    /// Replaces the image of a job that nobody will ask for by the marker [`crate::protocol::WITHDRAWN_IMAGE`], so that no
    /// worker classifies it. A job that has a result stays as it is.
    async fn withdraw(&self, id: Uuid) -> Result<Withdrawal, TransportError>;

    /// Writes the result of a job that no worker completed. A result that exists stays as it is. Returns the job's result.
    async fn write_result(&self, id: Uuid, text: Bytes) -> Result<Bytes, TransportError>;

    /// What a legacy worker stored for a job. `None` also on a backend that legacy workers do not know.
    async fn legacy_output(&self, _id: Uuid) -> Result<Option<Bytes>, TransportError> {
        Ok(None)
    }

    /// Size and time of a job's image.
    async fn image_info(&self, id: Uuid) -> Result<Option<ImageInfo>, TransportError>;

    /// Opens a job's image, to read it in pieces, so that a slow reader holds one piece and not the whole.
    ///
    /// # Errors
    /// [`TransportError::ObjectTooLarge`] when it has more than `max_bytes`.
    async fn open_image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, TransportError>;

    /// Opens the inbox that replies to this process come to. With [`InboxMode::Own`] the backend falls back to the shared
    /// inbox when this process may not make one.
    async fn open_inbox(&self, mode: InboxMode, stack: &str) -> Result<Box<dyn Inbox>, TransportError>;

    /// How long the transport keeps a request that nobody receives.
    async fn retention(&self) -> Result<Duration, TransportError>;

    /// How often a process may read the depth: a read that is billed, or goes over a network, is worth fewer of them.
    fn depth_interval(&self) -> Duration;

    // For workers.

    /// Receives up to `wanted.max` requests. Returns none when none came for a while.
    ///
    /// While the sessions of the worker are busy ([`WorkerLoad`]), the backend may leave messages to workers that are idle,
    /// and may leave a share of the messages to others. A message is invisible to others until its visibility timeout has
    /// passed; then it is delivered again with a higher receive count.
    async fn receive(&self, wanted: Wanted, load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError>;

    /// Keeps messages invisible for this long from now.
    async fn extend(&self, receipts: &[Receipt], visibility_timeout: Duration) -> Result<(), TransportError>;

    /// Gives messages up: they are visible to every worker after `delay`.
    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError>;

    /// Carries out the outcomes of deliveries, each in the order of [`Completion`]: the result is written, then the reply is
    /// sent, then the message is deleted. Whatever dies in between, the message is delivered again, or the result is there.
    /// Of several results for one job the first is kept.
    ///
    /// Returns one answer for each, in order. A completion that failed is to be passed again.
    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>>;

    // For operators.

    /// The queues of the service, whether they exist or not.
    async fn queues(&self) -> Result<Vec<(String, QueueRole)>, TransportError>;

    /// How many messages one of its queues has. `None` when the queue does not exist.
    async fn queue_depth(&self, queue: &str) -> Result<Option<Depth>, TransportError>;

    /// How old the oldest message of a queue is. `None` when there is no message, or the backend does not know.
    async fn oldest_age(&self, queue: &str) -> Result<Option<Duration>, TransportError>;

    /// Deletes all messages of a queue.
    async fn purge(&self, queue: &str) -> Result<(), TransportError>;

    /// Walks through the dead letters.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterScan>, TransportError>;

    /// Submits a dead letter again: the image is written anew, since a job's time runs from then on, the failed result is
    /// deleted, and the message is sent. In that order; a caller that is not sure of the outcome may repeat the call.
    async fn resubmit(&self, job: Resubmission) -> Result<(), TransportError>;

    /// Makes the requests visible that a process received and neither completed nor released. Called when the process is
    /// dead. Their receive counts stay. Does nothing on a backend that does not know which process received what.
    async fn release_held_by(&self, _process: ReceivingProcess) -> Result<(), TransportError> {
        Ok(())
    }
}

/// Opens the transports of one kind of backend.
#[async_trait]
pub trait Opener: Send + Sync {
    /// Opens the transport of a service. Makes no queue and no bucket: [`Transport::prepare`] does.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] when the backend cannot be used; it says what to do.
    async fn open(&self, backend: &Backend, names: &Names) -> Result<Arc<dyn Transport>, TransportError>;
}

/// Where the replies to one web process come in.
#[async_trait]
pub trait Inbox: Send + Sync {
    /// What requests say in `reply_to`. It may change when somebody removed the inbox and it was made again.
    fn address(&self) -> String;

    /// Whether other processes receive from it too.
    fn is_shared(&self) -> bool;

    /// Waits for replies, and returns none when none came for a while.
    ///
    /// # Errors
    /// The caller waits a moment and calls again. An inbox that was removed is made again by then.
    async fn receive(&self) -> Result<Vec<ReceivedReply>, TransportError>;

    /// Deletes replies that were handled, and releases those that another process may wait for. A failure is logged: the
    /// replies come again.
    async fn settle(&self, handled: &[Receipt], released: &[Receipt]);

    /// What has to be done now and then for as long as the inbox is used. Runs until it is dropped.
    async fn maintain(&self) {
        std::future::pending::<()>().await;
    }

    /// The process ends: an own inbox is removed.
    async fn close(&self);
}

/// A walk through the dead letters. Each comes once.
#[async_trait]
pub trait DeadLetterScan: Send {
    /// The next dead letters, at most `max`; none at the end.
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError>;

    /// The letter stays where it is.
    fn keep(&mut self, letter: Delivery);

    /// Deletes letters.
    async fn delete(&mut self, letters: &[Receipt]) -> Result<(), TransportError>;

    /// Ends the walk: letters that were kept are visible to others again.
    async fn close(self: Box<Self>) -> Result<(), TransportError>;
}

/// How busy a worker is. A transport may ask while a receive waits.
#[async_trait]
pub trait WorkerLoad: Send + Sync {
    /// In how long a session is likely to be free. `None` when one is free now.
    fn next_free_in(&self) -> Option<Duration>;

    /// Resolves when a session is free.
    async fn until_idle(&self);
}

/// The load of a receiver that has nothing else to do.
#[derive(Debug, Clone, Copy)]
pub struct Idle;

#[async_trait]
impl WorkerLoad for Idle {
    fn next_free_in(&self) -> Option<Duration> {
        None
    }

    async fn until_idle(&self) {}
}

/// What a worker wants to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At most this many messages; at least one.
    pub max: usize,
    /// How long they stay with this worker unless it extends that.
    pub visibility_timeout: Duration,
}

/// What the tiers of a service agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Of queues that are made.
    pub visibility_timeout: Duration,
    /// Workers give a message up after so many deliveries. The queue's own limit is higher.
    pub max_receive_count: u32,
}

/// Size and time of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes of the file.
    pub size_bytes: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// Which inbox the replies to a process come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxMode {
    /// One of its own.
    Own,
    /// The one that all web processes share.
    Shared,
}

/// A reply that came.
#[derive(Debug, Clone)]
pub struct ReceivedReply {
    /// Of this delivery.
    pub receipt: Receipt,
    /// What was sent.
    pub text: String,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent_at_ms: i64,
}

/// What a withdrawal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// No worker will classify the image.
    Withdrawn,
    /// The job has a result.
    AlreadyCompleted,
    /// There is no image: it was not stored yet, or the message carries it.
    NotStored,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueRole {
    /// Jobs for workers.
    Requests,
    /// Messages that no worker could process.
    DeadLetters,
    /// The shared inbox.
    Results,
    /// The inbox of one web process.
    Replies,
}

/// A dead letter to submit again.
#[derive(Debug, Clone)]
pub struct Resubmission {
    /// The job, its image and the image's media type. `None` for a message that has no job.
    pub job: Option<(Uuid, Bytes, Option<&'static str>)>,
    /// The message.
    pub message: String,
}
