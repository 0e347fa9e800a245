//! The virtual clock counts whole microseconds from the start of the run.

use std::time::Duration;

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
