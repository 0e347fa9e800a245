//! The last stage: outcomes are handed to the transport, which writes results, replies, and deletes messages in that order.
//! Whatever dies in between, the message comes again and the result is found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::job::{DeadLetter, Outcome};
use super::last_faults::LastFaults;
use super::lease::{Keeper, Lease};
use super::metrics::{METRICS, Metrics};
use super::retrying::BACKOFF;
use super::shadow::{ShadowImage, ShadowQueue};
use super::stages::Finished;
use crate::protocol::{self, ClassifyResult, ObjectResult};
use crate::telemetry::trace::Span;
use crate::transport::{
    self, Completed, Completion, LegacyOutput, MAX_BATCH, NewObjectResult, NewResult, Reply, ReplyTo, Transport,
};

/// Groups that are published at the same time. While one waits for the disk or for AWS, the next are written.
const MAX_GROUPS: usize = 16;

pub(crate) struct Publisher {
    pub transport: Arc<dyn Transport>,
    pub keeper: Keeper,
    pub last_faults: Arc<LastFaults>,
    /// The queue of the shadow model, if there is one.
    pub shadow: Option<ShadowQueue>,
}

/// A delivery whose completion is under way. Its lease is renewed until it is done.
struct Publishing {
    _lease: Lease,
    span: Span,
    /// The name of its outcome, which is counted once the completion is carried out.
    outcome: &'static str,
    shadow: Option<ShadowImage>,
}

