//! The stored state of batches: their documents, and the results of their jobs. No process remembers a batch, so any one can
//! answer for it. `imgcls batch` uses the same calls.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::clock;
use crate::model;
use crate::protocol::{
    self, BATCHES_FOLDER, Batch, BatchItem, BatchSource, ClassifyRequest, ClassifyResult, ErrorCode, ImageRef,
    MAX_BATCH_BYTES, Status, WIRE_VERSION, WITHDRAWN_IMAGE,
};
use crate::transport::{Removal, Resubmission, Transport, TransportError};

/// Calls to the store that run at the same time for one batch.
const CONCURRENT_CALLS: usize = 32;
/// The largest image that is sent again. It is far above the limit of any web tier.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// The batches of a service.
#[derive(Clone)]
pub(crate) struct Batches {
    pub transport: Arc<dyn Transport>,
    /// The bucket of images that were uploaded.
    pub input_bucket: String,
}

/// How many images of a batch are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub queued: usize,
    pub succeeded: usize,
    pub failed: usize,
    pub expired: usize,
    pub cancelled: usize,
}

/// The state of one image of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ItemState {
    pub item: BatchItem,
    /// `None` while the job has none.
    pub result: Option<ClassifyResult>,
}

/// The state of a batch at one moment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BatchState {
    pub id: Uuid,
    /// `running`, or `finished` once every image has its outcome; `unknown` if the sender has the list of images.
    pub status: &'static str,
    pub created_at: Timestamp,
    pub source: BatchSource,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The number of images. `None` if the sender has the list of images.
    pub images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
}

/// Why failed images of a batch were not sent again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Retried {
    /// Images that were sent again.
    pub sent: usize,
    /// Failed images that are not stored any more.
    pub without_image: usize,
}

impl ItemState {
    /// The word for the state.
    pub(crate) fn status(&self) -> &'static str {
        match &self.result {
            None => "queued",
            Some(result) if is_cancelled(result) => "cancelled",
            Some(result) => result.status.as_str(),
        }
    }
}

impl BatchState {
    pub(crate) fn new(batch: &Batch, counts: Option<Counts>) -> BatchState {
        let status = match counts {
            None => "unknown",
            Some(Counts { queued: 0, .. }) => "finished",
            Some(_) => "running",
        };
        let images = counts.map(|_| batch.items.len());
        let &Batch { id, created_at, source, .. } = batch;
        BatchState { id, status, created_at, source, model: batch.model.clone(), images, counts }
    }
}

impl Batches {
    /// Makes the document of a batch durable.
    pub(crate) async fn create(&self, batch: &Batch) -> Result<(), TransportError> {
        let text = serde_json::to_vec(batch).expect("ids, names and numbers; this is a bug");
        self.transport.record_once(&protocol::batch_key(batch.id), Bytes::from(text)).await.map(drop)
    }

