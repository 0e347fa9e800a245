//! Dead letters: found by receiving, read, handed back.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Service;
use crate::clock;
use crate::protocol::{self, Incoming};
use crate::queue::{Delivery, MAX_BATCH, Queue, QueueError, Receipt, ReceiveOptions};

/// How long a letter that was received is hidden from others, unless it is handed back before.
const HOLD: Duration = Duration::from_secs(30);
/// SQS asks all of its servers only where a receive waits.
const WAIT: Duration = Duration::from_secs(1);

/// What a dead letter says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The job's; none of what users of the original sent, and of what is no request.
    pub id: Option<Uuid>,
    pub message_id: String,
    pub filename: Option<String>,
    /// None where the queue itself moved the message, and of a message too large to carry it.
    pub reason: Option<String>,
    pub attempts: Option<u32>,
    /// When it came to the dead letters.
    pub dead_since: Option<Timestamp>,
    pub age_seconds: f64,
}

#[derive(Debug, Serialize)]
pub struct Letters {
    pub dead_letters: Vec<Summary>,
    /// Whether there may be more: the limit was reached, or the command interrupted.
    pub is_cut: bool,
}

/// The dead letters, at most `limit` of them, oldest first.
pub async fn list(service: &Service, limit: usize, shutdown: &CancellationToken) -> anyhow::Result<Letters> {
    let queue = service.dead_letters().await?;
    let mut scan = Scan::of(&*queue, shutdown);
    let mut dead_letters = Vec::new();
    while dead_letters.len() < limit {
        let letters = scan.next(limit - dead_letters.len()).await?;
        if letters.is_empty() {
            break;
        }
        for letter in letters {
            dead_letters.push(Summary::of(&letter, clock::now()));
            scan.keep(letter);
        }
    }
    scan.hand_back().await?;
    dead_letters.sort_by_key(|letter| letter.dead_since);
    Ok(Letters { is_cut: dead_letters.len() == limit || shutdown.is_cancelled(), dead_letters })
}

impl Summary {
    pub fn of(letter: &Delivery, now: Timestamp) -> Summary {
        let (id, filename) = match Incoming::parse(&letter.body) {
            Incoming::Job(request) => (Some(request.id), Some(request.filename)),
            Incoming::Legacy(request) => (protocol::legacy_job_id(&request.filename), Some(request.filename)),
            Incoming::Malformed { id, .. } => (id, None),
            Incoming::UnknownVersion { .. } => (None, None),
        };
        let attribute = |name: &str| letter.attributes.get(name);
        let age_ms = now.as_millisecond().saturating_sub(letter.sent_at_ms).max(0);
        Summary {
            id: id.or_else(|| attribute("id")?.parse().ok()),
            message_id: letter.message_id.clone(),
            filename,
            reason: attribute("reason").cloned(),
            attempts: attribute("attempts").and_then(|attempts| attempts.parse().ok()),
            dead_since: Timestamp::from_millisecond(letter.sent_at_ms).ok(),
            age_seconds: age_ms as f64 / 1e3,
        }
    }

    /// Whether a person means this letter.
    pub fn is_called(&self, id: &str) -> bool {
        self.message_id == id || self.id.is_some_and(|job| id.parse() == Ok(job))
    }

    /// What a person calls it.
    pub fn name(&self) -> String {
        self.id.map_or_else(|| self.message_id.clone(), |id| id.to_string())
    }
}

/// One walk through the dead letters. Each comes once, though the queue may deliver it again meanwhile.
pub struct Scan<'a> {
    queue: &'a dyn Queue,
    shutdown: &'a CancellationToken,
    /// Every letter that came, by message id; with the receipt where it is to be handed back.
    seen: HashMap<String, Option<Receipt>>,
}

impl<'a> Scan<'a> {
    pub fn of(queue: &'a dyn Queue, shutdown: &'a CancellationToken) -> Self {
        Scan { queue, shutdown, seen: HashMap::new() }
    }

    /// The next letters, at most `max`; none at the end, or where the process is asked to stop.
    pub async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, QueueError> {
        let options = ReceiveOptions { max: max.min(MAX_BATCH), wait: WAIT, visibility_timeout: HOLD, is_fair: false };
        if self.shutdown.is_cancelled() {
            return Ok(Vec::new());
        }
        let received = self.queue.receive(options).await?;
        let mut letters = Vec::new();
        for letter in received {
            if self.seen.contains_key(&letter.message_id) {
                // The hold of an earlier delivery is over: the walk has come round.
                self.keep(letter);
            } else {
                self.seen.insert(letter.message_id.clone(), None);
                letters.push(letter);
            }
        }
        Ok(letters)
    }

    /// The letter stays where it is.
    pub fn keep(&mut self, letter: Delivery) {
        self.seen.insert(letter.message_id, Some(letter.receipt));
    }

    /// Ends the walk: what was kept is visible to others again.
    pub async fn hand_back(self) -> Result<(), QueueError> {
        let changes: Vec<_> = self.seen.into_values().flatten().map(|receipt| (receipt, Duration::ZERO)).collect();
        for batch in changes.chunks(MAX_BATCH) {
            self.queue.set_visibility(batch).await?;
        }
        Ok(())
    }
}
