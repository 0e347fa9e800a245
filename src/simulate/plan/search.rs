//! The smallest fleet of each policy that meets the goals, by simulation.

use std::collections::BTreeMap;
use std::time::Duration;

use super::config::{PlanConfig, PlanPolicy};
use super::goal;
use crate::scaling_policy::Bounds;
use crate::scaling_policy::discrete_events::{Run, Scenario, ServiceTime, simulate};
use crate::simulate::Variant;

/// Machines that the simulation cannot tell apart: only their prices differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Machine {
    pub sessions: u32,
    pub service_time: ServiceTime,
}

/// The load that all fleets get.
pub(super) struct Load<'a> {
    pub config: &'a PlanConfig,
    pub offsets: &'a [Duration],
    pub span: Duration,
    pub overhead: Duration,
}

/// A fleet and the figures of its run. The run itself takes megabytes.
#[derive(Debug, Clone)]
pub(super) struct Fleet {
    pub variant: Variant,
    /// True if the run meets all goals. If not, this is the largest fleet that is allowed.
    pub meets_goals: bool,
    pub arrivals: u64,
    pub completed: u64,
    /// `None` if nothing was completed.
    pub latency: Option<Latency>,
    pub most_workers: u32,
    /// The share of the paid session time that was spent on images.
    pub utilization: f64,
    /// The seconds of all workers that are paid for within the load.
    pub paid_seconds: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub mean: Duration,
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// Finds a fleet for each policy, in their order.
pub(super) fn fleets(load: &Load<'_>, machine: Machine, policies: &[PlanPolicy]) -> Vec<Fleet> {
    let search = Search { load, machine };
    let steady = policies.iter().find(|policy| policy.is_fixed).or(policies.first());
    // A fleet that never changes says how many workers the load needs at its peak, whatever the policy.
    let peak = steady.map(|policy| search.fixed(policy));
    let fleets = policies.iter().map(|policy| match &peak {
        Some(peak) if policy.is_fixed => peak.clone(),
        Some(peak) if peak.meets_goals => search.elastic(policy, peak.variant.bounds.max()),
        _ => search.fleet(policy, load.config.workers.0, load.config.workers.1),
    });
    fleets.collect()
}

struct Search<'a> {
    load: &'a Load<'a>,
    machine: Machine,
}

