//! Delays between the tries of an operation that failed: exponential, bounded, with optional jitter.
//!
//! This module only computes delays. The caller sleeps, so that it can also stop waiting at a shutdown or a notification.

use std::time::Duration;

use rand::Rng as _;

/// The rule for the delays: `first`, doubled after each try, at most `longest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub longest: Duration,
}

impl Schedule {
    /// Makes a schedule from its shortest and longest delay.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Schedule { first, longest }
    }

    /// The delay after `failures` failed tries, without jitter. Zero failures count as one.
    pub fn delay_after(self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// A backoff that follows this schedule from its first delay.
    pub const fn start(self) -> Backoff {
        Backoff { schedule: self, failures: 0 }
    }
}

/// Counts the failed tries of one operation.
#[derive(Debug, Clone)]
pub struct Backoff {
    schedule: Schedule,
    failures: u32,
}

impl Backoff {
    /// Counts one more failure and returns how long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.schedule.delay_after(self.failures)
    }

    /// Returns the next delay, shortened at random by up to half, so that many clients that failed together do not retry
    /// together.
    pub fn next_delay_with_jitter(&mut self) -> Duration {
        self.next_delay().mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Call this after a success. The next failure then waits for the first delay again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(2));

    #[test]
    fn delays_double_up_to_the_longest() {
        let delays: Vec<u128> = (0..8).map(|failures| SCHEDULE.delay_after(failures).as_millis()).collect();
        assert_eq!(delays, [100, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        assert_eq!(SCHEDULE.delay_after(u32::MAX), Duration::from_secs(2));
    }

    #[test]
    fn reset_starts_again_at_the_first_delay() {
        let mut backoff = SCHEDULE.start();
        assert_eq!([backoff.next_delay(), backoff.next_delay()].map(|delay| delay.as_millis()), [100, 200]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_millis(100));
    }

    #[test]
    fn jitter_shortens_a_delay_by_at_most_half() {
        for _ in 0..100 {
            let delay = SCHEDULE.start().next_delay_with_jitter();
            assert!((Duration::from_millis(50)..=Duration::from_millis(100)).contains(&delay), "{delay:?}");
        }
    }
}
