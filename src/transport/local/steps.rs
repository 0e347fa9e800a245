//! Submission and completion as one transaction each, and the polling of workers that share one machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::complete::{self, Planned, PlannedReply};
use super::queue::{Sending, SqliteQueue, SqliteQueues, messages};
use super::store::SqliteStore;
use crate::config::Names;
use crate::protocol::{self, ServiceClass};
use crate::sqlite::{Durability, Failure, Session};
use crate::transport::completion::{Completed, Completion, ReplyOutcome, ReplyTo, ResultWrite};
use crate::transport::error::{CompletionError, TransportError};
use crate::transport::job::{Acknowledge, NewJob, SubmitTimes};
use crate::transport::message::{Delivery, Receipt, ReceivingProcess};
use crate::transport::port::{Wanted, WorkerLoad};
use crate::transport::queued::classes::{self, ByClass, Turns};
use crate::transport::queued::object::{PutOptions, StoreError};
use crate::transport::queued::queue::{
    LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, ReceiveOptions,
};
use crate::transport::queued::replies;
use crate::transport::queued::steps::Steps;

/// Maximum delay of the sync of a job whose caller waits for its result. Many jobs share one sync, and most results come
/// sooner.
const SHARED_SYNC: Duration = Duration::from_millis(50);
/// A marker may be flushed this late: if a power loss undoes it, one inference is wasted.
const MARKER_FLUSH_DELAY: Duration = Duration::from_secs(1);
/// A busy worker whose poll found nothing polls again after this time at the earliest.
const EMPTY_POLL_PAUSE: Duration = Duration::from_millis(5);
/// The depth is read often, since a local read takes microseconds.
const DEPTH_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) struct LocalSteps {
    queues: Arc<SqliteQueues>,
    requests: SqliteQueue,
    bulk: SqliteQueue,
    turns: Turns,
    input: SqliteStore,
    output: SqliteStore,
    names: Names,
}

impl LocalSteps {
    pub(crate) fn new(queues: Arc<SqliteQueues>, input: SqliteStore, output: SqliteStore, names: Names) -> LocalSteps {
        let requests = queues.handle(&names.request_queue);
        let bulk = queues.handle(&names.bulk_queue());
        LocalSteps { queues, requests, bulk, turns: Turns::default(), input, output, names }
    }

    fn requests_of(&self, class: ServiceClass) -> &SqliteQueue {
        match class {
            ServiceClass::Interactive => &self.requests,
            ServiceClass::Bulk => &self.bulk,
        }
    }

    fn request_queue_names(&self) -> complete::RequestQueues {
        complete::RequestQueues { interactive: self.names.request_queue.clone(), bulk: self.names.bulk_queue() }
    }

    async fn receive_interactive(
        &self,
        options: ReceiveOptions,
        load: &dyn WorkerLoad,
    ) -> Result<Vec<Delivery>, TransportError> {
        let mut pause = Duration::ZERO;
        loop {
            let wait = defer_to_idle_workers(load, pause).await;
            let deliveries = self.requests.receive_share(ReceiveOptions { wait, ..options }).await?;
            if !deliveries.is_empty() || wait == LONGEST_POLL {
                self.turns.received(ServiceClass::Interactive, deliveries.len());
                return Ok(deliveries);
            }
            pause = EMPTY_POLL_PAUSE;
        }
    }

    /// Leaves bulk requests in their queue while interactive ones are visible, unless it is their turn.
    async fn receive_bulk(
        &self,
        options: ReceiveOptions,
        load: &dyn WorkerLoad,
    ) -> Result<Vec<Delivery>, TransportError> {
        let until = Instant::now() + LONGEST_POLL;
        let mut pause = Duration::ZERO;
        while Instant::now() < until {
            let wait = defer_to_idle_workers(load, pause).await;
            pause = EMPTY_POLL_PAUSE;
            if !self.turns.is_turn_of_bulk() && self.requests.has_visible().await? {
                tokio::time::sleep(EMPTY_POLL_PAUSE).await;
                continue;
            }
            let deliveries = self.bulk.receive_share(ReceiveOptions { wait, ..options }).await?;
            if !deliveries.is_empty() || wait == LONGEST_POLL {
                self.turns.received(ServiceClass::Bulk, deliveries.len());
                return Ok(classes::marked(deliveries));
            }
        }
        Ok(Vec::new())
    }

