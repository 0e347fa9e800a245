//! A fleet on a virtual clock: arrivals, a queue, workers that take time to come, and the same [`decide`] that moves a
//! real fleet. Discrete events, so that a day takes no longer than its requests are many.
//!
//! What is modelled, and how:
//!
//! - **Queue**: first in, first out; who is free longest gets the next message. A message counts as visible until a
//!   worker has it, and as in flight until it is done.
//! - **Worker**: so many sessions, each with one image at a time, and a service time an image. It exists from the moment
//!   it is asked for and is paid from then on; it is ready a boot time later. One that is to go takes nothing more and
//!   ends with what it holds; the newest goes first.
//! - **Metric**: the queue is measured every period, from one period on, and what was measured reaches the policy a delay
//!   later. The policy is asked then, and takes the reading for new: who reads a metric that is late cannot know it.
//! - **Deaths**: a worker that dies ends at once; what it held is hidden until its visibility timeout is over, then comes
//!   first. The policy sees one worker less when it is asked next.
//!
//! What is not: what workers take ahead of their sessions (a batch), what they share (cores, the network), and the
//! limits of the queue. The overhead is a constant that each latency has on top: HTTP, the store, the reply.

use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::cost::LEAST_BILLED;
use super::{Bounds, Observation, Policy, QueueDepth, State, decide};

/// No run lasts longer; what is not done by then is not done.
pub const LONGEST: Duration = Duration::from_hours(7 * 24);
/// How long a fleet that has nothing to do any more may take to come back to its fewest workers.
const LONGEST_TAIL: Duration = Duration::from_hours(1);

/// All but the arrivals.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    pub policy: Policy,
    /// The fewest are ready at the beginning.
    pub bounds: Bounds,
    /// Of one session.
    pub service_time: ServiceTime,
    /// Side by side in each worker; at least 1.
    pub sessions: u32,
    pub boot_time: Duration,
    /// Above 0.
    pub metric_period: Duration,
    pub metric_delay: Duration,
    pub visibility_timeout: Duration,
    /// Crashes and Spot interruptions, in the mean.
    pub deaths_per_worker_hour: f64,
    pub overhead: Duration,
    /// Of service times and deaths.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ServiceTime {
    Constant(Duration),
    LogNormal(LogNormal),
}

/// Most images take about as long, a few much longer: the shape that service times usually have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogNormal {
    mean: Duration,
    mu: f64,
    sigma: f64,
}

impl ServiceTime {
    /// 99 % of a normal distribution lie below this many standard deviations above its mean.
    const Z99: f64 = 2.326_347_874;

    /// The distribution with this mean and this 99th percentile.
    ///
    /// # Errors
    /// Where none has both: the percentile is below the mean, or more than 14.9 times the mean.
    pub fn with_p99(mean: Duration, p99: Duration) -> Result<ServiceTime, String> {
        let ratio = p99.as_secs_f64() / mean.as_secs_f64();
        // mean = exp(mu + sigma²/2) and p99 = exp(mu + z sigma), so ln(ratio) = z sigma − sigma²/2.
        let discriminant = Self::Z99.powi(2) - 2.0 * ratio.ln();
        if !(ratio >= 1.0 && discriminant >= 0.0) {
            return Err(format!(
                "no service time has a mean of {mean:?} and a p99 of {p99:?}: between 1 and 14.9 times"
            ));
        }
        let sigma = Self::Z99 - discriminant.sqrt();
        let mu = mean.as_secs_f64().ln() - sigma * sigma / 2.0;
        Ok(ServiceTime::LogNormal(LogNormal { mean, mu, sigma }))
    }

    pub fn mean(&self) -> Duration {
        match self {
            ServiceTime::Constant(time) => *time,
            ServiceTime::LogNormal(distribution) => distribution.mean,
        }
    }

    fn sample(&self, random: &mut StdRng) -> u64 {
        match self {
            ServiceTime::Constant(time) => micros(*time),
            ServiceTime::LogNormal(LogNormal { mu, sigma, .. }) => {
                ((mu + sigma * normal(random)).exp() * 1e6).round() as u64
            }
        }
    }
}

