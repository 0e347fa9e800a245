//! When a callback is looked at again. The times follow from how long it has waited or failed, so that no process has to
//! remember how often it was tried.

use std::time::Duration;

use jiff::Timestamp;
use rand::Rng as _;

/// How long a receiver is called that does not answer with success.
pub(super) const LONGEST_FAILURE: Duration = Duration::from_hours(24);
/// How long a callback waits for the end of its job. Jobs of batches wait for at most four days.
pub(super) const LONGEST_WAIT: Duration = Duration::from_hours(6 * 24);
/// A job is stored within this time after its callback.
pub(super) const SUBMITTED_WITHIN: Duration = Duration::from_mins(5);

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(60);
const LONGEST_TRY: Duration = Duration::from_hours(1);

/// How long a message has existed.
pub(super) fn age_of(sent_at_ms: i64, now: Timestamp) -> Duration {
    Duration::from_millis(now.as_millisecond().saturating_sub(sent_at_ms).max(0).unsigned_abs())
}

/// The time between two instants; zero if the second one is earlier.
pub(super) fn between(since: Timestamp, now: Timestamp) -> Duration {
    age_of(since.as_millisecond(), now)
}

/// The delay until a job is looked at again that has waited for `age`.
pub(super) fn next_look(age: Duration) -> Duration {
    (age / 4).clamp(SHORTEST, LONGEST_LOOK)
}

/// The delay until a receiver is called again that has failed for `time`: about as long again, so that the delays double.
/// They differ at random, so that not all callbacks of a receiver come at once.
pub(super) fn next_try(time: Duration) -> Duration {
    let delay = time.clamp(SHORTEST, LONGEST_TRY);
    delay.mul_f64(rand::rng().random_range(0.8..=1.0)).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receiver_is_called_with_growing_delays_for_a_day() {
        let (mut time, mut tries) = (Duration::ZERO, 0);
        while time < LONGEST_FAILURE {
            let delay = next_try(time);
            assert!(delay >= SHORTEST && delay <= LONGEST_TRY && delay <= time.max(SHORTEST), "{delay:?} at {time:?}");
            time += delay;
            tries += 1;
        }
        assert!((30..60).contains(&tries), "{tries}");
        assert!(time < LONGEST_FAILURE + LONGEST_TRY);
    }

    #[test]
    fn looks_are_bounded() {
        assert_eq!(next_look(Duration::ZERO), SHORTEST);
        assert_eq!(next_look(Duration::from_secs(40)), Duration::from_secs(10));
        assert_eq!(next_look(LONGEST_WAIT), LONGEST_LOOK);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(age_of(now.as_millisecond() + 5, now), Duration::ZERO, "a clock ahead of ours");
    }
}
