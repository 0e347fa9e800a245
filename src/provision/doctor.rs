//! Diagnoses what does not work in a stack and how to repair it, whether imgcls or somebody else made the stack. A pure
//! function of the observed state.

use serde::Serialize;
use serde_json::Value;

use super::arns::Arns;
use super::bundle::Cpu;
use super::permissions::{self, Scope};
use super::policy_evaluation;
use super::tier::Tier;
use crate::config::Names;

/// Longest time that an image may take. The visibility timeout has to cover it for workers that renew no lease.
const SLOWEST_JOB_SECONDS: u64 = 30;
/// Messages in the legacy wire format contain the image, and photographs need about this much. References always fit.
const LEAST_MESSAGE_BYTES: u64 = 256 << 10;

/// The observed state of the resources that a service uses. Properties are in CloudFormation's form.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Observed {
    /// Properties by name.
    pub queues: Vec<(String, Value)>,
    pub buckets: Vec<Bucket>,
    /// Properties by name.
    pub alarms: Vec<(String, Value)>,
    pub group: Option<Group>,
    pub roles: Vec<Role>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bucket {
    pub name: String,
    /// True if public access is blocked.
    pub is_closed: bool,
    /// The bucket's region, if it is not the region of the machines.
    pub other_region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Group {
    pub name: String,
    pub properties: Value,
    pub policies: Vec<Value>,
    /// ARNs of the policies.
    pub policy_arns: Vec<String>,
    /// Data of its launch template.
    pub template: Option<Value>,
    /// Processor of its AMI, if known.
    pub image_cpu: Option<Cpu>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Role {
    pub name: String,
    pub tier: Tier,
    pub documents: Vec<Value>,
}

/// The names of the resources to examine.
pub(super) struct Target<'a> {
    pub account: &'a str,
    pub region: &'a str,
    pub names: &'a Names,
    pub group: &'a str,
    pub log_group: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub severity: Severity,
    /// The resource at fault, such as `alarm "ScaleUpAlarm"`.
    pub on: String,
    pub fault: String,
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    /// It does not work.
    Broken,
    /// It works at present, but may lose data, or allows access that it should not.
    Risk,
}

/// All findings, in the order in which an image meets the resources.
pub(super) fn diagnose(observed: &Observed, target: &Target<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    queues(observed, target, &mut findings);
    buckets(observed, target, &mut findings);
    roles(observed, target, &mut findings);
    alarms(observed, target, &mut findings);
    group(observed, target, &mut findings);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn broken(&mut self, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Broken, on, fault, remedy);
    }

    fn risk(&mut self, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Risk, on, fault, remedy);
    }

    fn add(&mut self, severity: Severity, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, on: on.to_owned(), fault: fault.into(), remedy: remedy.into() });
    }
}

fn queues(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    for name in [&target.names.request_queue, &target.names.result_queue] {
        let on = format!("queue {name:?}");
        let Some((_, queue)) = observed.queues.iter().find(|(queue, _)| queue == name) else {
            findings.broken(
                &on,
                "it does not exist",
                "`imgcls provision` makes it; the first tier that starts does too",
            );
            continue;
        };
        let number = |property: &str| queue[property].as_u64();
        if let Some(limit) = number("MaximumMessageSize").filter(|limit| *limit < LEAST_MESSAGE_BYTES) {
            findings.risk(
                &on,
                format!("it takes messages of {limit} bytes at most: photographs in the legacy wire format do not fit"),
                "set MaximumMessageSize to 1048576",
            );
        }
        if name != &target.names.request_queue {
            continue;
        }
        if let Some(seconds) = number("VisibilityTimeout").filter(|seconds| *seconds < SLOWEST_JOB_SECONDS) {
            findings.risk(
                &on,
                format!("a message is redelivered after {seconds} s, while its image may still be processed"),
                format!("set VisibilityTimeout to {SLOWEST_JOB_SECONDS} or more"),
            );
        }
        if let Some(seconds) = number("MessageRetentionPeriod").filter(|seconds| *seconds < 3_600) {
            findings.risk(
                &on,
                format!("messages expire after {seconds} s, before a fleet may have started from zero"),
                "set MessageRetentionPeriod to 345600",
            );
        }
        if queue["RedrivePolicy"].is_null() {
            findings.risk(
                &on,
                "it has no dead-letter queue: a message that kills its worker is redelivered until it expires",
                format!("make {:?} and name it in RedrivePolicy", target.names.dead_letter_queue()),
            );
        }
    }
}

