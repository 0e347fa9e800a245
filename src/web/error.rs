//! Problems: refusals and failures as `application/problem+json` (RFC 9457), with a stable `type`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

use crate::protocol::{ClassifyResult, ErrorCode, Status, cut_filename};

/// The failure of a request, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// The last part of the stable `type`.
    pub(super) kind: &'static str,
    pub(super) title: &'static str,
    /// One sentence: what is wrong, with what, and what to do.
    pub(super) detail: String,
    /// The job of the request, if it has one.
    pub(super) id: Option<Uuid>,
    /// When the client should try again.
    pub(super) retry_after_seconds: Option<u32>,
    /// The accepted codings, for a body that came in another one.
    pub(super) accept_encoding: Option<&'static str>,
    /// True if the connection is closed after this answer.
    pub(super) closes_connection: bool,
    /// Why the key of the request was refused, for formats that tell these cases apart.
    pub(super) key_refusal: Option<&'static str>,
}

/// Writes a problem in another format than a problem document.
pub(super) type Refusal = fn(Problem) -> Response;

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem {
            status,
            kind,
            title,
            detail: detail.into(),
            id: None,
            retry_after_seconds: None,
            accept_encoding: None,
            closes_connection: false,
            key_refusal: None,
        }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", "The request is malformed", detail)
    }

    pub(super) fn no_such_job(id: &str) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "no-such-job", "There is no such job", format!("no job has the id {id:?}"))
    }

    pub(super) fn no_such_batch(id: &str) -> Self {
        let detail = format!("no batch has the id {id:?}");
        Problem::new(StatusCode::NOT_FOUND, "no-such-batch", "There is no such batch", detail)
    }

    /// The image of a job whose result still exists: images are deleted before results.
    pub(super) fn image_not_kept(id: Uuid) -> Self {
        let detail = "the image is no longer kept (--keep-images, --max-data-bytes); the result of its job still is";
        let problem = Problem::new(StatusCode::NOT_FOUND, "image-not-kept", "The image is no longer kept", detail);
        Problem { id: Some(id), ..problem }
    }

    /// The image of a job cannot be decoded within its limits, or not by the machine of the web tier.
    pub(super) fn no_thumbnail(id: Uuid) -> Self {
        let detail = "no small copy can be made of this image; its own address is GET /v1/jobs/{id}/image";
        let title = "No small copy of the image";
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no-thumbnail", title, detail);
        Problem { id: Some(id), ..problem }
    }

    pub(super) fn unknown_model(name: &str, names: &[&str]) -> Self {
        let name = cut_filename(name);
        let detail = format!("there is no model {name:?}; choose one of: {}", names.join(", "));
        Problem::new(StatusCode::NOT_FOUND, "unknown-model", "There is no such model", detail)
    }

    /// The image that a request names by URL cannot be fetched.
    pub(super) fn not_fetched(reason: &str) -> Self {
        let detail = format!("the image cannot be fetched from its URL: {reason}; send the bytes of the image");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "image-not-fetched", "The image cannot be fetched", detail)
    }

    pub(super) fn no_such_page(path: &str) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "There is no such page", format!("nothing is at {path:?}"))
    }

    /// The `Idempotency-Key` belongs to a job of another image or other options.
    pub(super) fn idempotency_key_reused(id: Uuid) -> Self {
        let detail = "the Idempotency-Key was used for another image or other options; use a new key for a new request";
        let title = "The Idempotency-Key belongs to another request";
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", title, detail);
        Problem { id: Some(id), ..problem }
    }

    /// A client deleted the job while this request was about it.
    pub(super) fn cancelled(id: Uuid) -> Self {
        Problem::of_result(&ClassifyResult::tombstone(id))
    }

    pub(super) fn method_not_allowed() -> Self {
        let detail = "this address does not support the method; see the Allow header";
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    }

    pub(super) fn body_timeout() -> Self {
        let detail = "the body arrived too slowly; send it again";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body did not arrive in time", detail)
    }

    pub(super) fn too_large(limit_bytes: u64) -> Self {
        let limit = size_for_people(limit_bytes);
        let detail = format!(
            "an image file may have at most {limit} ({limit_bytes} bytes, --max-upload-bytes); send a smaller one"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The image file is too large", detail)
    }

    /// Occurs only with `--wire seed`, whose messages contain the whole image.
    pub(super) fn too_large_for_queue(queue: &str, message_bytes: usize, limit_bytes: usize) -> Self {
        let detail = format!(
            "with --wire seed the image is part of a message, which would have {message_bytes} bytes, but the queue \
             {queue:?} takes at most {limit_bytes}: send a smaller image, or raise the queue's MaximumMessageSize"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The image file is too large", detail)
    }

    pub(super) fn unsupported_type(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-type", "Not an accepted image type", detail)
    }

    pub(super) fn unsupported_coding(coding: &str) -> Self {
        let detail =
            format!("the Content-Encoding {coding:?} is not supported; send the body uncompressed or with gzip");
        let title = "Not an accepted coding";
        let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-coding", title, detail);
        Problem { accept_encoding: Some("gzip"), ..problem }
    }

    /// The request names a host that this server does not answer for (RFC 9110, 15.5.20).
    pub(super) fn misdirected(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", "This server is not that host", detail)
    }

    pub(super) fn cross_site(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::FORBIDDEN, "cross-site", "Another site may not send this", detail)
    }

    /// The request has no valid key (RFC 9110, 15.5.2). `refusal` is a word for the reason.
    pub(super) fn unauthorized(refusal: &'static str, detail: impl Into<String>) -> Self {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "A key is needed", detail);
        Problem { key_refusal: Some(refusal), ..problem }
    }

    /// The key of the request lacks a scope.
    pub(super) fn forbidden(scope: &str) -> Self {
        let detail = format!("the key does not have the scope {scope}; use another key");
        Problem::new(StatusCode::FORBIDDEN, "forbidden", "The key may not do this", detail)
    }

    /// One client sends more than it may.
    pub(super) fn too_many_requests(detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let problem = Problem::new(status, "too-many-requests", "Too many requests of this client", detail);
        Problem { retry_after_seconds: Some(retry_after_seconds), ..problem }
    }

    /// A request that the HTTP library refused before any handler saw it. It closes the connection.
    pub(super) fn of_connection(status: StatusCode) -> Self {
        let (kind, title, detail) = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                let detail = "the head of the request has more than 100 headers or 64 KiB; send fewer or shorter ones";
                ("head-too-large", "The head of the request is too large", detail)
            }
            StatusCode::URI_TOO_LONG => ("address-too-long", "The address is too long", "send a shorter address"),
            _ => ("malformed", "The request is malformed", "this is not a valid HTTP/1.1 request"),
        };
        Problem { closes_connection: true, ..Problem::new(status, kind, title, detail) }
    }

    /// A limit on connections, memory or jobs is reached.
    pub(super) fn full(detail: impl Into<String>) -> Self {
        let mut problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "full", "Too much at once", detail);
        problem.retry_after_seconds = Some(1);
        problem
    }

    /// The store is full until jobs have finished or an operator frees space.
    pub(super) fn no_space(detail: impl Into<String>) -> Self {
        let title = "No space for another image";
        let mut problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-space", title, detail);
        problem.retry_after_seconds = Some(5);
        problem
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        let title = "Not available at the moment";
        let mut problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", title, detail);
        problem.retry_after_seconds = Some(2);
        problem
    }

    /// A stored object is damaged: trying again does not help.
    pub(super) fn damaged(key: &str) -> Self {
        let detail = format!("the stored object {key} is damaged; send the image again as a new job");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged", "A stored object is damaged", detail)
    }

    /// The caller has waited as long as it may. The job continues.
    pub(super) fn not_in_time(id: Uuid) -> Self {
        let detail = format!("there is no answer yet, but the job continues; get it from GET /v1/jobs/{id}");
        let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "not-in-time", "No answer in time", detail);
        Problem { id: Some(id), ..problem }
    }

    /// The answer for a job that ended without predictions.
    pub(super) fn of_result(result: &ClassifyResult) -> Self {
        let (code, message) = match &result.error {
            Some(error) => (error.code, error.message.clone()),
            None => (ErrorCode::Internal, "no reason was recorded".to_owned()),
        };
        let status = match (result.status, code.is_client_fault()) {
            (Status::Expired, _) => StatusCode::GATEWAY_TIMEOUT,
            _ if code == ErrorCode::UnknownModel => StatusCode::NOT_FOUND,
            _ if code == ErrorCode::Cancelled => StatusCode::GONE,
            (_, true) => StatusCode::UNPROCESSABLE_ENTITY,
            (_, false) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let title = match code {
            ErrorCode::Undecodable => "The image cannot be decoded",
            ErrorCode::UnsupportedType => "Not an accepted image type",
            ErrorCode::TooManyPixels => "The image has too many pixels",
            ErrorCode::DecodeTimeout => "The image takes too long to decode",
            ErrorCode::TooLargeDecoded => "The image needs too much memory to decode",
            ErrorCode::InputTooLarge => "The image file is too large",
            ErrorCode::InputMissing => "The image is missing from the store",
            ErrorCode::Malformed => "The message to the worker was malformed",
            ErrorCode::UnknownModel => "There is no such model",
            ErrorCode::AttemptsExhausted => "Failed after several attempts",
            ErrorCode::Expired => "Not classified in time",
            ErrorCode::Cancelled => "The job was deleted",
            ErrorCode::Internal => "An internal error",
        };
        Problem { id: Some(result.id), ..Problem::new(status, kind_of(code), title, message) }
    }
}

