//! As many workers as keep the last message in the queue within an acceptable latency. The backlog that one worker may
//! have is that latency divided by its service time, and the number of workers is the work divided by that backlog.
//!
//! The work is the visible messages plus those in flight: a message in flight is not completed, and a policy that
//! ignores it removes workers from a queue that is being processed. Scaling out happens at once and to the full number,
//! also from zero, because too few workers cost latency now and too many cost money later. Scaling in happens only
//! after fewer workers have sufficed for the whole stabilization window, and then to the highest number that was needed
//! in it. A pause between two bursts thus costs one window of workers and not a restart of each.
//!
//! The backlog alone says nothing about a fleet that keeps up: it is empty whether one worker is busy or all are. The
//! messages in flight do say it, because on average there are as many as busy sessions (Little's law). The policy
//! therefore keeps the workers that the messages in flight occupy. Otherwise the fleet would shrink until a backlog
//! built up, grow until it was gone, and so on.
//!
//! A worker that is starting counts like a ready one. Otherwise each decision until it is ready would start another.

use std::time::Duration;

use super::decision::{Bounds, QueueDepth, Reason};

/// Settings of the target policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetPolicy {
    /// The acceptable latency of the last message in the queue, from submission to answer.
    pub acceptable_latency: Duration,
    /// The time that a busy worker takes for one image: the inverse of its throughput. For a worker with several
    /// parallel sessions it is the time of one session divided by their number.
    pub service_time: Duration,
    /// The number of images that a worker processes in parallel (its sessions); at least 1.
    pub concurrency: u32,
    /// If the needed number of workers deviates from the current number by at most this percentage, nothing changes.
    pub tolerance_percent: u32,
    /// How long fewer workers must suffice before any is removed.
    pub scale_in_stabilization: Duration,
}

impl TargetPolicy {
    /// Default of `acceptable_latency`.
    pub const DEFAULT_ACCEPTABLE_LATENCY: Duration = Duration::from_secs(10);
    /// Default of `tolerance_percent`.
    pub const DEFAULT_TOLERANCE_PERCENT: u32 = 10;
    /// Default of `scale_in_stabilization`. An instance takes a minute or more to start, so a running one is kept for a
    /// few.
    pub const DEFAULT_SCALE_IN_STABILIZATION: Duration = Duration::from_mins(5);

    /// The policy with the defaults for all other settings.
    pub const fn with_service_time(service_time: Duration) -> Self {
        TargetPolicy {
            acceptable_latency: Self::DEFAULT_ACCEPTABLE_LATENCY,
            service_time,
            concurrency: 1,
            tolerance_percent: Self::DEFAULT_TOLERANCE_PERCENT,
            scale_in_stabilization: Self::DEFAULT_SCALE_IN_STABILIZATION,
        }
    }

    /// The number of messages, visible or in flight, that one worker can have within the acceptable latency. It is
    /// below 1 if even one image takes longer, and infinite if an image takes no time.
    pub fn backlog_per_worker(&self) -> f64 {
        self.acceptable_latency.as_secs_f64() / self.service_time.as_secs_f64()
    }

    /// The number of workers that the work needs, regardless of the bounds. It is never more than the number of
    /// messages, because a worker without one would be idle.
    fn needed(&self, work: u64) -> u64 {
        let (time, latency) = self.times(work);
        u64::try_from(time.div_ceil(latency)).unwrap_or(u64::MAX).clamp(u64::from(work > 0), work)
    }

    /// The number of workers that the messages in flight occupy. At most `workers`: prefetched messages are in flight
    /// too, and are no reason to add a worker.
    fn busy(&self, in_flight: u64, workers: u32) -> u64 {
        in_flight.div_ceil(u64::from(self.concurrency.max(1))).min(u64::from(workers))
    }

    /// The time that one worker would need for the work, and the time that it may take; the latter is never zero.
    fn times(&self, work: u64) -> (u128, u128) {
        (self.service_time.as_nanos().saturating_mul(u128::from(work)), self.acceptable_latency.as_nanos().max(1))
    }

    /// Returns true if `workers` deviates from the needed number by no more than the tolerance.
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
            // A gap in the readings restarts the window: what sufficed before the gap says nothing about the time
            // during it.
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

/// Since when fewer workers would have sufficed, and the most that were needed since then; `None` while all are needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Window {
    open: Option<(Duration, u32)>,
}