fn buckets(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    for name in [&target.names.input_bucket, &target.names.output_bucket] {
        let on = format!("bucket {name:?}");
        let Some(bucket) = observed.buckets.iter().find(|bucket| bucket.name == *name) else {
            findings.broken(
                &on,
                "it does not exist, or these credentials may not see it",
                "name the right one with --input-bucket and --output-bucket, or let `imgcls provision` make it",
            );
            continue;
        };
        if let Some(region) = &bucket.other_region {
            let fault = format!("it is in region {region}, the machines are in {}", target.region);
            findings.broken(
                &on,
                fault,
                format!("use a bucket in {}: requests to another region are refused or billed", target.region),
            );
        } else if !bucket.is_closed {
            findings.risk(&on, "public access is not blocked", "enable all four settings of its public access block");
        }
    }
}

fn roles(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let arns = Arns::new(target.account, target.region);
    let scope = Scope { arns: &arns, names: target.names, worker_group: target.group, log_group: target.log_group };
    for role in &observed.roles {
        let on = format!("role {:?}", role.name);
        let allowed = |action: &str, resource: &str| {
            let is_allowed =
                role.documents.iter().any(|document| policy_evaluation::allows(document, action, resource));
            is_allowed && !role.documents.iter().any(|document| policy_evaluation::denies(document, action, resource))
        };
        let mut missing: Vec<String> = Vec::new();
        for (action, resource) in permissions::needed(role.tier, &scope) {
            if !allowed(&action, &resource) {
                missing.push(format!("{action} on {resource}"));
            }
        }
        if !missing.is_empty() {
            let text = missing.join(", ");
            findings.broken(&on, format!("it lacks {text}"), "add these to a policy of the role");
        }
        let wide = [
            ("s3:DeleteBucket", "arn:aws:s3:::some-other-bucket"),
            ("sqs:DeleteQueue", "arn:aws:sqs:us-east-1:1:some-other-queue"),
        ];
        for (action, resource) in wide {
            if allowed(action, resource) {
                let service = action.split(':').next().unwrap_or_default();
                findings.risk(
                    &on,
                    format!("it allows everything in {service}, on every resource of the account"),
                    "name the actions and the resources that the tier needs; `imgcls provision export` prints them",
                );
            }
        }
    }
}

fn alarms(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let queue = target.names.request_queue.as_str();
    for (name, alarm) in &observed.alarms {
        let on = format!("alarm {name:?}");
        let dimensions = alarm["Dimensions"].as_array();
        let is_of_sqs = alarm["Namespace"] == "AWS/SQS";
        let right =
            dimensions.is_some_and(|all| all.iter().any(|one| one["Name"] == "QueueName" && one["Value"] == queue));
        if is_of_sqs && !right {
            let found: Vec<String> = dimensions
                .into_iter()
                .flatten()
                .map(|one| format!("{}={}", one["Name"].as_str().unwrap_or("?"), one["Value"].as_str().unwrap_or("?")))
                .collect();
            findings.broken(
                &on,
                format!(
                    "it reads a metric that does not exist: its dimension is {}",
                    if found.is_empty() { "missing".to_owned() } else { found.join(", ") }
                ),
                format!("the dimension of a queue's metrics is QueueName={queue}"),
            );
        }
        let actions: Vec<&str> =
            alarm["AlarmActions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if actions.is_empty() {
            findings.broken(
                &on,
                "it has no action, so it has no effect",
                "name a scaling policy of the group as its action",
            );
        } else if alarm["ActionsEnabled"] == false {
            findings.broken(&on, "its actions are disabled", "enable them");
        } else if let Some(group) = &observed.group {
            let known = |action: &&&str| group.policy_arns.iter().any(|arn| arn == **action);
            if actions.iter().all(|action| action.contains(":scalingPolicy:") && !known(&action)) {
                findings.broken(
                    &on,
                    "its action is a scaling policy that does not exist",
                    format!("name a policy of group {:?}", group.name),
                );
            }
        }
    }
}

fn group(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let on = format!("Auto Scaling group {:?}", target.group);
    let Some(group) = &observed.group else {
        findings.broken(
            &on,
            "it does not exist: no worker ever starts",
            "name it with --group, or let `imgcls provision` make it",
        );
        return;
    };
    let size = |property: &str| group.properties[property].as_str().and_then(|text| text.parse::<u32>().ok());
    if let (Some(min), Some(max)) = (size("MinSize"), size("MaxSize"))
        && min == max
    {
        findings.broken(
            &on,
            format!("its smallest and largest size are both {min}: it never scales"),
            "raise the largest size",
        );
    }
    if group.policies.is_empty() {
        findings.broken(
            &on,
            "it has no scaling policy",
            "add one to scale out and one to scale in, and name them in the alarms",
        );
    }
    let follows_metric = group.policies.iter().any(|policy| policy["PolicyType"] == "TargetTrackingScaling");
    if observed.alarms.is_empty() && !follows_metric {
        findings.broken(
            &on,
            "no alarm reads the request queue, so the group never scales",
            "add the two alarms; `imgcls provision` does",
        );
    }
    template(group, &on, findings);
}