/// Returns the last part of the `type` for an error code: the same words with dashes, except where the web tier has the
/// same problem itself.
fn kind_of(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Undecodable => "undecodable",
        ErrorCode::UnsupportedType => "unsupported-type",
        ErrorCode::TooManyPixels => "too-many-pixels",
        ErrorCode::DecodeTimeout => "decode-timeout",
        ErrorCode::TooLargeDecoded => "too-large-decoded",
        ErrorCode::InputMissing => "input-missing",
        ErrorCode::InputTooLarge => "too-large",
        ErrorCode::Malformed => "malformed-message",
        ErrorCode::UnknownModel => "unknown-model",
        ErrorCode::AttemptsExhausted => "attempts-exhausted",
        ErrorCode::Expired => "expired",
        ErrorCode::Cancelled => "cancelled",
        ErrorCode::Internal => "internal",
    }
}

/// A limit in the unit that people know, rounded down, so that a file of this size is accepted.
pub(super) fn size_for_people(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000 => format!("{:.1} MB", (bytes / 100_000) as f64 / 10.0).replace(".0 ", " "),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// Returns the sentence of a problem for a person: without the remarks in parentheses that name flags and commands of the
/// operator, and in upper case.
fn for_people(detail: &str) -> String {
    let mut text = String::new();
    let mut rest = detail;
    while let Some((before, after)) = rest.split_once(" (") {
        let Some((remark, behind)) = after.split_once(')') else { break };
        text.push_str(before);
        if !remark.contains("--") && !remark.contains('`') {
            text.push_str(" (");
            text.push_str(remark);
            text.push(')');
        }
        rest = behind;
    }
    text.push_str(rest);
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).chain(['.']).collect(),
        None => text,
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

impl Problem {
    /// Returns the detail as a sentence for a person.
    pub(super) fn for_people(&self) -> String {
        match self.kind {
            "unauthorized" => {
                "This service needs a key. Sign in on its page, which needs a browser with JavaScript.".to_owned()
            }
            "cross-site" => "The request comes from a page of another site.".to_owned(),
            _ => for_people(&self.detail),
        }
    }

    /// Returns the body of the answer.
    pub(super) fn to_json(&self) -> String {
        let body = Body {
            r#type: format!("urn:imgcls:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            id: self.id,
        };
        serde_json::to_string(&body).expect("strings and numbers; this is a bug")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let json = self.to_json();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], json).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(codings) = self.accept_encoding {
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(codings));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Without `Basic`, which browsers would answer with a window of their own in place of the page's form.
            let challenge = HeaderValue::from_static("Bearer realm=\"imgcls\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if self.closes_connection {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For the layer that writes problems in the format of the client.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_sizes_and_no_flags() {
        let told = Problem::too_large(20 << 20).for_people();
        assert_eq!(told, "An image file may have at most 20 MB; send a smaller one.");
        for (detail, expected) in [
            ("no job has the id \"x\"", "No job has the id \"x\"."),
            ("all taken (--max-connections); wait", "All taken; wait."),
            ("a (b) c (`imgcls x`) d (open", "A (b) c d (open."),
        ] {
            assert_eq!(for_people(detail), expected);
        }
        let sizes = [999, 100_000, 1 << 20, 2_000_000, 10_999_999].map(size_for_people);
        assert_eq!(sizes, ["999 bytes", "100 kB", "1 MB", "2 MB", "10 MB"]);
    }
}
