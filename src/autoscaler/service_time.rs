//! Measures how long images take.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::protocol::Worked;

/// The time that a worker needs for an image, from the reports of all workers. Clones share the measurements.
#[derive(Debug, Clone, Default)]
pub struct ServiceTime(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    /// Sums over many images. The number of workers follows these, so that it does not follow every fluctuation.
    long: Worked,
    /// Reports of the last seconds of work, oldest first. The estimate of a caller's wait follows these.
    recent: VecDeque<Worked>,
}

impl ServiceTime {
    /// Number of images after which older ones lose half of their weight.
    const MEMORY: u64 = 1000;
    /// Limits of the recent reports, as time of work and as number.
    const RECENT: Duration = Duration::from_secs(3);
    const RECENT_REPORTS: usize = 64;

    pub(super) fn add(&self, worked: Worked) {
        let mut sums = self.sums();
        let Sums { long, recent } = &mut *sums;
        long.images = long.images.saturating_add(worked.images);
        long.busy = long.busy.saturating_add(worked.busy);
        while long.images > 2 * Self::MEMORY {
            long.images /= 2;
            long.busy /= 2;
        }
        recent.push_back(worked);
        while recent.len() > Self::RECENT_REPORTS || sum(recent.iter().skip(1)).busy >= Self::RECENT {
            recent.pop_front();
        }
    }

    /// The time that a worker needed for an image in its last seconds of work. Returns `None` before the first report.
    pub fn recent(&self) -> Option<Duration> {
        sum(self.sums().recent.iter()).service_time()
    }

    /// The time that a worker needed for an image over the last thousands of images. Returns `None` before the first
    /// report.
    pub fn long_term(&self) -> Option<Duration> {
        self.sums().long.service_time()
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum<'a>(reports: impl Iterator<Item = &'a Worked>) -> Worked {
    reports.fold(Worked::default(), |sum, worked| Worked {
        images: sum.images.saturating_add(worked.images),
        busy: sum.busy.saturating_add(worked.busy),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_term_service_time_is_unknown_at_first_and_forgets_old_images() {
        let times = ServiceTime::default();
        assert_eq!(times.long_term(), None);
        times.add(Worked { images: 10, busy: Duration::from_secs(1) });
        assert_eq!(times.long_term(), Some(Duration::from_millis(100)));
        (0..20).for_each(|_| times.add(Worked { images: 1000, busy: Duration::from_secs(10) }));
        let millis = times.long_term().map(|time| time.as_millis());
        assert_eq!(millis, Some(10));
        times.add(Worked { images: u64::MAX, busy: Duration::MAX });
        assert!(times.long_term().is_some());
    }

    #[test]
    fn recent_service_time_follows_a_change_within_seconds_of_work() {
        let times = ServiceTime::default();
        assert_eq!(times.recent(), None);
        (0..60).for_each(|_| times.add(Worked { images: 100, busy: Duration::from_secs(1) }));
        let millis = || times.recent().expect("has worked").as_millis();
        assert_eq!(millis(), 10);
        (0..3).for_each(|_| times.add(Worked { images: 1, busy: Duration::from_secs(1) }));
        assert_eq!(millis(), 1_000, "three images of a second");
        times.add(Worked { images: 1, busy: Duration::from_secs(10) });
        assert_eq!(millis(), 10_000, "one of ten seconds");
        (0..3).for_each(|_| times.add(Worked { images: 100, busy: Duration::from_secs(1) }));
        assert_eq!(millis(), 10, "three seconds of small ones");
        (0..10_000).for_each(|_| times.add(Worked { images: 1, busy: Duration::ZERO }));
        assert_eq!(millis(), 0);
    }
}
