//! The messages: request, result and reply, and the original's two forms.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::LegacyRequest;

/// A result object larger than this is none of ours.
pub const MAX_RESULT_BYTES: u64 = 1 << 20;

/// The version of the wire that this build speaks. A worker hands back what it does not know, so that a rolling
/// upgrade works in either order.
pub const WIRE_VERSION: u32 = 1;

/// One image to classify. Sent by a web process, read by a worker. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifyRequest {
    /// [`WIRE_VERSION`].
    pub v: u32,
    /// Made by the web tier (UUIDv7: its time is the time of submission); names the image and its result for ever.
    pub id: Uuid,
    /// The client's name for the file: data to show, never a path or a key. At most 255 bytes.
    #[serde(default)]
    pub filename: String,
    /// The media type that the client said; a hint, the bytes decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Where the bytes are. Exactly one of `image` and `image_data` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// The bytes themselves, base64, where they fit the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_data: Option<String>,
    /// How many predictions are wanted, best first.
    #[serde(default = "default_top_k")]
    pub top_k: u32,
    pub submitted_at: Timestamp,
    /// After this instant the job ends as `expired` instead of being worked on.
    pub expires_at: Timestamp,
    /// Name of the queue that the reply goes to; none: nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// W3C trace context of the HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// A pointer into the input store (the claim check).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    pub bucket: String,
    pub key: String,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Succeeded,
    Failed,
    Expired,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Expired => "expired",
        }
    }
}

/// The end of a job: the object under `results/<id>.json`, the reply, and the HTTP answer are this same text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifyResult {
    pub v: u32,
    pub id: Uuid,
    pub filename: String,
    pub status: Status,
    /// Best first; empty unless `status` is `succeeded`.
    pub predictions: Vec<Prediction>,
    /// None where no model was reached.
    pub model: Option<ModelRef>,
    pub timings_ms: TimingsMs,
    /// The receive count of the delivery that ended the job; 0 where a web process ended it.
    pub attempt: u32,
    /// Which process ended it.
    pub worker: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorInfo>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Index into the model's classes, 0-based. None from a worker of the original, which tells only the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_index: Option<u32>,
    pub label: String,
    /// Softmax probability, 0..1. None as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
}

/// Which model answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    pub name: String,
    pub version: String,
    /// `sha256:<hex>` of the model file.
    pub digest: String,
}

/// Where the time went, milliseconds. A stage that was not reached is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingsMs {
    /// Submission to receipt by the worker (two clocks), and there until a session is free.
    pub queued: f64,
    /// Reading the image from the store.
    pub fetched: f64,
    /// Decoding and preprocessing.
    pub decoded: f64,
    /// Inference of its batch.
    pub inferred: f64,
    /// Submission to the end.
    pub total: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    pub code: ErrorCode,
    pub message: String,
}

/// Why a job failed. Stable: clients match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An image type we know, damaged beyond use.
    Undecodable,
    /// An image type, or a coding of one, that we do not decode.
    UnsupportedType,
    /// More pixels than `--max-pixels`, by the header alone.
    TooManyPixels,
    /// Decoding takes more CPU time than `--decode-timeout`.
    DecodeTimeout,
    /// Decoding takes more memory than `--max-decode-bytes`.
    TooLargeDecoded,
    /// The message points at an object that is not there.
    InputMissing,
    /// More bytes than `--max-upload-bytes`.
    InputTooLarge,
    /// The message breaks the wire contract.
    Malformed,
    /// A fault of ours, again and again; the last reason is in the message.
    AttemptsExhausted,
    /// Not reached before `expires_at`.
    Expired,
    /// A fault of ours that no retry mends.
    Internal,
}

impl ErrorCode {
    /// Whether sending the same image again cannot help: the client's fault, answered 422 and never retried.
    pub fn is_client_fault(self) -> bool {
        matches!(
            self,
            ErrorCode::Undecodable
                | ErrorCode::UnsupportedType
                | ErrorCode::TooManyPixels
                | ErrorCode::DecodeTimeout
                | ErrorCode::TooLargeDecoded
                | ErrorCode::InputTooLarge
        )
    }

