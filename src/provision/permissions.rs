//! IAM policy documents: the permissions of each tier, limited to the actions that it needs and to the resources of its
//! own stack, and the policy of the buckets.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::arns::Arns;
use super::policy_evaluation::listed;
use super::tier::Tier;
use crate::config::Names;
use crate::keys::journal::KEYS_FOLDER;
use crate::protocol::{BACKLOG_NAMESPACE, BATCHES_FOLDER, MODELS_FOLDER};

/// Version of the policy language, the newest one.
const LANGUAGE: &str = "2012-10-17";
/// Id of the statement that this program owns in a bucket's policy. It leaves all other statements alone.
pub(super) const TLS_ONLY: &str = "ImgclsTlsOnly";
/// Id of the statement that this program owns in a queue's policy.
pub(super) const BUCKET_EVENTS: &str = "ImgclsBucketEvents";

/// The resources that permissions are granted on.
pub(super) struct Scope<'a> {
    pub arns: &'a Arns<'a>,
    pub names: &'a Names,
    /// Buckets of somebody else that workers read.
    pub read_buckets: &'a [String],
    pub worker_group: &'a str,
    pub web_group: &'a str,
    pub log_group: &'a str,
    /// People get a shell through Session Manager.
    pub session_manager: bool,
}

pub(super) fn document(statements: Vec<Value>) -> Value {
    json!({"Version": LANGUAGE, "Statement": Value::Array(statements)})
}

pub(super) fn allow(actions: &[&str], resources: &[String]) -> Value {
    json!({"Effect": "Allow", "Action": actions, "Resource": resources})
}

/// The service that a role of instances trusts.
pub(super) fn instance_service(region: &str) -> &'static str {
    if region.starts_with("cn-") { "ec2.amazonaws.com.cn" } else { "ec2.amazonaws.com" }
}

pub(super) fn assumed_by_instances(region: &str) -> Value {
    let service = instance_service(region);
    document(vec![json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})])
}

