//! Dynamic batching: a batch closes when it is full or has waited long enough, and it is only begun once a session is
//! free to run it. So it grows while the model is busy, and a lone image waits for nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::infer::{Prepared, Sessions};

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

/// Feeds the sessions until `ready` is closed and empty.
pub async fn run(rule: BatchRule, mut ready: mpsc::Receiver<Prepared>, mut sessions: Sessions) -> anyhow::Result<()> {
    let mut waiting = VecDeque::new();
    loop {
        // The slot first, then the batch: what arrives while all sessions are busy joins it.
        let session = sessions.free().await?;
        if waiting.is_empty() {
            match ready.recv().await {
                Some(first) => waiting.push_back(first),
                None => return Ok(()),
            }
        }
        fill(rule, &mut waiting, &mut ready).await;
        session.run(take_batch(rule.max_size, &mut waiting))?;
    }
}

async fn fill(rule: BatchRule, waiting: &mut VecDeque<Prepared>, ready: &mut mpsc::Receiver<Prepared>) {
    let opened_at = Instant::now();
    loop {
        while waiting.len() < rule.max_size
            && let Ok(next) = ready.try_recv()
        {
            waiting.push_back(next);
        }
        let Decision::WaitUntil(until) = rule.decide(waiting.len(), opened_at, Instant::now()) else { return };
        match tokio::time::timeout_at(until.into(), ready.recv()).await {
            Ok(Some(next)) => waiting.push_back(next),
            Ok(None) | Err(_) => return,
        }
    }
}

/// The first image and those behind it of the same shape; a model of native size gets many shapes.
fn take_batch(max_size: usize, waiting: &mut VecDeque<Prepared>) -> Vec<Prepared> {
    let mut batch: Vec<Prepared> = Vec::with_capacity(max_size.min(waiting.len()));
    let mut rest = VecDeque::new();
    for image in waiting.drain(..) {
        let fits = batch.len() < max_size && batch.first().is_none_or(|first| first.same_shape(&image));
        if fits { batch.push(image) } else { rest.push_back(image) }
    }
    *waiting = rest;
    batch
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
