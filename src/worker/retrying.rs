//! Retries while the transport does not answer.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::metrics::METRICS;
use crate::retry::Schedule;
use crate::transport::TransportError;

/// Delays between tries, each shortened at random by up to half, so that many workers do not come back at the same instant.
pub(crate) const BACKOFF: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(2));

/// Tries until it succeeds or `timeout` has passed. Returns the last error then.
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

/// For an attempt that reads one object: makes an answer of an error of that object, which no further attempt changes.
pub(crate) fn unless_final<T>(read: Result<T, TransportError>) -> Result<Result<T, TransportError>, TransportError> {
    match read {
        Err(error) if error.is_of_object() => Ok(Err(error)),
        Err(error) => Err(error),
        Ok(value) => Ok(Ok(value)),
    }
}