impl Search<'_> {
    /// The smallest constant number of workers that meets the goals.
    fn fixed(&self, policy: &PlanPolicy) -> Fleet {
        let (least, most) = self.load.config.workers;
        let mut too_few = self.fewest().saturating_sub(1).max(least.saturating_sub(1)).min(most - 1);
        let mut enough = (too_few + 1).min(most);
        let fixed = |count: u32| self.fleet(policy, count, count);
        let mut best = fixed(enough);
        while !best.meets_goals {
            if enough == most {
                return best;
            }
            too_few = enough;
            enough = enough.saturating_mul(2).min(most);
            best = fixed(enough);
        }
        while too_few + 1 < enough {
            let middle = too_few + (enough - too_few) / 2;
            let fleet = fixed(middle);
            if fleet.meets_goals {
                (enough, best) = (middle, fleet);
            } else {
                too_few = middle;
            }
        }
        best
    }

    /// The elastic fleet that meets the goals with the fewest paid hours. `peak` workers would always meet them. More than
    /// that may be cheaper, since a policy that starts workers late has to catch up.
    fn elastic(&self, policy: &PlanPolicy, peak: u32) -> Fleet {
        let (least, most) = self.load.config.workers;
        let mut found = BTreeMap::new();
        for max in [peak, peak.saturating_mul(3).div_ceil(2), peak.saturating_mul(2)] {
            let max = max.min(most);
            found.entry(max).or_insert_with(|| self.fewest_at_rest(policy, least.min(max), max, peak));
        }
        let by_cost =
            |a: &Fleet, b: &Fleet| b.meets_goals.cmp(&a.meets_goals).then(a.paid_seconds.total_cmp(&b.paid_seconds));
        found.into_values().min_by(by_cost).expect("at least one maximum; this is a bug")
    }

    /// The fleet with the smallest minimum that meets the goals.
    fn fewest_at_rest(&self, policy: &PlanPolicy, least: u32, max: u32, peak: u32) -> Fleet {
        let mut best = self.fleet(policy, least, max);
        if best.meets_goals {
            return best;
        }
        let (mut too_few, mut enough) = (least, peak.min(max));
        best = self.fleet(policy, enough, max);
        while too_few + 1 < enough && best.meets_goals {
            let middle = too_few + (enough - too_few) / 2;
            let fleet = self.fleet(policy, middle, max);
            if fleet.meets_goals {
                (enough, best) = (middle, fleet);
            } else {
                too_few = middle;
            }
        }
        best
    }

    fn fleet(&self, policy: &PlanPolicy, min: u32, max: u32) -> Fleet {
        let Machine { sessions, service_time } = self.machine;
        let worker_service_time = service_time.mean() / sessions;
        let variant = Variant {
            policy: policy.variant.policy.with_service_time(worker_service_time).with_concurrency(sessions),
            bounds: Bounds::new(min.min(max), max).expect("the minimum is at most the maximum; this is a bug"),
            ..policy.variant.clone()
        };
        let run = run(self.load, self.machine, &variant);
        Fleet {
            meets_goals: self.load.config.goals.iter().all(|goal| goal::holds(goal, &run)),
            arrivals: run.arrivals,
            completed: run.completed(),
            latency: Latency::of(&run),
            most_workers: run.most_workers,
            utilization: run.utilization(),
            paid_seconds: paid_seconds(&run, self.load.span),
            variant,
        }
    }

    /// No fewer workers can meet the goals: they could not do the work in the time.
    fn fewest(&self) -> u32 {
        let Machine { sessions, service_time } = self.machine;
        let work = service_time.mean().as_secs_f64() * self.load.offsets.len() as f64 / f64::from(sessions);
        let needed = self.load.config.goals.iter().filter_map(|goal| {
            let (share, limit) = goal::share_and_limit(goal)?;
            Some(work * share / (self.load.span + limit).as_secs_f64())
        });
        // A random service time may be shorter than its mean, so the bound is not taken to the last worker.
        let needed = needed.fold(0.0, f64::max) * 0.9;
        (needed.ceil() as u32).clamp(1, self.load.config.workers.1)
    }
}

/// Simulates one fleet.
pub(super) fn run(load: &Load<'_>, machine: Machine, variant: &Variant) -> Run {
    let scenario = Scenario {
        policy: variant.policy,
        bounds: variant.bounds,
        service_time: machine.service_time,
        sessions: machine.sessions,
        boot_time: variant.boot_time,
        metric_period: variant.metric_period,
        metric_delay: variant.metric_delay,
        visibility_timeout: load.config.visibility_timeout,
        deaths_per_worker_hour: load.config.deaths_per_worker_hour,
        overhead: load.overhead,
        seed: load.config.seed,
    };
    simulate(&scenario, load.offsets.iter().copied())
}

/// The seconds of all workers that are paid for within the load, with at least a minute for each. The workers that a load
/// leaves behind are those that it would find at its start if it were repeated.
fn paid_seconds(run: &Run, span: Duration) -> f64 {
    let seconds = usize::try_from(span.as_secs()).unwrap_or(usize::MAX);
    let within = run.timeline.iter().take(seconds);
    let counted = within.clone().count();
    let alive: u64 = within.map(|second| u64::from(second.booting + second.ready + second.draining)).sum();
    // A run that ended before the load did is back at its minimum.
    let last = run.timeline.last().map_or(0, |second| second.booting + second.ready + second.draining);
    let rest = (seconds - counted) as f64 * f64::from(last);
    let short_lived = run.billed_time.saturating_sub(run.worker_time).as_secs_f64();
    alive as f64 + rest + short_lived
}

impl Latency {
    fn of(run: &Run) -> Option<Latency> {
        Some(Latency {
            mean: run.mean_latency()?,
            p50: run.latency(0.5)?,
            p90: run.latency(0.9)?,
            p99: run.latency(0.99)?,
            max: run.latency(1.0)?,
        })
    }
}
