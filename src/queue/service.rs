//! The queues that stand for a service: requests, its dead letters, and the shared result queue.

use std::sync::Arc;
use std::time::Duration;

use super::{Queue, QueueAttributes, QueueError, Queues, Redrive};
use crate::config::Names;

/// The queue's own redrive is a net below the worker's dead-lettering, which tells the client why.
const REDRIVE_MARGIN: u32 = 5;
/// How long dead letters wait for somebody to look: SQS's longest.
const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);

#[derive(Clone)]
pub struct ServiceQueues {
    pub requests: Arc<dyn Queue>,
    pub dead_letters: Arc<dyn Queue>,
    pub results: Arc<dyn Queue>,
}

impl ServiceQueues {
    /// Opens the three queues, making those that are missing: any tier may be the first to start.
    pub async fn open_or_create(
        queues: &dyn Queues,
        names: &Names,
        visibility_timeout: Duration,
        max_receive_count: u32,
    ) -> Result<Self, QueueError> {
        let dead_letter_queue = names.dead_letter_queue();
        let standard = QueueAttributes { visibility_timeout, ..QueueAttributes::default() };
        let letters = QueueAttributes { retention: DEAD_LETTER_RETENTION, ..standard.clone() };
        let redrive = Redrive {
            dead_letter_queue: dead_letter_queue.clone(),
            max_receive_count: max_receive_count.saturating_add(REDRIVE_MARGIN),
        };
        let requests = QueueAttributes { redrive: Some(redrive), ..standard.clone() };
        Ok(ServiceQueues {
            // First: a redrive policy may only name a queue that stands.
            dead_letters: open_or_create(queues, &dead_letter_queue, &letters).await?,
            requests: open_or_create(queues, &names.request_queue, &requests).await?,
            results: open_or_create(queues, &names.result_queue, &standard).await?,
        })
    }
}

/// Opening first, so that a tier without permission to create runs on queues that somebody else made.
async fn open_or_create(
    queues: &dyn Queues,
    name: &str,
    attributes: &QueueAttributes,
) -> Result<Arc<dyn Queue>, QueueError> {
    match queues.open(name).await {
        Err(QueueError::NotFound(_)) => queues.create(name, attributes).await,
        other => other,
    }
}
