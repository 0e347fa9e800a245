//! Notices that machines are in service and nobody receives from the queue.

use tokio::time::Instant;

use std::time::Duration;

use crate::transport::Depth;

/// Number of intervals without progress after which it is reported. A machine needs some of them to start.
const INTERVALS: u32 = 30;

/// The time since which images wait, machines are in service, and none of them receives.
#[derive(Debug, Default)]
pub(super) struct Progress {
    stalled_since: Option<Instant>,
    is_reported: bool,
}

impl Progress {
    /// Takes a reading, and returns true once when there has been no progress for long.
    pub(super) fn is_lost(&mut self, depth: Depth, in_service: u32, now: Instant, interval: Duration) -> bool {
        if depth.visible == 0 || depth.in_flight > 0 || in_service == 0 {
            *self = Progress::default();
            return false;
        }
        let since = *self.stalled_since.get_or_insert(now);
        let is_lost = !self.is_reported && now.duration_since(since) >= interval * INTERVALS;
        self.is_reported |= is_lost;
        is_lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_progress_is_reported_once_after_thirty_intervals() {
        let interval = Duration::from_secs(10);
        let (mut progress, start) = (Progress::default(), Instant::now());
        let mut reading = |visible, in_flight, in_service, seconds| {
            let depth = Depth { visible, in_flight, ..Depth::default() };
            progress.is_lost(depth, in_service, start + Duration::from_secs(seconds), interval)
        };
        assert!(!reading(1, 0, 1, 0) && !reading(1, 0, 1, 299));
        assert!(reading(1, 0, 1, 300) && !reading(1, 0, 1, 310));
        // After a receive, or without machines, the time starts again.
        assert!(!reading(1, 1, 1, 320) && !reading(1, 0, 1, 330) && !reading(1, 0, 1, 629));
        assert!(reading(1, 0, 1, 630));
        assert!(!reading(1, 0, 0, 640) && !reading(1, 0, 0, 9_000));
    }
}
