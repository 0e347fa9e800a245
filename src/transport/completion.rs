//! The steps that complete a delivery, and their results.

use bytes::Bytes;
use uuid::Uuid;

use super::message::Receipt;

/// The outcome of one delivery. [`super::Transport::complete`] carries out the steps that are set: it stores first, then
/// sends, and deletes the message last.
#[derive(Debug)]
pub struct Completion {
    /// The receipt of the delivery.
    pub receipt: Receipt,
    /// The job, if it was withdrawn. The marker that replaced its image is deleted.
    pub withdrawn: Option<Uuid>,
    /// The result to write. An existing result is not overwritten.
    pub result: Option<NewResult>,
    /// The result to write for an object of another bucket. Only on backends that have other buckets.
    pub object_result: Option<NewObjectResult>,
    /// The files to write for a message of the legacy form.
    pub legacy_output: Option<LegacyOutput>,
    /// The reply to send to the process that waits for the job.
    pub reply: Option<Reply>,
    /// The dead letter to keep for operators.
    pub dead_letter: Option<DeadLetter>,
    /// The steps that a backend that runs them one at a time has already done.
    pub(super) progress: Progress,
}

/// A result to write.
#[derive(Debug, Clone)]
pub struct NewResult {
    /// The job.
    pub id: Uuid,
    /// The result as JSON.
    pub text: Bytes,
}

/// A result for an object. It replaces one of an earlier event, and never one of a later event.
#[derive(Debug, Clone)]
pub struct NewObjectResult {
    /// The key of the result.
    pub key: String,
    /// The sequencer of the event.
    pub sequencer: String,
    /// The result as JSON.
    pub text: Bytes,
}

/// The files that a worker stores for a message of the legacy form.
#[derive(Debug, Clone)]
pub struct LegacyOutput {
    /// The file name of the message, safe to be a key. The image is stored under it.
    pub name: String,
    /// The image.
    pub image: Bytes,
    /// The output, stored under the file name up to its first dot.
    pub output: Bytes,
}

/// A reply to send.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its receiver.
    pub to: ReplyTo,
    /// Its text. If the completion has a result and an earlier result exists, the earlier one is sent instead.
    pub text: String,
}

/// The receiver of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// The inbox with this address. The reply may be lost, because the stored result has the same content.
    Inbox(String),
    /// The shared inbox. The reply is durable, because a legacy web tier does not read results.
    LegacyWebTier,
}

/// A message that no worker can or should process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The job, when the message names one.
    pub id: Option<Uuid>,
    /// The message.
    pub body: String,
    /// The reason why it cannot be processed.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
}

/// The answer to a completion that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The outcome of the result step.
    pub result: ResultWrite,
    /// The outcome of the reply step. `None` if the completion had no reply.
    pub reply: Option<ReplyOutcome>,
}

/// The outcome of writing a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultWrite {
    /// The completion had no result.
    Nothing,
    /// The result was written.
    Created,
    /// The job already had a result. It is returned unless it cannot be read.
    AlreadyCompleted(Option<Bytes>),
}

/// The outcome of sending a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// It was sent.
    Sent,
    /// It was sent without the result, which did not fit. The receiver reads the stored result.
    Cut,
    /// Its inbox no longer exists, because the web process has ended.
    Gone,
    /// The address does not belong to this service, so nothing was sent.
    Foreign,
    /// It cannot be sent, and a retry does not help. The waiter reads the stored result.
    Failed,
}

/// The steps of a completion that are done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub result: Option<ResultWrite>,
    pub object_result: bool,
    pub legacy_output: bool,
    pub reply: Option<ReplyOutcome>,
    pub dead_letter: bool,
}

impl Completion {
    /// Creates a completion that only deletes the message.
    pub fn new(receipt: Receipt) -> Self {
        Completion {
            receipt,
            withdrawn: None,
            result: None,
            object_result: None,
            legacy_output: None,
            reply: None,
            dead_letter: None,
            progress: Progress::default(),
        }
    }
}

impl ReplyOutcome {
    /// Returns the label of the worker's reply counter.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplyOutcome::Sent => "sent",
            ReplyOutcome::Cut => "cut",
            ReplyOutcome::Gone => "gone",
            ReplyOutcome::Foreign => "foreign",
            ReplyOutcome::Failed => "failed",
        }
    }
}

impl Completion {
    /// Returns true if the completion only deletes the message.
    pub(super) fn is_bare(&self) -> bool {
        let Completion { withdrawn, result, object_result, legacy_output, reply, dead_letter, .. } = self;
        let has_result = result.is_some() || object_result.is_some();
        withdrawn.is_none() && !has_result && legacy_output.is_none() && reply.is_none() && dead_letter.is_none()
    }

    /// Returns the text of the reply, which is the result that counts for the job.
    pub(super) fn reply_text(&self) -> String {
        if let Some(ResultWrite::AlreadyCompleted(Some(stored))) = &self.progress.result {
            return String::from_utf8_lossy(stored).into_owned();
        }
        self.reply.as_ref().map(|reply| reply.text.clone()).unwrap_or_default()
    }

    /// Returns the answer to the caller. Call it when all steps are done.
    pub(super) fn completed(&self) -> Completed {
        let result = self.progress.result.clone().unwrap_or(ResultWrite::Nothing);
        Completed { result, reply: self.progress.reply }
    }
}
