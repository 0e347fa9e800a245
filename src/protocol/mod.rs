//! The wire contract: everything that one process of imgcls sends to another, and the messages of the legacy system.
//!
//! Three rules hold the system together:
//!
//! 1. A web process writes the image to the input store under [`image_key`] and sends a [`ClassifyRequest`] that refers to
//!    it. If configured and small enough, the request holds the bytes instead.
//! 2. A worker writes exactly one [`ClassifyResult`] to the output store under [`result_key`], then sends the same object
//!    to the queue that the request names in `reply_to`, then deletes the request.
//! 3. The result object is the truth. The reply only wakes the waiter; it may be lost, duplicated or truncated.
//!
//! A request body without `id` is a request of the legacy system ([`LegacyRequest`]), so the scripts of its users keep
//! working.
//!
//! Nothing here does I/O or reads a clock. A value that two tiers know belongs here. `docs/wire.md` describes the contract
//! for readers of other languages, and `tests/it/wire.rs` pins every form by golden text.

mod batch;
mod callback;
mod error;
mod filename;
mod legacy;
mod message;
mod model_pointer;
mod names;
mod notification;
mod object_result;
mod payload;
mod supervision;

pub use batch::{
    BATCHES_FOLDER, Batch, BatchItem, BatchSource, MAX_BATCH_BYTES, MAX_BATCH_ITEMS, batch_key, batch_of_key,
};
pub use callback::{Callback, CallbackKind};
pub use error::{ErrorCode, ErrorInfo};
pub use filename::cut_filename;
pub use legacy::{
    LegacyRequest, MAX_LEGACY_OUTPUT_BYTES, legacy_answer, legacy_error_reply, legacy_job_id, legacy_name,
    legacy_output, legacy_output_key, legacy_reply, legacy_request_bytes, legacy_safe_name, read_legacy_output,
    read_legacy_reply,
};
pub use message::{
    ClassifyRequest, ClassifyResult, ImageFacts, ImageRef, Incoming, MAX_RESULT_BYTES, ReplyHead, ServiceClass, Status,
    TimingsMs, WIRE_VERSION, cut_reply, is_tombstone,
};
pub use model_pointer::{MAX_POINTER_BYTES, MODELS_FOLDER, ModelPointer, model_package_key, model_pointer_key};
pub use names::{
    BACKLOG_DIMENSION, BACKLOG_METRIC, BACKLOG_NAMESPACE, DEAD_LETTER_RETENTION, DEFAULT_REQUEST_QUEUE,
    DEFAULT_RESULT_QUEUE, DRAIN_HOOK, LOCAL_INPUT_BUCKET, LOCAL_OUTPUT_BUCKET, MAX_KEY_BYTES, REDRIVE_MARGIN,
    RETENTION_MARGIN, START_HOOK, TAG_ALIVE_AT, TAG_STACK, aws_bucket, bulk_queue, callback_queue, dead_letter_queue,
    idempotency_record_key, image_key, is_reply_queue_of, job_of_image_key, job_of_result_key, object_result_key,
    reply_queue, result_key, stack_prefix, submitted_at, worker_group,
};
pub use notification::{Notification, ObjectEvent};
pub use object_result::{ObjectResult, is_current};
pub use payload::{Payload, WITHDRAWN_IMAGE, inline_or_reference, inline_request_bytes};
pub use supervision::{Worked, WorkerLine};
