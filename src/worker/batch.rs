//! Dynamic batching: a batch closes when it is full or has waited long enough, and it is only begun by a session that is
//! free. So it grows while the model is busy, and a lone image waits for nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::infer::Fetched;

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
    pub images: usize,
}

impl Activity {
    pub fn is_idle(self) -> bool {
        self.waiting > 0 || self.images == 0
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
        let activity = watch::Sender::new(Activity { waiting: 0, images: 0 });
        (sender, Line { rule, fetched: Mutex::new(fetched), activity, runtime: Handle::current() })
    }

    pub fn activity(&self) -> watch::Receiver<Activity> {
        self.activity.subscribe()
    }

    /// The next batch, for the session that asks; it may wait for long. None when no more comes. Not for a thread of the
    /// runtime.
    pub fn next(&self) -> Option<Vec<Fetched>> {
        let batch = self.next_at_once().or_else(|| self.wait_for_next())?;
        self.set_quietly(|activity| activity.images = batch.len());
        Some(batch)
    }

    /// Where an image is there already, nobody need hear that this session was free.
    fn next_at_once(&self) -> Option<Vec<Fetched>> {
        let mut fetched = self.fetched.try_lock().ok()?;
        let first = fetched.try_recv().ok()?;
        Some(self.runtime.block_on(fill(self.rule, first, &mut fetched)))
    }

    fn wait_for_next(&self) -> Option<Vec<Fetched>> {
        self.activity.send_modify(|activity| activity.waiting += 1);
        // Another session that waits holds it until it has its batch.
        let mut fetched = self.fetched();
        let batch = self.runtime.block_on(async {
            let first = fetched.recv().await?;
            Some(fill(self.rule, first, &mut fetched).await)
        });
        self.set_quietly(|activity| activity.waiting -= 1);
        batch
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

async fn fill(rule: BatchRule, first: Fetched, fetched: &mut mpsc::Receiver<Fetched>) -> Vec<Fetched> {
    let opened_at = Instant::now();
    let mut batch = vec![first];
    loop {
        while batch.len() < rule.max_size
            && let Ok(next) = fetched.try_recv()
        {
            batch.push(next);
        }
        let Decision::WaitUntil(until) = rule.decide(batch.len(), opened_at, Instant::now()) else { return batch };
        match tokio::time::timeout_at(until.into(), fetched.recv()).await {
            Ok(Some(next)) => batch.push(next),
            Ok(None) | Err(_) => return batch,
        }
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
