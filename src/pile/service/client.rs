//! One job: from the bytes of an image to its outcome.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::job_id::job_id;
use super::replies::Replies;
use crate::clock;
use crate::model;
use crate::pile::finished::{Answer, Timings};
use crate::pile::memory::Held;
use crate::pile::output::Batch;
use crate::pile::source::Object;
use crate::protocol::{
    ClassifyRequest, ClassifyResult, ErrorCode, ErrorInfo, ImageRef, Status, WIRE_VERSION, cut_filename,
};
use crate::retry::Schedule;
use crate::transport::{Acknowledge, JobForm, NewJob, Transport, TransportError};

/// Delays after which a waiter reads the result without a reply.
const READS: Schedule = Schedule::new(Duration::from_secs(2), Duration::from_secs(30));
/// The same for a process that gets no replies.
const READS_WITHOUT_REPLIES: Schedule = Schedule::new(Duration::from_millis(200), Duration::from_secs(5));
/// Pauses while the service cannot be reached.
const OUTAGE: Schedule = Schedule::new(Duration::from_millis(500), Duration::from_secs(30));
/// A worker that holds the message may still complete the job for this long after its expiry.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// The media type of an image whose signature is not known. Workers go by the content.
const UNKNOWN_TYPE: &str = "application/octet-stream";

pub(super) struct Client {
    pub transport: Arc<dyn Transport>,
    pub replies: Arc<Replies>,
    pub batch: Batch,
    pub model: Option<String>,
    pub top_k: u32,
    /// The time from submission to expiry.
    pub job_ttl: Duration,
}

/// An image as a job.
pub(super) struct Job {
    id: Uuid,
    filename: String,
    image: JobImage,
}

/// The image of a job.
enum JobImage {
    Bytes(Bytes),
    /// An object that workers read.
    Object(ImageRef),
}

/// The outcome of a job.
pub(super) struct Outcome {
    pub row: Result<Answer, ErrorInfo>,
    /// An operator may want to send the job again, which needs its image.
    pub needs_image: bool,
}

impl Client {
    /// The job of an image.
    pub(super) fn job(&self, path: &Path, image: Vec<u8>) -> Job {
        let id = job_id(self.batch.id, path.as_os_str().as_encoded_bytes(), &image);
        Job { id, filename: filename(path), image: JobImage::Bytes(Bytes::from(image)) }
    }

    /// The job of an image that workers read in its bucket. An object of another size is another image.
    pub(super) fn job_of_object(&self, path: &Path, object: &Object) -> Job {
        let image = object.reference();
        let content = format!("{}/{} {}", image.bucket, image.key, object.bytes);
        let id = job_id(self.batch.id, path.as_os_str().as_encoded_bytes(), content.as_bytes());
        Job { id, filename: filename(path), image: JobImage::Object(image) }
    }

    /// Submits a job and waits for its result. The result of an earlier run of the batch is taken instead. `held` is
    /// released once the image is stored.
    ///
    /// # Errors
    /// The service cannot be used, and the run ends. An outage is waited out.
    pub(super) async fn classify(&self, job: &Job, held: Held) -> anyhow::Result<Outcome> {
        if self.batch.is_continued
            && let Some(result) = self.stored_result(job.id).await?
        {
            return Ok(Outcome::of(&result));
        }
        let woken = self.replies.wait_for(job.id);
        let _registered = Registered { replies: &self.replies, id: job.id };
        let expires_at = self.submit(job).await?;
        drop(held);
        let result = self.wait(job.id, woken, expires_at).await?;
        Ok(Outcome::of(&result))
    }

    /// Deletes the stored image of a job that ended. Otherwise a large pile would fill the store with copies.
    pub(super) async fn discard_image(&self, job: &Job) {
        if matches!(job.image, JobImage::Object(_)) {
            return;
        }
        if let Err(error) = self.transport.discard_image(job.id).await {
            tracing::debug!(%error, id = %job.id, "cannot delete the image of a finished job; it is deleted by its age");
        }
    }

    /// Makes the job durable. Returns when it expires.
    async fn submit(&self, job: &Job) -> anyhow::Result<Timestamp> {
        let mut backoff = OUTAGE.start();
        loop {
            let submitted_at = clock::now();
            let expires_at = submitted_at.saturating_add(self.job_ttl).unwrap_or(Timestamp::MAX);
            let (content_type, image) = match &job.image {
                JobImage::Bytes(bytes) => (Some(model::sniff(bytes).unwrap_or(UNKNOWN_TYPE)), None),
                JobImage::Object(image) => (None, Some(image.clone())),
            };
            let request = ClassifyRequest {
                v: WIRE_VERSION,
                id: job.id,
                filename: job.filename.clone(),
                content_type: content_type.map(str::to_owned),
                image,
                image_data: None,
                top_k: self.top_k,
                model: self.model.clone(),
                batch: Some(self.batch.id),
                submitted_at,
                expires_at,
                reply_to: self.replies.address(),
                traceparent: None,
            };
            match self.send(job, request).await {
                Ok(()) => return Ok(expires_at),
                Err(error) => fault_or_warning(error, "cannot send an image")?,
            }
            tokio::time::sleep(backoff.next_delay_with_jitter()).await;
        }
    }

