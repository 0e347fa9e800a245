//! Dynamic batching: a batch closes when it is full or has waited long enough, and it is only begun by a session that is
//! free. So it grows while the model is busy, and a lone image waits for nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::infer::Fetched;
use crate::protocol::Worked;

/// The service time, until one was measured.
const FIRST_GUESS: Duration = Duration::from_millis(5);
/// A batch counts for one in so many, as in a moving average: pictures differ.
const SMOOTHING: u32 = 4;

#[derive(Debug, Clone, Copy)]
pub struct BatchRule {
    pub max_size: usize,
    pub max_delay: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Close,
    /// More may come until then.
    WaitUntil(Instant),
}

impl BatchRule {
    /// Whether a batch of `size` images whose first came at `opened_at` is closed.
    pub fn decide(self, size: usize, opened_at: Instant, now: Instant) -> Decision {
        let until = opened_at + self.max_delay;
        if size >= self.max_size || now >= until { Decision::Close } else { Decision::WaitUntil(until) }
    }
}

/// What the sessions of a worker do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Sessions that wait for an image.
    waiting: usize,
    /// With how many images the last to begin, began; none before the first.
    images: usize,
    /// How long an image takes a session, as of late.
    service_time: Duration,
}

impl Activity {
    const NOTHING_YET: Activity = Activity { waiting: 0, images: 0, service_time: FIRST_GUESS };

    pub fn is_idle(self) -> bool {
        self.waiting > 0 || self.images == 0
    }

    /// How long after one has begun the next of so many busy sessions is likely to be free.
    pub fn next_is_free_in(self, sessions: u32) -> Duration {
        self.service_time * self.images as u32 / sessions
    }

    fn measured(self, worked: Worked) -> Activity {
        let service_time = worked.service_time().unwrap_or(self.service_time);
        Activity { service_time: (self.service_time * (SMOOTHING - 1) + service_time) / SMOOTHING, ..self }
    }
}

/// The images that wait for a session. The sessions help themselves: nobody has to be woken to hand one on.
pub struct Line {
    rule: BatchRule,
    fetched: Mutex<mpsc::Receiver<Fetched>>,
    activity: watch::Sender<Activity>,
    runtime: Handle,
}

impl Line {
    /// Its end and its beginning, with room for so many images. It ends when its beginning is dropped and it is empty.
    ///
    /// # Panics
    /// Outside of a runtime, whose clock tells when a batch has waited long enough.
    pub fn new(rule: BatchRule, room: usize) -> (mpsc::Sender<Fetched>, Line) {
        let (sender, fetched) = mpsc::channel(room);
        let activity = watch::Sender::new(Activity::NOTHING_YET);
        (sender, Line { rule, fetched: Mutex::new(fetched), activity, runtime: Handle::current() })
    }

    pub fn activity(&self) -> watch::Receiver<Activity> {
        self.activity.subscribe()
    }

    /// The next batch, for the session that asks; it may wait for long. None when no more comes. Not for a thread of the
    /// runtime.
    pub fn next(&self) -> Option<Vec<Fetched>> {
        // Another session that waits holds it until it has its batch.
        let mut fetched = self.fetched();
        let batch = self.runtime.block_on(self.fill(&mut fetched))?;
        self.set_quietly(|activity| activity.images = batch.len());
        Some(batch)
    }

    /// How long a batch took that was taken from here.
    pub fn measured(&self, worked: Worked) {
        self.set_quietly(|activity| *activity = activity.measured(worked));
    }

    async fn fill(&self, fetched: &mut mpsc::Receiver<Fetched>) -> Option<Vec<Fetched>> {
        let first = match fetched.try_recv() {
            Ok(first) => first,
            Err(_) => self.waiting(fetched.recv()).await?,
        };
        let opened_at = Instant::now();
        let mut batch = vec![first];
        loop {
            while batch.len() < self.rule.max_size
                && let Ok(next) = fetched.try_recv()
            {
                batch.push(next);
            }
            let decision = self.rule.decide(batch.len(), opened_at, Instant::now());
            let Decision::WaitUntil(until) = decision else { return Some(batch) };
            match self.waiting(tokio::time::timeout_at(until.into(), fetched.recv())).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => return Some(batch),
            }
        }
    }

    /// Waits for an image and says so: while it is there already, nobody need hear that a session is free.
    async fn waiting<T>(&self, image: impl Future<Output = T>) -> T {
        self.activity.send_modify(|activity| activity.waiting += 1);
        let image = image.await;
        self.set_quietly(|activity| activity.waiting -= 1);
        image
    }

    /// Nobody waits for a session to be busy, so that nobody is woken.
    fn set_quietly(&self, change: impl FnOnce(&mut Activity)) {
        self.activity.send_if_modified(|activity| {
            change(activity);
            false
        });
    }

    /// A session that panicked took what it had, and left the others in line.
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

    #[test]
    fn the_next_session_is_free_when_its_images_are_done() {
        let ms = Duration::from_millis;
        let busy = Activity { images: 3, ..Activity::NOTHING_YET };
        assert_eq!(busy.next_is_free_in(1), ms(15));
        assert_eq!(busy.next_is_free_in(2), ms(15) / 2);
        let large = (0..20).fold(busy, |activity, _| activity.measured(Worked { images: 2, busy: ms(80) }));
        assert!((ms(118)..ms(121)).contains(&large.next_is_free_in(1)), "{large:?}");
    }
}
