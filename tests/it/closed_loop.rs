//! The whole control loop: `provision` creates a stack, the alarms and policies of that stack resize its group, and an
//! image that arrives while there is no worker is answered by a worker that was started for it. ministack emulates the
//! queues and buckets of the stack, moto the other services. `cloudwatch/` evaluates alarms, which neither does, and
//! `cloud.rs` simulates the machines.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use imgcls::scaling_policy::{self, Bounds, Observation, QueueDepth, StepPolicy};

use crate::cloud::{Cloud, Setting};
use crate::cloudwatch::{Alarm, Capacity, CloudWatch, Metric, Metrics, Policy, SPEED, Watched, alarms_of};
use crate::elastic::slow_image;
use crate::emulators::{ministack, moto_of_stacks};
use crate::harness::{Process, Service, imgcls, test_image, until};
use crate::provision::{self, small_bundle};

/// Both emulators take a key of twelve digits as the account.
const ACCOUNT: &str = "123456789012";
/// Maximum time from the first image in the queue to the first worker.
const FIRST_WORKER_WITHIN: Duration = Duration::from_secs(10);
const MOST: u32 = 2;
const IMAGES: usize = 80;
/// Limit of the images that are sent while one worker is too fast for an alarm to see a backlog.
const MOST_IMAGES: usize = 400;
/// With `--policy target` one worker may have a backlog of four images, so these need a second worker.
const TARGET: [&str; 6] = ["--policy", "target", "--slo", "1s", "--service-time", "250ms"];
const STEP: [&str; 2] = ["--policy", "step"];
/// `autoscale` reads the depth every ten seconds. On the accelerated clock of CloudWatch it has to publish the backlog
/// this often.
const PUBLISHES: [&str; 2] = ["--interval", "166ms"];
const FIFTEEN_MINUTES: u64 = 900;

#[test]
fn step_alarms_resize_the_fleet() {
    let alarms = scale_out_and_back("loop-step", &STEP, 0);
    assert!(alarms.contains("loop-step-ScaleUpAlarm"), "{alarms:?}");
    assert!(alarms.contains("loop-step-ScaleDownAlarm"), "{alarms:?}");
}

#[test]
fn target_tracking_resizes_the_fleet() {
    let alarms = scale_out_and_back("loop-target", &TARGET, 0);
    assert!(alarms.contains("AlarmHigh"), "{alarms:?}");
    assert!(alarms.contains("AlarmLow"), "{alarms:?}");
}

#[test]
fn step_alarms_that_are_15_minutes_late_lose_no_image() {
    let alarms = scale_out_and_back("loop-step-late", &STEP, FIFTEEN_MINUTES);
    assert!(alarms.contains("loop-step-late-ScaleDownAlarm"), "{alarms:?}");
}

#[test]
fn target_tracking_with_an_alarm_that_is_15_minutes_late_loses_no_image() {
    let alarms = scale_out_and_back("loop-target-late", &TARGET, FIFTEEN_MINUTES);
    assert!(alarms.contains("AlarmLow"), "{alarms:?}");
}

/// Sends load while there is no worker, waits until it is completed and the fleet is back at zero, and returns the
/// alarms that resized the group.
fn scale_out_and_back(name: &'static str, policy: &[&str], queue_metrics_late_by: u64) -> BTreeSet<String> {
    // The clock of its alarms is fast, so that workers which share the machine with those of another loop are too slow.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::apply(name, policy);
    let service = stack.serve();
    let cloud = stack.cloud();
    let interval: &[&str] = if policy == TARGET { &PUBLISHES } else { &[] };
    let _autoscale = cloud.autoscale(&[policy, interval].concat());
    let watch = stack.watch(&cloud, queue_metrics_late_by);

    let submitted = Instant::now();
    let first = service.submit("cat.jpg", &test_image("cat.jpg"));
    until("the first worker", || (cloud.count() > 0).then_some(()));
    assert!(submitted.elapsed() < FIRST_WORKER_WITHIN, "{:?}", submitted.elapsed());
    let image = slow_image();
    let mut ids = Vec::new();
    // With late metrics a second worker would come too late.
    let needs_more_images = || queue_metrics_late_by == 0 && cloud.count() < 2;
    while ids.len() < IMAGES || needs_more_images() && ids.len() < MOST_IMAGES {
        ids.push(service.submit("gradient.png", &image));
    }
    for id in ids.iter().chain([&first]) {
        let job = service.finished(id);
        // A second attempt would mean that the worker was removed while it had the image.
        assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{id}: {job}");
    }
    // Late alarms must see the empty queue too.
    let (finished, late) = (Instant::now(), Duration::from_secs(queue_metrics_late_by) / SPEED);
    until("the fleet to scale in to zero", || (finished.elapsed() > late && cloud.count() == 0).then_some(()));
    let gone = cloud.terminated();
    assert!(gone.iter().all(|machine| machine.exit_code == Some(0) && machine.has_drained), "{gone:?}");
    watch.resized().into_iter().map(|resized| resized.alarm).collect()
}