/// A bucket policy that refuses requests without TLS.
pub(super) fn tls_only(bucket_arn: &str) -> Value {
    document(vec![json!({
        "Sid": TLS_ONLY,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket_arn, format!("{bucket_arn}/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    })])
}

/// A queue policy that lets S3 send the events of these buckets, which belong to the account of the queue.
pub(super) fn bucket_events(queue_arn: &str, bucket_arns: &[String], account: &str) -> Value {
    document(vec![json!({
        "Sid": BUCKET_EVENTS,
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": bucket_arns},
            "StringEquals": {"aws:SourceAccount": account},
        },
    })])
}

const RECEIVE: [&str; 5] = [
    "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ReceiveMessage",
];
const SEND: [&str; 3] = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"];
const KEEP_REPLY_QUEUE: [&str; 9] = [
    "sqs:ChangeMessageVisibility",
    "sqs:CreateQueue",
    "sqs:DeleteMessage",
    "sqs:DeleteQueue",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ListQueueTags",
    "sqs:ReceiveMessage",
    "sqs:TagQueue",
];

impl Scope<'_> {
    fn queue(&self, name: &str) -> String {
        self.arns.queue(name)
    }

    /// The request queues of both classes of service.
    fn request_queues(&self) -> [String; 2] {
        [self.queue(&self.names.request_queue), self.queue(&self.names.bulk_queue())]
    }

    fn reply_queues(&self) -> String {
        self.arns.queue(&format!("{}-*", self.names.result_queue))
    }

    fn buckets(&self) -> Vec<String> {
        vec![self.arns.bucket(&self.names.input_bucket), self.arns.bucket(&self.names.output_bucket)]
    }

    fn input(&self, keys: &str) -> String {
        format!("{}/{keys}", self.arns.bucket(&self.names.input_bucket))
    }

    fn output(&self, keys: &str) -> String {
        format!("{}/{keys}", self.arns.bucket(&self.names.output_bucket))
    }

    /// The objects that a machine downloads: the program and the models.
    fn downloads(&self) -> [String; 2] {
        [self.input("bundle/*"), self.input(&format!("{MODELS_FOLDER}*"))]
    }

    /// The keys of clients, which only web processes read and no machine may write.
    fn keys(&self) -> String {
        self.input(&format!("{KEYS_FOLDER}*"))
    }

    /// The objects that no machine may write.
    fn protected(&self) -> Vec<String> {
        self.downloads().into_iter().chain([self.keys()]).collect()
    }

    /// Statements for every machine: it may write its log, and may neither replace what other machines download and run
    /// nor give out keys.
    fn common_statements(&self) -> Vec<Value> {
        let logs = format!("{}:*", self.arns.log_group(self.log_group));
        let mut statements = vec![
            allow(&["logs:CreateLogStream", "logs:PutLogEvents"], &[logs]),
            json!({
                "Effect": "Deny",
                "Action": ["s3:DeleteObject", "s3:PutObject"],
                "Resource": self.protected(),
            }),
        ];
        if self.session_manager {
            // These actions do not support resource-level permissions.
            statements.push(allow(&SESSION_MANAGER, &["*".to_owned()]));
        }
        statements
    }
}

/// Session Manager needs these: its agent keeps a connection to the service. Source: the manual of Systems Manager.
const SESSION_MANAGER: [&str; 5] = [
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
];

/// Id of the statement about the customer's keys.
const CUSTOMER_KEYS: &str = "ImgclsCustomerKeys";

pub(super) fn is_of_customer_keys(statement: &Value) -> bool {
    statement["Sid"].as_str().is_some_and(|id| id.starts_with(CUSTOMER_KEYS))
}

/// Permissions to use keys, which may be given by ARN, by id or by alias. IAM knows an alias only as a condition.
pub(super) fn customer_keys(arns: &Arns<'_>, keys: &BTreeSet<String>) -> Vec<Value> {
    let alias = |key: &str| key.find("alias/").map(|at| key[at..].to_owned());
    let aliases: Vec<String> = keys.iter().filter_map(|key| alias(key)).collect();
    let plain = keys.iter().filter(|key| alias(key).is_none());
    let plain: Vec<String> =
        plain.map(|key| if key.starts_with("arn:") { key.clone() } else { arns.key(key) }).collect();
    let statement = |id: &str, resources: Vec<String>| {
        let mut statement = allow(&["kms:Decrypt", "kms:GenerateDataKey"], &resources);
        statement["Sid"] = format!("{CUSTOMER_KEYS}{id}").into();
        statement
    };
    let mut statements = Vec::new();
    if !plain.is_empty() {
        statements.push(statement("", plain));
    }
    if !aliases.is_empty() {
        let mut by_alias = statement("ByAlias", vec![arns.key("*")]);
        by_alias["Condition"] = json!({"ForAnyValue:StringEquals": {"kms:ResourceAliases": aliases}});
        statements.push(by_alias);
    }
    statements
}

/// Permissions of workers. They also store the images of messages in the legacy wire format, under their file names.
pub(super) fn worker(scope: &Scope<'_>) -> Value {
    let names = scope.names;
    let mut statements = vec![
        allow(&RECEIVE, &scope.request_queues()),
        allow(
            &SEND,
            &[scope.queue(&names.dead_letter_queue()), scope.queue(&names.result_queue), scope.reply_queues()],
        ),
        // Without this permission S3 reports a missing object as forbidden.
        allow(&["s3:ListBucket"], &scope.buckets()),
        allow(&["s3:GetObject"], &scope.downloads()),
        allow(&["s3:GetObject"], &[scope.input("images/*"), scope.output("*")]),
        allow(&["s3:PutObject"], &[scope.input("*"), scope.output("*")]),
        // Deletes the marker of a job whose client disconnected before it received the id.
        allow(&["s3:DeleteObject"], &[scope.input("images/*")]),
        allow(
            &[
                "autoscaling:CompleteLifecycleAction",
                "autoscaling:RecordLifecycleActionHeartbeat",
                "autoscaling:SetInstanceProtection",
            ],
            &[scope.arns.group(scope.worker_group)],
        ),
    ];
    if !scope.read_buckets.is_empty() {
        let buckets: Vec<String> = scope.read_buckets.iter().map(|bucket| scope.arns.bucket(bucket)).collect();
        let objects: Vec<String> = buckets.iter().map(|bucket| format!("{bucket}/*")).collect();
        statements.push(allow(&["s3:ListBucket"], &buckets));
        statements.push(allow(&["s3:GetObject"], &objects));
        // A message with several events of such a bucket is divided.
        statements.push(allow(&["sqs:SendMessage"], &[scope.queue(&names.bulk_queue())]));
    }
    statements.extend(scope.common_statements());
    document(statements)
}

/// Permissions of the web tier. `imgcls autoscale` runs beside it under the same role.
pub(super) fn web(scope: &Scope<'_>) -> Value {
    let names = scope.names;
    let everything = ["*".to_owned()];
    let mut statements = vec![
        allow(&SEND, &scope.request_queues()),
        // It sends callbacks, and keeps those that it gives up.
        allow(&SEND, &[scope.queue(&names.callback_queue()), scope.queue(&names.dead_letter_queue())]),
        allow(&RECEIVE, &[scope.queue(&names.result_queue), scope.queue(&names.callback_queue())]),
        allow(&KEEP_REPLY_QUEUE, &[scope.reply_queues()]),
        // These actions do not support resource-level permissions.
        allow(&["autoscaling:DescribeAutoScalingGroups", "sqs:ListQueues"], &everything),
        allow(&["s3:ListBucket"], &scope.buckets()),
        allow(&["s3:GetObject"], &scope.downloads()),
        allow(&["s3:GetObject"], &[scope.input("images/*"), scope.output("*"), scope.keys()]),
        allow(&["s3:DeleteObject", "s3:PutObject"], &[scope.input("images/*")]),
        allow(&["s3:PutObject"], &[scope.output("results/*"), scope.output(&format!("{BATCHES_FOLDER}*"))]),
        allow(&["autoscaling:SetDesiredCapacity"], &[scope.arns.group(scope.worker_group)]),
        allow(&["autoscaling:CompleteLifecycleAction"], &[scope.arns.group(scope.web_group)]),
        json!({
            "Effect": "Allow",
            "Action": ["cloudwatch:PutMetricData"],
            "Resource": everything,
            "Condition": {"StringEquals": {"cloudwatch:namespace": BACKLOG_NAMESPACE}},
        }),
    ];
    statements.extend(scope.common_statements());
    document(statements)
}

/// Every action that a tier's policy allows, each with a resource that it is allowed on, which may be a pattern.
pub(super) fn needed(tier: Tier, scope: &Scope<'_>) -> Vec<(String, String)> {
    let document = match tier {
        Tier::Worker => worker(scope),
        Tier::Web => web(scope),
    };
    let mut needed = Vec::new();
    for statement in listed(&document["Statement"]).into_iter().filter(|statement| statement["Effect"] == "Allow") {
        for action in listed(&statement["Action"]) {
            for resource in listed(&statement["Resource"]) {
                let (action, resource) = (action.as_str().unwrap_or_default(), resource.as_str().unwrap_or_default());
                needed.push((action.to_owned(), resource.to_owned()));
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::super::policy_evaluation::allows;
    use super::*;

    const ACCOUNT: &str = "123456789012";

    /// Tiers that may perform an action on a resource: W for the worker, F for the web tier.
    const TABLE: [(&str, &str, &str); 59] = [
        ("W", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:DeleteMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:ChangeMessageVisibility", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("F", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("WF", "sqs:GetQueueAttributes", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:DeleteQueue", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:PurgeQueue", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:SetQueueAttributes", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-bulk"),
        ("WF", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-bulk"),
        ("WF", "sqs:GetQueueAttributes", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-bulk"),
        ("F", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-callbacks"),
        ("F", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-callbacks"),
        ("WF", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-dead"),
        ("WF", "sqs:GetQueueUrl", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-dead"),
        ("", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-dead"),
        ("W", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue"),
        ("F", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue"),
        ("", "sqs:DeleteQueue", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue"),
        ("", "sqs:TagQueue", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue"),
        ("W", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue-0123456789abcdef"),
        ("F", "sqs:CreateQueue", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue-0123456789abcdef"),
        ("F", "sqs:TagQueue", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue-0123456789abcdef"),
        ("F", "sqs:DeleteQueue", "arn:aws:sqs:us-east-1:123456789012:app-web-result-queue-0123456789abcdef"),
        ("", "sqs:CreateQueue", "arn:aws:sqs:us-east-1:123456789012:some-other-queue"),
        ("", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:some-other-queue"),
        ("", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:999999999999:web-app-image-transport"),
        ("WF", "s3:ListBucket", "arn:aws:s3:::in"),
        ("WF", "s3:ListBucket", "arn:aws:s3:::out"),
        ("", "s3:ListBucket", "arn:aws:s3:::other"),
        ("WF", "s3:GetObject", "arn:aws:s3:::in/images/1"),
        ("WF", "s3:GetObject", "arn:aws:s3:::in/bundle/0/imgcls.tar.gz"),
        ("WF", "s3:PutObject", "arn:aws:s3:::in/images/1"),
        ("W", "s3:PutObject", "arn:aws:s3:::in/test_0.JPEG"),
        ("", "s3:PutObject", "arn:aws:s3:::in/bundle/0/imgcls.tar.gz"),
        ("", "s3:DeleteObject", "arn:aws:s3:::in/bundle/0/imgcls.tar.gz"),
        ("WF", "s3:GetObject", "arn:aws:s3:::in/models/birds/current"),
        ("", "s3:PutObject", "arn:aws:s3:::in/models/birds/current"),
        ("", "s3:DeleteObject", "arn:aws:s3:::in/models/birds/1/0.tar"),
        ("F", "s3:GetObject", "arn:aws:s3:::in/keys/000000000001.json"),
        ("", "s3:PutObject", "arn:aws:s3:::in/keys/000000000002.json"),
        ("", "s3:DeleteObject", "arn:aws:s3:::in/keys/newest"),
        ("WF", "s3:DeleteObject", "arn:aws:s3:::in/images/1"),
        ("WF", "s3:PutObject", "arn:aws:s3:::out/results/1.json"),
        ("WF", "s3:PutObject", "arn:aws:s3:::out/batches/1.json"),
        ("W", "s3:PutObject", "arn:aws:s3:::out/test_0"),
        ("", "s3:DeleteObject", "arn:aws:s3:::out/results/1.json"),
        ("", "s3:DeleteBucket", "arn:aws:s3:::in"),
        ("", "s3:PutBucketPolicy", "arn:aws:s3:::in"),
        ("", "s3:GetObject", "arn:aws:s3:::other/images/1"),
        ("W", "s3:GetObject", "arn:aws:s3:::archive/2024/a.jpg"),
        ("", "s3:PutObject", "arn:aws:s3:::archive/2024/a.jpg"),
        ("WF", "logs:PutLogEvents", "arn:aws:logs:us-east-1:123456789012:log-group:imgcls:log-stream:i-1"),
        ("", "logs:DeleteLogGroup", "arn:aws:logs:us-east-1:123456789012:log-group:imgcls"),
        (
            "W",
            "autoscaling:CompleteLifecycleAction",
            "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/apptierAutoscaling",
        ),
        (
            "F",
            "autoscaling:CompleteLifecycleAction",
            "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/webtierAutoscaling",
        ),
        (
            "F",
            "autoscaling:SetDesiredCapacity",
            "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/apptierAutoscaling",
        ),
        (
            "",
            "autoscaling:SetDesiredCapacity",
            "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/another",
        ),
        ("", "iam:PassRole", "arn:aws:iam::123456789012:role/imgcls/imgcls/web-tier-sqs-access-role"),
    ];

    #[test]
    fn roles_allow_what_their_tier_needs_and_nothing_else() {
        let names = Names { input_bucket: "in".to_owned(), output_bucket: "out".to_owned(), ..Names::local("imgcls") };
        let arns = Arns::new(ACCOUNT, "us-east-1");
        let read_buckets = ["archive".to_owned()];
        let (worker_group, web_group, log_group) = ("apptierAutoscaling", "webtierAutoscaling", "imgcls");
        let scope = Scope {
            arns: &arns,
            names: &names,
            read_buckets: &read_buckets,
            worker_group,
            web_group,
            log_group,
            session_manager: false,
        };
        let (worker, web) = (worker(&scope), web(&scope));
        for (who, action, resource) in TABLE {
            assert_eq!(allows(&worker, action, resource), who.contains('W'), "worker: {action} on {resource}");
            assert_eq!(allows(&web, action, resource), who.contains('F'), "web tier: {action} on {resource}");
        }
    }

    #[test]
    fn no_action_is_a_wildcard_and_only_actions_without_resource_level_permissions_apply_to_all() {
        let names = Names::local("imgcls");
        let arns = Arns::new(ACCOUNT, "us-east-1");
        let (worker_group, web_group, log_group) = ("group", "web-group", "imgcls");
        let (arns, names) = (&arns, &names);
        let scope =
            Scope { arns, names, read_buckets: &[], worker_group, web_group, log_group, session_manager: false };
        for document in [worker(&scope), web(&scope)] {
            for statement in document["Statement"].as_array().expect("statements") {
                let actions = listed(&statement["Action"]);
                assert!(actions.iter().all(|action| !action.as_str().expect("an action").contains('*')), "{statement}");
                let is_on_all = listed(&statement["Resource"]).iter().any(|resource| **resource == "*");
                let without_resource_level = ["DescribeAutoScalingGroups", "ListQueues", "PutMetricData"];
                let is_known = |action: &&Value| {
                    without_resource_level
                        .iter()
                        .any(|known| action.as_str().is_some_and(|action| action.ends_with(known)))
                };
                assert!(!is_on_all || actions.iter().all(is_known), "{statement}");
            }
        }
    }
}
