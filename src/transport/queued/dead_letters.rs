//! Dead letters of a queue: found by receiving, read, and released.
//!
//! Receiving raises the receive counts. The dead-letter queue has no redrive of its own, so that this does no harm.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::queue::{MAX_BATCH, Queue, ReceiveOptions};
use crate::transport::error::TransportError;
use crate::transport::message::{Delivery, Receipt};
use crate::transport::port::DeadLetterScan;

/// How long a letter that was received is hidden from others, unless it is released before.
const HIDDEN_FOR: Duration = Duration::from_secs(30);
/// SQS asks all of its servers only when a receive waits.
const WAIT: Duration = Duration::from_secs(1);

/// A scan of a dead-letter queue. Each letter comes once, although the queue may deliver it again meanwhile.
pub(crate) struct Scan {
    queue: Arc<dyn Queue>,
    /// Every letter that came, by message id, with the receipt when it is to be released.
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
        let mut letters = Vec::new();
        for letter in received {
            if self.seen.contains_key(&letter.message_id) {
                // An earlier delivery is visible again: the scan has come round.
                self.keep(letter);
            } else {
                self.seen.insert(letter.message_id.clone(), None);
                letters.push(letter);
            }
        }
        Ok(letters)
    }

    fn keep(&mut self, letter: Delivery) {
        self.seen.insert(letter.message_id, Some(letter.receipt));
    }

    async fn delete(&mut self, letters: &[Receipt]) -> Result<(), TransportError> {
        for batch in letters.chunks(MAX_BATCH) {
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