/// The alarms of a stack resize the group as the policy decides, for any depth of the queue.
#[test]
fn step_alarms_match_the_policy() {
    let stack = Stack::apply("loop-decides", &STEP);
    let cloud = stack.cloud();
    let policies = Policy::all(&cloud.ec2.group.policies());
    let alarms = alarms_of(&stack.group(), moto_of_stacks());
    for workers in 0..=MOST {
        for visible in [0, 1, 2, 25, 26, 1_000] {
            for in_flight in [0, 1, 2, 30] {
                // If there is no worker, an alarm sees messages in flight only after they become visible again.
                if (workers, visible) == (0, 0) {
                    continue;
                }
                let decided = decided(workers, visible, in_flight);
                let alarmed = stack.alarmed(&alarms, &policies, workers, visible, in_flight);
                assert_eq!(alarmed, decided, "{workers} workers, {visible} visible, {in_flight} in flight");
            }
        }
    }
}

#[test]
fn alarm_with_a_longer_period_reads_the_depth_and_not_the_sum_of_depths() {
    let stack = Stack::apply("loop-slow-alarms", &["--scale-out-period", "5m", "--scale-in-period", "5m"]);
    let alarms = alarms_of(&stack.group(), moto_of_stacks());
    let raised_at = |visible: f64, workers: f64| {
        let mut metrics = Metrics::default();
        for minute in 0..5 {
            let of_queue = |name: &str| Metric::new("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", name);
            metrics.put(of_queue(&stack.queue()), minute * 60, visible);
            metrics.put(of_queue(&format!("{}-bulk", stack.queue())), minute * 60, 0.0);
            for name in ["GroupDesiredCapacity", "GroupInServiceInstances"] {
                let group = Metric::new("AWS/AutoScaling", name, "AutoScalingGroupName", &stack.group());
                metrics.put(group, minute * 60, workers);
            }
        }
        let raised = alarms.iter().filter(|alarm| alarm.breaching_value(&metrics, 300).is_some());
        raised.map(|alarm| alarm.name.clone()).collect::<Vec<_>>()
    };
    // The sum of five minutes is above 25 for 10 waiting images, and above 2 for a single one.
    assert_eq!(raised_at(10.0, 1.0), [""; 0]);
    assert_eq!(raised_at(26.0, 1.0), ["loop-slow-alarms-ScaleUpAlarm"]);
    assert_eq!(raised_at(1.0, 2.0), ["loop-slow-alarms-ScaleDownAlarm"]);
}

#[test]
fn machine_without_a_worker_is_reported() {
    let stack = Stack::apply("loop-stalled", &["--min", "1"]);
    let service = stack.serve();
    service.submit("cat.jpg", &test_image("cat.jpg"));
    let folder = tempfile::tempdir().unwrap();
    let mut autoscale = imgcls();
    autoscale.args(["autoscale", "--stack", stack.name, "--interval", "50ms"]).envs(stack.environment.clone());
    let autoscale = Process::start(autoscale, &folder.path().join("autoscale.log"));
    until("the report", || autoscale.log().contains("nobody receives").then_some(()));
    let mut status = imgcls();
    status.args(["provision", "status", "--web-instances", "0", "--min", "1", "--stack", stack.name, "--bundle"]);
    let output = status.arg(small_bundle()).envs(stack.environment.clone()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("1 images wait, 1 machines are in service, and nobody receives"), "{text}");
}