    /// The code of that spelling.
    pub fn from_wire(text: &str) -> Option<Self> {
        serde_json::from_value(text.into()).ok()
    }

    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Undecodable => "undecodable",
            ErrorCode::UnsupportedType => "unsupported_type",
            ErrorCode::TooManyPixels => "too_many_pixels",
            ErrorCode::DecodeTimeout => "decode_timeout",
            ErrorCode::TooLargeDecoded => "too_large_decoded",
            ErrorCode::InputMissing => "input_missing",
            ErrorCode::InputTooLarge => "input_too_large",
            ErrorCode::Malformed => "malformed",
            ErrorCode::AttemptsExhausted => "attempts_exhausted",
            ErrorCode::Expired => "expired",
            ErrorCode::Internal => "internal",
        }
    }
}

impl ClassifyResult {
    /// A job that ended without predictions.
    pub fn ended(id: Uuid, filename: &str, status: Status, code: ErrorCode, message: impl Into<String>) -> Self {
        ClassifyResult {
            v: WIRE_VERSION,
            id,
            filename: filename.to_owned(),
            status,
            predictions: Vec::new(),
            model: None,
            timings_ms: TimingsMs::default(),
            attempt: 0,
            worker: String::new(),
            error: Some(ErrorInfo { code, message: message.into() }),
        }
    }

    /// The one text that is stored, replied and answered.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a result holds only strings and finite numbers; this is a bug")
    }
}

/// What a web process reads of a reply before it decides who gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHead {
    pub v: u32,
    pub id: Uuid,
    pub status: Status,
    /// Absent in a cut reply, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// The reply for a queue that does not take the whole result: who waits reads the store. None for what is no result.
pub fn cut_reply(result: &str) -> Option<String> {
    let head = ReplyHead { filename: None, ..serde_json::from_str(result).ok()? };
    serde_json::to_string(&head).ok()
}

impl ReplyHead {
    pub fn is_cut(&self) -> bool {
        self.filename.is_none()
    }
}

/// What a message on the request queue turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    Job(Box<ClassifyRequest>),
    Legacy(LegacyRequest),
    /// A newer wire; handed back for a newer worker.
    UnknownVersion {
        v: u64,
    },
    /// Breaks the contract. With an id, the job is told so; without one, only the dead-letter queue is.
    Malformed {
        id: Option<Uuid>,
        reply_to: Option<String>,
        reason: String,
    },
}

impl Incoming {
    /// The job that the message is about, where it tells.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Incoming::Job(request) => Some(request.id),
            Incoming::Malformed { id, .. } => *id,
            Incoming::Legacy(_) | Incoming::UnknownVersion { .. } => None,
        }
    }

    /// The trace that a request belongs to.
    pub fn traceparent(&self) -> Option<&str> {
        match self {
            Incoming::Job(request) => request.traceparent.as_deref(),
            Incoming::Legacy(_) | Incoming::UnknownVersion { .. } | Incoming::Malformed { .. } => None,
        }
    }

    /// Reads the body of a message on the request queue. Never fails: whatever it is, it has an end.
    pub fn parse(body: &str) -> Incoming {
        let malformed = |reason: String| Incoming::Malformed { id: None, reply_to: None, reason };
        let value: serde_json::Value = match serde_json::from_str(body) {
            Ok(value) => value,
            Err(error) => return malformed(format!("not JSON: {error}")),
        };
        let Some(object) = value.as_object() else {
            return malformed("not a JSON object".to_owned());
        };
        if !object.contains_key("id") {
            return match serde_json::from_value(value) {
                Ok(seed) => Incoming::Legacy(seed),
                Err(error) => malformed(format!("neither a request with an id nor the original's form: {error}")),
            };
        }
        match object.get("v").and_then(serde_json::Value::as_u64) {
            Some(v) if v == u64::from(WIRE_VERSION) => parse_job(value),
            Some(v) => Incoming::UnknownVersion { v },
            None => malformed("no version `v`".to_owned()),
        }
    }
}

fn parse_job(value: serde_json::Value) -> Incoming {
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    let id = text("id").and_then(|id| id.parse().ok());
    let reply_to = text("reply_to");
    let reason = match serde_json::from_value::<ClassifyRequest>(value) {
        Ok(request) if request.image.is_some() == request.image_data.is_some() => {
            "exactly one of `image` and `image_data` must be given".to_owned()
        }
        Ok(request) => return Incoming::Job(Box::new(request)),
        Err(error) => error.to_string(),
    };
    Incoming::Malformed { id, reply_to, reason }
}

/// A file name cut to the wire's 255 bytes, at a character's edge.
pub fn cut_filename(name: &str) -> &str {
    const LIMIT_BYTES: usize = 255;
    if name.len() <= LIMIT_BYTES {
        return name;
    }
    let end = (0..=LIMIT_BYTES).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    &name[..end]
}

fn default_top_k() -> u32 {
    5
}
