//! Submission and completion one step after the other, for backends whose queues and buckets know nothing of each other:
//! the image is stored before its message is sent, a result is written before its reply is sent, and the message is deleted
//! last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::watch;
use uuid::Uuid;

use super::classes::{self, Turns};
use super::object::{Put, PutOptions, StoreError};
use super::parts::Parts;
use super::queue::{LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, ReceiveOptions, send_one};
use super::replies::{self, ReplySender};
use super::steps::Steps;
use crate::protocol::{self, MAX_RESULT_BYTES, ServiceClass};
use crate::transport::completion::{
    Completed, Completion, LegacyOutput, NewObjectResult, NewResult, ReplyOutcome, ReplyTo, ResultWrite,
};
use crate::transport::error::{CompletionError, TransportError};
use crate::transport::job::{NewJob, SubmitTimes};
use crate::transport::message::{Delivery, Receipt};
use crate::transport::port::{Wanted, WorkerLoad};

/// How long the image of a job that was refused is tried to be deleted, while its client waits for the refusal.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the marker of a withdrawn job is tried to be deleted.
const DELETE_MARKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries of a write that met others of the same object.
const TRIES_TO_REPLACE: u32 = 5;
/// A call to a remote queue takes milliseconds and is billed.
const DEPTH_INTERVAL: Duration = Duration::from_secs(5);
/// A receive that waits returns at once if there is a message. After this time, the queue has none.
const FOUND_NONE_AFTER: Duration = Duration::from_millis(50);

pub(crate) struct Stepwise {
    parts: Arc<Parts>,
    replies: ReplySender,
    turns: Turns,
    /// When the receive of interactive requests began that waits now.
    waiting_since: watch::Sender<Option<Instant>>,
}

/// A receive of interactive requests that waits. Dropping it ends the wait.
struct WaitingReceive<'a>(&'a watch::Sender<Option<Instant>>);

impl Drop for WaitingReceive<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Stepwise {
    pub(crate) fn new(parts: Arc<Parts>) -> Stepwise {
        let replies = ReplySender::new(Arc::clone(&parts));
        Stepwise { replies, parts, turns: Turns::default(), waiting_since: watch::Sender::new(None) }
    }

