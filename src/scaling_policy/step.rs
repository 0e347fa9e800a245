//! The two alarms of the legacy system: more than 25 visible messages add a worker, fewer than 2 remove one.
//!
//! The alarms read `ApproximateNumberOfMessagesVisible` with the statistic Sum and a period of 1 minute. SQS publishes
//! this metric once a minute with the depth at that moment, so a period holds one datapoint, and the sum is that
//! datapoint. "Sum over 1 minute" therefore means *one reading each minute*. It is neither an average nor a sum of
//! several readings, which would trigger at a fifth of the load over a period of five minutes. This policy does the
//! same: the datapoint of a period is the first reading at or after its end, and the next period starts with it. One
//! reading changes the number of workers by at most one, and an alarm that stays on takes one step each period, as
//! CloudWatch repeats an Auto Scaling action.
//!
//! The policy differs from the bare alarms in two points. The lower threshold counts messages in flight too, because
//! otherwise it would remove workers from a queue that is being processed. Each step out restarts the scale-in period,
//! so that the new worker has that long to take effect.

use std::time::Duration;

use super::decision::{Bounds, QueueDepth, Reason};

/// Thresholds and periods of the step policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepPolicy {
    /// Above this number of visible messages, one worker is added.
    pub scale_out_above: u64,
    /// Minimum time between two steps out.
    pub scale_out_period: Duration,
    /// Below this number of messages, visible or in flight, one worker is removed.
    pub scale_in_below: u64,
    /// Minimum time between two steps in.
    pub scale_in_period: Duration,
}

impl StepPolicy {
    /// The alarms of the legacy system, as CloudWatch evaluates them.
    pub const LEGACY: StepPolicy = StepPolicy {
        scale_out_above: 25,
        scale_out_period: Duration::from_mins(1),
        scale_in_below: 2,
        scale_in_period: Duration::from_mins(1),
    };

    pub(super) fn decide(
        &self,
        bounds: Bounds,
        periods: &mut Periods,
        workers: u32,
        depth: Option<QueueDepth>,
        now: Duration,
    ) -> (u32, Reason) {
        periods.begin(self, now);
        if workers < bounds.min() {
            return (bounds.min(), Reason::BelowMin);
        }
        if workers > bounds.max() {
            return (bounds.max(), Reason::AboveMax);
        }
        let Some(depth) = depth else {
            return (workers, Reason::DepthUnknown);
        };
        let (visible, work) = (depth.visible, depth.work());
        if workers == 0 && work > 0 {
            periods.restart_scale_in(self, depth.at);
            return (1, Reason::WorkButNoWorker { work });
        }

        let scale_out_due = Periods::end(&mut periods.scale_out_ends, self.scale_out_period, depth.at);
        let scale_in_due = Periods::end(&mut periods.scale_in_ends, self.scale_in_period, depth.at);
        if scale_out_due && visible > self.scale_out_above {
            let above = self.scale_out_above;
            if workers == bounds.max() {
                return (workers, Reason::AtMax { visible, above });
            }
            periods.restart_scale_in(self, depth.at);
            return (workers + 1, Reason::ScaleOut { visible, above });
        }
        let fewest = if work > 0 { bounds.min().max(1) } else { bounds.min() };
        if scale_in_due && work < self.scale_in_below && workers > fewest {
            return (workers - 1, Reason::ScaleIn { work, below: self.scale_in_below });
        }
        (workers, Reason::Steady)
    }
}

/// When the current period of each alarm ends; `None` before the first decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Periods {
    scale_out_ends: Option<Duration>,
    scale_in_ends: Option<Duration>,
}

impl Periods {
    fn begin(&mut self, policy: &StepPolicy, now: Duration) {
        self.scale_out_ends.get_or_insert(now.saturating_add(policy.scale_out_period));
        self.scale_in_ends.get_or_insert(now.saturating_add(policy.scale_in_period));
    }

    fn restart_scale_in(&mut self, policy: &StepPolicy, now: Duration) {
        self.scale_in_ends = Some(now.saturating_add(policy.scale_in_period));
    }

