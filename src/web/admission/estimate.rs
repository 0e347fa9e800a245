//! Decides if the answer of a caller would come in time. The decision is pure: no clock, no I/O.

use std::time::Duration;

/// The share of a caller's wait that the estimate may fill. Under overload the queue stays at this limit, so the rest
/// has to cover the error of the estimate: without it, about half of the callers would be answered too late.
const USABLE_SHARE: f64 = 0.85;
/// The margin for noise is this, or a tenth of the wait when that is less: a pause of the machine takes a larger share
/// of a short wait.
const NOISE: Duration = Duration::from_millis(250);
/// A caller that waits less than this asks for its answer later, as one that does not wait at all.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
/// The longest `Retry-After`, in seconds.
const MAX_RETRY_AFTER_SECONDS: f64 = 60.0;
/// Jitter lengthens `Retry-After` by up to this share, so that refused clients do not return together.
const RETRY_JITTER: f64 = 0.25;

/// The work in front of a new job, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Jobs that were accepted and have not ended.
    pub(super) jobs_ahead: u64,
    /// Mean time between the ends of two jobs while all workers are busy: the service time divided by the number of
    /// ready workers. `None` while no worker is ready or no service time was measured.
    pub(super) time_per_job: Option<Duration>,
}

impl Estimate {
    /// Returns how long a new job waits until a worker begins with it, or `None` while that is unknown.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.time_per_job.map(|time| times(time, self.jobs_ahead))
    }
}

/// The outcome of [`decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Admit,
    Refuse { expected_wait: Duration },
}

/// Decides on a caller that waits up to `max_wait` for its answer. Admits it while the expected wait is unknown.
pub(super) fn decide(estimate: &Estimate, max_wait: Duration) -> Decision {
    if max_wait < SHORTEST_WAIT {
        return Decision::Admit;
    }
    let usable = max_wait.mul_f64(USABLE_SHARE).saturating_sub(NOISE.min(max_wait / 10));
    match estimate.wait() {
        Some(expected_wait) if expected_wait > usable && estimate.jobs_ahead > 0 => Decision::Refuse { expected_wait },
        Some(_) | None => Decision::Admit,
    }
}

/// Returns whole seconds for `Retry-After`, from 1 to 60. `jitter` is between 0 and 1.
pub(super) fn retry_after_seconds(expected_wait: Duration, jitter: f64) -> u32 {
    let seconds = expected_wait.as_secs_f64() * (1.0 + RETRY_JITTER * jitter);
    seconds.ceil().clamp(1.0, MAX_RETRY_AFTER_SECONDS) as u32
}

/// Multiplies without overflow.
pub(super) fn times(time: Duration, count: u64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * count as f64).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn estimate(jobs_ahead: u64, time_per_job_ms: u32) -> Estimate {
        Estimate { jobs_ahead, time_per_job: Some(MS * time_per_job_ms) }
    }

    #[test]
    fn caller_is_refused_when_the_work_ahead_takes_longer_than_it_waits() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(&estimate(2_500, 10), seconds(30)), Decision::Admit, "answered after 25 of 30 seconds");
        assert_eq!(decide(&estimate(2_900, 10), seconds(30)), Decision::Refuse { expected_wait: seconds(29) });
        assert_eq!(decide(&estimate(150, 10), seconds(2)), Decision::Admit);
        assert_eq!(decide(&estimate(200, 10), seconds(2)), Decision::Refuse { expected_wait: seconds(2) });
        assert_eq!(
            decide(&estimate(u64::MAX, u32::MAX), seconds(600)),
            Decision::Refuse { expected_wait: Duration::MAX }
        );
    }

    #[test]
    fn callers_are_admitted_when_idle_or_while_the_wait_is_unknown() {
        assert_eq!(decide(&estimate(0, 5_000), MS), Decision::Admit);
        assert_eq!(decide(&estimate(1_000, 5_000), MS * 499), Decision::Admit, "it does not wait");
        let unknown = Estimate { jobs_ahead: u64::MAX, time_per_job: None };
        assert_eq!(decide(&unknown, MS), Decision::Admit);
    }

    #[test]
    fn retry_after_is_the_expected_wait_within_a_minute() {
        let at = |millis: u32, jitter| retry_after_seconds(MS * millis, jitter);
        assert_eq!([at(0, 0.0), at(1_000, 0.0), at(1_001, 0.0), at(12_000, 0.0)], [1, 1, 2, 12]);
        assert_eq!([at(12_000, 1.0), at(59_000, 1.0)], [15, 60]);
        assert_eq!(retry_after_seconds(Duration::MAX, 1.0), 60);
    }
}
