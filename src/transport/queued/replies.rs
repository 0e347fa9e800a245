//! Sending replies to inboxes that are queues.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::parts::Parts;
use super::queue::{MAX_BATCH, Outgoing, Queue, QueueError};
use crate::protocol;
use crate::transport::completion::ReplyOutcome;
use crate::transport::error::CompletionError;

/// Reply queues whose handles are kept. A restarted web tier has a new one, so old handles become useless.
const KEPT_REPLY_QUEUES: usize = 256;

/// Sends replies, and keeps the handles of the queues that they go to.
pub(crate) struct ReplySender {
    parts: Arc<Parts>,
    kept: Mutex<HashMap<String, Arc<dyn Queue>>>,
}

impl ReplySender {
    pub(crate) fn new(parts: Arc<Parts>) -> ReplySender {
        ReplySender { parts, kept: Mutex::default() }
    }

    /// Sends replies to one queue; one answer for each, in order. A queue that is gone belonged to a web process that is
    /// gone: nobody waits there, and a client that asks another web process gets the result.
    pub(crate) async fn send(&self, to: &str, texts: &[String]) -> Vec<Result<ReplyOutcome, CompletionError>> {
        let queue = match self.open(to).await {
            Ok(queue) => queue,
            Err(QueueError::NotFound(_)) => return texts.iter().map(|_| Ok(ReplyOutcome::Gone)).collect(),
            Err(error) => {
                let error = CompletionError { step: "open_reply_queue", error: error.into() };
                return texts.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let mut outcomes = Vec::with_capacity(texts.len());
        for batch in texts.chunks(MAX_BATCH) {
            let messages: Vec<Outgoing> = batch.iter().map(|text| Outgoing::new(text.clone())).collect();
            // A call that failed as a whole failed for each of its messages.
            let answers = queue.send(&messages).await.unwrap_or_else(|error| vec![Err(error); batch.len()]);
            for (text, answer) in batch.iter().zip(answers) {
                outcomes.push(match answer {
                    Err(QueueError::TooLarge { .. }) => send_cut(&*queue, text).await,
                    answer => outcome(answer),
                });
            }
        }
        if outcomes.iter().any(|outcome| matches!(outcome, Ok(ReplyOutcome::Gone))) {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(to);
        }
        outcomes
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(queue) = kept {
            return Ok(queue);
        }
        let queue = self.parts.queues.open(name).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_REPLY_QUEUES {
            kept.clear();
        }
        kept.insert(name.to_owned(), Arc::clone(&queue));
        Ok(queue)
    }
}

/// The receiver of a cut reply reads the result.
async fn send_cut(queue: &dyn Queue, text: &str) -> Result<ReplyOutcome, CompletionError> {
    let Some(cut) = protocol::cut_reply(text) else { return Ok(ReplyOutcome::Cut) };
    let sent = super::queue::send_one(queue, Outgoing::new(cut)).await;
    match outcome(sent)? {
        ReplyOutcome::Sent => Ok(ReplyOutcome::Cut),
        outcome => Ok(outcome),
    }
}

/// Converts the answer of a queue to the outcome of a reply.
pub(crate) fn outcome(answer: Result<(), QueueError>) -> Result<ReplyOutcome, CompletionError> {
    match answer {
        Ok(()) => Ok(ReplyOutcome::Sent),
        Err(QueueError::NotFound(_)) => Ok(ReplyOutcome::Gone),
        Err(QueueError::TooLarge { .. }) => Ok(ReplyOutcome::Cut),
        Err(QueueError::Fatal(reason)) => {
            tracing::warn!(reason, "cannot send a reply; the waiter reads the result");
            Ok(ReplyOutcome::Failed)
        }
        Err(error @ QueueError::Unavailable(_)) => Err(CompletionError { step: "send_reply", error: error.into() }),
    }
}

/// The queue of an address in `reply_to`. `None` when it is no reply queue of this service.
pub(crate) fn own_queue<'a>(result_queue: &str, address: &'a str) -> Option<&'a str> {
    if protocol::is_reply_queue_of(result_queue, address) {
        return Some(address);
    }
    tracing::warn!(reply_to = address, "not a reply queue of this service; no reply is sent");
    None
}
