//! The queues of a service: requests, their dead letters, and the shared result queue.

use std::sync::Arc;
use std::time::Duration;

use super::queue::{Queue, QueueAttributes, QueueError, Queues, Redrive};
use crate::config::Names;
use crate::protocol::{DEAD_LETTER_RETENTION, REDRIVE_MARGIN};

/// The queues of a service.
#[derive(Clone)]
pub struct ServiceQueues {
    /// Jobs for workers.
    pub requests: Arc<dyn Queue>,
    /// Jobs of batches for workers. `None` if the queue does not exist and may not be created.
    pub bulk: Option<Arc<dyn Queue>>,
    /// Messages that no worker could process.
    pub dead_letters: Arc<dyn Queue>,
    /// The shared inbox.
    pub results: Arc<dyn Queue>,
}

impl ServiceQueues {
    /// Opens the queues, and creates those that are missing: any tier may be the first to start.
    pub async fn open_or_create(
        queues: &dyn Queues,
        names: &Names,
        visibility_timeout: Duration,
        max_receive_count: u32,
    ) -> Result<Self, QueueError> {
        let dead_letter_queue = names.dead_letter_queue();
        let standard = QueueAttributes { visibility_timeout, ..QueueAttributes::default() };
        let dead_letter_attributes = QueueAttributes { retention: DEAD_LETTER_RETENTION, ..standard.clone() };
        let redrive = Redrive {
            dead_letter_queue: dead_letter_queue.clone(),
            max_receive_count: max_receive_count.saturating_add(REDRIVE_MARGIN),
        };
        let attributes = QueueAttributes { redrive: Some(redrive.clone()), ..standard.clone() };
        // The dead-letter queue is created first, because a redrive policy may only name a queue that exists.
        let dead_letters = open_or_create(queues, &dead_letter_queue, &dead_letter_attributes).await?;
        let requests = open_or_create(queues, &names.request_queue, &attributes).await?;
        raise_redrive(&*requests, &redrive).await?;
        let bulk = open_or_create_bulk(queues, &names.bulk_queue(), &attributes).await?;
        if let Some(bulk) = &bulk {
            raise_redrive(&**bulk, &redrive).await?;
        }
        Ok(ServiceQueues {
            dead_letters,
            requests,
            bulk,
            results: open_or_create(queues, &names.result_queue, &standard).await?,
        })
    }
}

/// Raises the count of the queue's redrive policy. The queue may have been created when fewer attempts were configured: it
/// would then move a message to the dead letters before a worker gives it up, and nobody would write a result. A higher
/// count does no harm, and others may have set it.
async fn raise_redrive(requests: &dyn Queue, wanted: &Redrive) -> Result<(), QueueError> {
    let found = match requests.attributes().await {
        Ok(attributes) => attributes.redrive,
        Err(QueueError::Fatal(reason)) => {
            tracing::info!(queue = requests.name(), reason, "cannot read the maximum receive count of the queue");
            None
        }
        Err(error) => return Err(error),
    };
    let Some(found) = found else { return Ok(()) };
    if found.max_receive_count >= wanted.max_receive_count {
        return Ok(());
    }
    let raised = Redrive { max_receive_count: wanted.max_receive_count, ..found.clone() };
    match requests.set_redrive(&raised).await {
        Ok(()) => {
            tracing::info!(
                queue = requests.name(),
                from = found.max_receive_count,
                to = raised.max_receive_count,
                "raised the maximum receive count of the queue, so that workers give a message up before the queue does"
            );
            Ok(())
        }
        Err(QueueError::Fatal(reason)) => {
            tracing::warn!(
                queue = requests.name(),
                max_receive_count = found.max_receive_count,
                wanted = wanted.max_receive_count,
                reason,
                "the queue moves messages to the dead letters before a worker gives them up, and their jobs then have no \
                 result until they expire: raise maxReceiveCount in its RedrivePolicy, or lower --max-receive-count"
            );
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A service whose queues were made for an earlier release may have no bulk queue, and its roles may not create one. It goes
/// on without batches.
async fn open_or_create_bulk(
    queues: &dyn Queues,
    name: &str,
    attributes: &QueueAttributes,
) -> Result<Option<Arc<dyn Queue>>, QueueError> {
    match open_or_create(queues, name, attributes).await {
        Err(QueueError::Fatal(reason)) => {
            tracing::warn!(
                queue = name,
                reason,
                "there is no queue for batches, so none can be classified: create it, for example with `imgcls provision`"
            );
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

/// Opens first, so that a tier without permission to create queues runs on those that somebody else created.
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
