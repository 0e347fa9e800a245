//! Lists dead letters and summarizes each one.

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::explained;
use crate::clock;
use crate::protocol::{self, Callback, Incoming};
use crate::transport::{Delivery, Transport};

/// Summary of a dead letter.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// The id of the job. `None` for messages of legacy clients and for messages that are no requests.
    pub id: Option<Uuid>,
    pub message_id: String,
    pub filename: Option<String>,
    /// The address that a callback calls, without its query. Absent from other dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// `None` if the queue itself moved the message, or if the message was too large to carry its reason.
    pub reason: Option<String>,
    pub attempts: Option<u32>,
    /// When the message became a dead letter.
    pub dead_since: Option<Timestamp>,
    pub age_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct DeadLetters {
    pub dead_letters: Vec<Summary>,
    /// True if there may be more: the limit was reached, or the command was interrupted.
    pub is_cut: bool,
}

/// Returns the dead letters, at most `limit` of them, oldest first.
pub(crate) async fn list(
    transport: &dyn Transport,
    limit: usize,
    shutdown: &CancellationToken,
) -> anyhow::Result<DeadLetters> {
    let mut scan = transport.dead_letters().await.map_err(explained)?;
    let mut dead_letters = Vec::new();
    while dead_letters.len() < limit && !shutdown.is_cancelled() {
        let page = scan.next(limit - dead_letters.len()).await?;
        if page.is_empty() {
            break;
        }
        for dead_letter in page {
            dead_letters.push(Summary::of(&dead_letter, clock::now()));
            scan.keep(dead_letter);
        }
    }
    scan.close().await?;
    dead_letters.sort_by_key(|summary| summary.dead_since);
    Ok(DeadLetters { is_cut: dead_letters.len() == limit || shutdown.is_cancelled(), dead_letters })
}

impl Summary {
    pub(crate) fn of(dead_letter: &Delivery, now: Timestamp) -> Summary {
        let callback = Callback::parse(&dead_letter.body);
        let (id, filename) = match Incoming::parse(&dead_letter.body) {
            _ if callback.is_some() => (callback.as_ref().map(|callback| callback.id), None),
            Incoming::Job(request) => (Some(request.id), Some(request.filename)),
            Incoming::Legacy(request) => (protocol::legacy_job_id(&request.filename), Some(request.filename)),
            Incoming::Malformed { id, .. } => (id, None),
            Incoming::UnknownVersion { .. } | Incoming::Notification(_) => (None, None),
        };
        let attribute = |name: &str| dead_letter.attributes.get(name);
        let age_ms = now.as_millisecond().saturating_sub(dead_letter.sent_at_ms).max(0);
        Summary {
            id: id.or_else(|| attribute("id")?.parse().ok()),
            message_id: dead_letter.message_id.clone(),
            filename,
            callback: callback.map(|callback| without_query(&callback.url)),
            reason: attribute("reason").cloned(),
            attempts: attribute("attempts").and_then(|attempts| attempts.parse().ok()),
            dead_since: Timestamp::from_millisecond(dead_letter.sent_at_ms).ok(),
            age_seconds: age_ms as f64 / 1e3,
        }
    }

    /// Returns the job whose request this is. `None` for a callback, which is only about a job.
    pub(crate) fn job(&self) -> Option<Uuid> {
        self.id.filter(|_| self.callback.is_none())
    }

    /// Returns true if `id` is the id of the job or of the message.
    pub(crate) fn has_id(&self, id: &str) -> bool {
        self.message_id == id || self.id.is_some_and(|job| id.parse() == Ok(job))
    }

    /// Returns the id to show to people: that of the job, or else that of the message.
    pub(crate) fn name(&self) -> String {
        self.id.map_or_else(|| self.message_id.clone(), |id| id.to_string())
    }
}

/// A query may contain a secret.
fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}