struct Stack {
    name: &'static str,
    environment: Vec<(String, String)>,
}

impl Stack {
    fn apply(name: &'static str, policy: &[&str]) -> Stack {
        let stack = Stack { name, environment: environment() };
        let most = MOST.to_string();
        let mut apply = imgcls();
        apply.args(["provision", "apply", "--stack", name, "--web-instances", "0", "--max", &most, "--bundle"]);
        let output = apply.arg(small_bundle()).args(policy).envs(stack.environment.clone()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        stack
    }

    fn serve(&self) -> Service {
        Service::start_on(&["--backend", "aws", "--stack", self.name], self.environment.clone(), 0, &[], &[])
    }

    fn group(&self) -> String {
        format!("{}-apptierAutoscaling", self.name)
    }

    fn queue(&self) -> String {
        format!("{}-web-app-image-transport", self.name)
    }

    fn cloud(&self) -> Cloud {
        Cloud::start(Setting {
            emulator: moto_of_stacks(),
            group: self.group(),
            environment: self.environment.clone(),
            flags: ["--stack", self.name].map(str::to_owned).to_vec(),
        })
    }

    fn watch(&self, cloud: &Cloud, queue_metrics_late_by: u64) -> CloudWatch {
        CloudWatch::start(Watched {
            ec2: std::sync::Arc::clone(&cloud.ec2),
            group: self.group(),
            queue: self.queue(),
            queues: ministack(),
            alarms: moto_of_stacks(),
            queue_metrics_late_by,
        })
    }

    /// The number of workers after the alarms that go off in a minute with these metrics, one after the other.
    fn alarmed(&self, alarms: &[Alarm], policies: &[Policy], workers: u32, visible: u64, in_flight: u64) -> u32 {
        let mut metrics = Metrics::default();
        let queue = |name: &str| Metric::new("AWS/SQS", name, "QueueName", &self.queue());
        metrics.put(queue("ApproximateNumberOfMessagesVisible"), 0, visible as f64);
        if in_flight > 0 {
            metrics.put(queue("ApproximateNumberOfMessagesNotVisible"), 0, in_flight as f64);
        }
        let bulk = |name: &str| Metric::new("AWS/SQS", name, "QueueName", &format!("{}-bulk", self.queue()));
        metrics.put(bulk("ApproximateNumberOfMessagesVisible"), 0, 0.0);
        let group = |name: &str| Metric::new("AWS/AutoScaling", name, "AutoScalingGroupName", &self.group());
        metrics.put(group("GroupDesiredCapacity"), 0, f64::from(workers));
        metrics.put(group("GroupInServiceInstances"), 0, f64::from(workers));
        alarms.iter().fold(workers, |desired, alarm| {
            let Some(value) = alarm.breaching_value(&metrics, 60) else { return desired };
            let policy = policies.iter().find(|policy| alarm.actions.contains(&policy.arn)).unwrap();
            let warming = desired.saturating_sub(workers);
            let capacity = Capacity { min: 0, max: MOST, desired, warming, terminating: 0 };
            policy.desired(&capacity, value, alarm.threshold)
        })
    }
}

/// The decision of the policy, a minute after its first observation.
fn decided(workers: u32, visible: u64, in_flight: u64) -> u32 {
    let policy = scaling_policy::Policy::Step(StepPolicy::LEGACY);
    let bounds = Bounds::new(0, MOST).unwrap();
    let unknown = Observation { workers, depth: None };
    let (state, _) =
        scaling_policy::decide(&policy, bounds, scaling_policy::State::default(), &unknown, Duration::ZERO);
    let now = Duration::from_secs(60);
    let seen = Observation { workers, depth: Some(QueueDepth { at: now, visible, in_flight }) };
    scaling_policy::decide(&policy, bounds, state, &seen, now).1.desired
}

/// All services are moto's, except for the queues and buckets.
fn environment() -> Vec<(String, String)> {
    let mut environment = provision::environment(&moto_of_stacks().url());
    environment.extend(["SQS", "S3"].map(|service| (format!("AWS_ENDPOINT_URL_{service}"), ministack().url())));
    environment.push(("AWS_ACCESS_KEY_ID".to_owned(), ACCOUNT.to_owned()));
    environment
}
