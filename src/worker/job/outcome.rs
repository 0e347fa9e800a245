//! The outcomes of a delivery.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Answer, Origin, Rules, Work, millis_between};
use crate::model::{ModelRef, Prediction};
use crate::protocol::{
    self, ClassifyRequest, ClassifyResult, ErrorCode, ErrorInfo, ObjectEvent, ObjectResult, Status, TimingsMs,
};
use crate::retry::Schedule;

/// The outcome of a delivery. [`super::publish`] carries it out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The result is written once, and sent to `reply_to`.
    Result { result: ClassifyResult, reply_to: Option<String> },
    /// The result for an object, which replaces that of an earlier event.
    Object { result: Box<ObjectResult> },
    /// The message needs nothing more.
    Acknowledged { reason: &'static str },
    /// An earlier attempt wrote the result, which is sent again.
    AlreadyCompleted { stored: Bytes, reply_to: Option<String> },
    /// The legacy form: image and output are stored under the file's name, and the reply names the file.
    Legacy { name: String, image: Bytes, label: String },
    /// No worker can or should process it: a job with an id gets a failed result, and the message becomes a dead letter
    /// with its reason.
    DeadLetter { dead_letter: DeadLetter, result: Option<ClassifyResult>, reply_to: Option<String> },
    /// The client left before it got the id. The marker that replaced the image is deleted. There is no result.
    Withdrawn { id: Uuid },
    /// An internal fault, or a newer wire version: the message is visible to all workers after this long.
    Release { id: Option<Uuid>, after: Duration, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub id: Option<Uuid>,
    pub body: String,
    pub reason: String,
    pub attempts: u32,
    /// The file name that a legacy web tier waits for. The reply has the reason instead of a label.
    pub legacy_name: Option<String>,
}

impl Work {
    /// The outcome of an image that was classified.
    pub(crate) fn succeeded(self, answer: Answer, image: Bytes, now: Timestamp, rules: &Rules) -> Outcome {
        let Answer { predictions, labels, model } = answer;
        match self.origin {
            Origin::Ours(request) => {
                let result = ClassifyResult {
                    v: protocol::WIRE_VERSION,
                    id: request.id,
                    filename: request.filename,
                    status: Status::Succeeded,
                    predictions,
                    labels,
                    image: self.image,
                    model: Some(model),
                    timings_ms: TimingsMs { total: millis_between(request.submitted_at, now), ..self.timings_ms },
                    attempt: self.attempt,
                    worker: rules.worker.clone(),
                    error: None,
                };
                Outcome::Result { result, reply_to: request.reply_to }
            }
            Origin::Object(event) => {
                let ended = Ended { status: Status::Succeeded, predictions, labels, model: Some(model), error: None };
                object_outcome(*event, ended, self.timings_ms, self.attempt, now, rules)
            }
            Origin::Legacy { name } => {
                let label = predictions.into_iter().next().map(|best| best.label).unwrap_or_default();
                Outcome::Legacy { name, image, label }
            }
        }
    }

    /// The outcome of an image that fails again at every retry.
    pub(crate) fn failed(self, code: ErrorCode, message: String, body: &str, now: Timestamp, rules: &Rules) -> Outcome {
        match self.origin {
            Origin::Ours(request) => {
                let mut outcome = ended(&request, Status::Failed, code, message, self.attempt, now, rules);
                if let Outcome::Result { result, .. } = &mut outcome {
                    let total = result.timings_ms.total;
                    result.timings_ms = TimingsMs { total, ..self.timings_ms };
                }
                outcome
            }
            Origin::Object(event) => {
                let ended = Ended::failed(ErrorInfo { code, message });
                object_outcome(*event, ended, self.timings_ms, self.attempt, now, rules)
            }
            Origin::Legacy { name } => {
                legacy_dead_letter(name, body, format!("{}: {message}", code.as_str()), self.attempt)
            }
        }
    }

    /// The outcome of an image whose stored bytes are damaged: the client gets an error, and the message becomes a
    /// dead letter.
    pub(crate) fn damaged(self, reason: &str, body: &str, now: Timestamp, rules: &Rules) -> Outcome {
        let attempt = self.attempt;
        let message = format!("the stored image is damaged, send it again ({reason})");
        let dead_letter = |id| DeadLetter {
            id,
            body: body.to_owned(),
            reason: reason.to_owned(),
            attempts: attempt,
            legacy_name: None,
        };
        match self.failed(ErrorCode::Internal, message, body, now, rules) {
            Outcome::Result { result, reply_to } => {
                Outcome::DeadLetter { dead_letter: dead_letter(Some(result.id)), result: Some(result), reply_to }
            }
            outcome => outcome,
        }
    }

    /// The outcome of an attempt that failed by an internal fault.
    pub(crate) fn faulted(&self, reason: String) -> Outcome {
        release(self.id(), self.attempt, reason)
    }
}

impl Outcome {
    /// The name in the log and the label of the counter.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Outcome::Result { result, .. } => result.status.as_str(),
            Outcome::Object { result } => result.status.as_str(),
            Outcome::Acknowledged { .. } => "acknowledged",
            Outcome::AlreadyCompleted { .. } => "again",
            Outcome::Legacy { .. } => "seed",
            Outcome::DeadLetter { .. } => "dead_letter",
            Outcome::Withdrawn { .. } => "withdrawn",
            Outcome::Release { .. } => "handed_back",
        }
    }
}

