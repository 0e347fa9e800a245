//! The port: the calls that the tiers make to a transport.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::completion::{Completed, Completion, DeadLetter};
use super::error::{CompletionError, TransportError};
use super::job::{NewJob, SubmitTimes};
use super::message::{Delivery, Depth, Receipt, ReceivingProcess};
use super::reader::ObjectReader;
use crate::config::{Backend, Names};
use crate::protocol::{ClassifyRequest, ImageRef, ServiceClass};

/// The transport of one service. It carries jobs from web processes to workers, and their results back.
///
/// The contract of each call is part of the conformance suite (`tests/it/conformance/`), which every backend passes.
/// Every future may be dropped. A job is then submitted or completed either as a whole or not at all, and a message that a
/// dropped receive had taken becomes visible again, at once or after its visibility timeout.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Returns the name of the service's request queue for log lines.
    fn name(&self) -> &str;

    /// Creates the queues and buckets that are missing. Each tier calls this, since any tier may be the first to start. No
    /// other call creates a queue or a bucket, so that an operator's read-only commands change nothing.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] if they cannot be created. Its message says what to do.
    async fn prepare(&self, service: ServiceOptions) -> Result<(), TransportError>;

    /// Checks for the readiness probe that everything that a tier needs can be reached.
    ///
    /// # Errors
    /// Returns the reason in one line if it cannot.
    async fn check(&self) -> Result<(), String>;

    /// Resolves with the reason when the backend is no longer usable and this process must exit. Otherwise it never
    /// resolves.
    async fn failure(&self) -> String {
        std::future::pending().await
    }

    // Calls of several tiers.

    /// Returns the result of a job as text, or `None` if the job has no result yet or is unknown.
    ///
    /// # Errors
    /// [`TransportError::Damaged`] if the stored bytes differ from the bytes that were written.
    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, TransportError>;

    /// Returns the whole image of a job, or `None` if there is none.
    ///
    /// # Errors
    /// [`TransportError::ObjectTooLarge`] if it has more than `max_bytes`. Never reads more than that.
    async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<Bytes>, TransportError>;

    /// Returns the whole image that a message names in a bucket of others, or `None` if there is none. The bucket is never
    /// created.
    ///
    /// # Errors
    /// As [`Transport::image`]; [`TransportError::Fatal`] if the bucket may not be read.
    async fn foreign_image(&self, image: &ImageRef, max_bytes: u64) -> Result<Option<Bytes>, TransportError>;

    /// Returns the result for an object of another bucket by its key, or `None` if there is none.
    async fn object_result(&self, _key: &str) -> Result<Option<Bytes>, TransportError> {
        Ok(None)
    }

    /// Counts the requests of both classes without receiving them. The numbers are approximate on some backends.
    async fn depth(&self) -> Result<Depth, TransportError> {
        let (interactive, bulk) = tokio::try_join!(self.interactive_depth(), self.bulk_depth())?;
        Ok(interactive + bulk)
    }

    /// Counts the interactive requests, which is how many are ahead of a new one.
    async fn interactive_depth(&self) -> Result<Depth, TransportError>;

    /// Counts the requests of batches. There are none where the service has no queue for them, or it may not be read.
    async fn bulk_depth(&self) -> Result<Depth, TransportError>;

    // Calls of the web tier.

    /// Makes the image and the message of a job durable. A request that names a batch goes to the bulk queue, every other
    /// one to the interactive queue. The message can be received only after the image can be read. If
    /// the submission fails, the job usually has no message; a message that does exist belongs to a job that no client
    /// learned of.
    ///
    /// # Errors
    /// [`TransportError::MessageTooLarge`] in the legacy form. Nothing is stored then.
    async fn submit(&self, job: NewJob<'_>) -> Result<SubmitTimes, TransportError>;

    /// Replaces the image of an abandoned job with the marker [`crate::protocol::WITHDRAWN_IMAGE`], so that no worker
    /// classifies it. A job that has a result is not changed.
    async fn withdraw(&self, id: Uuid) -> Result<Withdrawal, TransportError>;

    /// Cancels a job that has no result, or removes what is kept of one that has. `tombstone` becomes its result, whatever
    /// it was, before the image is deleted: a worker that has the job cannot write another result. A worker that has not
    /// read the image yet finds the marker of a withdrawn job in its place.
    async fn remove(&self, id: Uuid, tombstone: Bytes) -> Result<Removal, TransportError>;

    /// Deletes the image of a job that has a result. A job without one is not changed.
    async fn discard_image(&self, id: Uuid) -> Result<(), TransportError>;

    /// Stores a small record under a key of the output bucket unless there is one. Returns the record that exists afterwards,
    /// the same one in every process.
    async fn record_once(&self, key: &str, text: Bytes) -> Result<Bytes, TransportError>;

    /// Reads a small record of the output bucket.
    async fn record(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, TransportError>;

    /// Returns keys of the output bucket that begin with `prefix`, in their order, from the first after `after` on. An empty
    /// list means that there are no more.
    async fn record_keys(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, TransportError>;

    /// Returns ids of jobs whose image or result is stored, in their order: those after `after` and before `before`. Returns some of
    /// them, and none if there are no more.
    async fn job_ids(&self, part: JobPart, after: Uuid, before: Uuid) -> Result<Vec<Uuid>, TransportError>;

    /// Sends the request of a job whose image lies in another bucket already.
    async fn send_request(&self, request: &ClassifyRequest) -> Result<(), TransportError>;

    /// Writes the result of a job that no worker completed. An existing result is not overwritten. Returns the result that
    /// the job has afterwards.
    async fn write_result(&self, id: Uuid, text: Bytes) -> Result<Bytes, TransportError>;

    /// Returns the output that a legacy worker stored for a job. Always `None` on a backend that legacy workers cannot use.
    async fn legacy_output(&self, _id: Uuid) -> Result<Option<Bytes>, TransportError> {
        Ok(None)
    }

    /// Returns the size and time of a job's image, or `None` if there is none.
    async fn image_info(&self, id: Uuid) -> Result<Option<ImageInfo>, TransportError>;

    /// Opens a job's image to read it in pieces, so that a slow reader holds one piece in memory and not the whole image.
    ///
    /// # Errors
    /// [`TransportError::ObjectTooLarge`] if it has more than `max_bytes`.
    async fn open_image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, TransportError>;

    /// Opens the inbox that receives the replies to this process. With [`InboxMode::Own`] the backend falls back to the
    /// shared inbox if this process is not permitted to create one.
    async fn open_inbox(&self, mode: InboxMode, stack: &str) -> Result<Box<dyn Inbox>, TransportError>;

    /// Returns how long the transport keeps a request that nobody receives.
    async fn retention(&self) -> Result<Duration, TransportError>;

    /// Returns how long a process waits between reads of the depth. It is longer if reads are billed or cross a network.
    fn depth_interval(&self) -> Duration;

    // Calls of the sender of callbacks, which runs in every web process that may call others.

    /// Creates the queue of callbacks if it is missing.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] if it cannot be created, or on a backend without callbacks.
    async fn prepare_callbacks(&self) -> Result<(), TransportError> {
        Err(without_callbacks())
    }

    /// Makes a callback durable. It can be received after `delay`, which is at most a few minutes.
    async fn send_callback(&self, _message: String, _delay: Duration) -> Result<(), TransportError> {
        Err(without_callbacks())
    }

    /// Receives up to `max` callbacks, which then stay invisible for `visibility_timeout`. Returns an empty list if none came
    /// for a while.
    async fn receive_callbacks(
        &self,
        _max: usize,
        _visibility_timeout: Duration,
    ) -> Result<Vec<Delivery>, TransportError> {
        Err(without_callbacks())
    }

    /// Makes a received callback visible again after `delay`, which is at most an hour.
    async fn delay_callback(&self, _receipt: &Receipt, _delay: Duration) -> Result<(), TransportError> {
        Err(without_callbacks())
    }

    /// Deletes a received callback. A dead letter is kept first, if there is one.
    async fn end_callback(&self, _receipt: &Receipt, _kept: Option<DeadLetter>) -> Result<(), TransportError> {
        Err(without_callbacks())
    }

    // Calls of workers.

    /// Receives up to `wanted.max` requests of one class. Returns an empty list if none arrived for a while.
    ///
    /// A worker receives both classes at the same time, with a call for each. Bulk requests are received only while the
    /// call for interactive ones waits, apart from a small share, so that no load of interactive requests stops them.
    ///
    /// While the sessions of the worker are busy ([`WorkerLoad`]), the backend may leave some or all messages to idle
    /// workers. A received message is invisible to others until its visibility timeout has passed; then it is delivered
    /// again with a higher receive count.
    async fn receive(&self, wanted: Wanted, load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError>;

    /// Sets the visibility timeout of received messages, counted from now.
    async fn extend(&self, receipts: &[Receipt], visibility_timeout: Duration) -> Result<(), TransportError>;

    /// Releases messages: they are visible to every worker after `delay`.
    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError>;

    /// Carries out the outcomes of deliveries. For each, the result is written first, then the reply is sent, and the
    /// message is deleted last. If a process fails in between, the message is delivered again or the result exists already. If a job
    /// gets several results, the first is kept.
    ///
    /// Returns one answer for each completion, in order. The caller passes a completion that failed again.
    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>>;

    /// Sends messages of others to the bulk queue as they are: the parts of a message that has several.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] on a backend that takes no messages of others.
    async fn send_bulk_messages(&self, _messages: &[String]) -> Result<(), TransportError> {
        Err(TransportError::Fatal("this backend takes no messages of others".to_owned()))
    }

    // Calls of operators' commands.

    /// Returns the names and roles of the service's queues, including those that do not exist.
    async fn queues(&self) -> Result<Vec<(String, QueueRole)>, TransportError>;

    /// Counts the messages of a queue of the service. Returns `None` if the queue does not exist.
    async fn queue_depth(&self, queue: &str) -> Result<Option<Depth>, TransportError>;

    /// Returns the age of the oldest message of a queue, or `None` if there is no message or the backend does not know.
    async fn oldest_age(&self, queue: &str) -> Result<Option<Duration>, TransportError>;

    /// Deletes all messages of a queue.
    async fn purge(&self, queue: &str) -> Result<(), TransportError>;

    /// Opens a scan of the dead letters.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterScan>, TransportError>;

    /// Submits a dead letter again. It first writes the image again, because the retention time of a job starts with its
    /// image, then deletes the failed result, and sends the message last. A caller that does not know the outcome may repeat
    /// the call. A job whose image lies in another bucket is named by its message alone.
    async fn resubmit(&self, job: Resubmission) -> Result<(), TransportError>;

    /// Makes the requests visible that a process received and neither completed nor released. The caller has made sure that
    /// the process is dead. The receive counts do not change. Does nothing on a backend that does not record which process
    /// received a message.
    async fn release_held_by(&self, _process: ReceivingProcess) -> Result<(), TransportError> {
        Ok(())
    }
}

fn without_callbacks() -> TransportError {
    TransportError::Fatal("this backend has no callbacks".to_owned())
}

/// Opens the transports of a backend that a process registers ([`register`](super::register)).
#[async_trait]
pub trait Opener: Send + Sync {
    /// Opens the transport of a service. It creates no queue and no bucket; [`Transport::prepare`] does.
    ///
    /// # Errors
    /// [`TransportError::Fatal`] if the backend cannot be used. Its message says what to do.
    async fn open(&self, backend: &Backend, names: &Names) -> Result<Arc<dyn Transport>, TransportError>;
}

/// The inbox that receives the replies to one web process.
#[async_trait]
pub trait Inbox: Send + Sync {
    /// Returns the address for the member `reply_to` of requests. It may change if the inbox was removed and recreated.
    fn address(&self) -> String;

    /// Returns true if other processes receive from it too.
    fn is_shared(&self) -> bool;

    /// Waits for replies. Returns an empty list if none arrived for a while.
    ///
    /// # Errors
    /// The caller waits a moment and calls again. An inbox that was removed is recreated by then.
    async fn receive(&self) -> Result<Vec<ReceivedReply>, TransportError>;

    /// Deletes replies that were handled, and releases those that another process may wait for. A failure is only logged,
    /// because the replies are then delivered again.
    async fn acknowledge(&self, handled: &[Receipt], released: &[Receipt]);

    /// Does the periodic work that keeps the inbox usable. The future runs until it is dropped.
    async fn maintain(&self) {
        std::future::pending::<()>().await;
    }

    /// Closes the inbox when the process ends. An inbox that only this process uses is removed.
    async fn close(&self);
}

/// A scan of the dead letters. It returns each of them once.
#[async_trait]
pub trait DeadLetterScan: Send {
    /// Returns the next dead letters, at most `max`. An empty list ends the scan.
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError>;

    /// Keeps a dead letter in the queue.
    fn keep(&mut self, dead_letter: Delivery);

    /// Deletes dead letters.
    async fn delete(&mut self, dead_letters: &[Receipt]) -> Result<(), TransportError>;

    /// Ends the scan. The dead letters that were kept are visible to others again.
    async fn close(self: Box<Self>) -> Result<(), TransportError>;
}

/// The load of a worker. A transport may query it while a receive waits.
#[async_trait]
pub trait WorkerLoad: Send + Sync {
    /// Returns how long this worker can leave messages to idle workers and still have the next one in time, or `None` if a
    /// session is free now.
    fn deferral(&self) -> Option<Duration>;

    /// Resolves when a session is free.
    async fn until_idle(&self);
}

/// The load of a receiver that has nothing else to do.
#[derive(Debug, Clone, Copy)]
pub struct Idle;

#[async_trait]
impl WorkerLoad for Idle {
    fn deferral(&self) -> Option<Duration> {
        None
    }

    async fn until_idle(&self) {}
}

/// The parameters of a worker's receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The class of the requests.
    pub class: ServiceClass,
    /// At most this many messages; at least one.
    pub max: usize,
    /// How long the messages stay invisible to others, unless this worker extends that.
    pub visibility_timeout: Duration,
}

/// The options that all tiers of a service share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceOptions {
    /// The visibility timeout of queues that are created.
    pub visibility_timeout: Duration,
    /// Workers give up on a message after this many deliveries. The queue's own limit is higher.
    pub max_receive_count: u32,
}

/// The size and time of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// The size of the file in bytes.
    pub size_bytes: u64,
    /// When it was written.
    pub modified: SystemTime,
}

