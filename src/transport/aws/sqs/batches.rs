//! Calls with several entries, which succeed or fail one by one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::address::{Address, EntryFault, LEAST_MAX_MESSAGE_BYTES};
use crate::retry::Schedule;
use crate::transport::aws::coalesce::BatchCall;
use crate::transport::message::Receipt;
use crate::transport::queued::queue::{Outgoing, QueueError};

/// Tries of single entries of a batch that SQS could not process by a fault of its own.
const TRIES_OF_ENTRIES: u32 = 3;
const BACKOFF: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(1));

/// Sends of many callers.
pub(super) struct Sends(pub Arc<Address>);

#[async_trait]
impl BatchCall for Sends {
    type Item = Outgoing;

    fn size_bytes(item: &Outgoing) -> usize {
        item.size_bytes()
    }

    async fn call(&self, items: Vec<Outgoing>) -> Vec<Result<(), QueueError>> {
        let mut answers = self.send(&items).await;
        let refused: Vec<usize> =
            (0..items.len()).filter(|&at| matches!(answers[at], Err(QueueError::Fatal(_)))).collect();
        // Somebody may have lowered the queue's limit since it was read.
        if refused.iter().all(|&at| items[at].size_bytes() <= LEAST_MAX_MESSAGE_BYTES) {
            return answers;
        }
        let Ok(attributes) = self.0.attributes().await else { return answers };
        let mut fitting = Vec::new();
        for &at in &refused {
            match self.0.fits(items[at].size_bytes(), attributes.max_message_bytes) {
                Ok(()) => fitting.push(at),
                too_large => answers[at] = too_large,
            }
        }
        // SQS may refuse all entries of a call because of one.
        if !fitting.is_empty() && fitting.len() < refused.len() {
            let again: Vec<Outgoing> = fitting.iter().map(|&at| items[at].clone()).collect();
            for (at, answer) in fitting.into_iter().zip(self.send(&again).await) {
                answers[at] = answer;
            }
        }
        answers
    }
}

impl Sends {
    async fn send(&self, items: &[Outgoing]) -> Vec<Result<(), QueueError>> {
        try_entries(items.len(), |places| async move { self.0.send(items, &places).await }).await
    }
}

/// Acknowledgements of many callers.
pub(super) struct Acks(pub Arc<Address>);

#[async_trait]
impl BatchCall for Acks {
    type Item = Receipt;

    fn size_bytes(_: &Receipt) -> usize {
        0
    }

    async fn call(&self, items: Vec<Receipt>) -> Vec<Result<(), QueueError>> {
        let items = &items;
        try_entries(items.len(), |places| async move { self.0.delete(items, &places).await }).await
    }
}

/// Makes a call with entries and repeats it for those that SQS could not process by a fault of its own. The SDK has
/// retried calls that failed as a whole.
pub(super) async fn try_entries<F>(count: usize, mut call: impl FnMut(Vec<usize>) -> F) -> Vec<Result<(), QueueError>>
where
    F: Future<Output = Result<Vec<EntryFault>, QueueError>>,
{
    let mut answers: Vec<Result<(), QueueError>> = vec![Ok(()); count];
    let mut left: Vec<usize> = (0..count).collect();
    let mut backoff = BACKOFF.start();
    for tried in 1..=TRIES_OF_ENTRIES {
        let faults = match call(left.clone()).await {
            Ok(faults) => faults,
            Err(error) => {
                for &at in &left {
                    answers[at] = Err(error.clone());
                }
                break;
            }
        };
        for &at in &left {
            answers[at] = Ok(());
        }
        left.clear();
        for (at, error) in faults {
            if matches!(error, QueueError::Unavailable(_)) {
                left.push(at);
            }
            if let Some(answer) = answers.get_mut(at) {
                *answer = Err(error);
            }
        }
        if left.is_empty() || tried == TRIES_OF_ENTRIES {
            break;
        }
        tokio::time::sleep(backoff.next_delay_with_jitter()).await;
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn only_entries_that_may_succeed_are_retried() {
        let calls = Mutex::new(Vec::new());
        let fault = |text: &str| QueueError::Unavailable(text.to_owned());
        let call = |places: Vec<usize>| {
            calls.lock().unwrap().push(places.clone());
            let answer = match calls.lock().unwrap().len() {
                1 => vec![(1, fault("busy")), (2, QueueError::Fatal("bad".to_owned()))],
                _ => vec![],
            };
            async move { Ok(answer) }
        };
        let answers = try_entries(4, call).await;
        assert_eq!(*calls.lock().unwrap(), [vec![0, 1, 2, 3], vec![1]]);
        assert!(answers[1].is_ok() && matches!(answers[2], Err(QueueError::Fatal(_))), "{answers:?}");
    }

    #[tokio::test]
    async fn call_that_failed_as_a_whole_is_left_to_the_caller() {
        let mut calls = 0;
        let call = |_| {
            calls += 1;
            async { Err(QueueError::NotFound("q".to_owned())) }
        };
        let answers = try_entries(2, call).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(QueueError::NotFound(_)))));
        assert_eq!(calls, 1);
    }
}
