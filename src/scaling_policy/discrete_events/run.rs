//! The output of a simulation.

use std::time::Duration;

use super::virtual_time::micros;

/// One second of a run. Counts of messages and workers are those at its end.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Second {
    pub(crate) arrivals: u32,
    pub(crate) completed: u32,
    /// Latency of the images that were completed in this second.
    pub(crate) latency: Option<SecondLatency>,
    pub(crate) visible: u32,
    pub(crate) in_flight: u32,
    pub(crate) booting: u32,
    pub(crate) ready: u32,
    pub(crate) draining: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SecondLatency {
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) timeline: Vec<Second>,
    pub(crate) arrivals: u64,
    /// When the last image was completed; `None` if some were not.
    pub(crate) drained_at: Option<Duration>,
    pub(crate) most_visible: u64,
    pub(crate) most_workers: u32,
    /// Workers launched after the start of the run.
    pub(crate) launched: u64,
    pub(crate) deaths: u64,
    /// Messages that were delivered again because their worker died.
    pub(crate) redelivered: u64,
    /// Sum over all workers of the time from launch to termination.
    pub(crate) worker_time: Duration,
    /// The worker time with at least a minute for each worker, as AWS bills.
    pub(crate) billed_time: Duration,
    /// Sum over all sessions of the time spent on images that were completed.
    pub(crate) busy_time: Duration,
    pub(super) sessions: u32,
    /// Latencies in microseconds, sorted once the run has ended.
    pub(super) latencies: Vec<u64>,
}

impl Run {
    pub(crate) fn completed(&self) -> u64 {
        self.latencies.len() as u64
    }

    pub(crate) fn ended_at(&self) -> Duration {
        Duration::from_secs(self.timeline.len() as u64)
    }

    /// The latency at `quantile` (0 to 1). Returns `None` when nothing was completed.
    pub(crate) fn latency(&self, quantile: f64) -> Option<Duration> {
        nearest_rank(&self.latencies, quantile)
    }

    pub(crate) fn mean_latency(&self) -> Option<Duration> {
        let sum: u128 = self.latencies.iter().map(|latency| u128::from(*latency)).sum();
        let mean = sum.checked_div(self.latencies.len() as u128)?;
        Some(Duration::from_micros(mean as u64))
    }

    /// The share of all arrivals, completed or not, that were answered within `limit`. Returns `None` when nothing
    /// arrived.
    pub(crate) fn share_within(&self, limit: Duration) -> Option<f64> {
        let within = self.latencies.partition_point(|latency| *latency <= micros(limit));
        (self.arrivals > 0).then(|| within as f64 / self.arrivals as f64)
    }

    /// The share of the paid session time that was spent on images.
    pub(crate) fn utilization(&self) -> f64 {
        let paid = self.worker_time.as_secs_f64() * f64::from(self.sessions);
        if paid > 0.0 { self.busy_time.as_secs_f64() / paid } else { 0.0 }
    }

    /// Extends the run to `end` with the workers that are left, so that the costs of several runs cover the same span.
    pub(crate) fn extend_to(&mut self, end: Duration) {
        let last = self.timeline.last().copied().unwrap_or_default();
        let more = usize::try_from(end.as_secs()).unwrap_or(usize::MAX).saturating_sub(self.timeline.len());
        let idle = Second { arrivals: 0, completed: 0, latency: None, ..last };
        self.timeline.extend(std::iter::repeat_n(idle, more));
        let time = Duration::from_secs(more as u64) * (last.booting + last.ready + last.draining);
        self.worker_time += time;
        self.billed_time += time;
    }
}

/// The nearest-rank quantile of sorted latencies in microseconds.
pub(super) fn nearest_rank(sorted: &[u64], quantile: f64) -> Option<Duration> {
    let rank = (quantile.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map(|latency| Duration::from_micros(*latency))
}
