//! A scan of a dead-letter queue: it receives the messages, and releases those that are kept.
//!
//! Receiving raises the receive counts. That does no harm, because the dead-letter queue has no redrive policy of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::queue::{MAX_BATCH, Queue, ReceiveOptions};
use crate::transport::error::TransportError;
use crate::transport::message::{Delivery, Receipt};
use crate::transport::port::DeadLetterScan;

/// How long a received dead letter is hidden from others, unless it is released earlier.
const HIDDEN_FOR: Duration = Duration::from_secs(30);
/// SQS queries all of its servers only if a receive waits.
const WAIT: Duration = Duration::from_secs(1);

/// A scan of a dead-letter queue. It returns each message once, although the queue may deliver it again in the meantime.
pub(crate) struct Scan {
    queue: Arc<dyn Queue>,
    /// The dead letters received so far, by message id. A receipt is set if the dead letter has to be released.
    seen: HashMap<String, Option<Receipt>>,
}

impl Scan {
    pub(crate) fn of(queue: Arc<dyn Queue>) -> Self {
        Scan { queue, seen: HashMap::new() }
    }
}

#[async_trait]
impl DeadLetterScan for Scan {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        let options = ReceiveOptions { max: max.min(MAX_BATCH), wait: WAIT, visibility_timeout: HIDDEN_FOR };
        let received = self.queue.receive(options).await?;
        let mut dead_letters = Vec::new();
        for dead_letter in received {
            if self.seen.contains_key(&dead_letter.message_id) {
                // Its earlier delivery is visible again, so it was returned before.
                self.keep(dead_letter);
            } else {
                self.seen.insert(dead_letter.message_id.clone(), None);
                dead_letters.push(dead_letter);
            }
        }
        Ok(dead_letters)
    }

    fn keep(&mut self, dead_letter: Delivery) {
        self.seen.insert(dead_letter.message_id, Some(dead_letter.receipt));
    }

    async fn delete(&mut self, dead_letters: &[Receipt]) -> Result<(), TransportError> {
        for batch in dead_letters.chunks(MAX_BATCH) {
            self.queue.ack(batch).await?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), TransportError> {
        let changes: Vec<_> = self.seen.into_values().flatten().map(|receipt| (receipt, Duration::ZERO)).collect();
        for batch in changes.chunks(MAX_BATCH) {
            self.queue.set_visibility(batch).await?;
        }
        Ok(())
    }
}
