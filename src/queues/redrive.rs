//! Sending dead letters again.
//!
//! The order lets the process die anywhere: the letter is deleted last, so that a second run finds it and does what is
//! left. Done twice, a job runs twice and still has one end, since results are written once.
//!
//! 1. The image is written anew. A job's time runs from then on: otherwise a web process that is asked for it after the
//!    next step would say that it expired.
//! 2. The failed result is removed. A succeeded one never is: then the letter alone goes.
//! 3. The message is sent, with a new `expires_at`.
//! 4. The letter is deleted.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::letters::{Scan, Summary};
use super::{Service, Which};
use crate::clock;
use crate::protocol::{self, ClassifyRequest, Incoming, MAX_RESULT_BYTES, Payload, ReplyHead, Status};
use crate::queue::{self, Delivery, MAX_BATCH, Outgoing, Queue};
use crate::store::{PutOptions, StoreError};

/// What is read of an image; far more than any web tier takes.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// A message is never kept by its queue to the very end of the retention.
const RETENTION_MARGIN: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, Default, Serialize)]
pub struct Redriven {
    pub letters: Vec<LetterOutcome>,
    /// Ids that were asked for and that no letter has.
    pub not_found: Vec<String>,
    /// By a signal: what was not reached is where it was.
    pub is_interrupted: bool,
}

#[derive(Debug, Serialize)]
pub struct LetterOutcome {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "snake_case")]
pub enum Outcome {
    SentAgain,
    /// The job has succeeded meanwhile: nothing was sent, the letter is deleted.
    AlreadySucceeded,
    /// The letter stays.
    Kept(String),
}

impl Redriven {
    /// Whether everything that was asked for is done.
    pub fn is_complete(&self) -> bool {
        !self.is_interrupted
            && self.not_found.is_empty()
            && !self.letters.iter().any(|letter| matches!(letter.outcome, Outcome::Kept(_)))
    }
}

/// Sends letters again; of `Which::All` those that were there when this began, since what fails again comes back.
pub async fn redrive(service: &Service, which: &Which, shutdown: &CancellationToken) -> anyhow::Result<Redriven> {
    let dead_letters = service.dead_letters().await?;
    let requests = service.queue(&service.names.request_queue).await?;
    let retention = requests.attributes().await?.retention;
    let redrive = Redrive {
        service,
        requests: &*requests,
        longest_ttl: SignedDuration::try_from(retention).unwrap_or(SignedDuration::MAX) - RETENTION_MARGIN,
        began_at: clock::now(),
    };
    let mut scan = Scan::of(&*dead_letters, shutdown);
    let mut report = Redriven::default();
    let ended = redrive.walk(&*dead_letters, which, &mut scan, &mut report).await;
    scan.hand_back().await?;
    ended?;
    report.is_interrupted = shutdown.is_cancelled();
    if let Which::Ids(ids) = which {
        let is_found = |id: &&String| report.letters.iter().any(|letter| letter.summary.is_called(id));
        report.not_found = ids.iter().filter(|id| !is_found(id)).cloned().collect();
    }
    Ok(report)
}

struct Redrive<'a> {
    service: &'a Service,
    requests: &'a dyn Queue,
    longest_ttl: SignedDuration,
    began_at: Timestamp,
}

impl Redrive<'_> {
    async fn walk(
        &self,
        dead_letters: &dyn Queue,
        which: &Which,
        scan: &mut Scan<'_>,
        report: &mut Redriven,
    ) -> anyhow::Result<()> {
        let mut jobs = HashMap::new();
        loop {
            let letters = scan.next(MAX_BATCH).await?;
            if letters.is_empty() {
                return Ok(());
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
                dead_letters.ack(&done).await.context("sent again, but the dead letters cannot be deleted")?;
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
    }

    /// Sends letters again. Two letters of one job are one job: the second shares what became of the first.
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
            Which::Ids(ids) => ids.iter().any(|id| summary.is_called(id)),
        }
    }

    async fn send_again(&self, letter: &Delivery) -> anyhow::Result<Outcome> {
        let bucket = &self.service.names.input_bucket;
        let (prepared, body) = match Incoming::parse(&letter.body) {
            Incoming::Job(request) => {
                let body = renewed(&letter.body, &request, clock::now(), self.longest_ttl)?;
                (self.prepare(request.id, request.payload(bucket)).await?, body)
            }
            // Of a web tier that speaks the original's form, else of the original's users, who have no jobs.
            Incoming::Legacy(request) => match protocol::legacy_job_id(&request.filename) {
                Some(id) => (self.prepare(id, request.image_bytes().map(Payload::Inline)).await?, letter.body.clone()),
                None => (Ok(()), letter.body.clone()),
            },
            Incoming::UnknownVersion { .. } => (Ok(()), letter.body.clone()),
            Incoming::Malformed { reason, .. } => {
                return Ok(Outcome::Kept(format!("no worker would take it: {reason}")));
            }
        };
        if let Err(outcome) = prepared {
            return Ok(outcome);
        }
        queue::send_one(self.requests, Outgoing::new(body)).await.context("cannot send")?;
        Ok(Outcome::SentAgain)
    }

    /// Makes way for another end of a job, or says why there is to be none.
    async fn prepare(&self, id: Uuid, payload: Result<Payload, String>) -> anyhow::Result<Result<(), Outcome>> {
        let kept = |why: String| Ok(Err(Outcome::Kept(why)));
        let result_key = protocol::result_key(id);
        let result = match self.service.output().await?.get(&result_key, MAX_RESULT_BYTES).await {
            // Nobody can read it: another end takes its place.
            Err(StoreError::Damaged { .. }) => None,
            read => read?,
        };
        match result.as_deref().map(serde_json::from_slice::<ReplyHead>) {
            Some(Ok(head)) if head.status == Status::Succeeded => return Ok(Err(Outcome::AlreadySucceeded)),
            Some(Err(error)) => return kept(format!("its stored result cannot be read: {error}")),
            Some(Ok(_)) | None => {}
        }
        let payload = match payload {
            Ok(payload) => payload,
            Err(reason) => return kept(format!("no worker would take it: {reason}")),
        };
        if !self.renew_image(id, payload).await? {
            return kept("its image is gone from the store, or damaged".to_owned());
        }
        self.service.output().await?.delete(&result_key).await?;
        Ok(Ok(()))
    }

    /// Writes the image anew; false where there is none.
    async fn renew_image(&self, id: Uuid, payload: Payload) -> anyhow::Result<bool> {
        let key = protocol::image_key(id);
        let image = match payload {
            Payload::Inline(bytes) => Some(bytes.into()),
            Payload::Stored(_) => match self.service.input().await?.get(&key, MAX_IMAGE_BYTES).await {
                Err(StoreError::Damaged { .. }) => None,
                read => read?,
            },
        };
        let Some(image) = image else { return Ok(false) };
        let content_type = crate::model::sniff(&image);
        let options = PutOptions { content_type, ..PutOptions::default() };
        let _ = self.service.input().await?.put(&key, image, options).await?;
        Ok(true)
    }
}

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
