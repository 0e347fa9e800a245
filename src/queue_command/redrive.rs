//! Submitting dead letters again.
//!
//! The order lets the process die anywhere. The transport writes the image again, since a job's time runs from then on (a web
//! process that is asked in between would otherwise say that the job expired), deletes the failed result, and sends the
//! message with a new `expires_at`. The letter is deleted last, so that a second run finds it and does what is left. Done
//! twice, a job runs twice and still has one result, since results are written once. A job that has succeeded is not
//! submitted again; only its letter is deleted.

use std::collections::{HashMap, HashSet};

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
use crate::protocol::{self, ClassifyRequest, Incoming, Payload, RETENTION_MARGIN, ReplyHead, Status};
use crate::transport::{DeadLetterScan, Delivery, Resubmission, Transport, TransportError};

#[derive(Debug, Default, Serialize)]
pub(crate) struct Redriven {
    pub letters: Vec<LetterOutcome>,
    /// Ids of the command line that no letter has.
    pub not_found: Vec<String>,
    /// By a signal. Letters that were not reached are where they were.
    pub is_interrupted: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct LetterOutcome {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub(crate) enum Outcome {
    SentAgain,
    /// The job has succeeded meanwhile: nothing was sent, and the letter is deleted.
    AlreadySucceeded,
    /// The letter stays.
    Kept(String),
}

impl Redriven {
    /// Whether everything is done that the command line asked for.
    pub(crate) fn is_complete(&self) -> bool {
        !self.is_interrupted
            && self.not_found.is_empty()
            && !self.letters.iter().any(|letter| matches!(letter.outcome, Outcome::Kept(_)))
    }
}

/// Submits dead letters again. With `Which::All` those that were there when this began, since a job that fails again comes
/// back.
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
        let is_found = |id: &&String| report.letters.iter().any(|letter| letter.summary.has_id(id));
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
            let letters = scan.next(PAGE).await?;
            if letters.is_empty() {
                break;
            }
            let mut meant = Vec::new();
            for letter in letters {
                let summary = Summary::of(&letter, self.began_at);
                if self.is_meant(&summary, which) {
                    meant.push((letter, summary));
                } else {
                    scan.keep(letter);
                }
            }
            let outcomes = self.send_batch(&meant, &mut jobs).await;
            let mut done = Vec::new();
            let mut failure = None;
            for ((letter, summary), outcome) in meant.into_iter().zip(outcomes) {
                match outcome {
                    Ok(outcome) => {
                        match outcome {
                            Outcome::Kept(_) => scan.keep(letter),
                            Outcome::SentAgain | Outcome::AlreadySucceeded => done.push(letter.receipt),
                        }
                        report.letters.push(LetterOutcome { summary, outcome });
                    }
                    Err(error) => {
                        scan.keep(letter);
                        failure = Some(error.context(format!("dead letter {} stays", summary.name())));
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

    /// Submits letters again. Two letters of one job are one job: the second shares the outcome of the first.
    async fn send_batch(
        &self,
        letters: &[(Delivery, Summary)],
        jobs: &mut HashMap<Uuid, Outcome>,
    ) -> Vec<anyhow::Result<Outcome>> {
        let mut in_batch = HashSet::new();
        let mut is_first = |id: Uuid| !jobs.contains_key(&id) && in_batch.insert(id);
        let firsts: Vec<bool> = letters.iter().map(|(_, summary)| summary.id.is_none_or(&mut is_first)).collect();
        let sending = letters
            .iter()
            .zip(&firsts)
            .map(|((letter, _), &first)| async move { if first { Some(self.send_again(letter).await) } else { None } });
        let sent = join_all(sending).await;
        for ((_, summary), outcome) in letters.iter().zip(&sent) {
            if let (Some(id), Some(Ok(outcome))) = (summary.id, outcome) {
                jobs.insert(id, outcome.clone());
            }
        }
        let shared = |summary: &Summary| summary.id.and_then(|id| jobs.get(&id).cloned());
        let outcomes = letters.iter().zip(sent).map(|((_, summary), outcome)| {
            outcome.unwrap_or_else(|| shared(summary).context("another letter of the job could not be sent"))
        });
        outcomes.collect()
    }

    fn is_meant(&self, summary: &Summary, which: &Which) -> bool {
        match which {
            Which::All => summary.dead_since.is_none_or(|since| since <= self.began_at),
            Which::Ids(ids) => ids.iter().any(|id| summary.has_id(id)),
        }
    }

    async fn send_again(&self, letter: &Delivery) -> anyhow::Result<Outcome> {
        let bucket = &self.names.input_bucket;
        let (job, message) = match Incoming::parse(&letter.body) {
            Incoming::Job(request) => {
                let message = renewed(&letter.body, &request, clock::now(), self.longest_ttl)?;
                (self.job(request.id, request.payload(bucket)).await?.map(Some), message)
            }
            // From a web tier that speaks the legacy form, or from legacy clients, which have no jobs.
            Incoming::Legacy(request) => match protocol::legacy_job_id(&request.filename) {
                Some(id) => {
                    (self.job(id, request.image_bytes().map(Payload::Inline)).await?.map(Some), letter.body.clone())
                }
                None => (Ok(None), letter.body.clone()),
            },
            Incoming::UnknownVersion { .. } => (Ok(None), letter.body.clone()),
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

    /// The job of a letter with its image, or the outcome when it is not to be submitted again.
    async fn job(&self, id: Uuid, payload: Result<Payload, String>) -> anyhow::Result<Result<Job, Outcome>> {
        let kept = |why: String| Ok(Err(Outcome::Kept(why)));
        let result = match self.transport.result(id).await {
            // Nobody can read it: another result takes its place.
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
        Ok(Ok((id, image, content_type)))
    }
}

/// Its id, its image, and the media type of that.
type Job = (Uuid, Bytes, Option<&'static str>);

/// The message with as much time from now as it had at first. Everything else is as it was, members that this build does
/// not know too.
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
    fn a_message_gets_the_time_that_it_had_and_keeps_the_rest() {
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
