//! As many workers as bring the last message in the queue to its answer within an acceptable latency: the backlog that
//! one worker may have is that latency divided by its time an image, and the work is divided by that.
//!
//! The work is what waits and what is in flight: what is in flight is not done, and a policy that forgets it takes
//! workers away from a queue that is being worked on. Out goes at once and all the way, from zero as well: too few
//! workers cost latency now, too many cost money later. In goes only after the lower number has sufficed for the whole
//! of the stabilisation window, and then to the highest number that was needed in it; so a pause between two bursts
//! costs one window of workers and not a start of each.
//!
//! A backlog alone says nothing about a fleet that keeps up: there is none, whether one worker has something to do or
//! all. What is in flight does say it, being in the mean as many as sessions are busy (Little's law), so no worker is
//! taken away that the images in flight keep busy. Without that the fleet would shrink until a backlog stood, grow until
//! it was gone, and so on.
//!
//! A worker that is on its way counts as one that is there, else each decision until it is ready would ask for it
//! again.

use std::time::Duration;

use super::{Bounds, QueueDepth, Reason};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPolicy {
    /// From sent to answered, for the last message in the queue.
    pub acceptable_latency: Duration,
    /// Time one worker takes for one image where it always has the next, which is 1 / its throughput: for a worker
    /// with several sessions side by side, the time of one divided by their number.
    pub service_time: Duration,
    /// Images that a worker has in work side by side: its sessions; at least 1.
    pub concurrency: u32,
    /// How far off, in percent of the workers there are, the number needed may be before anything changes.
    pub tolerance_percent: u32,
    /// How long fewer workers have to suffice before any is taken away.
    pub scale_in_stabilization: Duration,
}

impl TargetPolicy {
    pub const DEFAULT_ACCEPTABLE_LATENCY: Duration = Duration::from_secs(10);
    pub const DEFAULT_TOLERANCE_PERCENT: u32 = 10;
    /// An instance takes a minute or more to come; those that are there are kept for a few.
    pub const DEFAULT_SCALE_IN_STABILIZATION: Duration = Duration::from_mins(5);

    /// With the defaults for all that a user may leave alone.
    pub const fn with_service_time(service_time: Duration) -> Self {
        TargetPolicy {
            acceptable_latency: Self::DEFAULT_ACCEPTABLE_LATENCY,
            service_time,
            concurrency: 1,
            tolerance_percent: Self::DEFAULT_TOLERANCE_PERCENT,
            scale_in_stabilization: Self::DEFAULT_SCALE_IN_STABILIZATION,
        }
    }

    /// How many messages, waiting or in flight, one worker can have and still be in time. Below 1 where even one image
    /// takes longer than is acceptable; without end where an image takes no time.
    pub fn backlog_per_worker(&self) -> f64 {
        self.acceptable_latency.as_secs_f64() / self.service_time.as_secs_f64()
    }

    /// How many workers the work is for, whatever the bounds: never more than there are messages, since a worker
    /// without one helps nobody.
    fn needed(&self, work: u64) -> u64 {
        let (time, latency) = self.times(work);
        u64::try_from(time.div_ceil(latency)).unwrap_or(u64::MAX).clamp(u64::from(work > 0), work)
    }

    /// How many of `workers` the images in flight keep busy. No more than there are: what a worker has taken ahead is in
    /// flight too, and is no reason to want another.
    fn busy(&self, in_flight: u64, workers: u32) -> u64 {
        in_flight.div_ceil(u64::from(self.concurrency.max(1))).min(u64::from(workers))
    }

    /// What one worker would need for the work, and what it may take; never zero.
    fn times(&self, work: u64) -> (u128, u128) {
        (self.service_time.as_nanos().saturating_mul(u128::from(work)), self.acceptable_latency.as_nanos().max(1))
    }

    /// Whether `workers` are off by no more than the tolerance.
    fn is_about_right(&self, work: u64, workers: u32) -> bool {
        let (time, latency) = self.times(work);
        let time_percent = time.saturating_mul(100);
        let one_percent = latency.saturating_mul(u128::from(workers));
        let tolerance = u128::from(self.tolerance_percent);
        time_percent <= one_percent.saturating_mul(100 + tolerance)
            && time_percent >= one_percent.saturating_mul(100u128.saturating_sub(tolerance))
    }

