//! What a delivery asks for, and how it can end. Decisions only: no I/O, no clock.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::protocol::{
    self, ClassifyRequest, ClassifyResult, ErrorCode, Incoming, LegacyRequest, ModelRef, Payload, Prediction, Status,
    TimingsMs,
};

/// From this attempt on a message is processed alone: if it is what kills workers, it takes no other along.
pub const ALONE_FROM_ATTEMPT: u32 = 3;

/// What a worker accepts, from its configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    pub input_bucket: String,
    pub max_receive_count: u32,
    /// Who signs results: host and process.
    pub worker: String,
}

/// An image to classify, whoever's form it came in.
#[derive(Debug)]
pub struct Work {
    pub origin: Origin,
    pub payload: Payload,
    pub top_k: u32,
    pub attempt: u32,
    pub timings_ms: TimingsMs,
}

#[derive(Debug)]
pub enum Origin {
    Ours(Box<ClassifyRequest>),
    /// The original's form; the name is safe to be a key.
    Legacy {
        name: String,
    },
}

/// How a delivery ends. [`super::publish`] carries it out.
#[derive(Debug)]
pub enum Ending {
    /// Write the result once, send it to `reply_to`, ack.
    Result { result: ClassifyResult, reply_to: Option<String> },
    /// The result stands since an earlier attempt: send that one again, ack.
    Again { stored: Bytes, reply_to: Option<String> },
    /// The original's form: store image and output under the file's name, reply by name, ack.
    Legacy { name: String, image: Bytes, label: String },
    /// No worker can or should end it: write the result where there is an id, reply, keep the message with its
    /// reason in the dead-letter queue, ack.
    DeadLetter { letter: DeadLetter, result: Option<ClassifyResult>, reply_to: Option<String> },
    /// The client left before anybody was told the id: delete what stands for the image, ack. There is no result.
    Withdrawn { id: Uuid },
    /// A fault of ours, or a newer wire: somebody tries again after this long.
    HandBack { id: Option<Uuid>, after: Duration, reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub id: Option<Uuid>,
    pub body: String,
    pub reason: String,
    pub attempts: u32,
    /// The original's web tier waits under this name; it is told the reason in place of a label.
    pub legacy_name: Option<String>,
}

/// What to do with a delivery before its image is touched.
#[derive(Debug)]
pub enum Triage {
    Classify(Work),
    /// An earlier attempt may have ended it: read its result first, then [`settle`].
    LookUp(Box<ClassifyRequest>),
    End(Ending),
}

impl From<Result<Work, Box<Ending>>> for Triage {
    fn from(settled: Result<Work, Box<Ending>>) -> Self {
        settled.map_or_else(|ending| Triage::End(*ending), Triage::Classify)
    }
}

/// Decides on what came. `body`: of the message, for the dead letters.
pub fn triage(incoming: Incoming, body: &str, attempt: u32, now: Timestamp, rules: &Rules) -> Triage {
    match incoming {
        Incoming::Job(request) if attempt > 1 => Triage::LookUp(request),
        Incoming::Job(request) => settle(request, body, attempt, None, now, rules).into(),
        Incoming::Legacy(request) => triage_legacy(&request, body, attempt, rules),
        Incoming::UnknownVersion { v } if attempt > rules.max_receive_count => {
            let reason = format!("no worker knows wire version {v}");
            Triage::End(dead_letter(None, body, reason, attempt))
        }
        Incoming::UnknownVersion { v } => {
            let reason = format!("wire version {v}, this worker speaks {}", protocol::WIRE_VERSION);
            Triage::End(hand_back(None, attempt, reason))
        }
        Incoming::Malformed { id, reply_to, reason } => {
            Triage::End(malformed(id, reply_to, "", body, &reason, attempt, rules))
        }
    }
}

/// Decides on a request of ours that no earlier attempt has ended. `last_fault`: why the attempt before failed, where
/// this worker knows.
pub fn settle(
    request: Box<ClassifyRequest>,
    body: &str,
    attempt: u32,
    last_fault: Option<&str>,
    now: Timestamp,
    rules: &Rules,
) -> Result<Work, Box<Ending>> {
    if attempt > rules.max_receive_count {
        return Err(Box::new(exhausted(&request, body, attempt, last_fault, now, rules)));
    }
    if now >= request.expires_at {
        let message = format!("not reached before {}", request.expires_at);
        return Err(Box::new(ended(&request, Status::Expired, ErrorCode::Expired, message, attempt, now, rules)));
    }
    let payload = match request.payload(&rules.input_bucket) {
        Ok(payload) => payload,
        Err(reason) => {
            let (id, reply_to) = (Some(request.id), request.reply_to.clone());
            return Err(Box::new(malformed(id, reply_to, &request.filename, body, &reason, attempt, rules)));
        }
    };
    let timings_ms = TimingsMs { queued: millis_between(request.submitted_at, now), ..TimingsMs::default() };
    let top_k = request.top_k;
    Ok(Work { origin: Origin::Ours(request), payload, top_k, attempt, timings_ms })
}

fn triage_legacy(request: &LegacyRequest, body: &str, attempt: u32, rules: &Rules) -> Triage {
    let name = protocol::legacy_safe_name(&request.filename);
    let refuse = |reason: String| Triage::End(legacy_dead_letter(name.clone(), body, reason, attempt));
    if attempt > rules.max_receive_count {
        return refuse(exhausted_reason(None));
    }
    match request.image_bytes() {
        Ok(bytes) => Triage::Classify(Work {
            origin: Origin::Legacy { name },
            payload: Payload::Inline(bytes),
            top_k: 1,
            attempt,
            timings_ms: TimingsMs::default(),
        }),
        Err(reason) => refuse(reason),
    }
}

impl Work {
    /// The end of an image that was classified.
    pub fn succeeded(
        self,
        predictions: Vec<Prediction>,
        image: Bytes,
        model: ModelRef,
        now: Timestamp,
        rules: &Rules,
    ) -> Ending {
        match self.origin {
            Origin::Ours(request) => {
                let result = ClassifyResult {
                    v: protocol::WIRE_VERSION,
                    id: request.id,
                    filename: request.filename,
                    status: Status::Succeeded,
                    predictions,
                    model: Some(model),
                    timings_ms: TimingsMs { total: millis_between(request.submitted_at, now), ..self.timings_ms },
                    attempt: self.attempt,
                    worker: rules.worker.clone(),
                    error: None,
                };
                Ending::Result { result, reply_to: request.reply_to }
            }
            Origin::Legacy { name } => {
                let label = predictions.into_iter().next().map(|best| best.label).unwrap_or_default();
                Ending::Legacy { name, image, label }
            }
        }
    }