/// One of the standard normal distribution, by Box and Muller.
fn normal(random: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// One second of a run; the states are those at its end.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Second {
    pub arrivals: u32,
    pub completed: u32,
    /// Of those that were completed in it.
    pub latency: Option<SecondLatency>,
    pub visible: u32,
    pub in_flight: u32,
    pub booting: u32,
    pub ready: u32,
    pub draining: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondLatency {
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub max: Duration,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub timeline: Vec<Second>,
    pub arrivals: u64,
    /// When the last image was done; None where some were not.
    pub drained_at: Option<Duration>,
    pub most_visible: u64,
    pub most_workers: u32,
    /// Workers asked for after the beginning.
    pub launched: u64,
    pub deaths: u64,
    /// Messages that came again after a death.
    pub redelivered: u64,
    /// Of all workers together, from asked for to gone.
    pub worker_time: Duration,
    /// The same, where each is billed for a minute at least.
    pub billed_time: Duration,
    /// Of all sessions together, without what died with its worker.
    pub busy_time: Duration,
    sessions: u32,
    /// Sorted, in microseconds.
    latencies: Vec<u64>,
}

impl Run {
    pub fn completed(&self) -> u64 {
        self.latencies.len() as u64
    }

    pub fn ended_at(&self) -> Duration {
        Duration::from_secs(self.timeline.len() as u64)
    }

    /// The latency that the share `quantile` (0 to 1) of all did not exceed. None where nothing was completed.
    pub fn latency(&self, quantile: f64) -> Option<Duration> {
        nearest_rank(&self.latencies, quantile)
    }

    pub fn mean_latency(&self) -> Option<Duration> {
        let sum: u128 = self.latencies.iter().map(|latency| u128::from(*latency)).sum();
        let mean = sum.checked_div(self.latencies.len() as u128)?;
        Some(Duration::from_micros(mean as u64))
    }

    /// The share of all arrivals, done or not, that were answered within `limit`. None where nothing arrived.
    pub fn share_within(&self, limit: Duration) -> Option<f64> {
        let within = self.latencies.partition_point(|latency| *latency <= micros(limit));
        (self.arrivals > 0).then(|| within as f64 / self.arrivals as f64)
    }

    /// The share of the paid time of sessions in which they worked.
    pub fn utilization(&self) -> f64 {
        let paid = self.worker_time.as_secs_f64() * f64::from(self.sessions);
        if paid > 0.0 { self.busy_time.as_secs_f64() / paid } else { 0.0 }
    }

    /// Goes on until `end` with the workers there are at the end, so that runs are paid for the same span.
    pub fn extend_to(&mut self, end: Duration) {
        let last = self.timeline.last().copied().unwrap_or_default();
        let more = usize::try_from(end.as_secs()).unwrap_or(usize::MAX).saturating_sub(self.timeline.len());
        let rest = Second { arrivals: 0, completed: 0, latency: None, ..last };
        self.timeline.extend(std::iter::repeat_n(rest, more));
        let time = Duration::from_secs(more as u64) * (last.booting + last.ready + last.draining);
        self.worker_time += time;
        self.billed_time += time;
    }
}

/// Runs until everything that arrives is done and the fleet is back at its fewest workers. `arrivals` never decrease.
pub fn simulate(scenario: &Scenario, arrivals: impl Iterator<Item = Duration>) -> Run {
    let mut world = World::new(scenario);
    let mut arrivals = arrivals.map(micros).peekable();
    loop {
        let event_at = world.events.peek().map_or(u64::MAX, |scheduled| scheduled.at);
        let arrives_at = arrivals.peek().copied().filter(|at| *at <= event_at);
        let at = arrives_at.unwrap_or(event_at);
        if at > micros(LONGEST) {
            break;
        }
        world.close_seconds_before(at);
        world.now = at;
        if arrives_at.is_some() {
            arrivals.next();
            world.arrive();
        } else if let Some(Scheduled { event, .. }) = world.events.pop() {
            world.happen(event);
        }
        if arrivals.peek().is_none() && world.is_over() {
            break;
        }
    }
    // Those beyond the longest run arrived as well, as far as the balance goes.
    world.run.arrivals += arrivals.count() as u64;
    world.conclude()
}

type WorkerId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Ready(WorkerId),
    Done {
        worker: WorkerId,
        arrived: u64,
        took: Duration,
    },
    Died(WorkerId),
    /// A message that a dead worker held is visible again.
    Back {
        arrived: u64,
    },
    Measure,
    Decide {
        visible: u64,
        in_flight: u64,
    },
}