    /// Deletes what is stored as the image of a job. A failure is only logged, since images of its age are deleted later.
    async fn delete_image(&self, id: Uuid, timeout: Duration, content: &'static str) {
        let delete = async { self.parts.input().await?.delete(&protocol::image_key(id)).await };
        match tokio::time::timeout(timeout, delete).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, %id, "cannot delete {content}"),
            Err(_) => tracing::debug!(%id, "cannot delete {content} in time"),
        }
    }

    /// The steps that concern objects.
    async fn write(&self, completion: &mut Completion) -> Result<(), CompletionError> {
        if let Some(id) = completion.withdrawn {
            // Before the message is deleted, so that mostly no marker is left without a message.
            self.delete_image(id, DELETE_MARKER_TIMEOUT, "the marker of a withdrawn job").await;
        }
        if let Some(result) = &completion.result
            && completion.progress.result.is_none()
        {
            completion.progress.result = Some(self.write_result(result).await?);
        }
        if let Some(result) = &completion.object_result
            && !completion.progress.object_result
        {
            self.write_object_result(result).await?;
            completion.progress.object_result = true;
        }
        if let Some(output) = &completion.legacy_output
            && !completion.progress.legacy_output
        {
            self.write_legacy_output(output).await?;
            completion.progress.legacy_output = true;
        }
        Ok(())
    }

    async fn write_result(&self, result: &NewResult) -> Result<ResultWrite, CompletionError> {
        let failed = |step| move |error: StoreError| CompletionError { step, error: error.into() };
        let key = protocol::result_key(result.id);
        let options = PutOptions { if_none_match: true, content_type: Some("application/json") };
        let output = self.parts.output().await.map_err(failed("put_result"))?;
        match output.put(&key, result.text.clone(), options).await.map_err(failed("put_result"))? {
            Put::Created => Ok(ResultWrite::Created),
            Put::AlreadyExists => match output.get(&key, MAX_RESULT_BYTES).await {
                Ok(stored) => Ok(ResultWrite::AlreadyCompleted(stored)),
                Err(error @ (StoreError::TooLarge { .. } | StoreError::Damaged { .. })) => {
                    tracing::error!(%error, "cannot read the result of an earlier attempt; replying with the result of this one");
                    Ok(ResultWrite::AlreadyCompleted(None))
                }
                Err(error) => Err(failed("get_result")(error)),
            },
        }
    }

    /// Writes the result for an object, unless that of the same or a later event is stored.
    async fn write_object_result(&self, result: &NewObjectResult) -> Result<(), CompletionError> {
        let failed = |error: StoreError| CompletionError { step: "put_result", error: error.into() };
        let NewObjectResult { key, sequencer, text } = result;
        let output = self.parts.output().await.map_err(failed)?;
        let options = PutOptions { if_none_match: true, content_type: Some("application/json") };
        for _ in 0..TRIES_TO_REPLACE {
            if output.put(key, text.clone(), options).await.map_err(failed)? == Put::Created {
                return Ok(());
            }
            match output.get_tagged(key, MAX_RESULT_BYTES).await.map_err(failed)? {
                Some((stored, _)) if protocol::is_current(&stored, sequencer) => return Ok(()),
                Some((_, tag)) => {
                    let replaced = output.replace(key, text.clone(), &tag).await.map_err(failed)?;
                    if replaced == Put::Created {
                        return Ok(());
                    }
                }
                // It was deleted meanwhile.
                None => {}
            }
        }
        let reason = format!("the result {key:?} met other writers {TRIES_TO_REPLACE} times");
        Err(failed(StoreError::Unavailable { bucket: output.bucket().to_owned(), reason }))
    }

    async fn write_legacy_output(&self, output: &LegacyOutput) -> Result<(), CompletionError> {
        let failed = |step| move |error: StoreError| CompletionError { step, error: error.into() };
        let options = PutOptions::default();
        let image = async {
            let input = self.parts.input().await?;
            input.put(&output.name, output.image.clone(), options).await.map(drop)
        };
        let label = async {
            let bucket = self.parts.output().await?;
            bucket.put(protocol::legacy_output_key(&output.name), output.output.clone(), options).await.map(drop)
        };
        let (image, label) = tokio::join!(image, label);
        image.map_err(failed("put_image"))?;
        label.map_err(failed("put_output"))
    }

    async fn reply(&self, batch: &mut [Completion], failures: &mut [Option<CompletionError>]) {
        let mut by_queue: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, completion) in batch.iter_mut().enumerate() {
            let Some(reply) = &completion.reply else { continue };
            if failures[at].is_some() || completion.progress.reply.is_some() {
                continue;
            }
            let queue = match &reply.to {
                ReplyTo::LegacyWebTier => Some(self.parts.names.result_queue.as_str()),
                ReplyTo::Inbox(address) => replies::own_queue(&self.parts.names.result_queue, address),
            };
            match queue {
                Some(queue) => by_queue.entry(queue.to_owned()).or_default().push(at),
                None => completion.progress.reply = Some(ReplyOutcome::Foreign),
            }
        }
        for (queue, indices) in by_queue {
            let texts: Vec<String> = indices.iter().map(|&at| batch[at].reply_text()).collect();
            for (at, outcome) in indices.into_iter().zip(self.replies.send(&queue, &texts).await) {
                match outcome {
                    Ok(outcome) => batch[at].progress.reply = Some(outcome),
                    Err(error) => failures[at] = Some(error),
                }
            }
        }
    }

    /// Sends the dead letter of a completion. They are sent one by one, so that the failure of one duplicates no other; dead
    /// letters are rare.
    async fn keep_dead_letter(&self, completion: &mut Completion) -> Result<(), CompletionError> {
        let Some(dead_letter) = &completion.dead_letter else { return Ok(()) };
        if completion.progress.dead_letter {
            return Ok(());
        }
        let send = async {
            let queue = self.parts.dead_letters().await?;
            match send_one(&**queue, dead_letter.to_message()).await {
                Err(QueueError::TooLarge { .. }) => send_one(&**queue, dead_letter.to_short_message()).await,
                sent => sent,
            }
        };
        send.await.map_err(|error| CompletionError { step: "send_dead_letter", error: error.into() })?;
        completion.progress.dead_letter = true;
        Ok(())
    }

    async fn acknowledge(&self, batch: &[Completion], failures: &mut [Option<CompletionError>]) {
        let mut done: HashMap<ServiceClass, Vec<(usize, Receipt)>> = HashMap::new();
        for at in (0..batch.len()).filter(|&at| failures[at].is_none()) {
            let (class, receipt) = classes::split(&batch[at].receipt);
            done.entry(class).or_default().push((at, receipt));
        }
        for (class, done) in done {
            for chunk in done.chunks(MAX_BATCH) {
                let receipts: Vec<_> = chunk.iter().map(|(_, receipt)| receipt.clone()).collect();
                let acknowledged = async { self.parts.requests_of(class).await?.ack(&receipts).await };
                if let Err(error) = acknowledged.await {
                    for (at, _) in chunk {
                        failures[*at] = Some(CompletionError { step: "ack", error: error.clone().into() });
                    }
                }
            }
        }
    }

    /// The queue does not know who is idle: the first receiver gets the message, and a waiting receive costs nothing.
    async fn receive_interactive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, TransportError> {
        let requests = self.parts.requests().await?;
        self.waiting_since.send_replace(Some(Instant::now()));
        let waiting = WaitingReceive(&self.waiting_since);
        let received = requests.receive(options).await;
        drop(waiting);
        let received = received?;
        self.turns.received(ServiceClass::Interactive, received.len());
        Ok(received)
    }

    /// Waits until a receive of interactive requests has found none, or it is the turn of bulk requests.
    async fn receive_bulk(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, TransportError> {
        if tokio::time::timeout(LONGEST_POLL, self.until_turn_of_bulk()).await.is_err() {
            return Ok(Vec::new());
        }
        let received = async { self.parts.bulk().await?.receive(options).await };
        let received = match received.await {
            Err(QueueError::NotFound(queue)) => {
                // A service without the queue has no bulk requests.
                tracing::debug!(queue, "there is no bulk queue");
                tokio::time::sleep(LONGEST_POLL).await;
                return Ok(Vec::new());
            }
            received => received?,
        };
        self.turns.received(ServiceClass::Bulk, received.len());
        Ok(classes::marked(received))
    }

    async fn until_turn_of_bulk(&self) {
        let mut waiting = self.waiting_since.subscribe();
        while !self.turns.is_turn_of_bulk() {
            let since = *waiting.borrow_and_update();
            let found_none = async {
                match since {
                    Some(since) => tokio::time::sleep_until((since + FOUND_NONE_AFTER).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = found_none => return,
                // Cannot fail, because `self` holds the sender.
                _ = waiting.changed() => {}
            }
        }
    }
}

#[async_trait]
impl Steps for Stepwise {
    async fn submit(&self, job: &NewJob<'_>, message: String) -> Result<SubmitTimes, TransportError> {
        let storing = Instant::now();
        let options = PutOptions { if_none_match: false, content_type: Some(job.content_type) };
        let key = protocol::image_key(job.id);
        let _ = self.parts.input().await?.put(&key, job.image.clone(), options).await?;
        let (stored, sending) = (storing.elapsed(), Instant::now());
        if let Err(error) = send_one(&**self.parts.requests_of(job.class()).await?, Outgoing::new(message)).await {
            self.delete_image(job.id, CLEAN_UP_TIMEOUT, "the image of a refused job").await;
            return Err(error.into());
        }
        Ok(SubmitTimes { stored, sent: sending.elapsed() })
    }

    async fn receive(&self, wanted: Wanted, _load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError> {
        let Wanted { class, max, visibility_timeout } = wanted;
        let options = ReceiveOptions { max: max.min(MAX_BATCH), wait: LONGEST_POLL, visibility_timeout };
        match class {
            ServiceClass::Interactive => self.receive_interactive(options).await,
            ServiceClass::Bulk => self.receive_bulk(options).await,
        }
    }

    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError> {
        self.parts.set_visibility(receipts, delay).await
    }

    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>> {
        let written = join_all(batch.iter_mut().map(|completion| self.write(completion))).await;
        let mut failures: Vec<Option<CompletionError>> = written.into_iter().map(Result::err).collect();
        self.reply(batch, &mut failures).await;
        for (completion, failure) in batch.iter_mut().zip(&mut failures) {
            if failure.is_none() {
                *failure = self.keep_dead_letter(completion).await.err();
            }
        }
        self.acknowledge(batch, &mut failures).await;
        let answers = batch.iter().zip(failures);
        answers.map(|(completion, failure)| failure.map_or_else(|| Ok(completion.completed()), Err)).collect()
    }

    async fn mark_withdrawn(&self, id: Uuid, marker: Bytes) -> Result<(), StoreError> {
        let put = self.parts.input().await?.put(&protocol::image_key(id), marker, PutOptions::default()).await;
        put.map(drop)
    }

    async fn create_inbox(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        self.parts.queues.create(name, attributes).await
    }

    fn depth_interval(&self) -> Duration {
        DEPTH_INTERVAL
    }
}