    async fn plan(&self, completion: &Completion) -> Result<Planned, CompletionError> {
        let failed = |step| move |error: StoreError| CompletionError { step, error: error.into() };
        let mut planned = Planned { receipt: completion.receipt.clone(), ..Planned::default() };
        if let Some(id) = completion.withdrawn {
            planned.marker = Some(self.input.existing(&protocol::image_key(id)).map_err(failed("ack"))?);
        }
        if let Some(result) = &completion.result {
            let key = protocol::result_key(result.id);
            let new = self.output.prepare(&key, result.text.clone()).await.map_err(failed("put_result"))?;
            planned.result = Some((new, self.output.existing(&key).map_err(failed("put_result"))?));
        }
        if let Some(legacy) = &completion.legacy_output {
            let image = self.input.prepare(&legacy.name, legacy.image.clone()).await;
            let key = protocol::legacy_output_key(&legacy.name);
            let output = self.output.prepare(key, legacy.output.clone()).await;
            planned.legacy = Some((image.map_err(failed("put_image"))?, output.map_err(failed("put_output"))?));
        }
        if let Some(dead_letter) = &completion.dead_letter {
            planned.dead_letter = Some((dead_letter.to_message(), dead_letter.to_short_message()));
        }
        planned.reply = self.plan_reply(completion);
        Ok(planned)
    }

    fn plan_reply(&self, completion: &Completion) -> Option<PlannedReply> {
        let reply = completion.reply.as_ref()?;
        let text = reply.text.clone();
        Some(match &reply.to {
            ReplyTo::LegacyWebTier => PlannedReply::InTransaction { queue: self.names.result_queue.clone(), text },
            ReplyTo::Inbox(address) => match replies::own_queue(&self.names.result_queue, address) {
                None => PlannedReply::Foreign,
                Some(queue) if self.queues.may_send_direct(queue, &text) => {
                    PlannedReply::AfterCommit { queue: queue.to_owned(), text }
                }
                Some(queue) => PlannedReply::InTransaction { queue: queue.to_owned(), text },
            },
        })
    }

    async fn commit(&self, planned: Vec<Planned>) -> Result<Vec<complete::Outcome>, TransportError> {
        let durability = durability_of(&planned);
        let (requests, dead_letters) = (self.request_queue_names(), self.names.dead_letter_queue());
        let work = move |session: &mut Session| complete::carry_out(session, planned, &requests, &dead_letters);
        self.queues.database().engine.write(durability, work).await
    }

    /// Sends the replies that bypass the database, once the results are on disk. A lost reply does no harm: its receiver reads
    /// the result.
    async fn reply(&self, replies: Vec<(usize, String, String)>) -> Vec<(usize, ReplyOutcome)> {
        let mut by_queue: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
        for (at, queue, text) in replies {
            by_queue.entry(queue).or_default().push((at, text));
        }
        let mut outcomes = Vec::new();
        for (queue, replies) in by_queue {
            let handle = self.queues.handle(&queue);
            for batch in replies.chunks(MAX_BATCH) {
                let messages: Vec<Outgoing> = batch.iter().map(|(_, text)| Outgoing::new(text.clone())).collect();
                let answers = handle.send_as(&messages, Sending::Transient).await;
                let answers = answers.unwrap_or_else(|error| vec![Err(error); batch.len()]);
                for ((at, text), answer) in batch.iter().zip(answers) {
                    outcomes.push((*at, transient_outcome(&handle, text, answer).await));
                }
            }
        }
        outcomes
    }
}

