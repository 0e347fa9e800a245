//! A batch of completions inside one transaction.

use bytes::Bytes;

use super::queue::messages;
use super::segments::Place;
use super::store::{AppendedObject, Done, ExistingObject, NewObject};
use crate::protocol::{self, MAX_RESULT_BYTES, ServiceClass};
use crate::sqlite::{Failure, Fault, Session};
use crate::transport::completion::{ReplyOutcome, ResultWrite};
use crate::transport::error::{CompletionError, TransportError};
use crate::transport::message::Receipt;
use crate::transport::queued::classes;
use crate::transport::queued::object::Put;
use crate::transport::queued::queue::{Outgoing, QueueError};
use crate::transport::queued::replies;

/// A completion, with its bodies prepared.
pub(crate) struct Planned {
    pub receipt: Receipt,
    pub marker: Option<ExistingObject>,
    pub result: Option<(NewObject, ExistingObject)>,
    /// The image and the output of a legacy job.
    pub legacy: Option<(NewObject, NewObject)>,
    /// The dead letter with its reason, and a shorter form without it in case the first is too large.
    pub dead_letter: Option<(Outgoing, Outgoing)>,
    pub reply: Option<PlannedReply>,
}

/// The names of the request queues, by class.
pub(crate) struct RequestQueues {
    pub interactive: String,
    pub bulk: String,
}

impl RequestQueues {
    fn of(&self, class: ServiceClass) -> &str {
        match class {
            ServiceClass::Interactive => &self.interactive,
            ServiceClass::Bulk => &self.bulk,
        }
    }
}

/// How a reply is sent.
pub(crate) enum PlannedReply {
    /// The reply is a message that is written in the transaction.
    InTransaction { queue: String, text: String },
    /// The reply is a datagram that is sent once the transaction is on disk.
    AfterCommit { queue: String, text: String },
    /// The reply queue is not one of this service, so nothing is sent.
    Foreign,
}

/// The outcome of one completion in the transaction.
pub(crate) struct Outcome {
    /// Objects whose puts are to be finished once the transaction is committed; true for those of the input bucket.
    pub stored: Vec<(bool, Done)>,
    /// The place of the body of the deleted marker, which can be freed after the commit.
    pub freed: Option<Place>,
    pub written: Result<Written, CompletionError>,
}

pub(crate) struct Written {
    pub result: ResultWrite,
    pub reply: Option<ReplyOutcome>,
    pub reply_after_commit: Option<(String, String)>,
}

/// A [`Planned`] completion whose bodies are appended to segments.
struct Appended {
    planned: Planned,
    result: Option<(AppendedObject, ExistingObject)>,
    legacy: Option<(AppendedObject, AppendedObject)>,
}

impl Default for Planned {
    fn default() -> Self {
        Planned {
            receipt: Receipt(String::new()),
            marker: None,
            result: None,
            legacy: None,
            dead_letter: None,
            reply: None,
        }
    }
}

/// Carries out a batch. An error of one completion is reported in its outcome; an error of the database fails the batch.
pub(crate) fn carry_out(
    session: &mut Session,
    batch: Vec<Planned>,
    requests: &RequestQueues,
    dead_letters: &str,
) -> Result<Vec<Outcome>, Failure<TransportError>> {
    // The bodies are appended before any row is written, so that a completion that fails leaves no rows behind.
    let batch: Vec<_> = batch.into_iter().map(|planned| append(session, planned)).collect();
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut done: [(ServiceClass, Vec<Receipt>, Vec<usize>); 2] =
        [ServiceClass::Interactive, ServiceClass::Bulk].map(|class| (class, Vec::new(), Vec::new()));
    for (at, appended) in batch.into_iter().enumerate() {
        let outcome = match appended {
            Ok(appended) => {
                let (class, receipt) = classes::split(&appended.planned.receipt);
                let outcome = write(session, appended, dead_letters)?;
                if outcome.written.is_ok() {
                    let [interactive, bulk] = &mut done;
                    let (_, receipts, places) = if class == ServiceClass::Bulk { bulk } else { interactive };
                    receipts.push(receipt);
                    places.push(at);
                }
                outcome
            }
            Err(error) => Outcome { stored: Vec::new(), freed: None, written: Err(error) },
        };
        outcomes.push(outcome);
    }
    for (class, receipts, places) in done {
        if receipts.is_empty() {
            continue;
        }
        match messages::ack(session, requests.of(class), &receipts) {
            Ok(()) => {}
            Err(Failure::Sql(error)) => return Err(Failure::Sql(error)),
            Err(Failure::Call(error)) => {
                for at in places {
                    outcomes[at].written = Err(CompletionError { step: "ack", error: error.clone().into() });
                }
            }
        }
    }
    Ok(outcomes)
}

/// Converts the error of a failure to the error of the port.
pub(crate) fn lift<E: Into<TransportError>>(failure: Failure<E>) -> Failure<TransportError> {
    match failure {
        Failure::Call(error) => Failure::Call(error.into()),
        Failure::Sql(error) => Failure::Sql(error),
    }
}

