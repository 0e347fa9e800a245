//! Measures how fast jobs are completed.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::protocol::TimingsMs;

/// The workers of `up`, as its web tier sees them.
pub struct Fleet {
    /// How many workers are ready.
    pub ready: watch::Receiver<usize>,
    /// True if the service is ready only once a worker is; false if the fleet may be empty.
    pub is_awaited: bool,
    /// Returns how long a worker takes for an image, measured over the last seconds, or `None` when nothing was
    /// measured.
    pub service_time: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Counts the requests that were refused because there are too few workers. The queue does not show them, but the
    /// decision on the number of workers depends on them.
    pub refused: Arc<AtomicU64>,
}

/// The source of the time per job.
pub(super) enum Capacity {
    /// The workers of `up` are measured.
    Fleet(Fleet),
    /// The workers belong to another process: their pace shows in the replies.
    Replies(Mutex<ReplyPace>),
}

impl Capacity {
    /// Returns the mean time between the ends of two jobs, and how long a worker takes for an image, as far as they were
    /// measured.
    pub(super) fn measured(&self, now: Instant) -> (Option<Duration>, Option<Duration>) {
        match self {
            Capacity::Fleet(fleet) => (fleet.time_per_job(), (fleet.service_time)()),
            Capacity::Replies(pace) => {
                let pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                (pace.time_per_job(now), pace.service_time())
            }
        }
    }

    /// Returns whether a worker is ready. `None` when only the queue can show that.
    pub(super) fn has_worker(&self) -> Option<bool> {
        match self {
            Capacity::Fleet(fleet) => Some(*fleet.ready.borrow() > 0),
            Capacity::Replies(_) => None,
        }
    }
}

impl Fleet {
    /// Returns the mean time between the ends of two jobs while all workers are busy.
    pub(super) fn time_per_job(&self) -> Option<Duration> {
        let ready = u32::try_from(*self.ready.borrow()).unwrap_or(u32::MAX);
        (self.service_time)()?.checked_div(ready)
    }
}

/// How fast the jobs of this process end while there is a backlog, measured from replies.
///
/// Only an unbroken run of jobs that had to queue shows it. Without a backlog jobs end as fast as they come, and the
/// workers may be far faster.
#[derive(Debug, Default)]
pub(super) struct ReplyPace {
    /// When the last jobs ended, oldest first. All of them had queued.
    ends: VecDeque<Instant>,
    /// The last measurement and its time.
    measured: Option<(Duration, Instant)>,
    /// The mean time that a worker takes for an image, in which older images lose their weight.
    service_time: Option<Duration>,
}

impl ReplyPace {
    const MAX_ENDS: usize = 256;
    const MIN_ENDS: usize = 8;
    /// A measurement covers the last seconds.
    const WINDOW: Duration = Duration::from_secs(5);
    /// A measurement is used until it is this old.
    const MEMORY: Duration = Duration::from_mins(1);

    /// The weight of one image in the mean of the service time.
    const SERVICE_TIME_WEIGHT: u32 = 16;

    /// Records how long a worker took for an image, from the timings of its result.
    pub(super) fn record_timings(&mut self, timings: &TimingsMs) {
        let millis = timings.fetched + timings.decoded + timings.inferred;
        let Ok(time) = Duration::try_from_secs_f64(millis / 1e3) else { return };
        if !time.is_zero() {
            let weight = Self::SERVICE_TIME_WEIGHT;
            self.service_time = Some(match self.service_time {
                Some(mean) => (mean * (weight - 1) + time) / weight,
                None => time,
            });
        }
    }

    /// Returns how long a worker takes for an image, or `None` before the first.
    pub(super) fn service_time(&self) -> Option<Duration> {
        self.service_time
    }

    /// Records the end of a job at `now`.
    pub(super) fn record_end(&mut self, now: Instant, has_queued: bool) {
        if !has_queued {
            self.ends.clear();
            return;
        }
        self.ends.push_back(now);
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > Self::WINDOW;
        while self.ends.len() > Self::MAX_ENDS
            || self.ends.len() > Self::MIN_ENDS && self.ends.front().is_some_and(is_old)
        {
            self.ends.pop_front();
        }
        if let Some(first) = self.ends.front()
            && self.ends.len() >= Self::MIN_ENDS
        {
            let span = now.saturating_duration_since(*first);
            self.measured = Some((span.div_f64((self.ends.len() - 1) as f64), now));
        }
    }

    /// Returns the time per job, or `None` when it was not measured lately.
    pub(super) fn time_per_job(&self, now: Instant) -> Option<Duration> {
        let (time, at) = self.measured?;
        (now.saturating_duration_since(at) <= Self::MEMORY).then_some(time)
    }
}

/// Returns whether a job waited in the queue for longer than it took, so that no worker was free when it came.
pub(super) fn has_queued(timings: &TimingsMs) -> bool {
    const MIN_QUEUED_MS: f64 = 50.0;
    timings.queued > MIN_QUEUED_MS.max(2.0 * (timings.decoded + timings.inferred))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn service_time_is_a_mean_that_follows_changes() {
        let mut pace = ReplyPace::default();
        let timings = |inferred| TimingsMs { fetched: 1.0, decoded: 3.0, inferred, ..TimingsMs::default() };
        assert_eq!(pace.service_time(), None);
        pace.record_timings(&TimingsMs::default());
        assert_eq!(pace.service_time(), None, "a job that failed before it was decoded");
        pace.record_timings(&timings(6.0));
        assert_eq!(pace.service_time(), Some(MS * 10));
        (0..200).for_each(|_| pace.record_timings(&timings(26.0)));
        let millis = pace.service_time().unwrap().as_secs_f64() * 1e3;
        assert!((millis - 30.0).abs() < 0.1, "{millis}");
        pace.record_timings(&timings(f64::NAN));
        assert!(pace.service_time().is_some());
    }

    #[test]
    fn pace_is_measured_only_over_jobs_that_queued() {
        let start = Instant::now();
        let mut pace = ReplyPace::default();
        (0..100).for_each(|end| pace.record_end(start + MS * 500 * end, false));
        assert_eq!(pace.time_per_job(start), None, "without a backlog nothing is known");
        (0..1_000).for_each(|end| pace.record_end(start + MS * 20 * end, true));
        let end = start + MS * 20_000;
        assert_eq!(pace.time_per_job(end), Some(MS * 20));
        pace.record_end(end, false);
        assert_eq!(pace.time_per_job(end), Some(MS * 20), "what was measured is kept");
        assert_eq!(pace.time_per_job(end + ReplyPace::MEMORY), None, "but not for long");
        (0..20).for_each(|second| pace.record_end(end + MS * 3_000 * second, true));
        assert_eq!(pace.time_per_job(end + MS * 60_000), Some(MS * 3_000), "slow jobs are measured too");
    }

    #[test]
    fn job_has_queued_when_it_waited_longer_than_it_took() {
        let timings = |queued, decoded, inferred| TimingsMs { queued, decoded, inferred, ..TimingsMs::default() };
        assert!(has_queued(&timings(500.0, 5.0, 10.0)));
        assert!(!has_queued(&timings(40.0, 1.0, 2.0)));
        assert!(!has_queued(&timings(500.0, 300.0, 10.0)));
    }
}