/// A stored part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobPart {
    /// Its image.
    Image,
    /// Its result.
    Result,
}

/// The kind of inbox that a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxMode {
    /// An inbox that only this process uses.
    Own,
    /// The inbox that all web processes share.
    Shared,
}

/// A reply that an inbox received.
#[derive(Debug, Clone)]
pub struct ReceivedReply {
    /// The receipt of this delivery.
    pub receipt: Receipt,
    /// The text of the reply.
    pub text: String,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent_at_ms: i64,
}

/// The outcome of a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// No worker will classify the image.
    Withdrawn,
    /// The job has a result.
    AlreadyCompleted,
    /// There is no stored image: it is not stored yet, or the message carries it.
    NotStored,
}

/// The outcome of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The job had no result and gets none but the tombstone.
    Cancelled,
    /// The job had a result, which is gone.
    Removed,
    /// There is neither an image nor a result.
    Unknown,
}

/// The role of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueRole {
    /// Jobs for workers.
    Requests,
    /// Jobs of batches for workers.
    BulkRequests,
    /// Calls of web processes to receivers of their clients.
    Callbacks,
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
    /// The job, its image and the media type of the image. `None` if the message has no job.
    pub job: Option<(Uuid, Bytes, Option<&'static str>)>,
    /// The message.
    pub message: String,
}