    /// The end of an image that no retry would mend.
    pub fn failed(self, code: ErrorCode, message: String, body: &str, now: Timestamp, rules: &Rules) -> Ending {
        match self.origin {
            Origin::Ours(request) => {
                let mut ending = ended(&request, Status::Failed, code, message, self.attempt, now, rules);
                if let Ending::Result { result, .. } = &mut ending {
                    let total = result.timings_ms.total;
                    result.timings_ms = TimingsMs { total, ..self.timings_ms };
                }
                ending
            }
            Origin::Legacy { name } => {
                legacy_dead_letter(name, body, format!("{}: {message}", code.as_str()), self.attempt)
            }
        }
    }

    /// The end of an image whose stored bytes are damaged: told to the client, and kept for an operator to look at.
    pub fn damaged(self, reason: &str, body: &str, now: Timestamp, rules: &Rules) -> Ending {
        let attempt = self.attempt;
        let message = format!("the stored image is damaged, send it again ({reason})");
        let letter = |id| DeadLetter {
            id,
            body: body.to_owned(),
            reason: reason.to_owned(),
            attempts: attempt,
            legacy_name: None,
        };
        match self.failed(ErrorCode::Internal, message, body, now, rules) {
            Ending::Result { result, reply_to } => {
                Ending::DeadLetter { letter: letter(Some(result.id)), result: Some(result), reply_to }
            }
            ending => ending,
        }
    }

    /// The end of an attempt that failed by a fault of ours.
    pub fn faulted(&self, reason: String) -> Ending {
        let id = match &self.origin {
            Origin::Ours(request) => Some(request.id),
            Origin::Legacy { .. } => None,
        };
        hand_back(id, self.attempt, reason)
    }
}

impl Ending {
    /// For the log and the counter of endings.
    pub fn name(&self) -> &'static str {
        match self {
            Ending::Result { result, .. } => result.status.as_str(),
            Ending::Again { .. } => "again",
            Ending::Legacy { .. } => "seed",
            Ending::DeadLetter { .. } => "dead_letter",
            Ending::Withdrawn { .. } => "withdrawn",
            Ending::HandBack { .. } => "handed_back",
        }
    }
}