fn template(group: &Group, on: &str, findings: &mut Findings) {
    let Some(template) = &group.template else { return };
    let types = group.properties["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"].as_array();
    let types = types.into_iter().flatten().map(|entry| &entry["InstanceType"]).chain([&template["InstanceType"]]);
    if let Some(image) = group.image_cpu {
        for name in types.filter_map(Value::as_str).filter(|name| Cpu::of_instance_type(name) != image) {
            let cpu = Cpu::of_instance_type(name);
            findings.broken(
                on,
                format!("its AMI is for {image}, instance type {name} is {cpu}"),
                "use an AMI and instance types of one processor",
            );
        }
    }
    if template["MetadataOptions"]["HttpTokens"] != "required" {
        findings.risk(
            on,
            "its machines answer IMDSv1: an attacker who can make one fetch a URL gets the credentials of its role",
            "set MetadataOptions.HttpTokens to required",
        );
    }
    if template["IamInstanceProfile"].is_null() {
        findings.broken(
            on,
            "its machines have no role, so they have no access to queues and buckets",
            "name an instance profile in the launch template",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The legacy system with all its faults.
    fn legacy_system() -> Observed {
        let queue = json!({"VisibilityTimeout": 30, "MaximumMessageSize": 6144, "MessageRetentionPeriod": 420});
        let alarm = json!({
            "Namespace": "AWS/SQS", "MetricName": "ApproximateNumberOfMessagesVisible", "AlarmActions": [],
            "Dimensions": [{"Name": "SQSQueueName", "Value": "web-app-image-transport"}],
        });
        let everything = json!({"Statement": [{"Effect": "Allow", "Action": ["s3:*", "sqs:*"], "Resource": "*"}]});
        Observed {
            queues: vec![("web-app-image-transport".into(), queue.clone()), ("app-web-result-queue".into(), queue)],
            buckets: vec![
                Bucket { name: "in".into(), is_closed: false, other_region: None },
                Bucket { name: "out".into(), is_closed: true, other_region: Some("eu-west-1".into()) },
            ],
            alarms: vec![("ScaleUpAlarm".into(), alarm.clone()), ("ScaleDownAlarm".into(), alarm)],
            group: Some(Group {
                name: "apptierAutoscaling".into(),
                properties: json!({"MinSize": "1", "MaxSize": "1"}),
                policies: Vec::new(),
                policy_arns: Vec::new(),
                template: Some(json!({"InstanceType": "c7g.large"})),
                image_cpu: Some(Cpu::X86_64),
            }),
            roles: vec![Role { name: "app-tier".into(), tier: Tier::Worker, documents: vec![everything] }],
        }
    }

    #[test]
    fn every_fault_of_the_legacy_system_is_found() {
        let names = Names { input_bucket: "in".to_owned(), output_bucket: "out".to_owned(), ..Names::local("imgcls") };
        let target = Target {
            account: "1",
            region: "us-east-1",
            names: &names,
            group: "apptierAutoscaling",
            log_group: "imgcls",
        };
        let findings = diagnose(&legacy_system(), &target);
        let text: Vec<String> = findings.iter().map(|found| format!("{}: {}", found.on, found.fault)).collect();
        for expected in [
            "queue \"web-app-image-transport\": it takes messages of 6144 bytes",
            "queue \"web-app-image-transport\": messages expire after 420 s",
            "queue \"web-app-image-transport\": it has no dead-letter queue",
            "bucket \"in\": public access is not blocked",
            "bucket \"out\": it is in region eu-west-1",
            "role \"app-tier\": it allows everything in s3",
            "role \"app-tier\": it allows everything in sqs",
            "role \"app-tier\": it lacks autoscaling:CompleteLifecycleAction",
            "alarm \"ScaleUpAlarm\": it reads a metric that does not exist: its dimension is SQSQueueName=web-app-image-transport",
            "alarm \"ScaleUpAlarm\": it has no action",
            "alarm \"ScaleDownAlarm\": it has no action",
            "Auto Scaling group \"apptierAutoscaling\": its smallest and largest size are both 1",
            "Auto Scaling group \"apptierAutoscaling\": it has no scaling policy",
            "Auto Scaling group \"apptierAutoscaling\": its AMI is for x86_64, instance type c7g.large is arm64",
            "Auto Scaling group \"apptierAutoscaling\": its machines answer IMDSv1",
            "Auto Scaling group \"apptierAutoscaling\": its machines have no role",
        ] {
            assert!(text.iter().any(|line| line.starts_with(expected)), "{expected}\n{}", text.join("\n"));
        }
        assert!(findings.iter().all(|found| !found.remedy.is_empty()));
    }
}
