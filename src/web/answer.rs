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

use super::error::Problem;
use crate::protocol::{self, ClassifyResult, Status, TimingsMs};

/// How long each stage took, for the developer tools of browsers.
pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The state of a job without a result.
#[derive(Serialize)]
pub(super) struct JobState {
    pub(super) id: Uuid,
    pub(super) status: &'static str,
}

impl JobState {
    pub(super) fn queued(id: Uuid) -> JobState {
        JobState { id, status: "queued" }
    }

    /// The state of a job that its client has deleted.
    pub(super) fn removed(id: Uuid) -> JobState {
        JobState { id, status: "removed" }
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

/// Returns the members of a stored result in their order, and after them when each stage of the job began.
pub(super) fn final_job(id: Uuid, text: &Bytes) -> Result<String, Problem> {
    let result = parse(text)?;
    let mut job = String::from_utf8_lossy(text).trim_end().to_owned();
    // The text was parsed as an object, so it ends with a brace.
    job.pop();
    let timeline = serde_json::to_string(&timeline(id, &result)).expect("times and words; this is a bug");
    let _ = write!(job, ",\"timeline\":{timeline}}}");
    Ok(job)
}

/// A stage of a job.
#[derive(Serialize)]
struct TimelineEvent {
    event: &'static str,
    at: Timestamp,
}

/// Returns when each stage of a job began: the time in its id, plus the durations that the worker measured.
fn timeline(id: Uuid, result: &ClassifyResult) -> Vec<TimelineEvent> {
    let Some(submitted_at) = protocol::submitted_at(id) else { return Vec::new() };
    let after = |millis: f64| {
        let micros = (millis.max(0.0) * 1e3) as i64;
        Timestamp::from_microsecond(submitted_at.as_microsecond().saturating_add(micros)).unwrap_or(submitted_at)
    };
    let mut events = vec![TimelineEvent { event: "submitted", at: submitted_at }];
    if result.status != Status::Expired && result.attempt > 0 {
        events.push(TimelineEvent { event: "received", at: after(result.timings_ms.queued) });
    }
    if result.timings_ms.total > 0.0 {
        events.push(TimelineEvent { event: result.status.as_str(), at: after(result.timings_ms.total) });
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
    use super::*;

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
