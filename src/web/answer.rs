//! The parts that answers of several routes share.

use std::fmt::Write as _;

use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::admission::Progress;
use super::error::Problem;
use crate::protocol::{self, ClassifyResult, Status, TimingsMs};

/// How long each stage took, for the developer tools of browsers.
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The state of a job without a result. A client that only knows `id` and `status` is right to ignore the rest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JobState {
    pub(super) id: Uuid,
    pub(super) status: &'static str,
    /// Absent where the answer is about the acceptance or the end of the job.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    progress: Option<QueuedState>,
}

/// How far a job in the queue is.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct QueuedState {
    stage: &'static str,
    position: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    timeline: Vec<TimelineEvent>,
}

const LACKS_WORKER: &str = "no worker is running; the job is kept and starts as soon as one runs";

impl JobState {
    pub(super) fn queued(id: Uuid) -> JobState {
        JobState { id, status: "queued", progress: None }
    }

    /// The state of a job that waits, with its progress.
    pub(super) fn waiting(id: Uuid, progress: Progress) -> JobState {
        let Progress { position, stage, eta, lacks_worker } = progress;
        let timeline = protocol::submitted_at(id).map(|at| TimelineEvent { event: "submitted", at });
        let queued = QueuedState {
            stage: stage.as_str(),
            position,
            eta_seconds: eta.map(|eta| (eta.as_secs_f64() * 10.0).ceil() / 10.0),
            message: lacks_worker.then_some(LACKS_WORKER),
            timeline: timeline.into_iter().collect(),
        };
        JobState { progress: Some(queued), ..JobState::queued(id) }
    }

    /// Returns true if a client that shows the progress would show another one. An expected end that comes closer as time
    /// passes is no news.
    pub(super) fn differs_from(&self, sent: &JobState) -> bool {
        match (&self.progress, &sent.progress) {
            (Some(new), Some(old)) => {
                let seconds = |state: &QueuedState| state.eta_seconds.map(f64::round);
                (new.stage, new.position, new.message, seconds(new))
                    != (old.stage, old.position, old.message, seconds(old))
            }
            (new, old) => new.is_some() != old.is_some(),
        }
    }

    /// The state of a job that its client has deleted.
    pub(super) fn removed(id: Uuid) -> JobState {
        JobState { id, status: "removed", progress: None }
    }

    /// The state of a job that its client has cancelled while it waited.
    pub(super) fn cancelled(id: Uuid) -> JobState {
        JobState { id, status: "cancelled", progress: None }
    }

    /// The state of a job that does not exist, or that belongs to another key.
    pub(super) fn unknown(id: Uuid) -> JobState {
        JobState { id, status: "unknown", progress: None }
    }
}

/// The answer with this JSON.
pub(super) fn json_of(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("strings and finite numbers; this is a bug");
    json_text(status, Bytes::from(text))
}

