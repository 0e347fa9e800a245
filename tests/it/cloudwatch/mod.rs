//! Simulates the evaluation of alarms by CloudWatch and the scaling policies of Auto Scaling, which no emulator does.
//! It reads the alarms and scaling policies of a group, evaluates the alarms on metrics, and resizes the group by the
//! policies of those in alarm. Its clock is faster than real time, so that minutes pass in seconds.

mod alarm;
mod math;
mod metrics;
mod policy;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use self::alarm::Alarm;
use self::alarm::State;
use self::metrics::put_metric_data;
pub use self::metrics::{Metric, Metrics};
pub use self::policy::{Capacity, Policy};
use crate::cloud::{Ec2, scope};
use crate::emulators::Emulator;
use crate::harness::request;

/// Simulated seconds for each real one.
pub const SPEED: u32 = 60;
/// A minute in seconds.
const MINUTE: u64 = 60;
/// Simulated time at the start. The metrics before it say that the queue was empty.
const START: u64 = 3_600;
/// Warm-up time of the group, for policies without their own.
const DEFAULT_WARMUP: u64 = 120;

/// The stack to simulate.
pub struct Watched {
    pub ec2: Arc<Ec2>,
    /// Name of the group.
    pub group: String,
    /// Name of the queue.
    pub queue: String,
    /// The emulator with the queue.
    pub queues: &'static Emulator,
    /// The emulator with the alarms.
    pub alarms: &'static Emulator,
    /// Delay of the queue's metrics in seconds: an alarm evaluates values of this age.
    pub queue_metrics_late_by: u64,
}

/// Runs until it is dropped.
pub struct CloudWatch {
    resized: Arc<Mutex<Vec<Resized>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A change of the group by an alarm.
#[derive(Debug, Clone)]
pub struct Resized {
    /// Simulated time in seconds.
    pub at: u64,
    pub alarm: String,
    pub value: f64,
    pub from: u32,
    pub to: u32,
}

impl CloudWatch {
    /// Starts a thread that runs the simulation.
    pub fn start(watched: Watched) -> CloudWatch {
        let resized = Arc::<Mutex<Vec<Resized>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut simulation = Simulation::new(watched, Arc::clone(&resized));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                simulation.step();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        CloudWatch { resized, stop, thread: Some(thread) }
    }

    /// All changes by alarms, in order.
    pub fn resized(&self) -> Vec<Resized> {
        self.resized.lock().unwrap().clone()
    }

    fn history(&self) -> String {
        self.resized().iter().fold(String::new(), |mut text, Resized { at, alarm, value, from, to }| {
            let _ = writeln!(text, "{at} s: {alarm} at {value}: {from} → {to}");
            text
        })
    }
}

impl Drop for CloudWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let fails = self.thread.take().is_some_and(|thread| thread.join().is_err());
        // Shown if the test fails.
        println!("the alarms resized the group:\n{}", self.history());
        assert!(!fails || std::thread::panicking(), "the simulation of CloudWatch failed");
    }
}

struct Simulation {
    watched: Watched,
    started: Instant,
    queue_url: String,
    metrics: Metrics,
    sampled: u64,
    alarms: Vec<(Alarm, Progress)>,
    policies: Vec<Policy>,
    resized: Arc<Mutex<Vec<Resized>>>,
}

/// The progress of an alarm.
#[derive(Debug, Clone, Copy)]
struct Progress {
    state: State,
    /// Number of the period at whose end it was last evaluated.
    period: u64,
    acted: Option<u64>,
}

impl Simulation {
    fn new(watched: Watched, resized: Arc<Mutex<Vec<Resized>>>) -> Simulation {
        let policies = Policy::all(&watched.ec2.group.policies());
        let alarms = alarms_of(&watched.group, watched.alarms).into_iter();
        let alarms = alarms.chain(policies.iter().flat_map(Policy::own_alarms));
        let progress = Progress { state: State::InsufficientData, period: 0, acted: None };
        let alarms: Vec<(Alarm, Progress)> = alarms.map(|alarm| (alarm, progress)).collect();
        assert!(!alarms.is_empty() && !policies.is_empty(), "the group {:?} has no policy", watched.group);
        let url = sqs(watched.queues, "GetQueueUrl", &json!({"QueueName": watched.queue}));
        let mut simulation = Simulation {
            queue_url: url["QueueUrl"].as_str().unwrap().to_owned(),
            watched,
            started: Instant::now(),
            metrics: Metrics::default(),
            sampled: START / MINUTE,
            alarms,
            policies,
            resized,
        };
        for at in (0..START + simulation.watched.queue_metrics_late_by).step_by(MINUTE as usize) {
            simulation.put_queue_metrics(at, 0.0, 0.0);
        }
        simulation
    }

    fn step(&mut self) {
        let now = seconds(self.started.elapsed()) + START;
        for body in self.watched.ec2.take_metrics() {
            for (metric, value) in put_metric_data(&body) {
                self.metrics.put(metric, now, value);
            }
        }
        if now / MINUTE > self.sampled {
            self.sampled = now / MINUTE;
            self.sample(now);
        }
        for index in 0..self.alarms.len() {
            self.evaluate(index, now);
        }
    }