fn append(session: &mut Session, mut planned: Planned) -> Result<Appended, CompletionError> {
    let mut appended = |step, new: NewObject| {
        new.append::<TransportError>(session).map_err(|failure| {
            let error = match failure {
                Failure::Call(error) => error,
                Failure::Sql(error) => TransportError::Unavailable(error.to_string()),
            };
            CompletionError { step, error }
        })
    };
    let result = match planned.result.take() {
        Some((new, existing)) => Some((appended("put_result", new)?, existing)),
        None => None,
    };
    let legacy = match planned.legacy.take() {
        Some((image, output)) => Some((appended("put_image", image)?, appended("put_output", output)?)),
        None => None,
    };
    Ok(Appended { planned, result, legacy })
}

fn write(session: &mut Session, appended: Appended, dead_letters: &str) -> Result<Outcome, Failure<TransportError>> {
    let Appended { planned, result, legacy } = appended;
    let mut stored = Vec::new();
    let freed = match planned.marker {
        Some(marker) => marker.delete(session)?,
        None => None,
    };
    if let Some((image, output)) = legacy {
        stored.push((true, image.insert(session, false)?));
        stored.push((false, output.insert(session, false)?));
    }
    let result = match result {
        Some((new, existing)) => {
            let (done, written) = write_result(session, new, &existing)?;
            stored.push((false, done));
            written
        }
        None => Ok(ResultWrite::Nothing),
    };
    let written = match result {
        Ok(result) => finish(session, result, planned.dead_letter, planned.reply, dead_letters)?,
        Err(error) => Err(error),
    };
    Ok(Outcome { stored, freed, written })
}

fn write_result(
    session: &mut Session,
    new: AppendedObject,
    existing: &ExistingObject,
) -> Result<(Done, Result<ResultWrite, CompletionError>), Failure<TransportError>> {
    let done = new.insert(session, true)?;
    if done.put == Put::Created {
        return Ok((done, Ok(ResultWrite::Created)));
    }
    let written = match existing.get::<Fault>(session, MAX_RESULT_BYTES) {
        Ok(Ok(stored)) => Ok(ResultWrite::AlreadyCompleted(stored)),
        Ok(Err(reason)) => {
            tracing::error!(
                reason,
                "cannot read the result of an earlier attempt; replying with the result of this one"
            );
            Ok(ResultWrite::AlreadyCompleted(None))
        }
        Err(Failure::Call(fault)) => Err(CompletionError { step: "get_result", error: fault.into() }),
        Err(Failure::Sql(error)) => return Err(Failure::Sql(error)),
    };
    Ok((done, written))
}

/// Sends the dead letter and the reply.
fn finish(
    session: &mut Session,
    result: ResultWrite,
    dead_letter: Option<(Outgoing, Outgoing)>,
    reply: Option<PlannedReply>,
    dead_letters: &str,
) -> Result<Result<Written, CompletionError>, Failure<TransportError>> {
    if let Some((full, short)) = dead_letter {
        let sent = match send(session, dead_letters, full)? {
            Err(QueueError::TooLarge { .. }) => send(session, dead_letters, short)?,
            sent => sent,
        };
        if let Err(error) = sent {
            return Ok(Err(CompletionError { step: "send_dead_letter", error: error.into() }));
        }
    }
    let mut written = Written { result, reply: None, reply_after_commit: None };
    match reply {
        None => {}
        Some(PlannedReply::Foreign) => written.reply = Some(ReplyOutcome::Foreign),
        Some(PlannedReply::AfterCommit { queue, text }) => {
            written.reply_after_commit = Some((queue, counting_text(&written.result, text)));
        }
        Some(PlannedReply::InTransaction { queue, text }) => {
            let text = counting_text(&written.result, text);
            match send_reply(session, &queue, &text)? {
                Ok(outcome) => written.reply = Some(outcome),
                Err(error) => return Ok(Err(error)),
            }
        }
    }
    Ok(Ok(written))
}

/// Returns the text to reply: the stored result if an earlier attempt completed the job, else that of this attempt.
fn counting_text(result: &ResultWrite, own: String) -> String {
    match result {
        ResultWrite::AlreadyCompleted(Some(stored)) => text_of(stored),
        _ => own,
    }
}

fn text_of(stored: &Bytes) -> String {
    String::from_utf8_lossy(stored).into_owned()
}

fn send_reply(
    session: &mut Session,
    queue: &str,
    text: &str,
) -> Result<Result<ReplyOutcome, CompletionError>, Failure<TransportError>> {
    let answer = send(session, queue, Outgoing::new(text))?;
    if !matches!(answer, Err(QueueError::TooLarge { .. })) {
        return Ok(replies::outcome(answer));
    }
    let Some(cut) = protocol::cut_reply(text) else { return Ok(Ok(ReplyOutcome::Cut)) };
    let sent = replies::outcome(send(session, queue, Outgoing::new(cut))?);
    Ok(sent.map(|outcome| if outcome == ReplyOutcome::Sent { ReplyOutcome::Cut } else { outcome }))
}

/// Sends one message. The inner error is that of the queue, and nothing was written then.
fn send(
    session: &mut Session,
    queue: &str,
    message: Outgoing,
) -> Result<Result<(), QueueError>, Failure<TransportError>> {
    match messages::send(session, queue, &[message]) {
        Ok(answers) => Ok(answers.into_iter().next().unwrap_or(Ok(()))),
        Err(Failure::Call(error)) => Ok(Err(error)),
        Err(Failure::Sql(error)) => Err(Failure::Sql(error)),
    }
}