    async fn send(&self, job: &Job, request: ClassifyRequest) -> Result<(), TransportError> {
        let JobImage::Bytes(image) = &job.image else { return self.transport.send_request(&request).await };
        let content_type = model::sniff(image).unwrap_or(UNKNOWN_TYPE);
        let form = JobForm::Request { request: Box::new(request), inline_bytes: 0 };
        // The caller waits for the result, so that the job may become durable together with others.
        let acknowledge = Acknowledge::WithResult(self.job_ttl);
        let job = NewJob { id: job.id, image, content_type, form, acknowledge };
        self.transport.submit(job).await.map(drop)
    }

    /// Waits for the result. A job whose message is gone without a result expires.
    async fn wait(
        &self,
        id: Uuid,
        mut woken: oneshot::Receiver<Option<Bytes>>,
        expires_at: Timestamp,
    ) -> anyhow::Result<Bytes> {
        let reads = if self.replies.address().is_some() { READS } else { READS_WITHOUT_REPLIES };
        let mut backoff = reads.start();
        let mut is_woken = false;
        loop {
            let delay = backoff.next_delay_with_jitter();
            if is_woken {
                tokio::time::sleep(delay).await;
            } else {
                tokio::select! {
                    reply = &mut woken => match reply {
                        Ok(Some(result)) => return Ok(result),
                        // The reply is cut, or another waiter of the job was forgotten.
                        Ok(None) | Err(_) => is_woken = true,
                    },
                    () = tokio::time::sleep(delay) => {}
                }
            }
            if let Some(result) = self.stored_result(id).await? {
                return Ok(result);
            }
            let ended_at = expires_at.saturating_add(EXPIRY_MARGIN).unwrap_or(Timestamp::MAX);
            if clock::now() > ended_at {
                return self.expire(id).await;
            }
        }
    }

    async fn expire(&self, id: Uuid) -> anyhow::Result<Bytes> {
        let message = "no worker reached it in time";
        let expired = ClassifyResult::ended(id, "", Status::Expired, ErrorCode::Expired, message);
        let mut backoff = OUTAGE.start();
        loop {
            match self.transport.write_result(id, Bytes::from(expired.to_json())).await {
                Ok(result) => return Ok(result),
                Err(error) => fault_or_warning(error, "cannot write a result")?,
            }
            tokio::time::sleep(backoff.next_delay_with_jitter()).await;
        }
    }

    /// Reads a result. An outage is waited out.
    async fn stored_result(&self, id: Uuid) -> anyhow::Result<Option<Bytes>> {
        let mut backoff = OUTAGE.start();
        loop {
            match self.transport.result(id).await {
                Ok(result) => return Ok(result),
                Err(error @ (TransportError::Damaged { .. } | TransportError::ObjectTooLarge { .. })) => {
                    let message = format!("the stored result cannot be read: {error}");
                    let failed = ClassifyResult::ended(id, "", Status::Failed, ErrorCode::Internal, message);
                    return Ok(Some(Bytes::from(failed.to_json())));
                }
                Err(error) => fault_or_warning(error, "cannot read a result")?,
            }
            tokio::time::sleep(backoff.next_delay_with_jitter()).await;
        }
    }
}

/// Removes a waiter when its job ends, for whatever reason.
struct Registered<'a> {
    replies: &'a Replies,
    id: Uuid,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.replies.forget(self.id);
    }
}

/// Logs an outage, which is waited out.
///
/// # Errors
/// An error that a retry does not change.
fn fault_or_warning(error: TransportError, what: &str) -> anyhow::Result<()> {
    match error {
        TransportError::Unavailable(reason) => {
            tracing::warn!(reason, "{what}; trying again");
            Ok(())
        }
        error => Err(anyhow!("{what}: {error}; run the same command again once this is solved")),
    }
}

fn filename(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    cut_filename(&name).to_owned()
}

impl Outcome {
    fn of(result: &[u8]) -> Outcome {
        let row = read(result);
        let needs_image = row.as_ref().is_err_and(|error| !error.code.is_client_fault());
        Outcome { row, needs_image }
    }
}

/// The outcome that a result says.
fn read(result: &[u8]) -> Result<Answer, ErrorInfo> {
    let internal = |message: String| ErrorInfo { code: ErrorCode::Internal, message };
    let result: ClassifyResult =
        serde_json::from_slice(result).map_err(|error| internal(format!("the result cannot be read: {error}")))?;
    let ClassifyResult { status, predictions, labels, model, timings_ms, error, image, .. } = result;
    match (status, model) {
        (Status::Succeeded, Some(model)) => {
            let image = image.unwrap_or_default();
            let timings = Timings::of_result(&timings_ms);
            let (width, height, datetime_original) = (image.width, image.height, image.datetime_original);
            Ok(Answer { predictions, labels, width, height, datetime_original, model, timings, boxes: Vec::new() })
        }
        _ => Err(error.unwrap_or_else(|| internal("the result has neither classes nor an error".to_owned()))),
    }
}
