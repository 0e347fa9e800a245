//! How a job ends: the result is written first, then the reply is sent, then the message is deleted. Whatever dies in
//! between, the message comes again and finds the result.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::infer::Finished;
use super::job::{DeadLetter, Ending};
use super::lease::{Keeper, Lease};
use super::metrics::METRICS;
use super::patience::{Rests, unless_final, until_done};
use super::prepare::LastFaults;
use crate::protocol::{self, ClassifyResult};
use crate::queue::{self, MAX_BATCH, Outgoing, Queue, QueueError, Queues, ServiceQueues};
use crate::store::{ObjectStore, Put, PutOptions};
use crate::telemetry::trace::Span;

/// Groups that are published at the same time. While one waits for the disk or for AWS, the next are written.
const GROUPS: usize = 16;
/// Reply queues whose handles are kept. A restarted web tier has a new one, so old handles go stale.
const KEPT_REPLY_QUEUES: usize = 256;
/// How long the marker of a withdrawn job is tried to be deleted.
const DELETE_MARKER_TIMEOUT: Duration = Duration::from_secs(2);

/// Proof that a job's end stands where clients find it. Made here only; [`Keeper::ack`] takes nothing less.
#[derive(Debug)]
pub struct Published(());

pub struct Publisher {
    pub queues: Arc<dyn Queues>,
    pub service: ServiceQueues,
    pub input: Arc<dyn ObjectStore>,
    pub output: Arc<dyn ObjectStore>,
    pub keeper: Keeper,
    pub last_faults: Arc<LastFaults>,
    pub reply_queues: ReplyQueues,
}

/// Handles of the queues that replies go to, by name.
#[derive(Default)]
pub struct ReplyQueues(Mutex<HashMap<String, Arc<dyn Queue>>>);

/// What is to be done to make the end of a job stand.
enum Step {
    Write(Unwritten),
    /// Done already. None where the message was handed back.
    Done(Option<Written>),
}

/// A job whose result is to be written.
struct Unwritten {
    lease: Lease,
    span: Span,
    key: String,
    body: Bytes,
    reply_to: Option<String>,
    letter: Option<DeadLetter>,
}

/// A job whose result is written and whose reply is still to be sent.
struct Written {
    lease: Lease,
    span: Span,
    reply: Option<Reply>,
    letter: Option<DeadLetter>,
}

struct Reply {
    to: String,
    body: String,
    /// The result object says the same and stands already.
    is_transient: bool,
}