/// Rows that a power loss must not undo are synced before the call returns. A deletion alone may wait for other calls: when
/// it is undone, it means one more delivery.
fn durability_of(planned: &[Planned]) -> Durability {
    let is_kept = |planned: &Planned| {
        let is_reply_kept = matches!(planned.reply, Some(PlannedReply::InTransaction { .. }));
        planned.result.is_some() || planned.legacy.is_some() || planned.dead_letter.is_some() || is_reply_kept
    };
    if planned.iter().any(is_kept) {
        Durability::FULL
    } else if planned.iter().any(|planned| planned.reply.is_some()) {
        Durability::Normal
    } else {
        Durability::Deferred
    }
}

async fn transient_outcome(queue: &SqliteQueue, text: &str, answer: Result<(), QueueError>) -> ReplyOutcome {
    if matches!(answer, Err(QueueError::TooLarge { .. })) {
        let Some(cut) = protocol::cut_reply(text) else { return ReplyOutcome::Cut };
        let sent = queue.send_as(&[Outgoing::new(cut)], Sending::Transient).await;
        let sent = sent.and_then(|answers| answers.into_iter().next().unwrap_or(Ok(())));
        return if sent.is_ok() { ReplyOutcome::Cut } else { ReplyOutcome::Failed };
    }
    replies::outcome(answer).unwrap_or_else(|error| {
        tracing::debug!(%error, "a reply is lost; its receiver reads the result");
        ReplyOutcome::Failed
    })
}

/// A busy worker delays its poll until it needs a message, so that idle workers are served first and the messages that come
/// first are begun first. Returns how long the receive waits for a message.
async fn defer_to_idle_workers(load: &dyn WorkerLoad, at_least: Duration) -> Duration {
    let Some(deferral) = load.deferral() else { return LONGEST_POLL };
    tokio::select! {
        biased;
        () = load.until_idle() => LONGEST_POLL,
        () = tokio::time::sleep(deferral.max(at_least)) => Duration::ZERO,
    }
}

#[async_trait]
impl Steps for LocalSteps {
    async fn submit(&self, job: &NewJob<'_>, message: String) -> Result<SubmitTimes, TransportError> {
        let started = Instant::now();
        let within = match job.acknowledge {
            Acknowledge::WhenDurable => Duration::ZERO,
            Acknowledge::WithResult(timeout) => SHARED_SYNC.min(timeout),
        };
        // A worker can read the image before it is on disk, so that disk and inference work at the same time.
        let (image, sync) = self.input.prepare_unsynced(&protocol::image_key(job.id), job.image.clone()).await?;
        let requests = self.requests_of(job.class()).name().to_owned();
        let work = move |session: &mut Session| {
            let image = image.append(session)?;
            // The message is sent before the row of the image is written, so that one that is too large leaves no row behind.
            let sent = messages::send(session, &requests, &[Outgoing::new(message)]).map_err(complete::lift)?;
            if let Some(Err(error)) = sent.into_iter().next() {
                return Err(Failure::Call(TransportError::from(error)));
            }
            image.insert(session, false)
        };
        let written = self.queues.database().engine.write(Durability::FullWithin(within), work);
        let synced = async {
            let Some(sync) = sync else { return Ok(()) };
            tokio::time::sleep(within).await;
            self.input.sync(sync).await.map_err(TransportError::from)
        };
        let done = match tokio::try_join!(written, synced) {
            Ok((done, ())) => done,
            Err(error) => {
                // It is not known whether a row names the image, so its space is freed only if none does.
                self.input.release_doubtful().await;
                return Err(error);
            }
        };
        let _ = self.input.finish(done).await;
        self.input.release_doubtful().await;
        let both = started.elapsed();
        Ok(SubmitTimes { stored: both, sent: both })
    }