impl Window {
    fn close(&mut self) {
        self.open = None;
    }

    /// Records that `within` workers suffice at `at`. If the window is over, returns the highest number that was needed
    /// in it and starts the next window.
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

    /// The share of one worker is ten images of a second each.
    const POLICY: TargetPolicy =
        TargetPolicy { concurrency: 10, ..TargetPolicy::with_service_time(Duration::from_secs(1)) };

    #[test]
    fn scale_out_is_immediate_and_scale_in_waits_for_the_window() {
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
    fn burst_or_unknown_depth_restarts_the_window() {
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
    fn nothing_changes_within_the_tolerance_and_the_maximum_is_reported() {
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
    fn fleet_that_keeps_up_keeps_its_busy_workers() {
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
    fn workers_never_exceed_messages() {
        let slow = TargetPolicy { service_time: Duration::from_mins(5), ..POLICY };
        assert_eq!((slow.needed(0), slow.needed(1), slow.needed(3)), (0, 1, 3));
        assert_eq!((POLICY.needed(10), POLICY.needed(11), POLICY.needed(u64::MAX)), (1, 2, u64::MAX.div_ceil(10)));
        let instant = TargetPolicy { service_time: Duration::ZERO, ..POLICY };
        assert_eq!((instant.needed(0), instant.needed(u64::MAX)), (0, 1));
    }

    /// Random policies and observations: the bounds hold, no worker is removed while the depth is unknown or before the
    /// window is over, the last worker stays while there is work, and more work never means fewer workers.
    #[test]
    fn every_decision_keeps_the_invariants() {
        let mut random = StdRng::seed_from_u64(4);
        for _ in 0..20_000 {
            let max = random.random_range(1..=20);
            let bounds = Bounds::new(random.random_range(0..=max), max).expect("min is at most max");
            let magnitude = |random: &mut StdRng| random.random_range(0..=u64::MAX) >> random.random_range(0..64);
            let policy = TargetPolicy {
                acceptable_latency: Duration::from_micros(magnitude(&mut random)),
                service_time: Duration::from_micros(magnitude(&mut random)),
                concurrency: random.random_range(0..5),
                tolerance_percent: random.random_range(0..150),
                scale_in_stabilization: Duration::from_secs(random.random_range(0..600)),
            };
            let (mut state, mut now, mut readings_since) = (State::default(), Duration::ZERO, None);
            for _ in 0..8 {
                now += Duration::from_secs(random.random_range(0..300));
                let age = Duration::from_secs(random.random_range(0..=6));
                let (visible, in_flight) = (magnitude(&mut random), magnitude(&mut random) >> 32);
                let at = now.saturating_sub(age);
                let depth = random.random_bool(0.9).then_some(QueueDepth { at, visible, in_flight });
                let fresh = depth.filter(|depth| now.saturating_sub(depth.at) <= super::super::MAX_DEPTH_AGE);
                readings_since = fresh.map(|depth| readings_since.unwrap_or(depth.at));
                let workers = random.random_range(0..=24);
                let seen = Observation { workers, depth };
                let (next, decision) = decide(&Policy::Target(policy), bounds, state, &seen, now);
                let desired = decision.desired;
                let context = format!("{policy:?}, {bounds:?}, {seen:?} at {now:?}: {decision:?}");
                assert!((bounds.min()..=bounds.max()).contains(&desired), "{context}");
                if (bounds.min()..=bounds.max()).contains(&workers) && desired < workers {
                    let since = readings_since.unwrap_or_else(|| panic!("scale-in with unknown depth: {context}"));
                    assert!(now.saturating_sub(since) >= policy.scale_in_stabilization, "{context}");
                    let in_flight = fresh.map_or(0, |depth| depth.in_flight);
                    assert!(u64::from(desired) * u64::from(policy.concurrency.max(1)) >= in_flight, "{context}");
                    assert!(desired >= 1 || fresh.is_none_or(|depth| depth.work() == 0), "{context}");
                }
                let deeper = QueueDepth { at, visible: visible.saturating_add(magnitude(&mut random)), in_flight };
                let deeper = Observation { workers, depth: depth.map(|_| deeper) };
                let (_, more) = decide(&Policy::Target(policy), bounds, state, &deeper, now);
                assert!(more.desired >= desired, "{context}; with more: {deeper:?}: {more:?}");
                state = next;
            }
        }
    }
}