    pub(super) fn decide(
        &self,
        bounds: Bounds,
        window: &mut Window,
        workers: u32,
        depth: Option<QueueDepth>,
    ) -> (u32, Reason) {
        if depth.is_none() {
            // That few sufficed before is no sign that few suffice now: the window begins again with sight.
            window.close();
        }
        if workers < bounds.min() {
            return (bounds.min(), Reason::BelowMin);
        }
        if workers > bounds.max() {
            return (bounds.max(), Reason::AboveMax);
        }
        let Some(depth) = depth else {
            return (workers, Reason::DepthUnknown);
        };
        let work = depth.work();
        let needed = self.needed(work).max(self.busy(depth.in_flight, workers));
        let fewest = u64::from(if work > 0 { bounds.min().max(1) } else { bounds.min() });
        let within = needed.clamp(fewest, u64::from(bounds.max())) as u32;
        if workers == 0 && work > 0 {
            window.close();
            return (within, Reason::WorkButNoWorker { work });
        }
        if within > workers && !self.is_about_right(work, workers) {
            window.close();
            return (within, Reason::TargetOut { work, needed });
        }
        if within < workers && !self.is_about_right(work, workers) {
            return match window.lowest_safe(within, depth.at, self.scale_in_stabilization) {
                Some(safe) => (safe, Reason::TargetIn { work, needed }),
                None => (workers, Reason::TargetInLater { work, needed }),
            };
        }
        window.close();
        if workers == bounds.max() && needed > u64::from(workers) {
            return (workers, Reason::TargetAtMax { work, needed });
        }
        (workers, Reason::Steady)
    }
}

/// Since when fewer workers would have sufficed, and the most that were needed since; None while all are needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Window {
    open: Option<(Duration, u32)>,
}

impl Window {
    fn close(&mut self) {
        self.open = None;
    }

