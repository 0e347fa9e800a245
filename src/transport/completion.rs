//! What a worker wants done when a delivery has its outcome.

use bytes::Bytes;
use uuid::Uuid;

use super::message::Receipt;

/// The outcome of one delivery. [`super::Transport::complete`] does the steps that are set: first what is stored, then what is
/// sent. It deletes the message last.
#[derive(Debug)]
pub struct Completion {
    /// Of the delivery.
    pub receipt: Receipt,
    /// The job was withdrawn: the marker in place of its image is deleted.
    pub withdrawn: Option<Uuid>,
    /// Written once: a result that exists stays as it is.
    pub result: Option<NewResult>,
    /// Files of the legacy form.
    pub legacy_output: Option<LegacyOutput>,
    /// Sent to the process that waits for the job.
    pub reply: Option<Reply>,
    /// Kept for operators.
    pub dead_letter: Option<DeadLetter>,
    /// What a backend that does one step at a time has done already.
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

/// What a worker stores for a message of the legacy form.
#[derive(Debug, Clone)]
pub struct LegacyOutput {
    /// The file name of the message, safe to be a key. The image is stored under it.
    pub name: String,
    /// The image.
    pub image: Bytes,
    /// Stored under the file name up to its first dot.
    pub output: Bytes,
}

/// A reply to send.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its receiver.
    pub to: ReplyTo,
    /// Its text. When the completion has a result and an earlier result exists, that one is sent instead.
    pub text: String,
}

/// The receiver of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// The inbox of that address. The reply may be lost: the result says the same.
    Inbox(String),
    /// The shared inbox, durably: a legacy web tier reads no results.
    LegacyWebTier,
}

/// A message that no worker can or should process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The job, when the message names one.
    pub id: Option<Uuid>,
    /// The message.
    pub body: String,
    /// Why it is dead.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
}

/// A completion that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// What became of the result.
    pub result: ResultWrite,
    /// What became of the reply, when there was one.
    pub reply: Option<ReplyOutcome>,
}

/// What became of a result that was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultWrite {
    /// There was none to write.
    Nothing,
    /// It is the job's result now.
    Created,
    /// The job had a result already. It is returned, unless it cannot be read.
    AlreadyCompleted(Option<Bytes>),
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// It was sent.
    Sent,
    /// It was sent without the result, which did not fit: the receiver reads the result.
    Cut,
    /// Its inbox does not exist any more: the web process has ended.
    Gone,
    /// The address is none of this service, so nothing was sent.
    Foreign,
    /// It cannot be sent, and a retry does not help: the waiter reads the result.
    Failed,
}

/// Which steps are done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub result: Option<ResultWrite>,
    pub legacy_output: bool,
    pub reply: Option<ReplyOutcome>,
    pub dead_letter: bool,
}

impl Completion {
    /// A completion that only deletes the message.
    pub fn new(receipt: Receipt) -> Self {
        Completion {
            receipt,
            withdrawn: None,
            result: None,
            legacy_output: None,
            reply: None,
            dead_letter: None,
            progress: Progress::default(),
        }
    }
}

impl ReplyOutcome {
    /// As the worker's counter of replies names it.
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
    /// Whether it only deletes the message.
    pub(super) fn is_bare(&self) -> bool {
        let Completion { withdrawn, result, legacy_output, reply, dead_letter, .. } = self;
        withdrawn.is_none() && result.is_none() && legacy_output.is_none() && reply.is_none() && dead_letter.is_none()
    }

    /// The text of the reply: the result that counts for the job.
    pub(super) fn reply_text(&self) -> String {
        if let Some(ResultWrite::AlreadyCompleted(Some(stored))) = &self.progress.result {
            return String::from_utf8_lossy(stored).into_owned();
        }
        self.reply.as_ref().map(|reply| reply.text.clone()).unwrap_or_default()
    }

    /// The answer when all steps are done.
    pub(super) fn completed(&self) -> Completed {
        let result = self.progress.result.clone().unwrap_or(ResultWrite::Nothing);
        Completed { result, reply: self.progress.reply }
    }
}
