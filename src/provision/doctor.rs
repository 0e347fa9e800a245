//! What will not work in a stack, its own or a hand-made one, and how to mend it: a pure judgement on what was seen.

use serde::Serialize;
use serde_json::Value;

use super::bundle::Cpu;
use super::roles::{self, Arns, Scope};
use super::user_data::Tier;
use crate::config::Names;

/// An image may take this long at worst: a worker that renews no lease needs that much.
const SLOWEST_JOB_SECONDS: u64 = 30;
/// Photographs in messages of the original's form need about this; references fit anywhere.
const LEAST_MESSAGE_BYTES: u64 = 256 << 10;

/// What was seen on AWS, in the words of CloudFormation where a thing has properties.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Name → properties.
    pub queues: Vec<(String, Value)>,
    pub buckets: Vec<Bucket>,
    /// Name → properties.
    pub alarms: Vec<(String, Value)>,
    pub group: Option<Group>,
    /// Name → policy documents.
    pub roles: Vec<Role>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bucket {
    pub name: String,
    pub is_closed: bool,
    /// Where it is elsewhere.
    pub other_region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    pub name: String,
    pub properties: Value,
    pub policies: Vec<Value>,
    /// ARN of each policy.
    pub policy_arns: Vec<String>,
    /// Of its launch template.
    pub template: Option<Value>,
    /// Processor of its machine image, where AWS tells.
    pub image_cpu: Option<Cpu>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Role {
    pub name: String,
    pub tier: Tier,
    pub documents: Vec<Value>,
}

/// What the stack is called.
pub struct Called<'a> {
    pub account: &'a str,
    pub region: &'a str,
    pub names: &'a Names,
    pub group: &'a str,
    pub log_group: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// `alarm "ScaleUpAlarm"`
    pub on: String,
    pub fault: String,
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It does not work.
    Broken,
    /// It works until something happens, or lets in who should stay out.
    Risk,
}

/// Everything that is wrong, in the order in which it stops an image.
pub fn diagnose(seen: &Seen, called: &Called<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    queues(seen, called, &mut findings);
    buckets(seen, called, &mut findings);
    roles_of(seen, called, &mut findings);
    alarms(seen, called, &mut findings);
    group(seen, called, &mut findings);
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

fn queues(seen: &Seen, called: &Called<'_>, findings: &mut Findings) {
    for name in [&called.names.request_queue, &called.names.result_queue] {
        let on = format!("queue {name:?}");
        let Some((_, queue)) = seen.queues.iter().find(|(queue, _)| queue == name) else {
            findings.broken(&on, "it is not there", "`imgcls provision` makes it; the first tier that starts does too");
            continue;
        };
        let number = |property: &str| queue[property].as_u64();
        if let Some(limit) = number("MaximumMessageSize").filter(|limit| *limit < LEAST_MESSAGE_BYTES) {
            findings.risk(
                &on,
                format!("it takes messages of {limit} bytes at most: photographs in the original's form do not fit"),
                "set MaximumMessageSize to 1048576",
            );
        }
        if name != &called.names.request_queue {
            continue;
        }
        if let Some(seconds) = number("VisibilityTimeout").filter(|seconds| *seconds < SLOWEST_JOB_SECONDS) {
            findings.risk(
                &on,
                format!("a message comes back after {seconds} s, while its image may still be in work"),
                format!("set VisibilityTimeout to {SLOWEST_JOB_SECONDS} or more"),
            );
        }
        if let Some(seconds) = number("MessageRetentionPeriod").filter(|seconds| *seconds < 3_600) {
            findings.risk(
                &on,
                format!("messages vanish unseen after {seconds} s, less than a fleet may need from zero"),
                "set MessageRetentionPeriod to 345600",
            );
        }
        if queue["RedrivePolicy"].is_null() {
            findings.risk(
                &on,
                "it has no dead-letter queue: a message that kills its worker comes again until it expires",
                format!("make {:?} and name it in RedrivePolicy", called.names.dead_letter_queue()),
            );
        }
    }
}

fn buckets(seen: &Seen, called: &Called<'_>, findings: &mut Findings) {
    for name in [&called.names.input_bucket, &called.names.output_bucket] {
        let on = format!("bucket {name:?}");
        let Some(bucket) = seen.buckets.iter().find(|bucket| bucket.name == *name) else {
            findings.broken(
                &on,
                "it is not there, or these credentials may not see it",
                "name the right one with --input-bucket and --output-bucket, or let `imgcls provision` make it",
            );
            continue;
        };
        if let Some(region) = &bucket.other_region {
            let fault = format!("it is in region {region}, the machines are in {}", called.region);
            findings.broken(
                &on,
                fault,
                format!("use a bucket in {}: requests to another region are refused or paid for", called.region),
            );
        } else if !bucket.is_closed {
            findings.risk(
                &on,
                "it is not closed to the public",
                "turn on all four settings of its public access block",
            );
        }
    }
}

fn roles_of(seen: &Seen, called: &Called<'_>, findings: &mut Findings) {
    let arns = Arns::new(called.account, called.region);
    let scope = Scope { arns: &arns, names: called.names, worker_group: called.group, log_group: called.log_group };
    for role in &seen.roles {
        let on = format!("role {:?}", role.name);
        let allowed = |action: &str, resource: &str| {
            let is_allowed = role.documents.iter().any(|document| roles::allows(document, action, resource));
            is_allowed && !role.documents.iter().any(|document| roles::refuses(document, action, resource))
        };
        let mut missing: Vec<String> = Vec::new();
        for (action, resource) in roles::needed(role.tier, &scope) {
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
                    format!("it may do anything in {service}, on every resource of the account"),
                    "name the actions and the resources that the tier needs; `imgcls provision export` prints them",
                );
            }
        }
    }
}

