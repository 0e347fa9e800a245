//! Dynamic batching: a batch closes when it is full or has waited long enough, and only a free session begins one. So it
//! grows while the model is busy, and a single image waits for nothing. Interactive images come before bulk ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::batch_policy::TunedVersion;
use super::session_load::SessionLoad;
use super::stages::Fetched;
use crate::protocol::{ServiceClass, Worked};

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
    fetched: Mutex<Waiting>,
    load: Arc<SessionLoad>,
    runtime: Handle,
}

impl BatchQueue {
    /// Returns the sender and the queue. The queue ends when the sender is dropped and it is empty.
    ///
    /// # Panics
    /// Panics outside of a Tokio runtime, whose clock measures how long a batch has waited.
    pub(crate) fn new(max_delay: Duration, load: Arc<SessionLoad>) -> (mpsc::Sender<Fetched>, BatchQueue) {
        // Each class holds at most so many.
        let (sender, fetched) = mpsc::channel(2 * load.most_ahead());
        let fetched = Mutex::new(Waiting::new(fetched));
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

    /// Returns a batch of one model and one class, and true if its first image was there already.
    async fn fill(&self, images: &mut Waiting) -> Option<(Vec<Fetched>, bool)> {
        let (first, at_once) = match images.first() {
            Some(first) => (first, true),
            None => (self.load.waiting(images.recv()).await?, false),
        };
        let opened_at = Instant::now();
        let (class, model) = (first.class, first.model);
        let rule = BatchRule { max_size: self.load.max_batch_size(model), max_delay: self.max_delay };
        let mut batch = vec![first];
        loop {
            while batch.len() < rule.max_size
                && let Some(next) = images.oldest_of(class, model)
            {
                batch.push(next);
            }
            let Decision::WaitUntil(until) = rule.decide(batch.len(), opened_at, Instant::now()) else { break };
            // An image of another model or class does not wait until this batch is full.
            if !images.is_empty() {
                break;
            }
            match self.load.waiting(tokio::time::timeout_at(until.into(), images.recv())).await {
                Ok(Some(next)) if next.model == model && next.class == class => batch.push(next),
                Ok(Some(next)) => images.add(next),
                Ok(None) | Err(_) => break,
            }
        }
        Some((batch, at_once))
    }

    /// Locks the queue, also after a panic: a session that panicked held no image of others.
    fn fetched(&self) -> MutexGuard<'_, Waiting> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The images that wait, for batches of one model and one class each. A batch begins with the oldest image of its class, so
/// that no model waits longer because another one gets more images. Their number is bounded, because each holds its permit
/// to wait.
struct Waiting {
    fetched: mpsc::Receiver<Fetched>,
    /// The oldest first.
    interactive: VecDeque<Fetched>,
    bulk: VecDeque<Fetched>,
    turns: BatchTurns,
}

impl Waiting {
    fn new(fetched: mpsc::Receiver<Fetched>) -> Waiting {
        Waiting { fetched, interactive: VecDeque::new(), bulk: VecDeque::new(), turns: BatchTurns::default() }
    }

    fn add(&mut self, image: Fetched) {
        match image.class {
            ServiceClass::Interactive => self.interactive.push_back(image),
            ServiceClass::Bulk => self.bulk.push_back(image),
        }
    }

    /// Takes what has arrived.
    fn collect(&mut self) {
        while let Ok(image) = self.fetched.try_recv() {
            self.add(image);
        }
    }

    /// Waits for an image. `None` when no more comes.
    async fn recv(&mut self) -> Option<Fetched> {
        self.fetched.recv().await
    }

    fn is_empty(&mut self) -> bool {
        self.collect();
        self.interactive.is_empty() && self.bulk.is_empty()
    }

    /// The image that the next batch begins with.
    fn first(&mut self) -> Option<Fetched> {
        self.collect();
        match self.turns.next(!self.interactive.is_empty(), !self.bulk.is_empty())? {
            ServiceClass::Interactive => self.interactive.pop_front(),
            ServiceClass::Bulk => self.bulk.pop_front(),
        }
    }

    fn oldest_of(&mut self, class: ServiceClass, model: usize) -> Option<Fetched> {
        self.collect();
        let images = match class {
            ServiceClass::Interactive => &mut self.interactive,
            ServiceClass::Bulk => &mut self.bulk,
        };
        let at = images.iter().position(|image| image.model == model)?;
        images.remove(at)
    }
}

/// Decides which class gets the next batch: interactive images first, and one of bulk images after
/// [`BatchTurns::INTERACTIVE_PER_BULK`] others, so that those that this worker holds come to an end.
#[derive(Debug, Default)]
struct BatchTurns {
    /// Interactive batches since the last one of bulk images.
    interactive: u32,
}

impl BatchTurns {
    const INTERACTIVE_PER_BULK: u32 = 32;

    fn next(&mut self, has_interactive: bool, has_bulk: bool) -> Option<ServiceClass> {
        let is_turn_of_bulk = has_bulk && self.interactive >= Self::INTERACTIVE_PER_BULK;
        if has_interactive && !is_turn_of_bulk {
            self.interactive = if has_bulk { self.interactive + 1 } else { 0 };
            return Some(ServiceClass::Interactive);
        }
        self.interactive = 0;
        has_bulk.then_some(ServiceClass::Bulk)
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
    #[test]
    fn interactive_images_come_first_and_bulk_images_are_not_starved() {
        let mut turns = BatchTurns::default();
        assert_eq!(turns.next(false, false), None);
        assert_eq!(turns.next(false, true), Some(ServiceClass::Bulk));
        let classes: Vec<_> = (0..66).filter_map(|_| turns.next(true, true)).collect();
        let bulk = |classes: &[ServiceClass]| classes.iter().filter(|class| **class == ServiceClass::Bulk).count();
        assert_eq!((bulk(&classes[..32]), bulk(&classes)), (0, 2));
        assert!((0..100).all(|_| turns.next(true, false) == Some(ServiceClass::Interactive)));
        assert_eq!(turns.next(true, true), Some(ServiceClass::Interactive));
    }
}
