//! Submits dead letters again.
//!
//! The process may die at any step. The transport first writes the image again, because the time of a job runs from
//! that moment (a web process that is asked in between would otherwise answer that the job has expired). It then deletes
//! the failed result and sends the message with a new `expires_at`. The dead letter is deleted last, so that a second run
//! finds it and does the remaining steps. A job that is submitted twice runs twice and still has one result, because
//! results are written once. A job that has succeeded is not submitted again; only its dead letter is deleted.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::dead_letters::Summary;
use super::{MAX_IMAGE_BYTES, PAGE, Which, explained};
use crate::clock;
use crate::config::Names;
use crate::protocol::{self, Callback, ClassifyRequest, Incoming, Payload, RETENTION_MARGIN, ReplyHead, Status};
use crate::transport::{DeadLetterScan, Delivery, Resubmission, Transport, TransportError};

#[derive(Debug, Default, Serialize)]
pub(crate) struct Redriven {
    #[serde(rename = "letters")]
    pub dead_letters: Vec<RedrivenDeadLetter>,
    /// Ids of the command line that no dead letter has.
    pub not_found: Vec<String>,
    /// True if a signal stopped the command. The dead letters that were not reached are unchanged.
    pub is_interrupted: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct RedrivenDeadLetter {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub(crate) enum Outcome {
    SentAgain,
    /// The job has succeeded meanwhile: nothing was sent, and the dead letter is deleted.
    AlreadySucceeded,
    /// The dead letter was not submitted again and stays in its queue, for this reason.
    Kept(String),
}

impl Redriven {
    /// Returns true if everything is done that the command line asked for.
    pub(crate) fn is_complete(&self) -> bool {
        !self.is_interrupted
            && self.not_found.is_empty()
            && !self.dead_letters.iter().any(|redriven| matches!(redriven.outcome, Outcome::Kept(_)))
    }
}

/// Submits dead letters again. With `Which::All`, only those that exist when this begins, because a job that fails again
/// becomes a dead letter again.
pub(crate) async fn redrive(
    transport: &dyn Transport,
    names: &Names,
    which: &Which,
    shutdown: &CancellationToken,
) -> anyhow::Result<Redriven> {
    let mut scan = transport.dead_letters().await.map_err(explained)?;
    let retention = SignedDuration::try_from(transport.retention().await.map_err(explained)?);
    let margin = SignedDuration::try_from(RETENTION_MARGIN).unwrap_or(SignedDuration::ZERO);
    let redrive = Redrive {
        transport,
        names,
        longest_ttl: retention.unwrap_or(SignedDuration::MAX) - margin,
        began_at: clock::now(),
        shutdown,
    };
    let mut report = Redriven::default();
    let ended = redrive.scan(&mut *scan, which, &mut report).await;
    scan.close().await?;
    ended?;
    report.is_interrupted = shutdown.is_cancelled();
    if let Which::Ids(ids) = which {
        let is_found = |id: &&String| report.dead_letters.iter().any(|redriven| redriven.summary.has_id(id));
        report.not_found = ids.iter().filter(|id| !is_found(id)).cloned().collect();
    }
    Ok(report)
}

struct Redrive<'a> {
    transport: &'a dyn Transport,
    names: &'a Names,
    longest_ttl: SignedDuration,
    began_at: Timestamp,
    shutdown: &'a CancellationToken,
}

impl Redrive<'_> {
    async fn scan(&self, scan: &mut dyn DeadLetterScan, which: &Which, report: &mut Redriven) -> anyhow::Result<()> {
        let mut jobs = HashMap::new();
        while !self.shutdown.is_cancelled() {
            let page = scan.next(PAGE).await?;
            if page.is_empty() {
                break;
            }
            let mut selected = Vec::new();
            for dead_letter in page {
                let summary = Summary::of(&dead_letter, self.began_at);
                if self.is_selected(&summary, which) {
                    selected.push((dead_letter, summary));
                } else {
                    scan.keep(dead_letter);
                }
            }
            let outcomes = self.send_batch(&selected, &mut jobs).await;
            let mut done = Vec::new();
            let mut failure = None;
            for ((dead_letter, summary), outcome) in selected.into_iter().zip(outcomes) {
                match outcome {
                    Ok(outcome) => {
                        match outcome {
                            Outcome::Kept(_) => scan.keep(dead_letter),
                            Outcome::SentAgain | Outcome::AlreadySucceeded => done.push(dead_letter.receipt),
                        }
                        report.dead_letters.push(RedrivenDeadLetter { summary, outcome });
                    }
                    Err(error) => {
                        scan.keep(dead_letter);
                        failure =
                            Some(error.context(format!("dead letter {} was not submitted again", summary.name())));
                    }
                }
            }
            if !done.is_empty() {
                scan.delete(&done).await.context("submitted again, but the dead letters cannot be deleted")?;
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Submits dead letters again. If several belong to one job, only the first is sent and all share its outcome.
    async fn send_batch(
        &self,
        dead_letters: &[(Delivery, Summary)],
        jobs: &mut HashMap<Uuid, Outcome>,
    ) -> Vec<anyhow::Result<Outcome>> {
        let mut in_batch = HashSet::new();
        let mut is_first = |id: Uuid| !jobs.contains_key(&id) && in_batch.insert(id);
        let firsts: Vec<bool> =
            dead_letters.iter().map(|(_, summary)| summary.job().is_none_or(&mut is_first)).collect();
        let sending = dead_letters.iter().zip(&firsts).map(|((dead_letter, _), &first)| async move {
            if first { Some(self.send_again(dead_letter).await) } else { None }
        });
        let sent = join_all(sending).await;
        for ((_, summary), outcome) in dead_letters.iter().zip(&sent) {
            if let (Some(id), Some(Ok(outcome))) = (summary.job(), outcome) {
                jobs.insert(id, outcome.clone());
            }
        }
        let shared = |summary: &Summary| summary.job().and_then(|id| jobs.get(&id).cloned());
        let outcomes = dead_letters.iter().zip(sent).map(|((_, summary), outcome)| {
            outcome.unwrap_or_else(|| shared(summary).context("another dead letter of the job could not be sent"))
        });
        outcomes.collect()
    }

    fn is_selected(&self, summary: &Summary, which: &Which) -> bool {
        match which {
            Which::All => summary.dead_since.is_none_or(|since| since <= self.began_at),
            Which::Ids(ids) => ids.iter().any(|id| summary.has_id(id)),
        }
    }

    async fn send_again(&self, dead_letter: &Delivery) -> anyhow::Result<Outcome> {
        if let Some(callback) = Callback::parse(&dead_letter.body) {
            // Its receiver is called for another day.
            let renewed = Callback { failing_since: None, ..callback };
            self.transport.send_callback(renewed.to_json(), Duration::ZERO).await.context("cannot send")?;
            return Ok(Outcome::SentAgain);
        }
        let bucket = &self.names.input_bucket;
        let (job, message) = match Incoming::parse(&dead_letter.body) {
            Incoming::Job(request) => {
                let message = renewed(&dead_letter.body, &request, clock::now(), self.longest_ttl)?;
                // The worker decides whether it reads the bucket that the message names.
                let named: Vec<String> = request.image.iter().map(|image| image.bucket.clone()).collect();
                (self.job(request.id, request.payload(bucket, &named)).await?, message)
            }
            // A web tier that speaks the legacy form has a job for it; a legacy client has none.
            Incoming::Legacy(request) => match protocol::legacy_job_id(&request.filename) {
                Some(id) => (self.job(id, request.image_bytes().map(Payload::Inline)).await?, dead_letter.body.clone()),
                None => (Ok(None), dead_letter.body.clone()),
            },
            Incoming::UnknownVersion { .. } | Incoming::Notification(_) => (Ok(None), dead_letter.body.clone()),
            Incoming::Malformed { reason, .. } => {
                return Ok(Outcome::Kept(format!("no worker would take it: {reason}")));
            }
        };
        match job {
            Ok(job) => self.transport.resubmit(Resubmission { job, message }).await.context("cannot send")?,
            Err(outcome) => return Ok(outcome),
        }
        Ok(Outcome::SentAgain)
    }

    /// Returns the job of a dead letter with its image, `None` if the image lies in another bucket, or the outcome if it must
    /// not be submitted again.
    async fn job(&self, id: Uuid, payload: Result<Payload, String>) -> anyhow::Result<Result<Option<Job>, Outcome>> {
        let kept = |why: String| Ok(Err(Outcome::Kept(why)));
        let result = match self.transport.result(id).await {
            // A damaged result is lost anyway, so that another one may replace it.
            Err(TransportError::Damaged { .. }) => None,
            read => read?,
        };
        match result.as_deref().map(serde_json::from_slice::<ReplyHead>) {
            Some(Ok(head)) if head.status == Status::Succeeded => return Ok(Err(Outcome::AlreadySucceeded)),
            Some(Err(error)) => return kept(format!("its stored result cannot be read: {error}")),
            Some(Ok(_)) | None => {}
        }
        let image = match payload {
            Ok(Payload::Inline(bytes)) => Some(Bytes::from(bytes)),
            Ok(Payload::Foreign(_)) => return Ok(Ok(None)),
            Ok(Payload::Stored(id)) => match self.transport.image(id, MAX_IMAGE_BYTES).await {
                Err(TransportError::Damaged { .. }) => None,
                read => read?,
            },
            Err(reason) => return kept(format!("no worker would take it: {reason}")),
        };
        let Some(image) = image else {
            return kept("its image is gone from the store, or damaged".to_owned());
        };
        let content_type = crate::model::sniff(&image);
        Ok(Ok(Some((id, image, content_type))))
    }
}

/// Id, image and media type of the image.
type Job = (Uuid, Bytes, Option<&'static str>);

/// Returns the message with an `expires_at` that leaves it as much time from now as it had at first, at most
/// `longest_ttl`. All other members stay, also those that this build does not know.
fn renewed(
    body: &str,
    request: &ClassifyRequest,
    now: Timestamp,
    longest_ttl: SignedDuration,
) -> anyhow::Result<String> {
    let ttl = request.expires_at.duration_since(request.submitted_at).min(longest_ttl).max(SignedDuration::ZERO);
    let mut message: Value = serde_json::from_str(body)?;
    message["expires_at"] = serde_json::to_value(now.saturating_add(ttl)?)?;
    Ok(message.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redriven_message_gets_its_time_again_and_keeps_its_other_members() {
        let id = "01936d5c-7e00-7abc-8def-0123456789ab";
        let body = format!(
            r#"{{"v":1,"id":"{id}","image_data":"aGk=","priority":9,"submitted_at":"2026-01-01T00:00:00Z","expires_at":"2026-01-01T01:00:00Z"}}"#
        );
        let Incoming::Job(request) = Incoming::parse(&body) else { panic!("a request") };
        let now = "2026-02-01T00:00:00Z".parse().unwrap();
        let again = renewed(&body, &request, now, SignedDuration::from_hours(9)).unwrap();
        let message: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(message["expires_at"], "2026-02-01T01:00:00Z");
        assert_eq!((&message["submitted_at"], &message["priority"]), (&"2026-01-01T00:00:00Z".into(), &9.into()));
        let short = renewed(&body, &request, now, SignedDuration::from_mins(6)).unwrap();
        assert!(short.contains("2026-02-01T00:06:00Z"), "{short}");
    }
}
