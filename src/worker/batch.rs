//! Dynamic batching: a batch closes when it is full or has waited long enough, and it is only begun once a session is
//! free to run it. So it grows while the model is busy, and a lone image waits for nothing.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::infer::{Fetched, Sessions};

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
pub enum Activity {
    /// One of them waits for an image.
    Idle,
    /// The last to begin, began with so many images.
    Busy { images: usize },
}

/// Feeds the sessions until `fetched` is closed and empty. Says in `activity` what they do.
pub async fn run(
    rule: BatchRule,
    mut fetched: mpsc::Receiver<Fetched>,
    mut sessions: Sessions,
    activity: watch::Sender<Activity>,
) -> anyhow::Result<()> {
    loop {
        // The slot first, then the batch: what arrives while all sessions are busy joins it.
        let session = sessions.free().await?;
        activity.send_replace(Activity::Idle);
        let Some(first) = fetched.recv().await else { return Ok(()) };
        let batch = fill(rule, first, &mut fetched).await;
        activity.send_replace(Activity::Busy { images: batch.len() });
        session.run(batch)?;
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