/// The answer with a text that is JSON.
pub(super) fn json_text(status: StatusCode, text: Bytes) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The answer for a job that was accepted and has no result yet.
pub(super) fn accepted(id: Uuid, retry_after_seconds: u32) -> Response {
    let mut response = json_of(StatusCode::ACCEPTED, &JobState::queued(id));
    if let Ok(location) = HeaderValue::try_from(format!("/v1/jobs/{id}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds));
    response
}

/// Parses a stored result.
pub(super) fn parse(text: &Bytes) -> Result<ClassifyResult, Problem> {
    serde_json::from_slice(text).map_err(|error| damaged(&error))
}

/// The problem of a stored result that cannot be parsed.
pub(super) fn damaged(error: &serde_json::Error) -> Problem {
    tracing::error!(%error, "a stored result cannot be parsed");
    Problem::unavailable("the stored result cannot be read; the log of the web tier says why")
}

/// Returns the members of a stored result in their order, and after them when each stage of the job was over.
pub(super) fn final_job(id: Uuid, text: &Bytes) -> Result<String, Problem> {
    Ok(with_timeline(text, &timeline(id, &parse(text)?)))
}

/// The same, with the time at which this process sends it as the last event. It differs from answer to answer, so only
/// event streams have it.
pub(super) fn answered_job(id: Uuid, text: &Bytes, now: Timestamp) -> Result<String, Problem> {
    let mut timeline = timeline(id, &parse(text)?);
    let last = timeline.last().map_or(now, |last| last.at);
    timeline.push(TimelineEvent { event: "answered", at: now.max(last) });
    Ok(with_timeline(text, &timeline))
}

fn with_timeline(text: &Bytes, timeline: &[TimelineEvent]) -> String {
    let mut job = String::from_utf8_lossy(text).trim_end().to_owned();
    // The text was parsed as an object, so it ends with a brace.
    job.pop();
    let timeline = serde_json::to_string(&timeline).expect("times and words; this is a bug");
    let _ = write!(job, ",\"timeline\":{timeline}}}");
    job
}

/// A stage of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct TimelineEvent {
    event: &'static str,
    at: Timestamp,
}

/// Returns the history of a job: the time in its id, plus the durations that the worker measured. `received` is when a
/// session of a worker was free for it; the image was fetched by then or shortly after. The last event is the outcome, which
/// the worker stores at that time.
fn timeline(id: Uuid, result: &ClassifyResult) -> Vec<TimelineEvent> {
    let Some(submitted_at) = protocol::submitted_at(id) else { return Vec::new() };
    let after = |millis: f64| {
        let micros = (millis.max(0.0) * 1e3) as i64;
        Timestamp::from_microsecond(submitted_at.as_microsecond().saturating_add(micros)).unwrap_or(submitted_at)
    };
    let TimingsMs { queued, fetched, decoded, inferred, total } = result.timings_ms;
    let mut events = vec![TimelineEvent { event: "submitted", at: submitted_at }];
    if result.status != Status::Expired && result.attempt > 0 {
        events.push(TimelineEvent { event: "received", at: after(queued) });
        let mut millis = queued;
        for (event, took) in [("fetched", fetched), ("decoded", decoded), ("inferred", inferred)] {
            millis += took.max(0.0);
            if took > 0.0 {
                // The clocks of web tier and worker differ, and so may their roundings.
                events.push(TimelineEvent { event, at: after(if total > 0.0 { millis.min(total) } else { millis }) });
            }
        }
    }
    if total > 0.0 {
        events.push(TimelineEvent { event: result.status.as_str(), at: after(total) });
    }
    events
}

/// Adds the stages of a job to an answer.
pub(super) fn with_timings(mut response: Response, timings: &TimingsMs) -> Response {
    let TimingsMs { queued, fetched, decoded, inferred, .. } = timings;
    let mut text = String::new();
    for (name, millis) in [("queued", queued), ("fetched", fetched), ("decoded", decoded), ("inferred", inferred)] {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{name};dur={millis:.2}");
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// The entity tag of a content.
pub(super) fn etag(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Adds an entity tag to an answer that clients may keep and ask for again. Becomes 304 without a body if the client has it.
pub(super) fn with_etag(mut response: Response, etag: &str, request: &HeaderMap) -> Response {
    if is_known(request, etag) {
        let kept = response.headers().get(header::VARY).cloned();
        response = StatusCode::NOT_MODIFIED.into_response();
        response.headers_mut().extend(kept.map(|vary| (header::VARY, vary)));
    }
    if let Ok(value) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    response
}

/// Returns true if the client has the content with this tag (RFC 9110, 13.1.2).
fn is_known(request: &HeaderMap, etag: &str) -> bool {
    let values = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::web::admission::Stage;

    const ID: Uuid = Uuid::from_u128(0x0193_6d5c_7e00_7abc_8def_0123_4567_89ab);

    #[test]
    fn timeline_has_every_stage_that_was_reached_in_order() {
        let mut result = ClassifyResult::tombstone(ID);
        result.attempt = 1;
        let timings =
            |queued, fetched, decoded, inferred, total| TimingsMs { queued, fetched, decoded, inferred, total };
        for (timings, expected) in [
            (
                timings(5.0, 1.0, 2.0, 3.0, 12.0),
                &["submitted", "received", "fetched", "decoded", "inferred", "failed"][..],
            ),
            (timings(5.0, 0.0, 0.0, 0.0, 5.0), &["submitted", "received", "failed"]),
            (timings(5.0, 1.0, 9.0, 0.0, 7.0), &["submitted", "received", "fetched", "decoded", "failed"]),
        ] {
            result.timings_ms = timings;
            let events = timeline(ID, &result);
            let names: Vec<&str> = events.iter().map(|event| event.event).collect();
            assert_eq!(names, expected);
            assert!(events.is_sorted_by_key(|event| event.at), "{events:?}");
        }
        let text = Bytes::from(result.to_json());
        let answered = answered_job(ID, &text, Timestamp::UNIX_EPOCH).unwrap();
        assert!(answered.starts_with(final_job(ID, &text).unwrap().trim_end_matches("]}")), "{answered}");
        assert!(answered.contains("\"answered\""), "{answered}");
    }

    #[test]
    fn waiting_job_tells_only_what_is_known() {
        let progress = Progress { position: 3, stage: Stage::Queued, eta: None, lacks_worker: false };
        let text = |progress| serde_json::to_string(&JobState::waiting(ID, progress)).unwrap();
        let expected = format!(
            r#"{{"id":"{ID}","status":"queued","stage":"queued","position":3,"timeline":[{{"event":"submitted","at":"2024-11-27T"#
        );
        assert!(text(progress).starts_with(&expected), "{}", text(progress));
        let eta = Some(Duration::from_millis(1_234));
        assert!(text(Progress { eta, ..progress }).contains(r#""eta_seconds":1.3"#));
        let absent = Progress { stage: Stage::WaitingForCapacity, lacks_worker: true, ..progress };
        assert!(text(absent).contains("waiting_for_capacity") && text(absent).contains("no worker is running"));
        let accepted = serde_json::to_string(&JobState::queued(ID)).unwrap();
        assert_eq!(accepted, format!(r#"{{"id":"{ID}","status":"queued"}}"#));
    }

    #[test]
    fn known_content_is_not_sent_again() {
        let tag = etag(b"content");
        assert_ne!(tag, etag(b"other"));
        for (known, expected) in [
            (tag.clone(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"x\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"x\"".to_owned(), 200),
            (String::new(), 200),
        ] {
            let request = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::try_from(&known).unwrap())]);
            let response = with_etag(json_text(StatusCode::OK, Bytes::from_static(b"{}")), &tag, &request);
            assert_eq!(response.status().as_u16(), expected, "{known}");
            assert_eq!(response.headers()[header::ETAG], tag.as_str());
        }
    }
}