    /// Returns true if a reading taken at `at` is the datapoint of the current period, and then starts the next period.
    fn end(ends: &mut Option<Duration>, period: Duration, at: Duration) -> bool {
        let due = ends.is_some_and(|ends| at >= ends);
        if due {
            *ends = Some(at.saturating_add(period));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::{golden, replay};
    use super::super::{Observation, Policy, State, decide};
    use super::*;

    #[test]
    fn legacy_alarms_step_once_a_minute() {
        let readings = [
            (0, Some((0, 0))),
            (30, Some((100, 0))),
            (60, Some((100, 10))),
            (90, Some((90, 10))),
            (120, Some((26, 10))),
            (180, Some((25, 10))),
            (240, Some((500, 10))),
            (300, Some((0, 9))),
            (301, Some((0, 1))),
            (360, Some((0, 1))),
            (420, Some((0, 0))),
            (480, Some((1, 0))),
        ];
        let text = replay(Policy::Step(StepPolicy::LEGACY), (1, 3), 1, &readings);
        golden(
            &text,
            "0s 0+0: 1 → 1 (steady)
             30s 100+0: 1 → 1 (steady)
             60s 100+10: 1 → 2 (100 waiting, more than 25)
             90s 90+10: 2 → 2 (steady)
             120s 26+10: 2 → 3 (26 waiting, more than 25)
             180s 25+10: 3 → 3 (steady)
             240s 500+10: 3 → 3 (500 waiting, more than 25, but no more workers are allowed)
             300s 0+9: 3 → 3 (steady)
             301s 0+1: 3 → 3 (steady)
             360s 0+1: 3 → 2 (1 waiting or in flight, fewer than 2)
             420s 0+0: 2 → 1 (0 waiting or in flight, fewer than 2)
             480s 1+0: 1 → 1 (steady)",
        );
    }

    #[test]
    fn first_message_starts_a_worker_at_once_and_the_last_one_keeps_it() {
        let readings = [
            (0, Some((0, 0))),
            (1, Some((1, 0))),
            (59, Some((0, 1))),
            (60, Some((0, 1))),
            (61, Some((0, 1))),
            (121, Some((0, 0))),
            (122, Some((0, 1))),
        ];
        let text = replay(Policy::Step(StepPolicy::LEGACY), (0, 3), 0, &readings);
        golden(
            &text,
            "0s 0+0: 0 → 0 (steady)
             1s 1+0: 0 → 1 (no worker and 1 to do)
             59s 0+1: 1 → 1 (steady)
             60s 0+1: 1 → 1 (steady)
             61s 0+1: 1 → 1 (steady)
             121s 0+0: 1 → 0 (0 waiting or in flight, fewer than 2)
             122s 0+1: 0 → 1 (no worker and 1 to do)",
        );
    }

    #[test]
    fn unknown_depth_removes_no_worker_and_still_fills_to_the_minimum() {
        let readings = [(0, None), (60, None), (120, None), (180, Some((0, 0))), (181, None), (300, Some((0, 0)))];
        let text = replay(Policy::Step(StepPolicy::LEGACY), (2, 4), 0, &readings);
        golden(
            &text,
            "0s ?: 0 → 2 (fewer workers than the minimum)
             60s ?: 2 → 2 (the depth of the queue is not known)
             120s ?: 2 → 2 (the depth of the queue is not known)
             180s 0+0: 2 → 2 (steady)
             181s ?: 2 → 2 (the depth of the queue is not known)
             300s 0+0: 2 → 2 (steady)",
        );
        let text = replay(
            Policy::Step(StepPolicy::LEGACY),
            (0, 4),
            3,
            &[(0, None), (60, None), (600, Some((0, 0))), (660, None)],
        );
        golden(
            &text,
            "0s ?: 3 → 3 (the depth of the queue is not known)
             60s ?: 3 → 3 (the depth of the queue is not known)
             600s 0+0: 3 → 2 (0 waiting or in flight, fewer than 2)
             660s ?: 2 → 2 (the depth of the queue is not known)",
        );
    }

    #[test]
    fn step_out_restarts_the_scale_in_period() {
        let policy = StepPolicy { scale_out_period: Duration::from_secs(1), ..StepPolicy::LEGACY };
        let readings = [
            (0, Some((30, 0))),
            (1, Some((30, 1))),
            (2, Some((30, 2))),
            (3, Some((0, 0))),
            (60, Some((0, 0))),
            (61, Some((0, 0))),
            (62, Some((0, 0))),
            (63, Some((0, 0))),
        ];
        golden(
            &replay(Policy::Step(policy), (1, 8), 1, &readings),
            "0s 30+0: 1 → 1 (steady)
             1s 30+1: 1 → 2 (30 waiting, more than 25)
             2s 30+2: 2 → 3 (30 waiting, more than 25)
             3s 0+0: 3 → 3 (steady)
             60s 0+0: 3 → 3 (steady)
             61s 0+0: 3 → 3 (steady)
             62s 0+0: 3 → 2 (0 waiting or in flight, fewer than 2)
             63s 0+0: 2 → 2 (steady)",
        );
    }

    #[test]
    fn reading_counts_once_and_a_stale_one_not_at_all() {
        let policy = Policy::Step(StepPolicy { scale_out_period: Duration::from_secs(1), ..StepPolicy::LEGACY });
        let bounds = Bounds::new(0, 9).expect("bounds of the test");
        let depth = |second| Some(QueueDepth { at: Duration::from_secs(second), visible: 99, in_flight: 0 });
        let at = |state, workers, depth, second| {
            decide(&policy, bounds, state, &Observation { workers, depth }, Duration::from_secs(second))
        };
        let (state, _) = at(State::default(), 1, depth(0), 0);
        let (state, first) = at(state, 1, depth(1), 1);
        let (state, again) = at(state, 2, depth(1), 3);
        let (_, old) = at(state, 2, depth(3), 9);
        assert_eq!([first.desired, again.desired, old.desired], [2, 2, 2]);
        assert_eq!(old.reason, Reason::DepthUnknown);
    }

    /// Every small state: the bounds hold, each decision is one step at most, and no worker is removed while the depth
    /// is unknown or messages are in work.
    #[test]
    fn every_decision_keeps_the_invariants() {
        let ranges = (0..4u32).flat_map(|min| (min.max(1)..5).map(move |max| (min, max)));
        for (min, max) in ranges {
            let bounds = Bounds::new(min, max).expect("bounds of the test");
            for workers in 0..7 {
                for depth in
                    [None, Some((0, 0)), Some((1, 0)), Some((0, 1)), Some((1, 1)), Some((26, 0)), Some((u64::MAX, 9))]
                {
                    for (second, age) in [(60, 0), (60, 5), (60, 6), (59, 0), (u64::MAX, 0)] {
                        let start = Observation { workers, depth: None };
                        let policy = Policy::Step(StepPolicy::LEGACY);
                        let (state, _) = decide(&policy, bounds, State::default(), &start, Duration::ZERO);
                        let now = Duration::from_secs(second);
                        let at = now.saturating_sub(Duration::from_secs(age));
                        let depth = depth.map(|(visible, in_flight)| QueueDepth { at, visible, in_flight });
                        let (_, decision) = decide(&policy, bounds, state, &Observation { workers, depth }, now);
                        let desired = decision.desired;
                        let context = format!("{min}..{max}, {workers} workers, {depth:?} at {second}: {decision:?}");
                        assert!((min..=max).contains(&desired), "{context}");
                        if (min..=max).contains(&workers) {
                            assert!(desired.abs_diff(workers) <= 1, "{context}");
                            let seen = depth.filter(|_| age <= 5);
                            assert!(desired >= workers || seen.is_some_and(|depth| depth.work() < 2), "{context}");
                            assert!(desired >= 1 || seen.is_none_or(|depth| depth.work() == 0), "{context}");
                        }
                    }
                }
            }
        }
    }
}
