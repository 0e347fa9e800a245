//! A discrete-event simulation of a fleet on virtual time: arrivals, a queue, workers that take time to boot, and the same
//! [`decide`](super::decide) that controls a real fleet. A simulated day takes as long as its requests are many.
//!
//! The model:
//!
//! - **Queue**: first in, first out. The session that has been free for the longest time gets the next message. A message
//!   is visible until a worker receives it and in flight until it is completed.
//! - **Worker**: a number of sessions, each of which processes one image at a time, and a service time for each image. A
//!   worker is paid for from its launch and ready after its boot time. A worker that is scaled in receives nothing more
//!   and terminates when its messages are completed. The newest worker is scaled in first.
//! - **Metric**: the queue is measured every period, first after one period. A measurement reaches the policy after the
//!   metric delay. The policy treats it as fresh, because a reader of a delayed metric cannot tell.
//! - **Deaths**: a worker that dies terminates at once. Its messages become visible after the visibility timeout and go to
//!   the front of the queue. The policy sees one worker less at its next decision.
//!
//! The model leaves out the messages that workers prefetch for a batch, the resources that sessions share (cores, network)
//! and the limits of the queue. The overhead is a constant that is added to each latency: HTTP, the store, the reply.

mod run;
mod scenario;
mod service_time;
mod simulation;
mod virtual_time;

use std::time::Duration;

pub(crate) use self::run::{Run, Second, SecondLatency};
pub(crate) use self::scenario::{MAX_RUN_TIME, Scenario};
pub(crate) use self::service_time::ServiceTime;

use self::simulation::{Scheduled, Simulation};
use self::virtual_time::micros;