fn alarms(seen: &Seen, called: &Called<'_>, findings: &mut Findings) {
    let queue = called.names.request_queue.as_str();
    for (name, alarm) in &seen.alarms {
        let on = format!("alarm {name:?}");
        let dimensions = alarm["Dimensions"].as_array();
        let is_of_sqs = alarm["Namespace"] == "AWS/SQS";
        let right =
            dimensions.is_some_and(|all| all.iter().any(|one| one["Name"] == "QueueName" && one["Value"] == queue));
        if is_of_sqs && !right {
            let said: Vec<String> = dimensions
                .into_iter()
                .flatten()
                .map(|one| format!("{}={}", one["Name"].as_str().unwrap_or("?"), one["Value"].as_str().unwrap_or("?")))
                .collect();
            findings.broken(
                &on,
                format!(
                    "it looks at a metric that does not exist: its dimension is {}",
                    if said.is_empty() { "missing".to_owned() } else { said.join(", ") }
                ),
                format!("the dimension of a queue's metrics is QueueName={queue}"),
            );
        }
        let actions: Vec<&str> =
            alarm["AlarmActions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if actions.is_empty() {
            findings.broken(
                &on,
                "it has no action: it fires and nothing happens",
                "name a scaling policy of the group as its action",
            );
        } else if alarm["ActionsEnabled"] == false {
            findings.broken(&on, "its actions are switched off", "switch them on");
        } else if let Some(group) = &seen.group {
            let known = |action: &&&str| group.policy_arns.iter().any(|arn| arn == **action);
            if actions.iter().all(|action| action.contains(":scalingPolicy:") && !known(&action)) {
                findings.broken(
                    &on,
                    "its action is a scaling policy that is not there",
                    format!("name a policy of group {:?}", group.name),
                );
            }
        }
    }
}

fn group(seen: &Seen, called: &Called<'_>, findings: &mut Findings) {
    let on = format!("Auto Scaling group {:?}", called.group);
    let Some(group) = &seen.group else {
        findings.broken(
            &on,
            "it is not there: no worker ever starts",
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
        findings.broken(&on, "it has no scaling policy", "add one for out and one for in, and name them in the alarms");
    }
    let follows_metric = group.policies.iter().any(|policy| policy["PolicyType"] == "TargetTrackingScaling");
    if seen.alarms.is_empty() && !follows_metric {
        findings.broken(
            &on,
            "no alarm looks at the request queue: nothing moves the group",
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
                format!("its image is for {image}, instance type {name} is {cpu}"),
                "use an image and types of one processor",
            );
        }
    }
    if template["MetadataOptions"]["HttpTokens"] != "required" {
        findings.risk(
            on,
            "its machines answer IMDSv1: whoever makes one fetch an address gets the role's keys",
            "set MetadataOptions.HttpTokens to required",
        );
    }
    if template["IamInstanceProfile"].is_null() {
        findings.broken(
            on,
            "its machines have no role: they reach neither queue nor bucket",
            "name an instance profile in the launch template",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As SEED.md describes the system that imgcls replaces, with every fault of its own.
    fn original() -> Seen {
        let queue = json!({"VisibilityTimeout": 30, "MaximumMessageSize": 6144, "MessageRetentionPeriod": 420});
        let alarm = json!({
            "Namespace": "AWS/SQS", "MetricName": "ApproximateNumberOfMessagesVisible", "AlarmActions": [],
            "Dimensions": [{"Name": "SQSQueueName", "Value": "web-app-image-transport"}],
        });
        let everything = json!({"Statement": [{"Effect": "Allow", "Action": ["s3:*", "sqs:*"], "Resource": "*"}]});
        Seen {
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
    fn every_fault_of_the_original_is_named() {
        let names = Names { input_bucket: "in".to_owned(), output_bucket: "out".to_owned(), ..Names::local("imgcls") };
        let called = Called {
            account: "1",
            region: "us-east-1",
            names: &names,
            group: "apptierAutoscaling",
            log_group: "imgcls",
        };
        let findings = diagnose(&original(), &called);
        let text: Vec<String> = findings.iter().map(|found| format!("{}: {}", found.on, found.fault)).collect();
        for expected in [
            "queue \"web-app-image-transport\": it takes messages of 6144 bytes",
            "queue \"web-app-image-transport\": messages vanish unseen after 420 s",
            "queue \"web-app-image-transport\": it has no dead-letter queue",
            "bucket \"in\": it is not closed to the public",
            "bucket \"out\": it is in region eu-west-1",
            "role \"app-tier\": it may do anything in s3",
            "role \"app-tier\": it may do anything in sqs",
            "role \"app-tier\": it lacks autoscaling:CompleteLifecycleAction",
            "alarm \"ScaleUpAlarm\": it looks at a metric that does not exist: its dimension is SQSQueueName=web-app-image-transport",
            "alarm \"ScaleUpAlarm\": it has no action",
            "alarm \"ScaleDownAlarm\": it has no action",
            "Auto Scaling group \"apptierAutoscaling\": its smallest and largest size are both 1",
            "Auto Scaling group \"apptierAutoscaling\": it has no scaling policy",
            "Auto Scaling group \"apptierAutoscaling\": its image is for x86_64, instance type c7g.large is arm64",
            "Auto Scaling group \"apptierAutoscaling\": its machines answer IMDSv1",
            "Auto Scaling group \"apptierAutoscaling\": its machines have no role",
        ] {
            assert!(text.iter().any(|line| line.starts_with(expected)), "{expected}\n{}", text.join("\n"));
        }
        assert!(findings.iter().all(|found| !found.remedy.is_empty()));
    }
}
