//! Requests, results and replies, and the parser of incoming requests.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::{ErrorCode, ErrorInfo};
use super::legacy::LegacyRequest;
use super::notification::{self, Notification};
use crate::model::{ModelRef, Prediction};

/// Maximum size of a result object; larger objects are not ours.
pub const MAX_RESULT_BYTES: u64 = 1 << 20;

/// The version of the wire format that this build speaks. A worker releases requests of an unknown version, so that a
/// rolling upgrade works in either order.
pub const WIRE_VERSION: u32 = 1;

/// One image to classify, sent by a web process to a worker. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifyRequest {
    /// [`WIRE_VERSION`].
    pub v: u32,
    /// Created by the web tier as a UUIDv7, whose time is the time of submission. It names the image and its result.
    pub id: Uuid,
    /// The client's name for the file: data to show, never a path or a key. At most 255 bytes.
    #[serde(default)]
    pub filename: String,
    /// The media type that the client declared. It is a hint; the content decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// A reference to the image. Exactly one of `image` and `image_data` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// The image itself as base64, if it fits in the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_data: Option<String>,
    /// The number of predictions to return, best first.
    #[serde(default = "default_top_k")]
    pub top_k: u32,
    /// The name of the model package that classifies the image. `None` means the first model of the service. A worker
    /// of a release without this field ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The batch that the image belongs to. Its job is of the bulk class then. A worker of a release without this field
    /// ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Uuid>,
    /// When the web tier accepted the image.
    pub submitted_at: Timestamp,
    /// The job expires at this instant if no worker has started it.
    pub expires_at: Timestamp,
    /// The queue for the reply; `None` if no process waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The W3C trace context of the HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The class of service of a job. Each class has a request queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceClass {
    /// Somebody waits for the result.
    Interactive,
    /// The job is one of many. Workers take it while no interactive one waits.
    Bulk,
}

impl ClassifyRequest {
    /// The class of the job: bulk if it belongs to a batch.
    pub fn class(&self) -> ServiceClass {
        if self.batch.is_some() { ServiceClass::Bulk } else { ServiceClass::Interactive }
    }
}

/// A reference to an object in the input store (claim check).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The bucket of the input store.
    pub bucket: String,
    /// The key of the image.
    pub key: String,
}

/// The outcome of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The image was classified.
    Succeeded,
    /// The image could not be classified; see `error`.
    Failed,
    /// No worker reached the job in time.
    Expired,
}

impl Status {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Expired => "expired",
        }
    }
}

/// The outcome of a job. The object `results/<id>.json`, the reply and the HTTP answer are the same text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifyResult {
    /// [`WIRE_VERSION`].
    pub v: u32,
    /// The job.
    pub id: Uuid,
    /// The file name in the request.
    pub filename: String,
    /// The outcome of the job.
    pub status: Status,
    /// The best first; empty unless `status` is `succeeded`.
    pub predictions: Vec<Prediction>,
    /// The classes at or above their thresholds, the best first, if the model gives an image several labels; otherwise
    /// empty and absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Prediction>,
    /// Facts of the image. Only in the result of a job of a batch, whose table has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFacts>,
    /// `None` if no model was run.
    pub model: Option<ModelRef>,
    /// How long each stage took.
    pub timings_ms: TimingsMs,
    /// The receive count of the delivery that completed the job; 0 if a web process did.
    pub attempt: u32,
    /// The process that completed the job.
    pub worker: String,
    /// Why the job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorInfo>,
}

/// Facts of an image that was classified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Width of the upright image in pixels.
    pub width: u32,
    /// Height of the upright image in pixels.
    pub height: u32,
    /// When the photograph was taken, as its EXIF says: `2024-05-01T12:34:56`, with an offset if the camera stored it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datetime_original: Option<String>,
}

/// The duration of each stage in milliseconds; 0 for a stage that was not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingsMs {
    /// From submission until a session is free. Web tier and worker have different clocks.
    pub queued: f64,
    /// Reading the image from the store.
    pub fetched: f64,
    /// Decoding and preprocessing.
    pub decoded: f64,
    /// Inference of the batch.
    pub inferred: f64,
    /// From submission to completion.
    pub total: f64,
}