    async fn receive(&self, wanted: Wanted, load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError> {
        let Wanted { class, max, visibility_timeout } = wanted;
        let options = ReceiveOptions { max: max.min(MAX_BATCH), wait: LONGEST_POLL, visibility_timeout };
        match class {
            ServiceClass::Interactive => self.receive_interactive(options, load).await,
            ServiceClass::Bulk => self.receive_bulk(options, load).await,
        }
    }

    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError> {
        for (class, receipts) in ByClass::of(receipts).each() {
            for batch in receipts.chunks(MAX_BATCH) {
                self.requests_of(class).release(batch, delay).await?;
            }
        }
        Ok(())
    }

    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>> {
        if batch.iter().all(Completion::is_bare) {
            return self.acknowledge(batch).await;
        }
        let mut answers: Vec<Option<Result<Completed, CompletionError>>> = Vec::with_capacity(batch.len());
        let (mut planned, mut places) = (Vec::new(), Vec::new());
        for (at, completion) in batch.iter().enumerate() {
            match self.plan(completion).await {
                Ok(plan) => {
                    planned.push(plan);
                    places.push(at);
                    answers.push(None);
                }
                Err(error) => answers.push(Some(Err(error))),
            }
        }
        let outcomes = match self.commit(planned).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let failed = |answer: Option<_>| {
                    answer.unwrap_or_else(|| Err(CompletionError { step: "put_result", error: error.clone() }))
                };
                return answers.into_iter().map(failed).collect();
            }
        };
        let mut after_commit = Vec::new();
        for (at, outcome) in places.into_iter().zip(outcomes) {
            let complete::Outcome { stored, freed, written } = outcome;
            for (is_input, done) in stored {
                let store = if is_input { &self.input } else { &self.output };
                let _ = store.finish(done).await;
            }
            self.input.release(freed).await;
            answers[at] = Some(written.map(|written| {
                if let Some((queue, text)) = written.reply_after_commit {
                    after_commit.push((at, queue, text));
                }
                Completed { result: written.result, reply: written.reply }
            }));
        }
        for (at, reply) in self.reply(after_commit).await {
            if let Some(Ok(completed)) = &mut answers[at] {
                completed.reply = Some(reply);
            }
        }
        self.output.release_doubtful().await;
        let none = || Err(CompletionError { step: "ack", error: TransportError::Unavailable("no answer".to_owned()) });
        answers.into_iter().map(|answer| answer.unwrap_or_else(none)).collect()
    }

    async fn mark_withdrawn(&self, id: Uuid, marker: Bytes) -> Result<(), StoreError> {
        let options = PutOptions::default();
        let put = self.input.put_within(&protocol::image_key(id), marker, options, MARKER_FLUSH_DELAY).await;
        put.map(drop)
    }

    async fn create_inbox(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        Ok(Arc::new(self.queues.create_own(name, attributes).await?))
    }

    async fn release_held_by(&self, process: ReceivingProcess) -> Result<(), TransportError> {
        self.requests.release_held_by(process).await?;
        match self.bulk.release_held_by(process).await {
            // An earlier release made the service.
            Err(QueueError::NotFound(_)) => Ok(()),
            released => Ok(released?),
        }
    }

    fn depth_interval(&self) -> Duration {
        DEPTH_INTERVAL
    }
}

impl LocalSteps {
    /// Completes a batch that has nothing to write: its messages are only acknowledged.
    async fn acknowledge(&self, batch: &[Completion]) -> Vec<Result<Completed, CompletionError>> {
        let mut answers = Vec::with_capacity(batch.len());
        for chunk in batch.chunks(MAX_BATCH) {
            let mut acknowledged = Ok(());
            for (class, receipts) in ByClass::of(chunk.iter().map(|completion| &completion.receipt)).each() {
                acknowledged = acknowledged.and(self.requests_of(class).ack_soon(&receipts).await);
            }
            answers.extend(chunk.iter().map(|_| match &acknowledged {
                Ok(()) => Ok(Completed { result: ResultWrite::Nothing, reply: None }),
                Err(error) => Err(CompletionError { step: "ack", error: error.clone().into() }),
            }));
        }
        answers
    }
}
