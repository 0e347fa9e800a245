//! Retries while the transport does not answer.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::metrics::METRICS;
use crate::retry::Schedule;
use crate::transport::TransportError;

/// Delays between attempts, each shortened at random by up to half, so that many workers do not retry at the same instant.
pub(crate) const BACKOFF: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(2));

/// Retries until an attempt succeeds or `timeout` has passed, and then returns the last error.
pub(crate) async fn retry_for<T, E, F>(
    what: &'static str,
    timeout: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    let mut backoff = BACKOFF.start();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= timeout => return Err(error),
            Err(error) => {
                METRICS.faults.with_label_values(&[what]).inc();
                tracing::warn!(%error, what, "trying again");
                tokio::time::sleep(backoff.next_delay_with_jitter()).await;
            }
        }
    }
}

/// Turns an error of the object itself into an answer, because no further attempt would change it.
pub(crate) fn unless_final<T>(read: Result<T, TransportError>) -> Result<Result<T, TransportError>, TransportError> {
    match read {
        Err(error) if error.is_of_object() => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}