    /// Fewer are enough at `at`; the number to go down to if that has lasted, and then the next window begins.
    fn lowest_safe(&mut self, within: u32, at: Duration, stabilization: Duration) -> Option<u32> {
        let (since, highest) = self.open.map_or((at, within), |(since, highest)| (since, highest.max(within)));
        let is_over = at.saturating_sub(since) >= stabilization;
        self.open = (!is_over).then_some((since, highest));
        is_over.then_some(highest)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::super::replay::{golden, replay};
    use super::super::{Observation, Policy, State, decide};
    use super::*;

    /// Ten images of a second each are a worker's share.
    const POLICY: TargetPolicy =
        TargetPolicy { concurrency: 10, ..TargetPolicy::with_service_time(Duration::from_secs(1)) };

    #[test]
    fn from_zero_to_what_is_needed_at_once_and_back_after_the_window() {
        let readings = [
            (0, Some((0, 0))),
            (1, Some((75, 0))),
            (2, Some((72, 8))),
            (3, Some((120, 8))),
            (20, Some((30, 9))),
            (200, Some((0, 1))),
            (310, Some((5, 9))),
            (320, Some((0, 0))),
            (619, Some((0, 0))),
            (620, Some((0, 0))),
            (920, Some((0, 0))),
        ];
        golden(
            &replay(Policy::Target(POLICY), (0, 9), 0, &readings),
            "0s 0+0: 0 → 0 (steady)
             1s 75+0: 0 → 8 (no worker and 75 to do)
             2s 72+8: 8 → 8 (steady)
             3s 120+8: 8 → 9 (128 waiting or in flight, work for 13)
             20s 30+9: 9 → 9 (39 waiting or in flight, work for 4; fewer once that has lasted)
             200s 0+1: 9 → 9 (1 waiting or in flight, work for 1; fewer once that has lasted)
             310s 5+9: 9 → 9 (14 waiting or in flight, work for 2; fewer once that has lasted)
             320s 0+0: 9 → 4 (0 waiting or in flight, work for 0)
             619s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             620s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             920s 0+0: 4 → 0 (0 waiting or in flight, work for 0)",
        );
    }

    #[test]
    fn a_new_burst_or_blindness_begins_the_window_again() {
        let readings = [
            (0, Some((0, 0))),
            (200, Some((35, 4))),
            (299, Some((0, 0))),
            (400, None),
            (599, Some((0, 0))),
            (898, Some((0, 0))),
            (899, Some((0, 1))),
            (900, None),
        ];
        golden(
            &replay(Policy::Target(POLICY), (0, 4), 4, &readings),
            "0s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             200s 35+4: 4 → 4 (steady)
             299s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             400s ?: 4 → 4 (the depth of the queue is not known)
             599s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             898s 0+0: 4 → 4 (0 waiting or in flight, work for 0; fewer once that has lasted)
             899s 0+1: 4 → 1 (1 waiting or in flight, work for 1)
             900s ?: 1 → 1 (the depth of the queue is not known)",
        );
    }

    #[test]
    fn within_the_tolerance_nothing_changes_and_at_the_most_it_is_said() {
        let readings = [
            (0, Some((100, 10))),
            (1, Some((101, 10))),
            (2, Some((110, 11))),
            (3, Some((122, 11))),
            (4, Some((99, 9))),
        ];
        golden(
            &replay(Policy::Target(POLICY), (1, 12), 10, &readings),
            "0s 100+10: 10 → 10 (steady)
             1s 101+10: 10 → 12 (111 waiting or in flight, work for 12)
             2s 110+11: 12 → 12 (121 waiting or in flight, work for 13, but no more workers are allowed)
             3s 122+11: 12 → 12 (133 waiting or in flight, work for 14, but no more workers are allowed)
             4s 99+9: 12 → 12 (steady)",
        );
    }

    #[test]
    fn a_fleet_that_keeps_up_keeps_those_that_are_busy() {
        let policy = TargetPolicy { concurrency: 2, scale_in_stabilization: Duration::from_secs(60), ..POLICY };
        let readings =
            [(0, Some((0, 9))), (30, Some((0, 6))), (60, Some((0, 5))), (120, Some((0, 6))), (180, Some((1, 20)))];
        golden(
            &replay(Policy::Target(policy), (0, 9), 5, &readings),
            "0s 0+9: 5 → 5 (steady)
             30s 0+6: 5 → 5 (6 waiting or in flight, work for 3; fewer once that has lasted)
             60s 0+5: 5 → 5 (5 waiting or in flight, work for 3; fewer once that has lasted)
             120s 0+6: 5 → 3 (6 waiting or in flight, work for 3)
             180s 1+20: 3 → 3 (steady)",
        );
    }

    #[test]
    fn never_more_workers_than_messages_however_slow_one_is() {
        let slow = TargetPolicy { service_time: Duration::from_mins(5), ..POLICY };
        assert_eq!((slow.needed(0), slow.needed(1), slow.needed(3)), (0, 1, 3));
        assert_eq!((POLICY.needed(10), POLICY.needed(11), POLICY.needed(u64::MAX)), (1, 2, u64::MAX.div_ceil(10)));
        let instant = TargetPolicy { service_time: Duration::ZERO, ..POLICY };
        assert_eq!((instant.needed(0), instant.needed(u64::MAX)), (0, 1));
    }

    /// Any policy and any observation: bounds kept, never in while blind or before the window is over, the last worker
    /// stays with work, and more work never asks for fewer workers.
    #[test]
    fn what_holds_in_every_world() {
        let mut random = StdRng::seed_from_u64(4);
        for _ in 0..20_000 {
            let max = random.random_range(1..=20);
            let bounds = Bounds::new(random.random_range(0..=max), max).expect("at most the most");
            let magnitude = |random: &mut StdRng| random.random_range(0..=u64::MAX) >> random.random_range(0..64);
            let policy = TargetPolicy {
                acceptable_latency: Duration::from_micros(magnitude(&mut random)),
                service_time: Duration::from_micros(magnitude(&mut random)),
                concurrency: random.random_range(0..5),
                tolerance_percent: random.random_range(0..150),
                scale_in_stabilization: Duration::from_secs(random.random_range(0..600)),
            };
            let (mut state, mut now, mut sighted_since) = (State::default(), Duration::ZERO, None);
            for _ in 0..8 {
                now += Duration::from_secs(random.random_range(0..300));
                let age = Duration::from_secs(random.random_range(0..=6));
                let (visible, in_flight) = (magnitude(&mut random), magnitude(&mut random) >> 32);
                let at = now.saturating_sub(age);
                let depth = random.random_bool(0.9).then_some(QueueDepth { at, visible, in_flight });
                let fresh = depth.filter(|depth| now.saturating_sub(depth.at) <= super::super::MAX_DEPTH_AGE);
                sighted_since = fresh.map(|depth| sighted_since.unwrap_or(depth.at));
                let workers = random.random_range(0..=24);
                let seen = Observation { workers, depth };
                let (next, decision) = decide(&Policy::Target(policy), bounds, state, &seen, now);
                let desired = decision.desired;
                let world = format!("{policy:?}, {bounds:?}, {seen:?} at {now:?}: {decision:?}");
                assert!((bounds.min()..=bounds.max()).contains(&desired), "{world}");
                if (bounds.min()..=bounds.max()).contains(&workers) && desired < workers {
                    let since = sighted_since.unwrap_or_else(|| panic!("in while blind: {world}"));
                    assert!(now.saturating_sub(since) >= policy.scale_in_stabilization, "{world}");
                    let in_flight = fresh.map_or(0, |depth| depth.in_flight);
                    assert!(u64::from(desired) * u64::from(policy.concurrency.max(1)) >= in_flight, "{world}");
                    assert!(desired >= 1 || fresh.is_none_or(|depth| depth.work() == 0), "{world}");
                }
                let deeper = QueueDepth { at, visible: visible.saturating_add(magnitude(&mut random)), in_flight };
                let deeper = Observation { workers, depth: depth.map(|_| deeper) };
                let (_, more) = decide(&Policy::Target(policy), bounds, state, &deeper, now);
                assert!(more.desired >= desired, "{world}; with more: {deeper:?}: {more:?}");
                state = next;
            }
        }
    }
}