impl Publisher {
    /// Publishes until `finished` is closed and empty.
    pub async fn run(self, mut finished: mpsc::Receiver<Vec<Finished>>) {
        let publisher = Arc::new(self);
        let groups = Arc::new(Semaphore::new(GROUPS));
        let mut running = JoinSet::new();
        loop {
            // The slot first: what finishes meanwhile joins the group.
            let slot = Arc::clone(&groups).acquire_owned().await.expect("never closed; this is a bug");
            let Some(mut group) = finished.recv().await else { break };
            while group.len() < MAX_BATCH
                && let Ok(more) = finished.try_recv()
            {
                group.extend(more);
            }
            let publisher = Arc::clone(&publisher);
            running.spawn(async move {
                publisher.publish(group).await;
                drop(slot);
            });
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    async fn publish(&self, group: Vec<Finished>) {
        let started = Instant::now();
        let mut unwritten = Vec::new();
        let mut written = Vec::new();
        for step in join_all(group.into_iter().map(|finished| self.begin(finished))).await {
            match step {
                Step::Write(result) => unwritten.push(result),
                Step::Done(done) => written.extend(done),
            }
        }
        written.extend(self.write_results(unwritten).await);
        let mut replies: BTreeMap<String, Vec<Reply>> = BTreeMap::new();
        let mut letters = Vec::new();
        let mut leases = Vec::new();
        let mut spans = Vec::new();
        for Written { lease, span, reply, letter } in written {
            if let Some(reply) = reply {
                replies.entry(reply.to.clone()).or_default().push(reply);
            }
            letters.extend(letter);
            leases.push((lease, Published(())));
            spans.push(span);
        }
        for (to, replies) in replies {
            self.reply(&to, replies).await;
        }
        self.keep_letters(letters).await;
        if leases.is_empty() {
            return;
        }
        let published = started.elapsed();
        METRICS.stage("published").observe(published.as_secs_f64());
        for span in spans {
            span.stage("published", published);
        }
        // Beyond the job: it may wait for others.
        until_done("ack", || self.keeper.ack(&leases)).await;
    }

    /// Makes the end stand in the store, but for a result: those of a group are written together.
    async fn begin(&self, Finished { lease, mut span, ending }: Finished) -> Step {
        METRICS.endings.with_label_values(&[ending.name()]).inc();
        span.set("imgcls.ending", ending.name());
        let trace_id = span.trace_id().map(tracing::field::display);
        match ending {
            Ending::HandBack { id, after, reason } => {
                span.fail(reason.clone());
                tracing::warn!(?id, trace_id, reason, after_seconds = after.as_secs(), "handed back");
                if let Some(id) = id {
                    self.last_faults.record(id, reason);
                }
                if let Err(error) = self.keeper.hand_back(lease, after).await {
                    tracing::warn!(%error, "cannot hand back; the message comes again after its visibility timeout");
                }
                Step::Done(None)
            }
            Ending::Result { result, reply_to } => {
                span.set("imgcls.id", result.id.to_string());
                if let Some(error) = &result.error {
                    span.fail(error.message.clone());
                    tracing::info!(id = %result.id, trace_id, code = error.code.as_str(), reason = error.message, "ended without an answer");
                }
                Step::Write(Unwritten::new(lease, span, &result, reply_to, None))
            }
            Ending::Again { stored, reply_to } => {
                let reply = self.reply_with(reply_to, &stored);
                Step::Done(Some(Written { lease, span, reply, letter: None }))
            }
            Ending::Legacy { name, image, label } => {
                let reply = self.write_legacy(&name, image, &label).await;
                Step::Done(Some(Written { lease, span, reply: Some(reply), letter: None }))
            }
            Ending::Withdrawn { id } => {
                span.set("imgcls.id", id.to_string());
                tracing::debug!(%id, trace_id, "withdrawn: its client left before it was told the id");
                // Before the ack, so that mostly no marker is left that no message names. One that stays costs a few bytes
                // until images of its age are deleted; no other job waits for it.
                let key = protocol::image_key(id);
                match tokio::time::timeout(DELETE_MARKER_TIMEOUT, self.input.delete(&key)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, %id, "the marker of a withdrawn job is not deleted"),
                    Err(_) => tracing::debug!(%id, "the marker of a withdrawn job is not deleted in time"),
                }
                Step::Done(Some(Written { lease, span, reply: None, letter: None }))
            }
            Ending::DeadLetter { letter, result, reply_to } => {
                span.fail(letter.reason.clone());
                tracing::warn!(id = ?letter.id, trace_id, reason = letter.reason, attempts = letter.attempts, "dead letter");
                let reply = match (&result, &letter.legacy_name) {
                    (Some(result), _) => {
                        return Step::Write(Unwritten::new(lease, span, result, reply_to, Some(letter)));
                    }
                    (None, Some(name)) => Some(self.legacy_reply(protocol::legacy_error_reply(name, &letter.reason))),
                    (None, None) => None,
                };
                Step::Done(Some(Written { lease, span, reply, letter: Some(letter) }))
            }
        }
    }

    /// Writes results, waiting out faults. Where one stands already, that is what is replied.
    async fn write_results(&self, mut left: Vec<Unwritten>) -> Vec<Written> {
        let options =
            PutOptions { if_none_match: true, content_type: Some("application/json"), ..PutOptions::default() };
        let mut written = Vec::with_capacity(left.len());
        let mut rests = Rests::default();
        while !left.is_empty() {
            let objects = left.iter().map(|result| (result.key.clone(), result.body.clone())).collect();
            let puts = self.output.put_all(objects, options).await;
            let mut failed = Vec::new();
            for (result, put) in left.into_iter().zip(puts) {
                match put {
                    Ok(put) => written.push(self.written(result, put).await),
                    Err(error) => {
                        METRICS.faults.with_label_values(&["put_result"]).inc();
                        tracing::warn!(%error, what = "put_result", "trying again");
                        failed.push(result);
                    }
                }
            }
            left = failed;
            if !left.is_empty() {
                rests.rest().await;
            }
        }
        written
    }

    async fn written(&self, result: Unwritten, put: Put) -> Written {
        let Unwritten { lease, span, key, mut body, reply_to, letter } = result;
        if put == Put::AlreadyExists {
            let read = || async { unless_final(self.output.get(&key, protocol::MAX_RESULT_BYTES).await) };
            match until_done("get_result", read).await {
                Ok(Some(stored)) => body = stored,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "the result of an earlier attempt cannot be read; this one is told");
                }
            }
        }
        Written { lease, span, reply: self.reply_with(reply_to, &body), letter }
    }

    fn reply_with(&self, reply_to: Option<String>, stored: &Bytes) -> Option<Reply> {
        let to = reply_to?;
        if !protocol::is_reply_queue_of(self.service.results.name(), &to) {
            METRICS.replies.with_label_values(&["foreign"]).inc();
            tracing::warn!(reply_to = to, "not a reply queue of this service; no reply is sent");
            return None;
        }
        Some(Reply { to, body: String::from_utf8_lossy(stored).into_owned(), is_transient: true })
    }

    async fn write_legacy(&self, name: &str, image: Bytes, label: &str) -> Reply {
        let output = Bytes::from(protocol::legacy_output(name, label));
        let options = PutOptions::default();
        let (_, _) = tokio::join!(
            until_done("put_image", || self.input.put(name, image.clone(), options)),
            until_done("put_output", || self.output.put(protocol::legacy_output_key(name), output.clone(), options)),
        );
        self.legacy_reply(protocol::legacy_reply(name, label))
    }

    fn legacy_reply(&self, body: String) -> Reply {
        // The original's web tier reads no store: this is all it gets.
        Reply { to: self.service.results.name().to_owned(), body, is_transient: false }
    }

    /// Sends replies to one queue. A queue that is gone belonged to a web process that is gone: nobody waits, and
    /// whoever asks another web process reads the store.
    async fn reply(&self, to: &str, replies: Vec<Reply>) {
        let Some(queue) = until_done("open_reply_queue", || self.open(to)).await else {
            METRICS.replies.with_label_values(&["gone"]).inc_by(replies.len() as u64);
            return;
        };
        for batch in replies.chunks(MAX_BATCH) {
            let bodies = batch.iter().map(Reply::to_message).collect();
            let too_large = self.send_all(&*queue, bodies).await;
            let cut = too_large
                .into_iter()
                .filter_map(|at| protocol::cut_reply(&batch[at].body))
                .map(Outgoing::transient)
                .collect();
            self.send_all(&*queue, cut).await;
        }
    }

    /// Sends at most [`MAX_BATCH`] messages, waiting out faults; the places of those that were too large.
    async fn send_all(&self, queue: &dyn Queue, messages: Vec<Outgoing>) -> Vec<usize> {
        let mut too_large = Vec::new();
        let mut left: Vec<usize> = (0..messages.len()).collect();
        let mut rests = Rests::default();
        while !left.is_empty() {
            let batch: Vec<Outgoing> = left.iter().map(|&at| messages[at].clone()).collect();
            // A call that failed as a whole failed for each of its messages.
            let answers = queue.send(&batch).await.unwrap_or_else(|error| vec![Err(error); batch.len()]);
            left = left
                .into_iter()
                .zip(answers)
                .filter(|(at, answer)| self.again(queue, *at, answer, &mut too_large))
                .map(|(at, _)| at)
                .collect();
            if !left.is_empty() {
                METRICS.faults.with_label_values(&["send_reply"]).inc();
                tracing::warn!(queue = queue.name(), count = left.len(), "replies not sent; trying again");
                rests.rest().await;
            }
        }
        too_large
    }

    /// Counts what became of one message; whether it has to be sent again.
    fn again(&self, queue: &dyn Queue, at: usize, answer: &Result<(), QueueError>, too_large: &mut Vec<usize>) -> bool {
        let outcome = match answer {
            Ok(()) => "sent",
            Err(QueueError::Unavailable(_)) => return true,
            Err(QueueError::TooLarge { .. }) => {
                too_large.push(at);
                "cut"
            }
            Err(QueueError::NotFound(_)) => {
                self.reply_queues.forget(queue.name());
                "gone"
            }
            Err(QueueError::Fatal(reason)) => {
                tracing::warn!(queue = queue.name(), reason, "cannot send; whoever waits reads the store");
                "failed"
            }
        };
        METRICS.replies.with_label_values(&[outcome]).inc();
        false
    }

    /// None where the queue is gone.
    async fn open(&self, name: &str) -> Result<Option<Arc<dyn Queue>>, QueueError> {
        if let Some(queue) = self.reply_queues.get(name) {
            return Ok(Some(queue));
        }
        match self.queues.open(name).await {
            Ok(queue) => {
                self.reply_queues.keep(name, &queue);
                Ok(Some(queue))
            }
            Err(QueueError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nothing but success ends this: the message is deleted from the request queue next. One by one, so that a
    /// fault of one letter doubles no other; they are rare.
    async fn keep_letters(&self, letters: Vec<DeadLetter>) {
        for letter in letters {
            until_done("send_dead_letter", || self.keep_letter(&letter)).await;
        }
    }

    /// A body that only just fitted its queue fits the dead letters without what is said beside it; the log has that.
    async fn keep_letter(&self, letter: &DeadLetter) -> Result<(), QueueError> {
        let dead_letters = &*self.service.dead_letters;
        match queue::send_one(dead_letters, letter.to_message()).await {
            Err(QueueError::TooLarge { .. }) => queue::send_one(dead_letters, Outgoing::new(letter.body.clone())).await,
            sent => sent,
        }
    }
}

impl Unwritten {
    fn new(
        lease: Lease,
        span: Span,
        result: &ClassifyResult,
        reply_to: Option<String>,
        letter: Option<DeadLetter>,
    ) -> Unwritten {
        let (key, body) = (protocol::result_key(result.id), Bytes::from(result.to_json()));
        Unwritten { lease, span, key, body, reply_to, letter }
    }
}

impl ReplyQueues {
    fn get(&self, name: &str) -> Option<Arc<dyn Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn keep(&self, name: &str, queue: &Arc<dyn Queue>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_REPLY_QUEUES {
            kept.clear();
        }
        kept.insert(name.to_owned(), Arc::clone(queue));
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl Reply {
    fn to_message(&self) -> Outgoing {
        Outgoing { is_transient: self.is_transient, ..Outgoing::new(self.body.clone()) }
    }
}

impl DeadLetter {
    fn to_message(&self) -> Outgoing {
        let mut message = Outgoing::new(self.body.clone());
        let attributes = &mut message.attributes;
        if let Some(id) = self.id {
            attributes.insert("id".to_owned(), id.to_string());
        }
        attributes.insert("reason".to_owned(), self.reason.clone());
        attributes.insert("attempts".to_owned(), self.attempts.to_string());
        message
    }
}
