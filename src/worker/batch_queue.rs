//! Dynamic batching: a batch closes when it is full or has waited long enough, and only a free session begins one. So it
//! grows while the model is busy, and a single image waits for nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::session_load::SessionLoad;
use super::stages::Fetched;
use crate::protocol::Worked;

/// The place of the only model in the list of models.
const MODEL: usize = 0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRule {
    pub max_size: usize,
    pub max_delay: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Close,
    /// More may come until then.
    WaitUntil(Instant),
}

impl BatchRule {
    /// Decides if a batch is closed that has `size` images and whose first one came at `opened_at`.
    pub(crate) fn decide(self, size: usize, opened_at: Instant, now: Instant) -> Decision {
        let until = opened_at + self.max_delay;
        if size >= self.max_size || now >= until { Decision::Close } else { Decision::WaitUntil(until) }
    }
}

/// The images that wait for a session. Sessions take batches themselves: no other thread has to be woken for that.
pub(crate) struct BatchQueue {
    max_delay: Duration,
    fetched: Mutex<mpsc::Receiver<Fetched>>,
    load: Arc<SessionLoad>,
    runtime: Handle,
}

impl BatchQueue {
    /// Returns the sender and the queue. The queue ends when the sender is dropped and it is empty.
    ///
    /// # Panics
    /// Panics outside of a Tokio runtime, whose clock measures how long a batch has waited.
    pub(crate) fn new(max_delay: Duration, load: Arc<SessionLoad>) -> (mpsc::Sender<Fetched>, BatchQueue) {
        let (sender, fetched) = mpsc::channel(load.most_ahead());
        (sender, BatchQueue { max_delay, fetched: Mutex::new(fetched), load, runtime: Handle::current() })
    }

    /// Waits for the next batch. Returns `None` when no more comes. Blocks, so a thread of the runtime must not call it.
    pub(crate) fn next(&self) -> Option<Vec<Fetched>> {
        self.load.wants_batch();
        // Another waiting session holds the lock until it has its batch.
        let mut fetched = self.fetched();
        let (batch, at_once) = self.runtime.block_on(self.fill(&mut fetched))?;
        self.load.begin(MODEL, batch.len(), at_once);
        Some(batch)
    }

    /// Reports how long a batch took.
    pub(crate) fn measured(&self, worked: Worked) {
        self.load.measured(worked);
    }

    /// Reports how long images of a batch took the model with this digest.
    pub(crate) fn inferred(&self, digest: &str, images: usize, time: Duration) {
        self.load.inferred(digest, images, time);
    }

    /// Returns a batch, and true if its first image was there already.
    async fn fill(&self, fetched: &mut mpsc::Receiver<Fetched>) -> Option<(Vec<Fetched>, bool)> {
        let (first, at_once) = match fetched.try_recv() {
            Ok(first) => (first, true),
            Err(_) => (self.load.waiting(fetched.recv()).await?, false),
        };
        let opened_at = Instant::now();
        let rule = BatchRule { max_size: self.load.max_batch_size(MODEL), max_delay: self.max_delay };
        let mut batch = vec![first];
        loop {
            while batch.len() < rule.max_size
                && let Ok(next) = fetched.try_recv()
            {
                batch.push(next);
            }
            let Decision::WaitUntil(until) = rule.decide(batch.len(), opened_at, Instant::now()) else { break };
            match self.load.waiting(tokio::time::timeout_at(until.into(), fetched.recv())).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        Some((batch, at_once))
    }

    /// Locks the queue, also after a panic: a session that panicked held no image of others.
    fn fetched(&self) -> MutexGuard<'_, mpsc::Receiver<Fetched>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_closes_when_full_or_late() {
        let rule = BatchRule { max_size: 4, max_delay: Duration::from_millis(5) };
        let opened = Instant::now();
        assert_eq!(rule.decide(4, opened, opened), Decision::Close);
        assert_eq!(rule.decide(1, opened, opened), Decision::WaitUntil(opened + rule.max_delay));
        assert_eq!(rule.decide(1, opened, opened + rule.max_delay), Decision::Close);
        let eager = BatchRule { max_delay: Duration::ZERO, ..rule };
        assert_eq!(eager.decide(1, opened, opened), Decision::Close);
    }
}