/// Gives a message up for another attempt.
pub fn hand_back(id: Option<Uuid>, attempt: u32, reason: String) -> Ending {
    Ending::HandBack { id, after: retry_delay(attempt), reason }
}

/// The end of a job that an earlier attempt has ended, and whose result is damaged since: what it said cannot be told any
/// more, and another result must not take its place unasked.
pub fn damaged_result(request: &ClassifyRequest, body: &str, attempts: u32, reason: &str) -> Ending {
    let reason = format!("{reason}; `imgcls queue redrive {}` classifies the image again", request.id);
    dead_letter(Some(request.id), body, reason, attempts)
}

/// How long a message rests after a fault of ours: 1 s doubling to a minute, so that an outage of seconds does not
/// use up its attempts.
fn retry_delay(attempt: u32) -> Duration {
    Duration::from_secs(1 << attempt.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}

fn ended(
    request: &ClassifyRequest,
    status: Status,
    code: ErrorCode,
    message: String,
    attempt: u32,
    now: Timestamp,
    rules: &Rules,
) -> Ending {
    let mut result = ClassifyResult::ended(request.id, &request.filename, status, code, message);
    result.attempt = attempt;
    result.worker.clone_from(&rules.worker);
    result.timings_ms.total = millis_between(request.submitted_at, now);
    result.timings_ms.queued = result.timings_ms.total;
    Ending::Result { result, reply_to: request.reply_to.clone() }
}

fn exhausted(
    request: &ClassifyRequest,
    body: &str,
    attempt: u32,
    last_fault: Option<&str>,
    now: Timestamp,
    rules: &Rules,
) -> Ending {
    let reason = exhausted_reason(last_fault);
    let attempts = attempt - 1;
    let message = format!("given up after {attempts} attempts: {reason}");
    let ending = ended(request, Status::Failed, ErrorCode::AttemptsExhausted, message, attempts, now, rules);
    let Ending::Result { result, reply_to } = ending else { return ending };
    let letter = DeadLetter { id: Some(request.id), body: body.to_owned(), reason, attempts, legacy_name: None };
    Ending::DeadLetter { letter, result: Some(result), reply_to }
}

fn exhausted_reason(last_fault: Option<&str>) -> String {
    last_fault
        .unwrap_or(
            "each worker that took it was stopped or died before it finished; this worker saw no error of its own",
        )
        .to_owned()
}

fn malformed(
    id: Option<Uuid>,
    reply_to: Option<String>,
    filename: &str,
    body: &str,
    reason: &str,
    attempt: u32,
    rules: &Rules,
) -> Ending {
    let result = id.map(|id| {
        let mut result = ClassifyResult::ended(id, filename, Status::Failed, ErrorCode::Malformed, reason);
        result.attempt = attempt;
        result.worker.clone_from(&rules.worker);
        result
    });
    let reason = format!("malformed: {reason}");
    let letter = DeadLetter { id, body: body.to_owned(), reason, attempts: attempt, legacy_name: None };
    Ending::DeadLetter { letter, result, reply_to }
}

fn dead_letter(id: Option<Uuid>, body: &str, reason: String, attempts: u32) -> Ending {
    let letter = DeadLetter { id, body: body.to_owned(), reason, attempts, legacy_name: None };
    Ending::DeadLetter { letter, result: None, reply_to: None }
}

fn legacy_dead_letter(name: String, body: &str, reason: String, attempts: u32) -> Ending {
    let letter = DeadLetter { id: None, body: body.to_owned(), reason, attempts, legacy_name: Some(name) };
    Ending::DeadLetter { letter, result: None, reply_to: None }
}

/// As the wire has times.
pub fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Never negative: two machines' clocks may disagree. Microsecond steps: a nanosecond of a wait in a queue is noise.
fn millis_between(from: Timestamp, to: Timestamp) -> f64 {
    let micros = (to.as_microsecond() - from.as_microsecond()).max(0);
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ImageRef;

    fn rules() -> Rules {
        Rules { input_bucket: "input".to_owned(), max_receive_count: 5, worker: "host-1".to_owned() }
    }

    fn request(id: Uuid) -> ClassifyRequest {
        ClassifyRequest {
            v: 1,
            id,
            filename: "cat.jpg".to_owned(),
            content_type: None,
            image: Some(ImageRef { bucket: "input".to_owned(), key: protocol::image_key(id) }),
            image_data: None,
            top_k: 5,
            submitted_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            expires_at: "2026-01-01T01:00:00Z".parse().unwrap(),
            reply_to: Some("results-a".to_owned()),
            traceparent: None,
        }
    }

    fn at(time: &str) -> Timestamp {
        format!("2026-01-01T{time}Z").parse().unwrap()
    }

    fn read(body: &str, attempt: u32, now: &str) -> Triage {
        triage(Incoming::parse(body), body, attempt, at(now), &rules())
    }

    fn triage_of(request: &ClassifyRequest, attempt: u32, now: &str) -> Triage {
        read(&serde_json::to_string(request).unwrap(), attempt, now)
    }

    #[test]
    fn a_first_delivery_is_classified_and_a_second_is_looked_up_first() {
        let request = request(Uuid::now_v7());
        let Triage::Classify(work) = triage_of(&request, 1, "00:00:01.5") else { panic!("not classified") };
        assert_eq!(work.payload, Payload::Stored(request.id));
        assert!((work.timings_ms.queued - 1500.0).abs() < 1e-9);
        assert!(matches!(triage_of(&request, 2, "00:00:01"), Triage::LookUp(_)));
    }

    #[test]
    fn a_message_past_its_time_ends_as_expired() {
        let Triage::End(Ending::Result { result, reply_to }) = triage_of(&request(Uuid::now_v7()), 1, "01:00:00")
        else {
            panic!("not ended")
        };
        assert_eq!((result.status, reply_to.as_deref()), (Status::Expired, Some("results-a")));
    }

    #[test]
    fn one_attempt_too_many_ends_in_the_dead_letters_with_the_last_reason() {
        let request = request(Uuid::now_v7());
        let settled = settle(Box::new(request.clone()), "body", 6, Some("store down"), at("00:01:00"), &rules());
        let Ending::DeadLetter { letter, result, .. } = *settled.unwrap_err() else { panic!("not ended") };
        assert_eq!((letter.attempts, letter.reason.as_str(), letter.id), (5, "store down", Some(request.id)));
        let error = result.unwrap().error.unwrap();
        assert_eq!(error.code, ErrorCode::AttemptsExhausted);
        assert!(error.message.contains("store down"));
    }

    #[test]
    fn a_message_may_name_only_its_own_image_in_the_configured_bucket() {
        for (bucket, key) in [("other", None), ("input", Some("results/x.json")), ("input", Some("images/../x"))] {
            let mut foreign = request(Uuid::now_v7());
            let key = key.map_or_else(|| protocol::image_key(foreign.id), str::to_owned);
            foreign.image = Some(ImageRef { bucket: bucket.to_owned(), key });
            let Triage::End(Ending::DeadLetter { result, .. }) = triage_of(&foreign, 1, "00:00:01") else {
                panic!("{bucket} was accepted")
            };
            assert_eq!(result.unwrap().error.unwrap().code, ErrorCode::Malformed);
        }
    }

    #[test]
    fn what_is_no_request_goes_to_the_dead_letters_and_a_newer_wire_is_handed_back() {
        for body in ["", "{", "[1]", "7", "{\"filename\": 3}", "{\"id\": \"x\"}", "null"] {
            let triage = read(body, 1, "00:00:00");
            assert!(matches!(triage, Triage::End(Ending::DeadLetter { .. })), "{body}: {triage:?}");
        }
        let newer = r#"{"v": 2, "id": "whatever"}"#;
        assert!(matches!(read(newer, 1, "00:00:00"), Triage::End(Ending::HandBack { .. })));
        assert!(matches!(read(newer, 6, "00:00:00"), Triage::End(Ending::DeadLetter { .. })));
    }

    #[test]
    fn the_originals_form_is_work_under_a_safe_name() {
        let body = r#"{"image_data": "aGk=", "filename": "../x/test_0.JPEG"}"#;
        let Triage::Classify(work) = read(body, 2, "00:00:00") else { panic!("not classified") };
        assert_eq!(work.payload, Payload::Inline(b"hi".to_vec()));
        assert!(matches!(work.origin, Origin::Legacy { name } if name == "test_0.JPEG"));
    }

    #[test]
    fn rests_grow_with_the_attempts() {
        let seconds: Vec<u64> = (1..=9).map(|attempt| retry_delay(attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
