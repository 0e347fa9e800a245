//! A transport that is made of queues and buckets: images and results are objects, jobs, replies and dead letters are
//! messages. The local backend and AWS are made so, and differ only in [`steps`]. A backend that is not made of queues
//! implements [`Transport`] itself and needs nothing of this.

pub(in crate::transport) mod classes;
mod dead_letters;
mod inbox;
mod limit;
pub mod object;
pub(in crate::transport) mod parts;
pub mod queue;
pub(in crate::transport) mod replies;
mod service;
pub(in crate::transport) mod steps;
pub(in crate::transport) mod stepwise;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use self::dead_letters::Scan;
use self::inbox::QueueInbox;
use self::limit::MessageLimit;
use self::object::{Put, PutOptions};
use self::parts::Parts;
use self::queue::{LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueError, ReceiveOptions, send_one};
pub use self::service::ServiceQueues;
use self::steps::Steps;
use crate::protocol::{
    self, ClassifyRequest, ImageRef, Incoming, MAX_LEGACY_OUTPUT_BYTES, MAX_RESULT_BYTES, ServiceClass,
};
use crate::readiness;
use crate::transport::completion::{Completed, Completion, DeadLetter};
use crate::transport::error::{CompletionError, TransportError};
use crate::transport::job::{MessageTooLarge, NewJob, SubmitTimes};
use crate::transport::message::{Delivery, Depth, Receipt, ReceivingProcess};
use crate::transport::port::{
    DeadLetterScan, ImageInfo, Inbox, InboxMode, JobPart, QueueRole, Removal, Resubmission, ServiceOptions, Transport,
    Wanted, Withdrawal, WorkerLoad,
};
use crate::transport::reader::ObjectReader;

/// A transport that is made of queues and buckets.
pub(in crate::transport) struct QueuedTransport {
    parts: Arc<Parts>,
    steps: Arc<dyn Steps>,
    limit: MessageLimit,
}

impl QueuedTransport {
    pub(crate) fn new(parts: Arc<Parts>, steps: Arc<dyn Steps>) -> QueuedTransport {
        QueuedTransport { parts, steps, limit: MessageLimit::default() }
    }

    /// Somebody may have raised the queue's limit. It is read when that would change how this image travels.
    async fn read_limit_for(&self, job: &NewJob<'_>) {
        if job.wanted_limit_bytes() <= self.limit.bytes() || !self.limit.is_due() {
            return;
        }
        let attributes = async { self.parts.requests().await?.attributes().await };
        match attributes.await {
            Ok(attributes) => self.limit.learn(attributes.max_message_bytes),
            Err(error) => {
                tracing::debug!(%error, "cannot read the message limit of the queue; assuming that it has not changed");
            }
        }
    }

    /// Writes an object of the output bucket unless it exists, and returns the one that exists afterwards.
    async fn put_once(&self, key: &str, text: Bytes) -> Result<Bytes, TransportError> {
        let output = self.parts.output().await?;
        let options = PutOptions { if_none_match: true, content_type: Some("application/json") };
        match output.put(key, text.clone(), options).await? {
            Put::Created => Ok(text),
            Put::AlreadyExists => Ok(output.get(key, MAX_RESULT_BYTES).await?.unwrap_or(text)),
        }
    }

    fn message(&self, job: &NewJob<'_>) -> Result<String, TransportError> {
        let names = &self.parts.names;
        let message = job.message(&names.input_bucket, self.limit.bytes());
        message.map_err(|MessageTooLarge { size, limit }| TransportError::MessageTooLarge {
            queue: names.request_queue.clone(),
            size,
            limit,
        })
    }
}

#[async_trait]
impl Transport for QueuedTransport {
    fn name(&self) -> &str {
        &self.parts.names.request_queue
    }

    async fn prepare(&self, service: ServiceOptions) -> Result<(), TransportError> {
        self.parts.prepare(service).await
    }

