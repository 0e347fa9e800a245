//! The job in a delivery, and the decision on it. These are pure decisions: no I/O, no clock.
//!
//! `outcome` has the outcomes that a delivery can have.

mod outcome;

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

pub(crate) use self::outcome::{DeadLetter, Outcome, damaged_result, release};
use self::outcome::{dead_letter, ended, exhausted, exhausted_reason, legacy_dead_letter, malformed};
use crate::model::{ModelRef, Prediction};
use crate::protocol::{
    self, ClassifyRequest, ErrorCode, ImageFacts, ImageRef, Incoming, LegacyRequest, Notification, ObjectEvent,
    Payload, Status, TimingsMs,
};

/// From this attempt on a message is processed alone. If it crashes the worker, no other message is affected.
pub(crate) const ALONE_FROM_ATTEMPT: u32 = 3;

/// The number of predictions for an object that an event names.
const TOP_K_OF_OBJECTS: u32 = 5;

/// The rules by which a worker accepts messages, from its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub input_bucket: String,
    /// The buckets of others whose objects are read.
    pub read_buckets: Vec<String>,
    pub max_receive_count: u32,
    /// The name of the worker in results: host and process.
    pub worker: String,
}

/// An image to classify, from a message of either wire form.
#[derive(Debug)]
pub(crate) struct Work {
    pub origin: Origin,
    pub payload: Payload,
    pub top_k: u32,
    pub attempt: u32,
    pub timings_ms: TimingsMs,
    /// Facts of the image of a batch, once it is decoded.
    pub image: Option<ImageFacts>,
}

#[derive(Debug)]
pub(crate) enum Origin {
    Ours(Box<ClassifyRequest>),
    /// An event of S3.
    Object(Box<ObjectEvent>),
    /// A message of the legacy form. The name is safe as an object key.
    Legacy {
        name: String,
    },
}

/// The answer of a model about an image.
#[derive(Debug)]
pub(crate) struct Answer {
    pub predictions: Vec<Prediction>,
    /// The classes at or above their thresholds, if the model gives an image several labels.
    pub labels: Vec<Prediction>,
    pub model: ModelRef,
}

/// The decision on a delivery before its image is read.
#[derive(Debug)]
pub(crate) enum Triage {
    Classify(Work),
    /// An earlier attempt may have completed it: its result is read first, then [`decide`].
    LookUp(Box<ClassifyRequest>),
    /// Each of these messages is sent, and processed by itself.
    Divide(Vec<String>),
    /// The result of this or of a later event may be stored: it is read first.
    LookUpObject(Work, Box<ObjectEvent>),
    Done(Outcome),
}

impl From<Result<Work, Box<Outcome>>> for Triage {
    fn from(decided: Result<Work, Box<Outcome>>) -> Self {
        decided.map_or_else(|outcome| Triage::Done(*outcome), Triage::Classify)
    }
}

/// Decides on a message before its image is read. `body` is its text, which a dead letter keeps.
pub(crate) fn triage(incoming: Incoming, body: &str, attempt: u32, now: Timestamp, rules: &Rules) -> Triage {
    match incoming {
        Incoming::Job(request) if attempt > 1 => Triage::LookUp(request),
        Incoming::Job(request) => decide(request, body, attempt, None, now, rules).into(),
        Incoming::Legacy(request) => triage_legacy(&request, body, attempt, rules),
        Incoming::Notification(notification) => triage_notification(notification, body, attempt, now, rules),
        Incoming::UnknownVersion { v } if attempt > rules.max_receive_count => {
            let reason = format!("no worker knows wire version {v}");
            Triage::Done(dead_letter(None, body, reason, attempt))
        }
        Incoming::UnknownVersion { v } => {
            let reason = format!("wire version {v}, this worker speaks {}", protocol::WIRE_VERSION);
            Triage::Done(release(None, attempt, reason))
        }
        Incoming::Malformed { id, reply_to, reason } => {
            Triage::Done(malformed(id, reply_to, "", body, &reason, attempt, rules))
        }
    }
}

