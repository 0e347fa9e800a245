//! Dynamic batching: a batch closes when it is full or has waited long enough, and only a free session begins one. So it
//! grows while the model is busy, and a single image waits for nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::batch_policy::TunedVersion;
use super::session_load::SessionLoad;
use super::stages::Fetched;
use crate::protocol::Worked;

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
    fetched: Mutex<ByModel>,
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
        let fetched = Mutex::new(ByModel { fetched, others: VecDeque::new() });
        (sender, BatchQueue { max_delay, fetched, load, runtime: Handle::current() })
    }

    /// Waits for the next batch. Returns `None` when no more comes. Blocks, so a thread of the runtime must not call it.
    pub(crate) fn next(&self) -> Option<Vec<Fetched>> {
        self.load.wants_batch();
        // Another waiting session holds the lock until it has its batch.
        let mut fetched = self.fetched();
        let (batch, at_once) = self.runtime.block_on(self.fill(&mut fetched))?;
        self.load.begin(batch[0].model, batch.len(), at_once);
        Some(batch)
    }

    /// Reports how long a batch took.
    pub(crate) fn measured(&self, worked: Worked) {
        self.load.measured(worked);
    }

    /// Reports how long images of a batch took the version of the model that has this digest.
    pub(crate) fn inferred(&self, version: &TunedVersion, images: usize, time: Duration) {
        self.load.inferred(version, images, time);
    }

    /// Returns a batch of one model, and true if its first image was there already.
    async fn fill(&self, images: &mut ByModel) -> Option<(Vec<Fetched>, bool)> {
        let (first, at_once) = match images.oldest() {
            Some(first) => (first, true),
            None => (self.load.waiting(images.fetched.recv()).await?, false),
        };
        let opened_at = Instant::now();
        let model = first.model;
        let rule = BatchRule { max_size: self.load.max_batch_size(model), max_delay: self.max_delay };
        let mut batch = vec![first];
        loop {
            while batch.len() < rule.max_size
                && let Some(next) = images.oldest_of(model)
            {
                batch.push(next);
            }
            let Decision::WaitUntil(until) = rule.decide(batch.len(), opened_at, Instant::now()) else { break };
            // An image of another model does not wait until this batch is full.
            if !images.others.is_empty() {
                break;
            }
            match self.load.waiting(tokio::time::timeout_at(until.into(), images.fetched.recv())).await {
                Ok(Some(next)) if next.model == model => batch.push(next),
                Ok(Some(next)) => images.others.push_back(next),
                Ok(None) | Err(_) => break,
            }
        }
        Some((batch, at_once))
    }

    /// Locks the queue, also after a panic: a session that panicked held no image of others.
    fn fetched(&self) -> MutexGuard<'_, ByModel> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The images that wait, for batches of one model each. A batch begins with the oldest image, so that no model waits
/// longer because another one gets more images.
struct ByModel {
    fetched: mpsc::Receiver<Fetched>,
    /// Images that were passed over because a batch was of another model, the oldest first. All are older than those in
    /// `fetched`. Their number is bounded, because each holds its permit to wait.
    others: VecDeque<Fetched>,
}

impl ByModel {
    fn oldest(&mut self) -> Option<Fetched> {
        self.others.pop_front().or_else(|| self.fetched.try_recv().ok())
    }

    fn oldest_of(&mut self, model: usize) -> Option<Fetched> {
        if let Some(at) = self.others.iter().position(|image| image.model == model) {
            return self.others.remove(at);
        }
        while let Ok(next) = self.fetched.try_recv() {
            if next.model == model {
                return Some(next);
            }
            self.others.push_back(next);
        }
        None
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
