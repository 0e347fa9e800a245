//! Waiting out a fault of the store or the queue: exponential rests with jitter.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use rand::Rng as _;

use super::metrics::METRICS;
use crate::store::StoreError;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Rests between tries: 0.1 s doubling to 2 s, each shortened at random by up to half, so that many workers do not
/// come back at the same instant.
pub struct Rests(Duration);

impl Default for Rests {
    fn default() -> Self {
        Rests(FIRST_REST)
    }
}

impl Rests {
    pub async fn rest(&mut self) {
        let share = rand::rng().random_range(0.5..=1.0);
        tokio::time::sleep(self.0.mul_f64(share)).await;
        self.0 = (self.0 * 2).min(LONGEST_REST);
    }
}

/// Tries until it succeeds or `give_up_after` has passed; the last error then.
pub async fn patiently<T, E, F>(
    what: &'static str,
    give_up_after: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    let mut rests = Rests::default();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= give_up_after => return Err(error),
            Err(error) => {
                METRICS.faults.with_label_values(&[what]).inc();
                tracing::warn!(%error, what, "trying again");
                rests.rest().await;
            }
        }
    }
}

/// For an attempt that reads one object: turns an error of this object, which no further attempt changes, into an answer.
pub fn unless_final<T>(read: Result<T, StoreError>) -> Result<Result<T, StoreError>, StoreError> {
    match read {
        Err(error @ (StoreError::TooLarge { .. } | StoreError::Damaged { .. })) => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}

/// As [`patiently`], for what has to succeed before anything else makes sense: only the end of the drain stops it.
pub async fn until_done<T, E, F>(what: &'static str, attempt: impl FnMut() -> F) -> T
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    match patiently(what, Duration::MAX, attempt).await {
        Ok(value) => value,
        Err(_) => unreachable!("five hundred billion years have passed"),
    }
}