/// Decides on a request that no earlier attempt has completed. `last_fault` is the reason why the
/// attempt before failed, if this worker knows it.
pub(crate) fn decide(
    request: Box<ClassifyRequest>,
    body: &str,
    attempt: u32,
    last_fault: Option<&str>,
    now: Timestamp,
    rules: &Rules,
) -> Result<Work, Box<Outcome>> {
    if attempt > rules.max_receive_count {
        return Err(Box::new(exhausted(&request, body, attempt, last_fault, now, rules)));
    }
    if now >= request.expires_at {
        let message = format!("not reached before {}", request.expires_at);
        return Err(Box::new(ended(&request, Status::Expired, ErrorCode::Expired, message, attempt, now, rules)));
    }
    let payload = match request.payload(&rules.input_bucket, &rules.read_buckets) {
        Ok(payload) => payload,
        Err(reason) => {
            let (id, reply_to) = (Some(request.id), request.reply_to.clone());
            return Err(Box::new(malformed(id, reply_to, &request.filename, body, &reason, attempt, rules)));
        }
    };
    let timings_ms = TimingsMs { queued: millis_between(request.submitted_at, now), ..TimingsMs::default() };
    let top_k = request.top_k;
    Ok(Work { origin: Origin::Ours(request), payload, top_k, attempt, timings_ms, image: None })
}

fn triage_notification(notification: Notification, body: &str, attempt: u32, now: Timestamp, rules: &Rules) -> Triage {
    let event = match notification {
        Notification::Created(event) => event,
        Notification::Several { .. } if attempt > rules.max_receive_count => {
            return Triage::Done(dead_letter(None, body, exhausted_reason(None), attempt - 1));
        }
        Notification::Several { messages } => return Triage::Divide(messages),
        Notification::Test => return Triage::Done(Outcome::Acknowledged { reason: "a test of S3" }),
        Notification::Other { event_name } => {
            tracing::debug!(event_name, "not an object that was written");
            return Triage::Done(Outcome::Acknowledged { reason: "not an object that was written" });
        }
    };
    if event.key.ends_with('/') {
        return Triage::Done(Outcome::Acknowledged { reason: "the key of a folder" });
    }
    if !rules.read_buckets.contains(&event.bucket) {
        let reason = format!("the event names bucket {:?}, which no --read-bucket of this worker names", event.bucket);
        return Triage::Done(dead_letter(None, body, reason, attempt));
    }
    if protocol::object_result_key(&event.bucket, &event.key).len() > protocol::MAX_KEY_BYTES {
        let reason = "the key of the object is too long for that of its result".to_owned();
        return Triage::Done(dead_letter(None, body, reason, attempt));
    }
    if attempt > rules.max_receive_count {
        return Triage::Done(dead_letter(None, body, exhausted_reason(None), attempt - 1));
    }
    let image = ImageRef { bucket: event.bucket.clone(), key: event.key.clone() };
    let queued = event.at.map_or(0.0, |at| millis_between(at, now));
    let work = Work {
        origin: Origin::Object(Box::new(event.clone())),
        payload: Payload::Foreign(image),
        top_k: TOP_K_OF_OBJECTS,
        attempt,
        timings_ms: TimingsMs { queued, ..TimingsMs::default() },
        image: None,
    };
    Triage::LookUpObject(work, Box::new(event))
}

fn triage_legacy(request: &LegacyRequest, body: &str, attempt: u32, rules: &Rules) -> Triage {
    let name = protocol::legacy_safe_name(&request.filename);
    let refuse = |reason: String| Triage::Done(legacy_dead_letter(name.clone(), body, reason, attempt));
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
            image: None,
        }),
        Err(reason) => refuse(reason),
    }
}

impl Work {
    /// The job, if the message has an id.
    pub(crate) fn id(&self) -> Option<Uuid> {
        match &self.origin {
            Origin::Ours(request) => Some(request.id),
            Origin::Object(_) | Origin::Legacy { .. } => None,
        }
    }

    /// Returns true if the image belongs to a batch.
    pub(crate) fn is_of_batch(&self) -> bool {
        matches!(&self.origin, Origin::Ours(request) if request.batch.is_some())
    }