/// Runs until everything that arrives is completed and the fleet is back at its minimum. `arrivals` must not decrease.
pub(crate) fn simulate(scenario: &Scenario, arrivals: impl Iterator<Item = Duration>) -> Run {
    let mut simulation = Simulation::new(scenario);
    let mut arrivals = arrivals.map(micros).peekable();
    loop {
        let event_at = simulation.events.peek().map_or(u64::MAX, |scheduled| scheduled.at);
        let arrives_at = arrivals.peek().copied().filter(|at| *at <= event_at);
        let at = arrives_at.unwrap_or(event_at);
        if at > micros(MAX_RUN_TIME) {
            break;
        }
        simulation.close_seconds_before(at);
        simulation.now = at;
        if arrives_at.is_some() {
            arrivals.next();
            simulation.arrive();
        } else if let Some(Scheduled { event, .. }) = simulation.events.pop() {
            simulation.handle(event);
        }
        if arrivals.peek().is_none() && simulation.is_over() {
            break;
        }
    }
    // Arrivals after the end of the run count as arrivals that were not completed.
    simulation.run.arrivals += arrivals.count() as u64;
    simulation.finish()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::service_time::LogNormal;
    use super::*;
    use crate::scaling_policy::{Bounds, Policy, StepPolicy, TargetPolicy};

    const SECOND: Duration = Duration::from_secs(1);

    fn scenario(policy: Policy, (min, max): (u32, u32)) -> Scenario {
        Scenario {
            policy,
            bounds: Bounds::new(min, max).expect("bounds of the test"),
            service_time: ServiceTime::Constant(SECOND),
            sessions: 1,
            boot_time: Duration::from_secs(30),
            metric_period: Duration::from_secs(10),
            metric_delay: Duration::ZERO,
            visibility_timeout: Duration::from_secs(30),
            deaths_per_worker_hour: 0.0,
            overhead: Duration::ZERO,
            seed: 1,
        }
    }

    fn step() -> Policy {
        Policy::Step(StepPolicy::LEGACY)
    }

    fn target() -> Policy {
        Policy::Target(TargetPolicy::with_service_time(SECOND))
    }

    fn poisson(rate: f64, count: usize, seed: u64) -> impl Iterator<Item = Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut at = 0.0;
        std::iter::repeat_with(move || {
            at -= (1.0 - random.random::<f64>()).ln() / rate;
            Duration::from_secs_f64(at)
        })
        .take(count)
    }

    #[test]
    fn one_session_serves_images_in_order() {
        let scenario = Scenario { overhead: Duration::from_millis(5), ..scenario(step(), (1, 1)) };
        let run = simulate(&scenario, [0, 0, 500, 9000].into_iter().map(Duration::from_millis));
        let latencies: Vec<u128> =
            [0.25, 0.5, 0.75, 1.0].map(|share| run.latency(share).expect("done").as_millis()).into();
        assert_eq!(latencies, [1005, 1005, 2005, 2505]);
        assert_eq!((run.drained_at, run.most_visible, run.launched), (Some(Duration::from_secs(10)), 2, 0));
        assert_eq!(run.busy_time, Duration::from_secs(4));
        assert_eq!((run.timeline[0].arrivals, run.timeline[0].visible, run.timeline[0].in_flight), (3, 2, 1));
        assert_eq!(run.share_within(Duration::from_millis(2005)), Some(0.75));
    }

    #[test]
    fn first_image_of_an_empty_fleet_waits_for_metric_delay_and_boot() {
        let scenario = Scenario { metric_delay: Duration::from_secs(7), ..scenario(target(), (0, 4)) };
        let run = simulate(&scenario, (0..40).map(|_| Duration::from_secs(1)));
        // Measured at 10 s, visible to the policy at 17 s, four workers at 47 s, the last of forty images 10 s later.
        assert_eq!(run.drained_at, Some(Duration::from_secs(57)));
        assert_eq!((run.latency(0.0), run.launched), (Some(Duration::from_secs(47)), 4));
        assert_eq!((run.timeline[16].booting, run.timeline[17].booting, run.timeline[47].ready), (0, 4, 4));
        // The fleet scales in to zero five minutes (the stabilization window) after fewer workers suffice.
        let last = run.timeline.last().expect("seconds");
        assert_eq!((last.ready, last.booting, last.draining), (0, 0, 0));
        assert!((300..400).contains(&run.timeline.len()), "{}", run.timeline.len());
    }

    #[test]
    fn mean_latency_of_one_server_matches_queueing_theory() {
        for (load, service_time) in [
            (0.5, ServiceTime::Constant(SECOND)),
            (0.8, ServiceTime::Constant(SECOND)),
            (0.6, ServiceTime::with_p99(SECOND, 2 * SECOND).expect("a distribution")),
        ] {
            let scenario = Scenario { service_time, ..scenario(step(), (1, 1)) };
            let run = simulate(&scenario, poisson(load, 200_000, 11));
            let ServiceTime::LogNormal(LogNormal { sigma, .. }) = service_time else {
                assert_mean(&run, 1.0 + load / (2.0 * (1.0 - load)));
                continue;
            };
            // Pollaczek–Khinchine formula; the variance of a log-normal distribution with mean 1 is exp(sigma²) − 1.
            assert_mean(&run, 1.0 + load * (sigma * sigma).exp() / (2.0 * (1.0 - load)));
        }
    }

    fn assert_mean(run: &Run, expected: f64) {
        let mean = run.mean_latency().expect("completed").as_secs_f64();
        assert!((mean / expected - 1.0).abs() < 0.03, "mean latency {mean}, expected {expected}");
    }

    /// Random policies, loads and death rates: no message is lost or completed twice, and the bounds hold.
    #[test]
    fn every_run_completes_each_message_once_within_the_bounds() {
        let mut random = StdRng::seed_from_u64(9);
        for round in 0..60 {
            let max = random.random_range(1..6);
            let policy = if random.random() { step() } else { target() };
            let scenario = Scenario {
                sessions: random.random_range(1..4),
                boot_time: Duration::from_secs(random.random_range(0..90)),
                metric_period: Duration::from_secs(random.random_range(1..90)),
                metric_delay: Duration::from_secs(random.random_range(0..900)),
                deaths_per_worker_hour: [0.0, 5.0, 60.0][random.random_range(0..3)],
                seed: round,
                ..scenario(policy, (random.random_range(0..=max), max))
            };
            let count = random.random_range(1..3000);
            let run = simulate(&scenario, poisson(random.random_range(0.1..8.0), count, round));
            let context = format!("{scenario:?}");
            assert_eq!((run.arrivals, run.completed()), (count as u64, count as u64), "{context}");
            let total = |of: fn(&Second) -> u32| run.timeline.iter().map(|second| u64::from(of(second))).sum::<u64>();
            assert_eq!((total(|it| it.arrivals), total(|it| it.completed)), (count as u64, count as u64), "{context}");
            assert!(run.timeline.iter().all(|it| it.booting + it.ready <= max), "{context}");
            assert!(run.billed_time >= run.worker_time && run.most_workers <= max, "{context}");
            let last = run.timeline.last().expect("seconds");
            assert_eq!((last.visible, last.in_flight, last.draining), (0, 0, 0), "{context}");
            // The timeline counts whole seconds, so the paid time is about its sum.
            let alive = total(|it| it.booting) + total(|it| it.ready) + total(|it| it.draining);
            let changes = (run.launched + run.deaths + u64::from(run.most_workers) + 1) as f64;
            assert!((run.worker_time.as_secs_f64() - alive as f64).abs() <= changes, "{context}");
        }
    }

    #[test]
    fn death_delays_messages_by_the_visibility_timeout_and_loses_none() {
        let scenario = Scenario { deaths_per_worker_hour: 30.0, ..scenario(target(), (2, 2)) };
        let run = simulate(&scenario, poisson(1.0, 2000, 5));
        assert!(run.deaths > 10 && run.redelivered > 5, "{} {}", run.deaths, run.redelivered);
        assert_eq!(run, simulate(&scenario, poisson(1.0, 2000, 5)));
        assert_eq!(run.completed(), 2000);
        assert!(run.latency(1.0) > Some(scenario.visibility_timeout));
    }

    #[test]
    fn run_ends_after_a_week_and_reports_incomplete_work() {
        let scenario =
            Scenario { service_time: ServiceTime::Constant(Duration::from_hours(10)), ..scenario(step(), (1, 1)) };
        let run = simulate(&scenario, (0..50).map(|_| Duration::ZERO));
        assert_eq!((run.drained_at, run.arrivals, run.completed()), (None, 50, 16));
        let far = simulate(&scenario, [Duration::MAX].into_iter());
        assert_eq!((far.drained_at, far.arrivals, far.completed()), (None, 1, 0));
    }

    #[test]
    fn extended_run_is_billed_for_the_longer_span() {
        let mut run = simulate(&scenario(step(), (2, 2)), [Duration::ZERO].into_iter());
        let (before, seconds) = (run.worker_time, run.timeline.len() as u64);
        run.extend_to(Duration::from_secs(seconds + 100));
        assert_eq!(run.worker_time, before + Duration::from_secs(200));
        assert_eq!(run.ended_at(), Duration::from_secs(seconds + 100));
        run.extend_to(Duration::from_secs(1));
        assert_eq!(run.ended_at(), Duration::from_secs(seconds + 100));
    }
}