/// The earliest is the greatest; of the same time, the one that was scheduled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Booting,
    Ready,
    Draining,
    Gone,
}

#[derive(Debug)]
struct Worker {
    life: Life,
    launched: u64,
    /// When each message that it works on arrived; at most as many as it has sessions.
    holds: Vec<u64>,
}

struct World<'a> {
    scenario: &'a Scenario,
    now: u64,
    events: BinaryHeap<Scheduled>,
    scheduled: u64,
    random: StdRng,
    /// When each waiting message arrived.
    queue: VecDeque<u64>,
    in_flight: u64,
    workers: Vec<Worker>,
    /// Booting or ready, the newest last.
    wanted: Vec<WorkerId>,
    /// One entry for each free session, and of workers that have gone or drain meanwhile.
    free: VecDeque<WorkerId>,
    state: State,
    second: Second,
    second_latencies: Vec<u64>,
    last_done: u64,
    run: Run,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let run = Run {
            timeline: Vec::new(),
            arrivals: 0,
            drained_at: None,
            most_visible: 0,
            most_workers: 0,
            launched: 0,
            deaths: 0,
            redelivered: 0,
            worker_time: Duration::ZERO,
            billed_time: Duration::ZERO,
            busy_time: Duration::ZERO,
            sessions: scenario.sessions,
            latencies: Vec::new(),
        };
        let mut world = World {
            scenario,
            now: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            random: StdRng::seed_from_u64(scenario.seed),
            queue: VecDeque::new(),
            in_flight: 0,
            workers: Vec::new(),
            wanted: Vec::new(),
            free: VecDeque::new(),
            state: State::default(),
            second: Second::default(),
            second_latencies: Vec::new(),
            last_done: 0,
            run,
        };
        for _ in 0..scenario.bounds.min() {
            let worker = world.add_worker();
            world.get_ready(worker);
        }
        // Begins the periods of the policy; it sees nothing yet.
        world.ask_policy(None);
        world.after(scenario.metric_period, Event::Measure);
        world
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Scheduled { at: self.now.saturating_add(micros(delay)), number: self.scheduled, event });
    }

    fn arrive(&mut self) {
        self.run.arrivals += 1;
        self.second.arrivals += 1;
        self.queue.push_back(self.now);
        self.dispatch();
        self.run.most_visible = self.run.most_visible.max(self.queue.len() as u64);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Ready(worker) if self.workers[worker].life == Life::Booting => {
                self.second.booting -= 1;
                self.get_ready(worker);
                self.dispatch();
            }
            Event::Done { worker, arrived, took } if self.workers[worker].life != Life::Gone => {
                self.run.busy_time += took;
                self.done(worker, arrived);
            }
            Event::Died(worker) if self.workers[worker].life != Life::Gone => self.die(worker),
            // It was taken away, or died, before that.
            Event::Ready(_) | Event::Done { .. } | Event::Died(_) => {}
            Event::Back { arrived } => {
                self.in_flight -= 1;
                self.run.redelivered += 1;
                self.queue.push_front(arrived);
                self.dispatch();
            }
            Event::Measure => {
                let depth = Event::Decide { visible: self.queue.len() as u64, in_flight: self.in_flight };
                self.after(self.scenario.metric_delay, depth);
                self.after(self.scenario.metric_period, Event::Measure);
            }
            Event::Decide { visible, in_flight } => {
                self.ask_policy(Some(QueueDepth { at: Duration::from_micros(self.now), visible, in_flight }));
            }
        }
    }

    fn ask_policy(&mut self, depth: Option<QueueDepth>) {
        let Scenario { policy, bounds, .. } = self.scenario;
        let observation = Observation { workers: self.wanted.len() as u32, depth };
        let now = Duration::from_micros(self.now);
        let (state, decision) = decide(policy, *bounds, self.state, &observation, now);
        self.state = state;
        while (self.wanted.len() as u32) < decision.desired {
            let worker = self.add_worker();
            self.second.booting += 1;
            self.run.launched += 1;
            self.after(self.scenario.boot_time, Event::Ready(worker));
        }
        while self.wanted.len() as u32 > decision.desired {
            let newest = self.wanted.pop().expect("more than desired, which is not negative");
            self.drain(newest);
        }
    }

    fn add_worker(&mut self) -> WorkerId {
        self.workers.push(Worker { life: Life::Booting, launched: self.now, holds: Vec::new() });
        let worker = self.workers.len() - 1;
        self.wanted.push(worker);
        self.run.most_workers = self.run.most_workers.max(self.wanted.len() as u32);
        worker
    }

    fn get_ready(&mut self, worker: WorkerId) {
        self.workers[worker].life = Life::Ready;
        self.second.ready += 1;
        self.free.extend((0..self.scenario.sessions).map(|_| worker));
        let deaths_per_hour = self.scenario.deaths_per_worker_hour;
        if deaths_per_hour > 0.0 {
            let hours = -(1.0 - self.random.random::<f64>()).ln() / deaths_per_hour;
            let life = Duration::try_from_secs_f64(hours * 3600.0).unwrap_or(LONGEST);
            self.after(life, Event::Died(worker));
        }
    }

    fn drain(&mut self, worker: WorkerId) {
        self.leave_stage(worker);
        self.workers[worker].life = Life::Draining;
        self.second.draining += 1;
        if self.workers[worker].holds.is_empty() {
            self.end(worker);
        }
    }

    fn die(&mut self, worker: WorkerId) {
        self.wanted.retain(|wanted| *wanted != worker);
        self.run.deaths += 1;
        for arrived in std::mem::take(&mut self.workers[worker].holds) {
            self.after(self.scenario.visibility_timeout, Event::Back { arrived });
        }
        self.end(worker);
    }

    fn end(&mut self, worker: WorkerId) {
        self.leave_stage(worker);
        self.workers[worker].life = Life::Gone;
        self.account(worker);
    }

    fn leave_stage(&mut self, worker: WorkerId) {
        match self.workers[worker].life {
            Life::Booting => self.second.booting -= 1,
            Life::Ready => self.second.ready -= 1,
            Life::Draining => self.second.draining -= 1,
            Life::Gone => {}
        }
    }

    fn account(&mut self, worker: WorkerId) {
        let lived = Duration::from_micros(self.now - self.workers[worker].launched);
        self.run.worker_time += lived;
        self.run.billed_time += lived.max(LEAST_BILLED);
    }

    /// Gives what waits to who is free.
    fn dispatch(&mut self) {
        while !self.queue.is_empty() {
            let Some(worker) = self.free.pop_front() else { return };
            if self.workers[worker].life != Life::Ready {
                continue;
            }
            let arrived = self.queue.pop_front().expect("it is not empty");
            self.in_flight += 1;
            self.workers[worker].holds.push(arrived);
            let took = Duration::from_micros(self.scenario.service_time.sample(&mut self.random));
            self.after(took, Event::Done { worker, arrived, took });
        }
    }

    fn done(&mut self, worker: WorkerId, arrived: u64) {
        let holds = &mut self.workers[worker].holds;
        let place = holds.iter().position(|held| *held == arrived).expect("held from its start to its end");
        holds.swap_remove(place);
        let is_empty = holds.is_empty();
        self.in_flight -= 1;
        self.last_done = self.now;
        self.second.completed += 1;
        let latency = self.now - arrived + micros(self.scenario.overhead);
        self.second_latencies.push(latency);
        self.run.latencies.push(latency);
        match self.workers[worker].life {
            Life::Ready => {
                self.free.push_back(worker);
                self.dispatch();
            }
            Life::Draining if is_empty => self.end(worker),
            _ => {}
        }
    }

    /// Writes down every second that has ended by `at`.
    fn close_seconds_before(&mut self, at: u64) {
        while (self.run.timeline.len() as u64 + 1) * 1_000_000 <= at {
            self.close_second();
        }
    }

    fn close_second(&mut self) {
        self.second_latencies.sort_unstable();
        let quantile = |quantile| nearest_rank(&self.second_latencies, quantile);
        self.second.latency = match (quantile(0.5), quantile(0.9), quantile(0.99), quantile(1.0)) {
            (Some(p50), Some(p90), Some(p99), Some(max)) => Some(SecondLatency { p50, p90, p99, max }),
            _ => None,
        };
        self.second.visible = self.queue.len() as u32;
        self.second.in_flight = self.in_flight as u32;
        self.run.timeline.push(self.second);
        self.second_latencies.clear();
        self.second.arrivals = 0;
        self.second.completed = 0;
    }

    /// Whether nothing will happen any more that anybody asks about; given that nothing arrives.
    fn is_over(&self) -> bool {
        let has_work = !self.queue.is_empty() || self.in_flight > 0;
        let is_at_rest = self.wanted.len() as u32 == self.scenario.bounds.min()
            && self.second.booting == 0
            && self.second.draining == 0;
        !has_work && (is_at_rest || self.now - self.last_done > micros(LONGEST_TAIL))
    }

    fn conclude(mut self) -> Run {
        self.close_second();
        self.now = self.run.timeline.len() as u64 * 1_000_000;
        for worker in 0..self.workers.len() {
            if self.workers[worker].life != Life::Gone {
                self.account(worker);
            }
        }
        self.run.latencies.sort_unstable();
        let all_done = self.run.completed() == self.run.arrivals;
        self.run.drained_at = all_done.then(|| Duration::from_micros(self.last_done));
        self.run
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn nearest_rank(sorted: &[u64], quantile: f64) -> Option<Duration> {
    let rank = (quantile.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map(|latency| Duration::from_micros(*latency))
}

#[cfg(test)]
mod tests {
    use super::super::{StepPolicy, TargetPolicy};
    use super::*;

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
        Policy::Step(StepPolicy::ORIGINAL)
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
    fn one_worker_serves_one_image_after_the_other() {
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
    fn from_zero_the_first_image_waits_for_metric_delay_and_boot() {
        let scenario = Scenario { metric_delay: Duration::from_secs(7), ..scenario(target(), (0, 4)) };
        let run = simulate(&scenario, (0..40).map(|_| Duration::from_secs(1)));
        // Measured at 10, seen at 17, four workers at 47, the last of forty images ten seconds later.
        assert_eq!(run.drained_at, Some(Duration::from_secs(57)));
        assert_eq!((run.latency(0.0), run.launched), (Some(Duration::from_secs(47)), 4));
        assert_eq!((run.timeline[16].booting, run.timeline[17].booting, run.timeline[47].ready), (0, 4, 4));
        // Down to none after the five minutes of the window, which begins when fewer suffice.
        let last = run.timeline.last().expect("seconds");
        assert_eq!((last.ready, last.booting, last.draining), (0, 0, 0));
        assert!((300..400).contains(&run.timeline.len()), "{}", run.timeline.len());
    }

    #[test]
    fn a_queue_with_one_server_waits_as_theory_says() {
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
            // Pollaczek and Khinchine; the variance of a log-normal with mean 1 is exp(sigma²) − 1.
            assert_mean(&run, 1.0 + load * (sigma * sigma).exp() / (2.0 * (1.0 - load)));
        }
    }

    fn assert_mean(run: &Run, expected: f64) {
        let mean = run.mean_latency().expect("completed").as_secs_f64();
        assert!((mean / expected - 1.0).abs() < 0.03, "mean latency {mean}, in theory {expected}");
    }

    #[test]
    fn service_times_have_the_mean_and_the_percentile_asked_for() {
        let service_time = ServiceTime::with_p99(SECOND, 3 * SECOND).expect("a distribution");
        let mut random = StdRng::seed_from_u64(3);
        let mut samples: Vec<u64> = (0..200_000).map(|_| service_time.sample(&mut random)).collect();
        samples.sort_unstable();
        let mean = samples.iter().sum::<u64>() as f64 / samples.len() as f64 / 1e6;
        let p99 = nearest_rank(&samples, 0.99).expect("samples").as_secs_f64();
        assert!((mean - 1.0).abs() < 0.01 && (p99 - 3.0).abs() < 0.1, "{mean} {p99}");
        assert!(
            ServiceTime::with_p99(SECOND, SECOND / 2).is_err() && ServiceTime::with_p99(SECOND, 20 * SECOND).is_err()
        );
    }

    /// Whatever the policy, the load and the deaths: nothing is lost or done twice, the bounds hold, and two runs agree.
    #[test]
    fn what_holds_in_every_run() {
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
            let world = format!("{scenario:?}");
            assert_eq!((run.arrivals, run.completed()), (count as u64, count as u64), "{world}");
            let total = |of: fn(&Second) -> u32| run.timeline.iter().map(|second| u64::from(of(second))).sum::<u64>();
            assert_eq!((total(|it| it.arrivals), total(|it| it.completed)), (count as u64, count as u64), "{world}");
            assert!(run.timeline.iter().all(|it| it.booting + it.ready <= max), "{world}");
            assert!(run.billed_time >= run.worker_time && run.most_workers <= max, "{world}");
            let last = run.timeline.last().expect("seconds");
            assert_eq!((last.visible, last.in_flight, last.draining), (0, 0, 0), "{world}");
            // Per-second states are whole, so the paid time is about their sum.
            let alive = total(|it| it.booting) + total(|it| it.ready) + total(|it| it.draining);
            let changes = (run.launched + run.deaths + u64::from(run.most_workers) + 1) as f64;
            assert!((run.worker_time.as_secs_f64() - alive as f64).abs() <= changes, "{world}");
        }
    }

    #[test]
    fn a_death_costs_the_visibility_timeout_and_no_image() {
        let scenario = Scenario { deaths_per_worker_hour: 30.0, ..scenario(target(), (2, 2)) };
        let run = simulate(&scenario, poisson(1.0, 2000, 5));
        assert!(run.deaths > 10 && run.redelivered > 5, "{} {}", run.deaths, run.redelivered);
        assert_eq!(run, simulate(&scenario, poisson(1.0, 2000, 5)));
        assert_eq!(run.completed(), 2000);
        assert!(run.latency(1.0) > Some(scenario.visibility_timeout));
    }

    #[test]
    fn what_cannot_be_done_in_a_week_is_said_to_be_undone() {
        let scenario =
            Scenario { service_time: ServiceTime::Constant(Duration::from_hours(10)), ..scenario(step(), (1, 1)) };
        let run = simulate(&scenario, (0..50).map(|_| Duration::ZERO));
        assert_eq!((run.drained_at, run.arrivals, run.completed()), (None, 50, 16));
        let far = simulate(&scenario, [Duration::MAX].into_iter());
        assert_eq!((far.drained_at, far.arrivals, far.completed()), (None, 1, 0));
    }

    #[test]
    fn an_extended_run_is_paid_for_the_longer_span() {
        let mut run = simulate(&scenario(step(), (2, 2)), [Duration::ZERO].into_iter());
        let (before, seconds) = (run.worker_time, run.timeline.len() as u64);
        run.extend_to(Duration::from_secs(seconds + 100));
        assert_eq!(run.worker_time - before, Duration::from_secs(200));
        assert_eq!(run.ended_at(), Duration::from_secs(seconds + 100));
        run.extend_to(Duration::from_secs(1));
        assert_eq!(run.ended_at(), Duration::from_secs(seconds + 100));
    }
}