impl Publisher {
    /// Publishes until `finished` is closed and empty.
    pub(crate) async fn run(self, mut finished: mpsc::Receiver<Vec<Finished>>) {
        let publisher = Arc::new(self);
        let groups = Arc::new(Semaphore::new(MAX_GROUPS));
        let mut running = JoinSet::new();
        loop {
            // The permit first: what finishes meanwhile joins the group.
            let permit = Arc::clone(&groups).acquire_owned().await.expect("never closed; this is a bug");
            let Some(mut group) = finished.recv().await else { break };
            while group.len() < MAX_BATCH
                && let Ok(more) = finished.try_recv()
            {
                group.extend(more);
            }
            let publisher = Arc::clone(&publisher);
            running.spawn(async move {
                publisher.publish(group).await;
                drop(permit);
            });
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    async fn publish(&self, group: Vec<Finished>) {
        let started = Instant::now();
        let begun = join_all(group.into_iter().map(|finished| self.begin(finished))).await;
        let (mut publishing, mut batch): (Vec<_>, Vec<_>) = begun.into_iter().flatten().unzip();
        let mut backoff = BACKOFF.start();
        // Nothing but success ends this, and the end of the drain.
        while !batch.is_empty() {
            let answers = self.transport.complete(&mut batch).await;
            let published_after = started.elapsed();
            let mut left = Vec::new();
            for ((published, completion), answer) in publishing.into_iter().zip(batch).zip(answers) {
                match answer {
                    Ok(completed) => {
                        count(&published, &completed, published_after);
                        if let (Some(shadow), Some(image)) = (&self.shadow, published.shadow) {
                            shadow.offer(image);
                        }
                    }
                    Err(error) => {
                        METRICS.faults.with_label_values(&[error.step]).inc();
                        tracing::warn!(error = %error.error, what = error.step, "trying again");
                        left.push((published, completion));
                    }
                }
            }
            (publishing, batch) = left.into_iter().unzip();
            if batch.is_empty() {
                METRICS.stage("published").observe(published_after.as_secs_f64());
            } else {
                tokio::time::sleep(backoff.next_delay_with_jitter()).await;
            }
        }
    }

    /// Returns the completion for the transport, or `None` if the message was released.
    async fn begin(&self, finished: Finished) -> Option<(Publishing, Completion)> {
        let Finished { lease, mut span, outcome, shadow } = finished;
        let name = outcome.name();
        span.set("imgcls.ending", name);
        log(&outcome, &mut span);
        let mut completion = Completion::new(lease.receipt());
        match outcome {
            Outcome::Release { id, after, reason } => {
                if let Some(id) = id {
                    self.last_faults.record(id, reason);
                }
                if let Err(error) = self.keeper.release(lease, after).await {
                    tracing::warn!(%error, "cannot release a message; it comes again after its visibility timeout");
                }
                METRICS.outcomes.with_label_values(&[name]).inc();
                return None;
            }
            Outcome::Result { result, reply_to } => set_result(&mut completion, &result, reply_to),
            Outcome::Object { result } => {
                completion.object_result = Some(NewObjectResult {
                    key: protocol::object_result_key(&result.bucket, &result.key),
                    sequencer: result.sequencer.clone(),
                    text: Bytes::from(result.to_json()),
                });
            }
            Outcome::Acknowledged { .. } => {}
            Outcome::AlreadyCompleted { stored, reply_to } => {
                completion.reply = reply(reply_to, String::from_utf8_lossy(&stored).into_owned());
            }
            Outcome::Legacy { name, image, label } => {
                let text = protocol::legacy_reply(&name, &label);
                completion.reply = Some(Reply { to: ReplyTo::LegacyWebTier, text });
                let output = Bytes::from(protocol::legacy_output(&name, &label));
                completion.legacy_output = Some(LegacyOutput { name, image, output });
            }
            Outcome::Withdrawn { id } => completion.withdrawn = Some(id),
            Outcome::DeadLetter { dead_letter, result, reply_to } => {
                set_dead_letter(&mut completion, dead_letter, result.as_ref(), reply_to);
            }
        }
        Some((Publishing { _lease: lease, span, outcome: name, shadow }, completion))
    }
}

fn set_result(completion: &mut Completion, result: &ClassifyResult, reply_to: Option<String>) {
    let text = result.to_json();
    completion.result = Some(NewResult { id: result.id, text: Bytes::from(text.clone()) });
    completion.reply = reply(reply_to, text);
}

fn set_dead_letter(
    completion: &mut Completion,
    dead_letter: DeadLetter,
    result: Option<&ClassifyResult>,
    reply_to: Option<String>,
) {
    let DeadLetter { id, body, reason, attempts, legacy_name } = dead_letter;
    if let Some(result) = result {
        set_result(completion, result, reply_to);
    } else if let Some(name) = legacy_name {
        let text = protocol::legacy_error_reply(&name, &reason);
        completion.reply = Some(Reply { to: ReplyTo::LegacyWebTier, text });
    }
    completion.dead_letter = Some(transport::DeadLetter { id, body, reason, attempts });
}

fn reply(reply_to: Option<String>, text: String) -> Option<Reply> {
    reply_to.map(|address| Reply { to: ReplyTo::Inbox(address), text })
}

fn count(published: &Publishing, completed: &Completed, took: Duration) {
    METRICS.outcomes.with_label_values(&[published.outcome]).inc();
    if let Some(reply) = completed.reply {
        METRICS.replies.with_label_values(&[reply.as_str()]).inc();
    }
    Metrics::trace_stage(&published.span, "published", took);
}

fn log(outcome: &Outcome, span: &mut Span) {
    let trace_id = span.trace_id().map(|id| id.to_string());
    let trace_id = trace_id.as_deref().map(tracing::field::display);
    let mut set_id = |id: &Uuid| span.set("imgcls.id", id.to_string());
    match outcome {
        Outcome::Release { id, after, reason } => {
            tracing::warn!(
                id = id.map(tracing::field::display),
                trace_id,
                reason,
                after_seconds = after.as_secs(),
                "released"
            );
            span.fail(reason.clone());
        }
        Outcome::Result { result, .. } => {
            set_id(&result.id);
            if let Some(error) = &result.error {
                let code = error.code.as_str();
                tracing::info!(id = %result.id, trace_id, code, reason = error.message, "ended without an answer");
                span.fail(error.message.clone());
            }
        }
        Outcome::Object { result } => {
            if let Some(error) = &result.error {
                let ObjectResult { bucket, key, .. } = &**result;
                let code = error.code.as_str();
                tracing::info!(bucket, key, trace_id, code, reason = error.message, "ended without an answer");
                span.fail(error.message.clone());
            }
        }
        Outcome::Acknowledged { reason } => tracing::debug!(trace_id, reason, "acknowledged"),
        Outcome::AlreadyCompleted { .. } | Outcome::Legacy { .. } => {}
        Outcome::Withdrawn { id } => {
            set_id(id);
            tracing::debug!(%id, trace_id, "withdrawn: its client left before it was told the id");
        }
        Outcome::DeadLetter { dead_letter, .. } => {
            let DeadLetter { id, reason, attempts, .. } = dead_letter;
            tracing::warn!(id = id.map(tracing::field::display), trace_id, reason, attempts, "dead letter");
            span.fail(reason.clone());
        }
    }
}