impl ClassifyResult {
    /// A job that completed without predictions.
    pub fn ended(id: Uuid, filename: &str, status: Status, code: ErrorCode, message: impl Into<String>) -> Self {
        ClassifyResult {
            v: WIRE_VERSION,
            id,
            filename: filename.to_owned(),
            status,
            predictions: Vec::new(),
            labels: Vec::new(),
            image: None,
            model: None,
            timings_ms: TimingsMs::default(),
            attempt: 0,
            worker: String::new(),
            error: Some(ErrorInfo { code, message: message.into() }),
        }
    }

    /// The result of a job that a client deleted. It takes the place of any other result, so that a worker that still
    /// processes the job cannot write one.
    pub fn tombstone(id: Uuid) -> Self {
        let message = "its client deleted it";
        ClassifyResult::ended(id, "", Status::Failed, ErrorCode::Cancelled, message)
    }

    /// The text that is stored, sent as the reply and returned over HTTP.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a result holds only strings and finite numbers; this is a bug")
    }
}

/// The members of a reply that a web process needs to find the waiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHead {
    /// [`WIRE_VERSION`].
    pub v: u32,
    /// The job.
    pub id: Uuid,
    /// The outcome of the job.
    pub status: Status,
    /// Absent in a truncated reply, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
}

/// Returns true if a stored result is a [`ClassifyResult::tombstone`].
pub fn is_tombstone(result: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Failure {
        error: Option<ErrorInfo>,
    }
    // Most results are successes and short, and are not parsed for this.
    let named = memchr::memmem::find(result, b"\"cancelled\"").is_some();
    named
        && serde_json::from_slice::<Failure>(result)
            .is_ok_and(|failure| failure.error.is_some_and(|error| error.code == ErrorCode::Cancelled))
}

/// A truncated reply for a queue that cannot take the whole result; the waiter then reads the store. Returns `None`
/// when `result` is not a result.
pub fn cut_reply(result: &str) -> Option<String> {
    let head = ReplyHead { filename: None, ..serde_json::from_str(result).ok()? };
    serde_json::to_string(&head).ok()
}

impl ReplyHead {
    /// Returns true if the reply is truncated.
    pub fn is_cut(&self) -> bool {
        self.filename.is_none()
    }
}

/// A parsed message of the request queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// A request.
    Job(Box<ClassifyRequest>),
    /// A request of the legacy system.
    Legacy(LegacyRequest),
    /// A notification of S3.
    Notification(Notification),
    /// A newer version of the wire; released for a newer worker.
    UnknownVersion {
        /// The version in the message.
        v: u64,
    },
    /// The message breaks the contract. If it has an id, the job fails; otherwise the message only goes to the dead
    /// letters.
    Malformed {
        /// The job, if the message names one.
        id: Option<Uuid>,
        /// The queue for the reply, if the message names one.
        reply_to: Option<String>,
        /// The fault of the message.
        reason: String,
    },
}

impl Incoming {
    /// The job of the message, if it names one.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Incoming::Job(request) => Some(request.id),
            Incoming::Malformed { id, .. } => *id,
            Incoming::Legacy(_) | Incoming::Notification(_) | Incoming::UnknownVersion { .. } => None,
        }
    }

    /// The trace that the request belongs to.
    pub fn traceparent(&self) -> Option<&str> {
        match self {
            Incoming::Job(request) => request.traceparent.as_deref(),
            Incoming::Legacy(_)
            | Incoming::Notification(_)
            | Incoming::UnknownVersion { .. }
            | Incoming::Malformed { .. } => None,
        }
    }

    /// Parses the body of a message of the request queue. Every body parses to some variant.
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
            if let Some(read) = notification::read(&value) {
                return read.map_or_else(malformed, Incoming::Notification);
            }
            return match serde_json::from_value(value) {
                Ok(legacy) => Incoming::Legacy(legacy),
                Err(error) => malformed(format!("neither a request with an id nor a legacy request: {error}")),
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

fn default_top_k() -> u32 {
    5
}