    async fn check(&self) -> Result<(), String> {
        let said = |error: TransportError| error.to_string();
        let requests = self.parts.requests().await.map_err(|error| said(error.into()))?;
        let input = self.parts.input().await.map_err(|error| said(error.into()))?;
        let output = self.parts.output().await.map_err(|error| said(error.into()))?;
        let probes = vec![queue::probe(&**requests), object::probe(&**input), object::probe(&**output)];
        readiness::all_answer(probes).await
    }

    async fn failure(&self) -> String {
        self.parts.queues.failure().await
    }

    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        Ok(self.parts.output().await?.get(&protocol::result_key(id), MAX_RESULT_BYTES).await?)
    }

    async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        Ok(self.parts.input().await?.get(&protocol::image_key(id), max_bytes).await?)
    }

    async fn foreign_image(&self, image: &ImageRef, max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        Ok(self.parts.foreign(&image.bucket).await?.get(&image.key, max_bytes).await?)
    }

    async fn object_result(&self, key: &str) -> Result<Option<Bytes>, TransportError> {
        Ok(self.parts.output().await?.get(key, MAX_RESULT_BYTES).await?)
    }

    async fn interactive_depth(&self) -> Result<Depth, TransportError> {
        Ok(self.parts.requests().await?.depth().await?)
    }

    async fn bulk_depth(&self) -> Result<Depth, TransportError> {
        let depth = async { self.parts.bulk().await?.depth().await };
        match depth.await {
            // An earlier release made the service; [`Transport::prepare`] has warned then.
            Err(QueueError::NotFound(_) | QueueError::Fatal(_)) => Ok(Depth::default()),
            depth => Ok(depth?),
        }
    }

    async fn submit(&self, job: NewJob<'_>) -> Result<SubmitTimes, TransportError> {
        self.read_limit_for(&job).await;
        match self.steps.submit(&job, self.message(&job)?).await {
            // Somebody lowered the queue's limit.
            Err(TransportError::MessageTooLarge { queue, limit, .. }) => {
                tracing::info!(queue, limit, "the message limit of the queue was lowered");
                self.limit.learn(limit);
                self.steps.submit(&job, self.message(&job)?).await
            }
            submitted => submitted,
        }
    }

    async fn withdraw(&self, id: Uuid) -> Result<Withdrawal, TransportError> {
        if self.parts.output().await?.head(&protocol::result_key(id)).await?.is_some() {
            return Ok(Withdrawal::AlreadyCompleted);
        }
        if self.parts.input().await?.head(&protocol::image_key(id)).await?.is_none() {
            return Ok(Withdrawal::NotStored);
        }
        self.steps.mark_withdrawn(id, Bytes::from_static(protocol::WITHDRAWN_IMAGE)).await?;
        Ok(Withdrawal::Withdrawn)
    }

    async fn remove(&self, id: Uuid, tombstone: Bytes) -> Result<Removal, TransportError> {
        let (input, output) = (self.parts.input().await?, self.parts.output().await?);
        let (image, result) = (protocol::image_key(id), protocol::result_key(id));
        let mut had_result = output.head(&result).await?.is_some();
        let has_image = input.head(&image).await?.is_some();
        if !had_result && !has_image {
            return Ok(Removal::Unknown);
        }
        let options = |if_none_match| PutOptions { if_none_match, content_type: Some("application/json") };
        // A worker may complete the job at this moment.
        had_result |= output.put(&result, tombstone.clone(), options(true)).await? == Put::AlreadyExists;
        if had_result {
            let _ = output.put(&result, tombstone, options(false)).await?;
            input.delete(&image).await?;
            return Ok(Removal::Removed);
        }
        self.steps.mark_withdrawn(id, Bytes::from_static(protocol::WITHDRAWN_IMAGE)).await?;
        Ok(Removal::Cancelled)
    }

    async fn discard_image(&self, id: Uuid) -> Result<(), TransportError> {
        if self.parts.output().await?.head(&protocol::result_key(id)).await?.is_some() {
            self.parts.input().await?.delete(&protocol::image_key(id)).await?;
        }
        Ok(())
    }

    async fn record_once(&self, key: &str, text: Bytes) -> Result<Bytes, TransportError> {
        self.put_once(key, text).await
    }

    async fn record(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        Ok(self.parts.output().await?.get(key, max_bytes).await?)
    }

    async fn record_keys(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, TransportError> {
        Ok(self.parts.output().await?.list(prefix, after).await?)
    }

    async fn job_ids(&self, part: JobPart, after: Uuid, before: Uuid) -> Result<Vec<Uuid>, TransportError> {
        let (store, key, id_of): (_, fn(Uuid) -> String, fn(&str) -> Option<Uuid>) = match part {
            JobPart::Image => (self.parts.input().await?, protocol::image_key, protocol::job_of_image_key),
            JobPart::Result => (self.parts.output().await?, protocol::result_key, protocol::job_of_result_key),
        };
        let mut from = key(after);
        let prefix = common_beginning(&from, &key(before)).to_owned();
        loop {
            let keys = store.list(&prefix, Some(&from)).await?;
            let Some(last) = keys.last() else { return Ok(Vec::new()) };
            let mut ids: Vec<Uuid> = keys.iter().filter_map(|key| id_of(key)).collect();
            let is_end = ids.last().is_some_and(|id| *id >= before);
            ids.retain(|id| (after < *id) && (*id < before));
            if is_end || !ids.is_empty() {
                return Ok(ids);
            }
            // Keys of others.
            from.clone_from(last);
        }
    }

    async fn send_request(&self, request: &ClassifyRequest) -> Result<(), TransportError> {
        let message = request.clone().into_message(&self.parts.names.input_bucket, self.limit.bytes());
        Ok(send_one(&**self.parts.requests_of(request.class()).await?, Outgoing::new(message)).await?)
    }

    async fn write_result(&self, id: Uuid, text: Bytes) -> Result<Bytes, TransportError> {
        self.put_once(&protocol::result_key(id), text).await
    }

    async fn legacy_output(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        let name = id.to_string();
        let key = protocol::legacy_output_key(&name);
        Ok(self.parts.output().await?.get(key, MAX_LEGACY_OUTPUT_BYTES).await?)
    }

    async fn image_info(&self, id: Uuid) -> Result<Option<ImageInfo>, TransportError> {
        let info = self.parts.input().await?.head(&protocol::image_key(id)).await?;
        Ok(info.map(|info| ImageInfo { size_bytes: info.size_bytes, modified: info.modified }))
    }

    async fn open_image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, TransportError> {
        Ok(self.parts.input().await?.read(&protocol::image_key(id), max_bytes).await?)
    }

    async fn open_inbox(&self, mode: InboxMode, stack: &str) -> Result<Box<dyn Inbox>, TransportError> {
        let (parts, steps) = (Arc::clone(&self.parts), Arc::clone(&self.steps));
        Ok(Box::new(QueueInbox::open(parts, steps, mode, stack).await?))
    }

    async fn retention(&self) -> Result<Duration, TransportError> {
        let attributes = self.parts.requests().await?.attributes().await?;
        self.limit.set(attributes.max_message_bytes);
        Ok(attributes.retention)
    }

    fn depth_interval(&self) -> Duration {
        self.steps.depth_interval()
    }

    async fn prepare_callbacks(&self) -> Result<(), TransportError> {
        Ok(self.parts.prepare_callbacks().await?)
    }

    async fn send_callback(&self, message: String, delay: Duration) -> Result<(), TransportError> {
        let message = Outgoing { delay, ..Outgoing::new(message) };
        Ok(send_one(&**self.parts.callbacks().await?, message).await?)
    }

    async fn receive_callbacks(
        &self,
        max: usize,
        visibility_timeout: Duration,
    ) -> Result<Vec<Delivery>, TransportError> {
        let options = ReceiveOptions { max: max.min(MAX_BATCH), wait: LONGEST_POLL, visibility_timeout };
        Ok(self.parts.callbacks().await?.receive(options).await?)
    }

    async fn delay_callback(&self, receipt: &Receipt, delay: Duration) -> Result<(), TransportError> {
        Ok(self.parts.callbacks().await?.set_visibility(&[(receipt.clone(), delay)]).await?)
    }

    async fn end_callback(&self, receipt: &Receipt, kept: Option<DeadLetter>) -> Result<(), TransportError> {
        if let Some(dead_letter) = kept {
            send_one(&**self.parts.dead_letters().await?, dead_letter.to_message()).await?;
        }
        Ok(self.parts.callbacks().await?.ack(std::slice::from_ref(receipt)).await?)
    }

    async fn receive(&self, wanted: Wanted, load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError> {
        self.steps.receive(wanted, load).await
    }

    async fn extend(&self, receipts: &[Receipt], visibility_timeout: Duration) -> Result<(), TransportError> {
        self.parts.set_visibility(receipts, visibility_timeout).await
    }

    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError> {
        self.steps.release(receipts, delay).await
    }

    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>> {
        self.steps.complete(batch).await
    }

    async fn send_bulk_messages(&self, messages: &[String]) -> Result<(), TransportError> {
        let queue = self.parts.bulk().await?;
        for part in messages.chunks(MAX_BATCH) {
            let messages: Vec<Outgoing> = part.iter().map(Outgoing::new).collect();
            queue.send(&messages).await?.into_iter().collect::<Result<(), QueueError>>()?;
        }
        Ok(())
    }

    async fn queues(&self) -> Result<Vec<(String, QueueRole)>, TransportError> {
        let names = &self.parts.names;
        let mut found = vec![
            (names.request_queue.clone(), QueueRole::Requests),
            (names.bulk_queue(), QueueRole::BulkRequests),
            (names.dead_letter_queue(), QueueRole::DeadLetters),
            (names.result_queue.clone(), QueueRole::Results),
            (names.callback_queue(), QueueRole::Callbacks),
        ];
        let inboxes = self.parts.queues.list(&protocol::reply_queue(&names.result_queue, "")).await?;
        found.extend(inboxes.into_iter().map(|name| (name, QueueRole::Replies)));
        Ok(found)
    }

    async fn queue_depth(&self, queue: &str) -> Result<Option<Depth>, TransportError> {
        let depth = async { self.parts.queues.open(queue).await?.depth().await };
        match depth.await {
            Ok(depth) => Ok(Some(depth)),
            Err(QueueError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn oldest_age(&self, queue: &str) -> Result<Option<Duration>, TransportError> {
        Ok(self.parts.queues.open(queue).await?.oldest_age().await?)
    }

    async fn purge(&self, queue: &str) -> Result<(), TransportError> {
        Ok(self.parts.queues.open(queue).await?.purge().await?)
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterScan>, TransportError> {
        let queue: Arc<dyn Queue> = Arc::clone(self.parts.dead_letters().await?);
        Ok(Box::new(Scan::of(queue)))
    }

    async fn resubmit(&self, job: Resubmission) -> Result<(), TransportError> {
        let Resubmission { job, message } = job;
        let is_by_reference = job.is_none();
        if let Some((id, image, content_type)) = job {
            let options = PutOptions { if_none_match: false, content_type };
            let _ = self.parts.input().await?.put(&protocol::image_key(id), image, options).await?;
            self.parts.output().await?.delete(&protocol::result_key(id)).await?;
        }
        let class = match Incoming::parse(&message) {
            Incoming::Job(request) => {
                // Its image lies in another bucket.
                if is_by_reference {
                    self.parts.output().await?.delete(&protocol::result_key(request.id)).await?;
                }
                request.class()
            }
            _ => ServiceClass::Interactive,
        };
        Ok(send_one(&**self.parts.requests_of(class).await?, Outgoing::new(message)).await?)
    }

    async fn release_held_by(&self, process: ReceivingProcess) -> Result<(), TransportError> {
        self.steps.release_held_by(process).await
    }
}

/// The text that both begin with. Keys are ASCII.
fn common_beginning<'a>(one: &'a str, other: &str) -> &'a str {
    let common = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    one.get(..common).unwrap_or_default()
}
