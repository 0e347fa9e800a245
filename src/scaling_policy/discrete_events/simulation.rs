//! The state of a run and how each event changes it.

use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::run::{Run, Second, SecondLatency, nearest_rank};
use super::scenario::{MAX_RUN_TIME, Scenario};
use super::virtual_time::micros;
use crate::scaling_policy::cost::MIN_BILLED_TIME;
use crate::scaling_policy::{Observation, QueueDepth, State, decide};

/// How long an idle fleet may take to scale in to its minimum before the run ends anyway.
const MAX_SCALE_IN_TIME: Duration = Duration::from_hours(1);

type WorkerId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Ready(WorkerId),
    Completed {
        worker: WorkerId,
        arrived: u64,
        took: Duration,
    },
    Died(WorkerId),
    /// The visibility timeout of a message of a dead worker has expired.
    Redelivered {
        arrived: u64,
    },
    Measure,
    Decide {
        visible: u64,
        in_flight: u64,
    },
}

/// An event in the heap. `BinaryHeap` pops the greatest element, so the earliest event is the greatest; events of the
/// same time are handled in the order in which they were scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheduled {
    pub(super) at: u64,
    number: u64,
    pub(super) event: Event,
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
enum WorkerState {
    Booting,
    Ready,
    Draining,
    Terminated,
}

#[derive(Debug)]
struct Worker {
    state: WorkerState,
    launched: u64,
    /// Arrival times of the messages in work; at most one for each session.
    in_work: Vec<u64>,
}

pub(super) struct Simulation<'a> {
    scenario: &'a Scenario,
    pub(super) now: u64,
    pub(super) events: BinaryHeap<Scheduled>,
    scheduled: u64,
    random: StdRng,
    /// Arrival times of the visible messages.
    queue: VecDeque<u64>,
    in_flight: u64,
    workers: Vec<Worker>,
    /// Workers that are booting or ready, the newest last.
    active: Vec<WorkerId>,
    /// One entry for each free session. Entries of workers that drain or were terminated are skipped when they come up.
    free: VecDeque<WorkerId>,
    state: State,
    second: Second,
    second_latencies: Vec<u64>,
    last_completion: u64,
    pub(super) run: Run,
}