    /// Records the metrics that SQS and Auto Scaling publish once a minute.
    fn sample(&mut self, now: u64) {
        let parameters = json!({"QueueUrl": self.queue_url, "AttributeNames": ["All"]});
        let answer = sqs(self.watched.queues, "GetQueueAttributes", &parameters);
        let number = |name: &str| answer["Attributes"][name].as_str().unwrap().parse().unwrap();
        let (visible, in_flight) =
            (number("ApproximateNumberOfMessages"), number("ApproximateNumberOfMessagesNotVisible"));
        self.put_queue_metrics(now + self.watched.queue_metrics_late_by, visible, in_flight);
        let size = self.watched.ec2.group.change(|_| None);
        let of_group = |name: &str| Metric::new("AWS/AutoScaling", name, "AutoScalingGroupName", &self.watched.group);
        self.metrics.put(of_group("GroupDesiredCapacity"), now, f64::from(size.desired));
        self.metrics.put(of_group("GroupInServiceInstances"), now, size.instances.len() as f64);
    }

    /// SQS publishes the number of messages in flight only while there are any.
    fn put_queue_metrics(&mut self, at: u64, visible: f64, in_flight: f64) {
        let of_queue = |name: &str| Metric::new("AWS/SQS", name, "QueueName", &self.watched.queue);
        self.metrics.put(of_queue("ApproximateNumberOfMessagesVisible"), at, visible);
        if in_flight > 0.0 {
            self.metrics.put(of_queue("ApproximateNumberOfMessagesNotVisible"), at, in_flight);
        }
        // No test has images of batches; workers keep the queue in use.
        let of_bulk = |name: &str| Metric::new("AWS/SQS", name, "QueueName", &format!("{}-bulk", self.watched.queue));
        self.metrics.put(of_bulk("ApproximateNumberOfMessagesVisible"), at, 0.0);
    }

    /// Evaluates an alarm at the end of each of its periods. While it remains in alarm, it acts once a minute.
    fn evaluate(&mut self, index: usize, now: u64) {
        let (alarm, progress) = &mut self.alarms[index];
        let period = now / alarm.period();
        if period == progress.period {
            return;
        }
        let (state, value) = alarm.evaluate(&self.metrics, progress.state, now);
        let acts = state == State::Alarm
            && (progress.state != State::Alarm || progress.acted.is_none_or(|acted| now >= acted + MINUTE));
        *progress = Progress { state, period, acted: if acts { Some(now) } else { progress.acted } };
        if acts && let Some(value) = value {
            let alarm = alarm.clone();
            self.act(&alarm, value, now);
        }
    }

    fn act(&self, alarm: &Alarm, value: f64, now: u64) {
        let is_named = |policy: &&Policy| alarm.actions_enabled && alarm.actions.contains(&policy.arn);
        for policy in self.policies.iter().filter(is_named) {
            let (ages, warmup) = (self.watched.ec2.ages(), policy.warmup.unwrap_or(DEFAULT_WARMUP));
            self.watched.ec2.group.change(|size| {
                let warm =
                    ages.iter().filter(|(age, is_terminating)| !is_terminating && seconds(*age) >= warmup).count()
                        as u32;
                let capacity = Capacity {
                    min: size.min,
                    max: size.max,
                    desired: size.desired,
                    warming: size.desired.saturating_sub(warm),
                    terminating: ages.iter().filter(|(_, is_terminating)| *is_terminating).count() as u32,
                };
                let to = policy.desired(&capacity, value, alarm.threshold);
                let resized = Resized { at: now, alarm: alarm.name.clone(), value, from: size.desired, to };
                (to != size.desired).then(|| {
                    self.resized.lock().unwrap().push(resized);
                    to
                })
            });
        }
    }
}

/// Simulated seconds.
fn seconds(passed: Duration) -> u64 {
    (passed * SPEED).as_secs()
}

/// The alarms whose actions are policies of the group.
pub fn alarms_of(group: &str, emulator: &Emulator) -> Vec<Alarm> {
    let answer = call(emulator, "monitoring", "GraniteServiceVersion20100801.DescribeAlarms", &json!({}));
    let of_group = format!(":autoScalingGroupName/{group}:");
    let is_of_group = |action: &Value| action.as_str().is_some_and(|arn| arn.contains(&of_group));
    let alarms = answer["MetricAlarms"].as_array().unwrap().iter();
    let alarms = alarms.filter(|alarm| alarm["AlarmActions"].as_array().unwrap().iter().any(is_of_group));
    alarms.map(Alarm::read).collect()
}

fn sqs(emulator: &Emulator, action: &str, parameters: &Value) -> Value {
    call(emulator, "sqs", &format!("AmazonSQS.{action}"), parameters)
}

fn call(emulator: &Emulator, service: &str, target: &str, parameters: &Value) -> Value {
    let scope = scope(service);
    let headers =
        [("Authorization", scope.as_str()), ("Content-Type", "application/x-amz-json-1.0"), ("X-Amz-Target", target)];
    let answer = request(emulator.address, "POST", "/", &headers, parameters.to_string().as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{target}: {}", answer.text());
    answer.json()
}
