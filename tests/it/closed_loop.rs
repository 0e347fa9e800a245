//! The loop closed: `provision` makes a stack, the alarms and policies of that stack move its group, and an image that
//! comes to no worker is answered by one that was started for it. ministack has the stack's queues and buckets, moto
//! the rest; `cloudwatch/` plays what neither does, `cloud.rs` the machines.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use imgcls::scaling::{self, Bounds, Observation, QueueDepth, StepPolicy};

use crate::cloud::{Cloud, Setting};
use crate::cloudwatch::{Alarm, Capacity, CloudWatch, Metric, Metrics, Policy, SPEED, Watched, alarms_of};
use crate::elastic::slow_picture;
use crate::emulators::{self, ministack, moto_of_stacks};
use crate::harness::{Service, imgcls, picture, until};
use crate::provision::small_bundle;

/// The account that both emulators take from a key of twelve digits.
const ACCOUNT: &str = "123456789012";
/// From the first image in the queue to the first worker that is asked for.
const FIRST_WORKER_WITHIN: Duration = Duration::from_secs(10);
const MOST: u32 = 2;
const IMAGES: usize = 80;
/// So many where one worker would be too quick for an alarm to see images wait.
const MOST_IMAGES: usize = 400;
/// A worker's share under `--policy target` is four images: of these a second worker is needed.
const TARGET: [&str; 6] = ["--policy", "target", "--slo", "1s", "--service-time", "250ms"];
const STEP: [&str; 2] = ["--policy", "step"];
/// `autoscale` looks every ten seconds. The backlog that it publishes has to come so often by the clock of CloudWatch.
const PUBLISHES: [&str; 2] = ["--interval", "166ms"];
const FIFTEEN_MINUTES: u64 = 900;

#[test]
fn the_step_alarms_move_the_fleet() {
    let moved = there_and_back("loop-step", &STEP, 0);
    assert!(moved.contains("loop-step-ScaleUpAlarm"), "{moved:?}");
    assert!(moved.contains("loop-step-ScaleDownAlarm"), "{moved:?}");
}

#[test]
fn target_tracking_moves_the_fleet() {
    let moved = there_and_back("loop-target", &TARGET, 0);
    assert!(moved.contains("AlarmHigh"), "{moved:?}");
    assert!(moved.contains("AlarmLow"), "{moved:?}");
}

#[test]
fn step_alarms_that_are_a_quarter_of_an_hour_late_lose_nothing() {
    let moved = there_and_back("loop-step-late", &STEP, FIFTEEN_MINUTES);
    assert!(moved.contains("loop-step-late-ScaleDownAlarm"), "{moved:?}");
}

#[test]
fn target_tracking_beside_an_alarm_that_is_a_quarter_of_an_hour_late_loses_nothing() {
    let moved = there_and_back("loop-target-late", &TARGET, FIFTEEN_MINUTES);
    assert!(moved.contains("AlarmLow"), "{moved:?}");
}

/// Load comes to no worker, is worked off, and the fleet goes back to none; which alarms moved it.
fn there_and_back(name: &'static str, policy: &[&str], queue_metrics_late_by: u64) -> BTreeSet<String> {
    let stack = Stack::apply(name, policy);
    let service = stack.serve();
    let cloud = stack.cloud();
    let interval: &[&str] = if policy == TARGET { &PUBLISHES } else { &[] };
    let _autoscale = cloud.autoscale(&[policy, interval].concat());
    let watch = stack.watch(&cloud, queue_metrics_late_by);

    let submitted = Instant::now();
    let first = service.submit("cat.jpg", &picture("cat.jpg"));
    until("the first worker", || (cloud.count() > 0).then_some(()));
    assert!(submitted.elapsed() < FIRST_WORKER_WITHIN, "{:?}", submitted.elapsed());
    let image = slow_picture();
    let mut ids = Vec::new();
    // What comes late brings no second worker in time.
    let feeds = || queue_metrics_late_by == 0 && cloud.count() < 2;
    while ids.len() < IMAGES || feeds() && ids.len() < MOST_IMAGES {
        ids.push(service.submit("gradient.png", &image));
    }
    for id in ids.iter().chain([&first]) {
        let job = service.finished(id);
        // A second attempt would be that of an image whose worker was taken away.
        assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{id}: {job}");
    }
    // Not before the alarms have seen the end of it too.
    let (finished, late) = (Instant::now(), Duration::from_secs(queue_metrics_late_by) / SPEED);
    until("back to nothing", || (finished.elapsed() > late && cloud.count() == 0).then_some(()));
    let gone = cloud.terminated();
    assert!(gone.iter().all(|machine| machine.exit_code == Some(0) && machine.has_drained), "{gone:?}");
    watch.resized().into_iter().map(|resized| resized.alarm).collect()
}

/// What the alarms of a stack do is what the policy decides, whatever is in the queue.
#[test]
fn the_step_alarms_do_what_the_policy_decides() {
    let stack = Stack::apply("loop-decides", &STEP);
    let cloud = stack.cloud();
    let policies = Policy::all(&cloud.ec2.group.policies());
    let alarms = alarms_of(&stack.group(), moto_of_stacks());
    for workers in 0..=MOST {
        for visible in [0, 1, 2, 25, 26, 1_000] {
            for in_flight in [0, 1, 2, 30] {
                // An alarm sees no worker's images come back before they do: until then nothing is visible.
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
        CloudWatch::play(Watched {
            ec2: std::sync::Arc::clone(&cloud.ec2),
            group: self.group(),
            queue: self.queue(),
            queues: ministack(),
            alarms: moto_of_stacks(),
            queue_metrics_late_by,
        })
    }

    /// By the alarms that a minute with these numbers puts off, one after the other.
    fn alarmed(&self, alarms: &[Alarm], policies: &[Policy], workers: u32, visible: u64, in_flight: u64) -> u32 {
        let mut metrics = Metrics::default();
        let queue = |name: &str| Metric::new("AWS/SQS", name, "QueueName", &self.queue());
        metrics.put(queue("ApproximateNumberOfMessagesVisible"), 0, visible as f64);
        metrics.put(queue("ApproximateNumberOfMessagesNotVisible"), 0, in_flight as f64);
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

/// By the policy itself, a minute after it began to look.
fn decided(workers: u32, visible: u64, in_flight: u64) -> u32 {
    let policy = scaling::Policy::Step(StepPolicy::ORIGINAL);
    let bounds = Bounds::new(0, MOST).unwrap();
    let blind = Observation { workers, depth: None };
    let (state, _) = scaling::decide(&policy, bounds, scaling::State::default(), &blind, Duration::ZERO);
    let now = Duration::from_secs(60);
    let seen = Observation { workers, depth: Some(QueueDepth { at: now, visible, in_flight }) };
    scaling::decide(&policy, bounds, state, &seen, now).1.desired
}

/// Each service by a variable of its own, so that the stack is the one for AWS itself.
fn environment() -> Vec<(String, String)> {
    let mut environment = emulators::credentials();
    let at = |service: &str, url: String| (format!("AWS_ENDPOINT_URL_{service}"), url);
    environment.extend(["SQS", "S3"].map(|service| at(service, ministack().url())));
    let of_moto = ["IAM", "CLOUDWATCH", "AUTO_SCALING", "STS", "EC2", "CLOUDWATCH_LOGS"];
    environment.extend(of_moto.map(|service| at(service, moto_of_stacks().url())));
    environment.push(("AWS_ACCESS_KEY_ID".to_owned(), ACCOUNT.to_owned()));
    environment.push(("AWS_REGION".to_owned(), "us-east-1".to_owned()));
    environment
}