impl<'a> Simulation<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Self {
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
        let mut simulation = Simulation {
            scenario,
            now: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            random: StdRng::seed_from_u64(scenario.seed),
            queue: VecDeque::new(),
            in_flight: 0,
            workers: Vec::new(),
            active: Vec::new(),
            free: VecDeque::new(),
            state: State::default(),
            second: Second::default(),
            second_latencies: Vec::new(),
            last_completion: 0,
            run,
        };
        for _ in 0..scenario.bounds.min() {
            let worker = simulation.add_worker();
            simulation.mark_ready(worker);
        }
        // Starts the periods of the policy; there is no reading yet.
        simulation.apply_policy(None);
        simulation.schedule(scenario.metric_period, Event::Measure);
        simulation
    }

    fn schedule(&mut self, delay: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Scheduled { at: self.now.saturating_add(micros(delay)), number: self.scheduled, event });
    }

    pub(super) fn arrive(&mut self) {
        self.run.arrivals += 1;
        self.second.arrivals += 1;
        self.queue.push_back(self.now);
        self.dispatch();
        self.run.most_visible = self.run.most_visible.max(self.queue.len() as u64);
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Ready(worker) if self.workers[worker].state == WorkerState::Booting => {
                self.second.booting -= 1;
                self.mark_ready(worker);
                self.dispatch();
            }
            Event::Completed { worker, arrived, took } if self.workers[worker].state != WorkerState::Terminated => {
                self.run.busy_time += took;
                self.complete(worker, arrived);
            }
            Event::Died(worker) if self.workers[worker].state != WorkerState::Terminated => self.die(worker),
            // The worker was drained or died before the event.
            Event::Ready(_) | Event::Completed { .. } | Event::Died(_) => {}
            Event::Redelivered { arrived } => {
                self.in_flight -= 1;
                self.run.redelivered += 1;
                self.queue.push_front(arrived);
                self.dispatch();
            }
            Event::Measure => {
                let depth = Event::Decide { visible: self.queue.len() as u64, in_flight: self.in_flight };
                self.schedule(self.scenario.metric_delay, depth);
                self.schedule(self.scenario.metric_period, Event::Measure);
            }
            Event::Decide { visible, in_flight } => {
                self.apply_policy(Some(QueueDepth { at: Duration::from_micros(self.now), visible, in_flight }));
            }
        }
    }

    fn apply_policy(&mut self, depth: Option<QueueDepth>) {
        let Scenario { policy, bounds, .. } = self.scenario;
        let observation = Observation { workers: self.active.len() as u32, depth };
        let now = Duration::from_micros(self.now);
        let (state, decision) = decide(policy, *bounds, self.state, &observation, now);
        self.state = state;
        while (self.active.len() as u32) < decision.desired {
            let worker = self.add_worker();
            self.second.booting += 1;
            self.run.launched += 1;
            self.schedule(self.scenario.boot_time, Event::Ready(worker));
        }
        while self.active.len() as u32 > decision.desired {
            let newest = self.active.pop().expect("there are more than desired; this is a bug");
            self.drain(newest);
        }
    }

    fn add_worker(&mut self) -> WorkerId {
        self.workers.push(Worker { state: WorkerState::Booting, launched: self.now, in_work: Vec::new() });
        let worker = self.workers.len() - 1;
        self.active.push(worker);
        self.run.most_workers = self.run.most_workers.max(self.active.len() as u32);
        worker
    }

    fn mark_ready(&mut self, worker: WorkerId) {
        self.workers[worker].state = WorkerState::Ready;
        self.second.ready += 1;
        self.free.extend((0..self.scenario.sessions).map(|_| worker));
        let deaths_per_hour = self.scenario.deaths_per_worker_hour;
        if deaths_per_hour > 0.0 {
            let hours = -(1.0 - self.random.random::<f64>()).ln() / deaths_per_hour;
            let lifetime = Duration::try_from_secs_f64(hours * 3600.0).unwrap_or(MAX_RUN_TIME);
            self.schedule(lifetime, Event::Died(worker));
        }
    }

    fn drain(&mut self, worker: WorkerId) {
        self.uncount(worker);
        self.workers[worker].state = WorkerState::Draining;
        self.second.draining += 1;
        if self.workers[worker].in_work.is_empty() {
            self.terminate(worker);
        }
    }

    fn die(&mut self, worker: WorkerId) {
        self.active.retain(|active| *active != worker);
        self.run.deaths += 1;
        for arrived in std::mem::take(&mut self.workers[worker].in_work) {
            self.schedule(self.scenario.visibility_timeout, Event::Redelivered { arrived });
        }
        self.terminate(worker);
    }

    fn terminate(&mut self, worker: WorkerId) {
        self.uncount(worker);
        self.workers[worker].state = WorkerState::Terminated;
        self.add_worker_time(worker);
    }

    fn uncount(&mut self, worker: WorkerId) {
        match self.workers[worker].state {
            WorkerState::Booting => self.second.booting -= 1,
            WorkerState::Ready => self.second.ready -= 1,
            WorkerState::Draining => self.second.draining -= 1,
            WorkerState::Terminated => {}
        }
    }

    fn add_worker_time(&mut self, worker: WorkerId) {
        let lived = Duration::from_micros(self.now - self.workers[worker].launched);
        self.run.worker_time += lived;
        self.run.billed_time += lived.max(MIN_BILLED_TIME);
    }

    /// Assigns visible messages to free sessions.
    fn dispatch(&mut self) {
        while !self.queue.is_empty() {
            let Some(worker) = self.free.pop_front() else { return };
            if self.workers[worker].state != WorkerState::Ready {
                continue;
            }
            let arrived = self.queue.pop_front().expect("the loop ends when it is empty; this is a bug");
            self.in_flight += 1;
            self.workers[worker].in_work.push(arrived);
            let took = Duration::from_micros(self.scenario.service_time.sample(&mut self.random));
            self.schedule(took, Event::Completed { worker, arrived, took });
        }
    }

    fn complete(&mut self, worker: WorkerId, arrived: u64) {
        let in_work = &mut self.workers[worker].in_work;
        let index = in_work
            .iter()
            .position(|it| *it == arrived)
            .expect("a worker has an image until it is completed; this is a bug");
        in_work.swap_remove(index);
        let is_empty = in_work.is_empty();
        self.in_flight -= 1;
        self.last_completion = self.now;
        self.second.completed += 1;
        let latency = self.now - arrived + micros(self.scenario.overhead);
        self.second_latencies.push(latency);
        self.run.latencies.push(latency);
        match self.workers[worker].state {
            WorkerState::Ready => {
                self.free.push_back(worker);
                self.dispatch();
            }
            WorkerState::Draining if is_empty => self.terminate(worker),
            _ => {}
        }
    }

    /// Appends every second that has ended by `at` to the timeline.
    pub(super) fn close_seconds_before(&mut self, at: u64) {
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

    /// Returns true when all work is done and the fleet is back at its minimum, provided that nothing more arrives.
    pub(super) fn is_over(&self) -> bool {
        let has_work = !self.queue.is_empty() || self.in_flight > 0;
        let is_at_minimum = self.active.len() as u32 == self.scenario.bounds.min()
            && self.second.booting == 0
            && self.second.draining == 0;
        !has_work && (is_at_minimum || self.now - self.last_completion > micros(MAX_SCALE_IN_TIME))
    }

    pub(super) fn finish(mut self) -> Run {
        self.close_second();
        self.now = self.run.timeline.len() as u64 * 1_000_000;
        for worker in 0..self.workers.len() {
            if self.workers[worker].state != WorkerState::Terminated {
                self.add_worker_time(worker);
            }
        }
        self.run.latencies.sort_unstable();
        let all_done = self.run.completed() == self.run.arrivals;
        self.run.drained_at = all_done.then(|| Duration::from_micros(self.last_completion));
        self.run
    }
}
