//! The state of the queues for operators: the metrics of their messages, and whether any worker receives them.
//!
//! Health checks and scrapers ask often, and a reading may be billed, so one reading serves for a while.

use std::sync::{Mutex as SyncMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::metrics::METRICS;
use crate::transport::{Depth, QueueRole, Transport, TransportError};

/// How long a reading may take. A scraper gives up after ten seconds.
const READING_TIMEOUT: Duration = Duration::from_secs(2);
/// A worker that has not been seen for this long is worth a warning.
const UNSEEN_WARNING: Duration = Duration::from_secs(10);
/// How often the dead letters and ages are read where readings are billed. On AWS an age is a call of CloudWatch, whose
/// values are minutes old in any case.
const BILLED_DETAILS_INTERVAL: Duration = Duration::from_secs(60);

/// The last readings, and the signs of workers.
pub(super) struct QueueState {
    interval: Duration,
    details_interval: Duration,
    /// Held while the queues are read, so that there is one reading at a time.
    readings: Mutex<Readings>,
    worker: SyncMutex<WorkerSigns>,
}

#[derive(Debug, Default)]
struct Readings {
    depth_at: Option<Instant>,
    details_at: Option<Instant>,
}

/// The signs of workers: a reply, and messages in flight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct WorkerSigns {
    /// Since when messages wait without a sign of a worker.
    unseen_since: Option<Instant>,
}

impl WorkerSigns {
    fn record_depth(&mut self, depth: Depth, now: Instant) {
        if depth.visible == 0 || depth.in_flight > 0 {
            self.unseen_since = None;
        } else {
            self.unseen_since.get_or_insert(now);
        }
    }

    fn unseen(&self, now: Instant) -> Duration {
        self.unseen_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl QueueState {
    /// `depth_interval` is that of the transport.
    pub(super) fn new(depth_interval: Duration) -> QueueState {
        let is_billed = depth_interval >= Duration::from_secs(1);
        QueueState {
            interval: depth_interval,
            details_interval: if is_billed { BILLED_DETAILS_INTERVAL } else { depth_interval },
            readings: Mutex::default(),
            worker: SyncMutex::default(),
        }
    }

    /// Records that a worker has replied.
    pub(super) fn record_worker(&self) {
        self.worker().unseen_since = None;
    }

    /// Says that images wait and no worker has been seen for a while.
    pub(super) fn warning(&self) -> Option<String> {
        let unseen = self.worker().unseen(Instant::now());
        (unseen >= UNSEEN_WARNING).then(|| {
            format!(
                "no worker was seen for {} s, and images wait: start one with the same queues (imgcls worker)",
                unseen.as_secs()
            )
        })
    }

    /// Reads the queues and sets the metrics, unless that was done within the interval.
    pub(super) async fn update(&self, transport: &dyn Transport) {
        let mut readings = self.readings.lock().await;
        let is_due = |at: Option<Instant>, interval| at.is_none_or(|at| at.elapsed() >= interval);
        if is_due(readings.depth_at, self.interval) {
            readings.depth_at = Some(Instant::now());
            let (interactive, bulk) = tokio::join!(
                read("the depth of the request queue", transport.interactive_depth()),
                read("the depth of the queue for batches", transport.bulk_depth())
            );
            if let (Some(interactive), Some(bulk)) = (interactive, bulk) {
                self.worker().record_depth(interactive + bulk, Instant::now());
            }
            set_messages("requests", interactive);
            set_messages("bulk_requests", bulk);
        }
        if is_due(readings.details_at, self.details_interval) {
            readings.details_at = Some(Instant::now());
            if read("the queues of the service", details(transport)).await.is_none() {
                set_messages("dead_letters", None);
                set_messages("callbacks", None);
                for queue in ["requests", "bulk_requests", "dead_letters", "callbacks"] {
                    set_oldest(queue, None);
                }
            }
        }
        METRICS.worker_unseen.set(self.worker().unseen(Instant::now()).as_secs_f64());
    }

    /// No code panics while it holds this lock, so a poisoned one still guards a consistent value.
    fn worker(&self) -> MutexGuard<'_, WorkerSigns> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read<T>(what: &str, reading: impl Future<Output = Result<T, TransportError>>) -> Option<T> {
    match tokio::time::timeout(READING_TIMEOUT, reading).await {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot read {what} for the metrics");
            None
        }
        Err(_) => {
            tracing::debug!("reading {what} for the metrics timed out");
            None
        }
    }
}

/// Reads the dead letters, and how old the oldest messages are.
async fn details(transport: &dyn Transport) -> Result<(), TransportError> {
    for (name, role) in transport.queues().await? {
        let queue = match role {
            QueueRole::Requests => "requests",
            QueueRole::BulkRequests => "bulk_requests",
            QueueRole::Callbacks => "callbacks",
            QueueRole::DeadLetters => "dead_letters",
            QueueRole::Results | QueueRole::Replies => continue,
        };
        let depth = match transport.queue_depth(&name).await {
            // The service was made by an earlier release, and has no such queue.
            Err(TransportError::Fatal(_)) if role == QueueRole::Callbacks => continue,
            depth => depth?,
        };
        if matches!(role, QueueRole::DeadLetters | QueueRole::Callbacks) {
            set_messages(queue, Some(depth.unwrap_or_default()));
        }
        let is_empty = depth.is_none_or(|depth| depth.visible + depth.in_flight + depth.delayed == 0);
        // On AWS it needs a permission of its own, and the rest is worth having without it.
        let oldest =
            if is_empty { Some(Duration::ZERO) } else { transport.oldest_age(&name).await.unwrap_or_default() };
        set_oldest(queue, oldest);
    }
    Ok(())
}

/// Publishes a depth, or removes the value of one that is unknown: an old one would hide the fault.
fn set_messages(queue: &str, depth: Option<Depth>) {
    let metric = &METRICS.queue_messages;
    for (state, count) in [
        ("visible", depth.map(|depth| depth.visible)),
        ("in_flight", depth.map(|depth| depth.in_flight)),
        ("delayed", depth.map(|depth| depth.delayed)),
    ] {
        match count {
            Some(count) => {
                metric.with_label_values(&[queue, state]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            // Fails only if there was no value.
            None => drop(metric.remove_label_values(&[queue, state])),
        }
    }
}

fn set_oldest(queue: &str, age: Option<Duration>) {
    match age {
        Some(age) => METRICS.queue_oldest.with_label_values(&[queue]).set(age.as_secs_f64()),
        None => drop(METRICS.queue_oldest.remove_label_values(&[queue])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_is_unseen_while_messages_wait_and_none_is_in_flight() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let depth = |visible, in_flight| Depth { visible, in_flight, delayed: 0 };
        let mut signs = WorkerSigns::default();
        signs.record_depth(depth(0, 0), at(0));
        assert_eq!(signs.unseen(at(100)), Duration::ZERO, "there is nothing to do");
        signs.record_depth(depth(3, 0), at(100));
        signs.record_depth(depth(5, 0), at(105));
        assert_eq!(signs.unseen(at(112)), Duration::from_secs(12));
        signs.record_depth(depth(5, 1), at(113));
        assert_eq!(signs.unseen(at(114)), Duration::ZERO, "a worker has received one");
    }

    #[test]
    fn reply_of_a_worker_ends_the_warning() {
        let state = QueueState::new(Duration::from_millis(500));
        state.worker().unseen_since = Instant::now().checked_sub(Duration::from_secs(75));
        assert!(state.warning().unwrap().starts_with("no worker was seen for 75 s"));
        state.record_worker();
        assert_eq!(state.warning(), None);
    }
}