    /// Reads the document of a batch. `None` if there is no such batch.
    ///
    /// # Errors
    /// [`TransportError::Damaged`] for a document that this release cannot read.
    pub(crate) async fn read(&self, id: Uuid) -> Result<Option<Batch>, TransportError> {
        let key = protocol::batch_key(id);
        let Some(text) = self.transport.record(&key, MAX_BATCH_BYTES).await? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|error| TransportError::Damaged {
            reason: format!("{key} is no document of a batch: {error}"),
            key,
        })
    }

    /// The ids of all batches, the oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<Uuid>, TransportError> {
        let mut ids = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let keys = self.transport.record_keys(BATCHES_FOLDER, after.as_deref()).await?;
            let Some(last) = keys.last() else { return Ok(ids) };
            after = Some(last.clone());
            ids.extend(keys.iter().filter_map(|key| protocol::batch_of_key(key)));
        }
    }

    /// Reads the results of the jobs of a batch, in the order of its images.
    pub(crate) fn items(
        &self,
        batch: Batch,
    ) -> impl stream::Stream<Item = Result<ItemState, TransportError>> + Send + use<> {
        let transport = Arc::clone(&self.transport);
        stream::iter(batch.items)
            .map(move |item| {
                let transport = Arc::clone(&transport);
                async move {
                    let result = read_result(&*transport, item.id).await?;
                    Ok(ItemState { item, result })
                }
            })
            .buffered(CONCURRENT_CALLS)
    }

    /// The state of a batch.
    pub(crate) async fn state(&self, batch: &Batch) -> Result<BatchState, TransportError> {
        if batch.source == BatchSource::Sender {
            return Ok(BatchState::new(batch, None));
        }
        let mut counts = Counts::default();
        let mut items = Box::pin(self.items(batch.clone()));
        while let Some(state) = items.next().await {
            match state?.status() {
                "queued" => counts.queued += 1,
                "succeeded" => counts.succeeded += 1,
                "expired" => counts.expired += 1,
                "cancelled" => counts.cancelled += 1,
                _ => counts.failed += 1,
            }
        }
        Ok(BatchState::new(batch, Some(counts)))
    }

    /// Cancels the jobs that have no result. Returns how many. A job that ends at this moment keeps its result.
    pub(crate) async fn cancel(&self, batch: Batch) -> Result<usize, TransportError> {
        let mut cancelled = 0;
        let mut items = Box::pin(self.items(batch));
        while let Some(state) = items.next().await {
            let ItemState { item, result: None } = state? else { continue };
            cancelled += usize::from(self.cancel_item(&item).await?);
        }
        Ok(cancelled)
    }

    /// Sends the images again that failed or expired.
    pub(crate) async fn retry(&self, batch: Batch, job_ttl: Duration) -> Result<Retried, TransportError> {
        let mut retried = Retried::default();
        let (id, top_k, model) = (batch.id, batch.top_k, batch.model.clone());
        let mut items = Box::pin(self.items(batch));
        while let Some(state) = items.next().await {
            let ItemState { item, result: Some(result) } = state? else { continue };
            if result.status == Status::Succeeded || is_cancelled(&result) {
                continue;
            }
            let request = item_request(id, &item, top_k, model.clone(), job_ttl);
            if self.send_again(&item, request).await? { retried.sent += 1 } else { retried.without_image += 1 }
        }
        Ok(retried)
    }

    async fn cancel_item(&self, item: &BatchItem) -> Result<bool, TransportError> {
        let tombstone = Bytes::from(ClassifyResult::tombstone(item.id).to_json());
        if item.image.is_none() && self.transport.remove(item.id, tombstone.clone()).await? != Removal::Unknown {
            return Ok(true);
        }
        // The image lies in a bucket of somebody else, or is not stored yet.
        let stored = self.transport.write_result(item.id, tombstone).await?;
        Ok(protocol::is_tombstone(&stored))
    }

    async fn send_again(&self, item: &BatchItem, request: ClassifyRequest) -> Result<bool, TransportError> {
        let message =
            |request: &ClassifyRequest| serde_json::to_string(request).expect("texts and numbers; this is a bug");
        if item.image.is_some() {
            self.transport.resubmit(Resubmission { job: None, message: message(&request) }).await?;
            return Ok(true);
        }
        let Some(image) = self.transport.image(item.id, MAX_IMAGE_BYTES).await? else { return Ok(false) };
        if image == WITHDRAWN_IMAGE {
            return Ok(false);
        }
        let content_type = model::sniff(&image);
        let bucket = self.input_bucket.clone();
        let request = ClassifyRequest {
            content_type: content_type.map(str::to_owned),
            image: Some(ImageRef { bucket, key: protocol::image_key(item.id) }),
            ..request
        };
        let job = Some((item.id, image, content_type));
        self.transport.resubmit(Resubmission { job, message: message(&request) }).await?;
        Ok(true)
    }
}

/// The request for an image of a batch. Nobody waits for its reply.
pub(crate) fn item_request(
    batch: Uuid,
    item: &BatchItem,
    top_k: u32,
    model: Option<String>,
    job_ttl: Duration,
) -> ClassifyRequest {
    let submitted_at = clock::now();
    ClassifyRequest {
        v: WIRE_VERSION,
        id: item.id,
        filename: item.name.clone(),
        content_type: None,
        image: item.image.clone(),
        image_data: None,
        top_k,
        model,
        batch: Some(batch),
        submitted_at,
        expires_at: submitted_at.saturating_add(job_ttl).unwrap_or(Timestamp::MAX),
        reply_to: None,
        traceparent: None,
    }
}

fn is_cancelled(result: &ClassifyResult) -> bool {
    result.error.as_ref().is_some_and(|error| error.code == ErrorCode::Cancelled)
}

async fn read_result(transport: &dyn Transport, id: Uuid) -> Result<Option<ClassifyResult>, TransportError> {
    let failed = |reason: String| ClassifyResult::ended(id, "", Status::Failed, ErrorCode::Internal, reason);
    match transport.result(id).await {
        Ok(None) => Ok(None),
        Ok(Some(text)) => {
            let parsed = serde_json::from_slice(&text);
            Ok(Some(parsed.unwrap_or_else(|error| failed(format!("the stored result cannot be read: {error}")))))
        }
        Err(error) if error.is_of_object() => Ok(Some(failed(error.to_string()))),
        Err(error) => Err(error),
    }
}