/// The end of an image that an event named.
struct Ended {
    status: Status,
    predictions: Vec<Prediction>,
    labels: Vec<Prediction>,
    model: Option<ModelRef>,
    error: Option<ErrorInfo>,
}

impl Ended {
    fn failed(error: ErrorInfo) -> Ended {
        Ended { status: Status::Failed, predictions: Vec::new(), labels: Vec::new(), model: None, error: Some(error) }
    }
}

fn object_outcome(
    event: ObjectEvent,
    ended: Ended,
    timings_ms: TimingsMs,
    attempt: u32,
    now: Timestamp,
    rules: &Rules,
) -> Outcome {
    let ObjectEvent { bucket, key, etag, sequencer, at } = event;
    let Ended { status, predictions, labels, model, error } = ended;
    let total = at.map_or(0.0, |at| millis_between(at, now));
    let timings_ms = TimingsMs { total, ..timings_ms };
    let worker = rules.worker.clone();
    let v = protocol::WIRE_VERSION;
    let result = ObjectResult {
        v,
        bucket,
        key,
        etag,
        sequencer,
        status,
        predictions,
        labels,
        model,
        timings_ms,
        attempt,
        worker,
        error,
    };
    Outcome::Object { result: Box::new(result) }
}

/// The outcome of a message that is left to another attempt.
pub(crate) fn release(id: Option<Uuid>, attempt: u32, reason: String) -> Outcome {
    Outcome::Release { id, after: retry_delay(attempt), reason }
}

/// The outcome of a job whose result was written by an earlier attempt and is damaged: its content is lost, and another
/// result must not replace it without an operator.
pub(crate) fn damaged_result(request: &ClassifyRequest, body: &str, attempts: u32, reason: &str) -> Outcome {
    let reason = format!("{reason}; `imgcls queue redrive {}` classifies the image again", request.id);
    dead_letter(Some(request.id), body, reason, attempts)
}

/// How long a message stays invisible after an internal fault: 1 s doubling to a minute, so that an outage of seconds does
/// not use up its attempts.
fn retry_delay(attempt: u32) -> Duration {
    const SCHEDULE: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(60));
    SCHEDULE.delay_after(attempt)
}

pub(super) fn ended(
    request: &ClassifyRequest,
    status: Status,
    code: ErrorCode,
    message: String,
    attempt: u32,
    now: Timestamp,
    rules: &Rules,
) -> Outcome {
    let mut result = ClassifyResult::ended(request.id, &request.filename, status, code, message);
    result.attempt = attempt;
    result.worker.clone_from(&rules.worker);
    result.timings_ms.total = millis_between(request.submitted_at, now);
    result.timings_ms.queued = result.timings_ms.total;
    Outcome::Result { result, reply_to: request.reply_to.clone() }
}

pub(super) fn exhausted(
    request: &ClassifyRequest,
    body: &str,
    attempt: u32,
    last_fault: Option<&str>,
    now: Timestamp,
    rules: &Rules,
) -> Outcome {
    let reason = exhausted_reason(last_fault);
    let attempts = attempt - 1;
    let message = format!("given up after {attempts} attempts: {reason}");
    let outcome = ended(request, Status::Failed, ErrorCode::AttemptsExhausted, message, attempts, now, rules);
    let Outcome::Result { result, reply_to } = outcome else { return outcome };
    let dead_letter = DeadLetter { id: Some(request.id), body: body.to_owned(), reason, attempts, legacy_name: None };
    Outcome::DeadLetter { dead_letter, result: Some(result), reply_to }
}

pub(super) fn exhausted_reason(last_fault: Option<&str>) -> String {
    last_fault
        .unwrap_or(
            "each worker that took it was stopped or died before it finished; this worker saw no error of its own",
        )
        .to_owned()
}

pub(super) fn malformed(
    id: Option<Uuid>,
    reply_to: Option<String>,
    filename: &str,
    body: &str,
    reason: &str,
    attempt: u32,
    rules: &Rules,
) -> Outcome {
    let result = id.map(|id| {
        let mut result = ClassifyResult::ended(id, filename, Status::Failed, ErrorCode::Malformed, reason);
        result.attempt = attempt;
        result.worker.clone_from(&rules.worker);
        result
    });
    let reason = format!("malformed: {reason}");
    let dead_letter = DeadLetter { id, body: body.to_owned(), reason, attempts: attempt, legacy_name: None };
    Outcome::DeadLetter { dead_letter, result, reply_to }
}

pub(super) fn dead_letter(id: Option<Uuid>, body: &str, reason: String, attempts: u32) -> Outcome {
    let dead_letter = DeadLetter { id, body: body.to_owned(), reason, attempts, legacy_name: None };
    Outcome::DeadLetter { dead_letter, result: None, reply_to: None }
}

pub(super) fn legacy_dead_letter(name: String, body: &str, reason: String, attempts: u32) -> Outcome {
    let dead_letter = DeadLetter { id: None, body: body.to_owned(), reason, attempts, legacy_name: Some(name) };
    Outcome::DeadLetter { dead_letter, result: None, reply_to: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delays_grow_with_the_attempts() {
        let seconds: Vec<u64> = (1..=9).map(|attempt| retry_delay(attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