    /// The model that the request names: `name` or `name@version`.
    pub(crate) fn wanted_model(&self) -> Option<&str> {
        match &self.origin {
            Origin::Ours(request) => request.model.as_deref(),
            Origin::Object(_) | Origin::Legacy { .. } => None,
        }
    }
}

/// Converts a duration to milliseconds, the unit of times on the wire.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Returns the milliseconds between two times, with a resolution of microseconds. The result is never negative, since the
/// clocks of two machines may disagree.
fn millis_between(from: Timestamp, to: Timestamp) -> f64 {
    let micros = (to.as_microsecond() - from.as_microsecond()).max(0);
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            input_bucket: "input".to_owned(),
            read_buckets: vec!["photos".to_owned(), "archive".to_owned()],
            max_receive_count: 5,
            worker: "host-1".to_owned(),
        }
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
            model: None,
            batch: None,
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
    fn first_delivery_is_classified_and_second_is_looked_up_first() {
        let request = request(Uuid::now_v7());
        let Triage::Classify(work) = triage_of(&request, 1, "00:00:01.5") else { panic!("not classified") };
        assert_eq!(work.payload, Payload::Stored(request.id));
        assert!((work.timings_ms.queued - 1500.0).abs() < 1e-9);
        assert!(matches!(triage_of(&request, 2, "00:00:01"), Triage::LookUp(_)));
    }

    #[test]
    fn message_past_its_time_expires() {
        let Triage::Done(Outcome::Result { result, reply_to }) = triage_of(&request(Uuid::now_v7()), 1, "01:00:00")
        else {
            panic!("no outcome")
        };
        assert_eq!((result.status, reply_to.as_deref()), (Status::Expired, Some("results-a")));
    }

    #[test]
    fn one_attempt_too_many_becomes_a_dead_letter_with_the_last_reason() {
        let request = request(Uuid::now_v7());
        let decided = decide(Box::new(request.clone()), "body", 6, Some("store down"), at("00:01:00"), &rules());
        let Outcome::DeadLetter { dead_letter, result, .. } = *decided.unwrap_err() else { panic!("no outcome") };
        assert_eq!(
            (dead_letter.attempts, dead_letter.reason.as_str(), dead_letter.id),
            (5, "store down", Some(request.id))
        );
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
            let Triage::Done(Outcome::DeadLetter { result, .. }) = triage_of(&foreign, 1, "00:00:01") else {
                panic!("{bucket} was accepted")
            };
            assert_eq!(result.unwrap().error.unwrap().code, ErrorCode::Malformed);
        }
    }

    #[test]
    fn a_message_may_name_any_key_of_an_allowed_bucket() {
        let image = ImageRef { bucket: "archive".to_owned(), key: "2024/a b.jpg".to_owned() };
        let allowed = ClassifyRequest { image: Some(image.clone()), ..request(Uuid::now_v7()) };
        let Triage::Classify(work) = triage_of(&allowed, 1, "00:00:01") else { panic!("not classified") };
        assert_eq!(work.payload, Payload::Foreign(image));
    }

    #[test]
    fn malformed_messages_become_dead_letters_and_a_newer_wire_is_released() {
        for body in ["", "{", "[1]", "7", "{\"filename\": 3}", "{\"id\": \"x\"}", "null"] {
            let triage = read(body, 1, "00:00:00");
            assert!(matches!(triage, Triage::Done(Outcome::DeadLetter { .. })), "{body}: {triage:?}");
        }
        let newer = r#"{"v": 2, "id": "whatever"}"#;
        assert!(matches!(read(newer, 1, "00:00:00"), Triage::Done(Outcome::Release { .. })));
        assert!(matches!(read(newer, 6, "00:00:00"), Triage::Done(Outcome::DeadLetter { .. })));
    }

    #[test]
    fn legacy_form_is_work_under_a_safe_name() {
        let body = r#"{"image_data": "aGk=", "filename": "../x/test_0.JPEG"}"#;
        let Triage::Classify(work) = read(body, 2, "00:00:00") else { panic!("not classified") };
        assert_eq!(work.payload, Payload::Inline(b"hi".to_vec()));
        assert!(matches!(work.origin, Origin::Legacy { name } if name == "test_0.JPEG"));
    }
}
