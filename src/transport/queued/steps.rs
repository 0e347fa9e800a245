//! The calls in which transports that are made of queues and buckets differ: one does a step after the other, another does
//! all in one transaction.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use super::object::StoreError;
use super::queue::{Queue, QueueAttributes, QueueError};
use crate::transport::completion::{Completed, Completion, DeadLetter};
use crate::transport::error::{CompletionError, TransportError};
use crate::transport::job::{NewJob, SubmitTimes};
use crate::transport::message::{Delivery, Receipt, ReceivingProcess};
use crate::transport::port::{Wanted, WorkerLoad};
use crate::transport::queued::queue::Outgoing;

/// See [`crate::transport::Transport`] for the contract of the calls of the same name.
#[async_trait]
pub(crate) trait Steps: Send + Sync {
    /// Stores the image and sends the message. When the message is too large, no image is left.
    async fn submit(&self, job: &NewJob<'_>, message: String) -> Result<SubmitTimes, TransportError>;

    async fn receive(&self, wanted: Wanted, load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError>;

    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError>;

    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>>;

    /// Replaces an image by the marker of a withdrawn job.
    async fn mark_withdrawn(&self, id: Uuid, marker: Bytes) -> Result<(), StoreError>;

    /// Makes the inbox of this process.
    async fn create_inbox(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError>;

    async fn release_held_by(&self, _process: ReceivingProcess) -> Result<(), TransportError> {
        Ok(())
    }

    fn depth_interval(&self) -> Duration;
}

impl DeadLetter {
    /// The message on the dead-letter queue: the body of the request, and beside it why it is there.
    pub fn to_message(&self) -> Outgoing {
        let mut message = Outgoing::new(self.body.clone());
        let attributes = &mut message.attributes;
        if let Some(id) = self.id {
            attributes.insert("id".to_owned(), id.to_string());
        }
        attributes.insert("reason".to_owned(), self.reason.clone());
        attributes.insert("attempts".to_owned(), self.attempts.to_string());
        message
    }

    /// The same for a queue that does not take the attributes beside a body that only just fitted. The log has the reason.
    pub fn to_short_message(&self) -> Outgoing {
        Outgoing::new(self.body.clone())
    }
}
