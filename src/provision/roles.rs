//! What the machines of a stack may do: no more than they need, each on the resources of its own stack.

use serde_json::{Value, json};

use super::stack::role_path;
use super::user_data::Tier;
use crate::config::Names;

/// Of the policy documents that IAM and S3 know; there is no later one.
const LANGUAGE: &str = "2012-10-17";
/// Of the statement that this program keeps in a bucket's policy; others are left as they are.
pub const TLS_ONLY: &str = "ImgclsTlsOnly";

/// Names of resources as policies write them, in one account and region.
pub struct Arns<'a> {
    account: &'a str,
    region: &'a str,
}

/// What the permissions are on.
pub struct Scope<'a> {
    pub arns: &'a Arns<'a>,
    pub names: &'a Names,
    pub worker_group: &'a str,
    pub log_group: &'a str,
}

impl<'a> Arns<'a> {
    pub fn new(account: &'a str, region: &'a str) -> Self {
        Arns { account, region }
    }

    fn of(&self, service: &str, rest: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{rest}", partition(self.region), self.region, self.account)
    }

    pub fn queue(&self, name: &str) -> String {
        self.of("sqs", name)
    }

    /// Bucket names are the world's: their ARN has no account.
    pub fn bucket(&self, name: &str) -> String {
        format!("arn:{}:s3:::{name}", partition(self.region))
    }

    /// A role or profile is no region's.
    pub fn instance_profile(&self, stack: &str, name: &str) -> String {
        let (partition, account, path) = (partition(self.region), self.account, role_path(stack));
        format!("arn:{partition}:iam::{account}:instance-profile{path}{name}")
    }

    pub fn group(&self, name: &str) -> String {
        self.of("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{name}"))
    }

    pub fn log_group(&self, name: &str) -> String {
        self.of("logs", &format!("log-group:{name}"))
    }

    pub fn alarm(&self, name: &str) -> String {
        self.of("cloudwatch", &format!("alarm:{name}"))
    }
}

pub fn partition(region: &str) -> &'static str {
    match region {
        region if region.starts_with("cn-") => "aws-cn",
        region if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

fn document(statements: Vec<Value>) -> Value {
    json!({"Version": LANGUAGE, "Statement": Value::Array(statements)})
}

fn allow(actions: &[&str], resources: &[String]) -> Value {
    json!({"Effect": "Allow", "Action": actions, "Resource": resources})
}

pub fn assumed_by_instances(region: &str) -> Value {
    let service = if region.starts_with("cn-") { "ec2.amazonaws.com.cn" } else { "ec2.amazonaws.com" };
    document(vec![json!({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})])
}

/// The policy of a bucket: nothing goes over a line that can be listened to.
pub fn tls_only(bucket_arn: &str) -> Value {
    document(vec![json!({
        "Sid": TLS_ONLY,
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [bucket_arn, format!("{bucket_arn}/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    })])
}

const LOOK_AT_QUEUE: [&str; 2] = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl"];
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

    /// What every machine needs: to say what it does, and not to change the program that the others run.
    fn of_every_machine(&self) -> [Value; 2] {
        let logs = format!("{}:*", self.arns.log_group(self.log_group));
        [
            allow(&["logs:CreateLogStream", "logs:PutLogEvents"], &[logs]),
            json!({
                "Effect": "Deny",
                "Action": ["s3:DeleteObject", "s3:PutObject"],
                "Resource": [self.input("bundle/*")],
            }),
        ]
    }
}

/// Of workers. They put images too: those of the original's messages, under their file names.
pub fn worker(scope: &Scope<'_>) -> Value {
    let names = scope.names;
    let mut statements = vec![
        allow(&RECEIVE, &[scope.queue(&names.request_queue)]),
        allow(
            &SEND,
            &[scope.queue(&names.dead_letter_queue()), scope.queue(&names.result_queue), scope.reply_queues()],
        ),
        // Without it S3 says of a missing object that it is forbidden.
        allow(&["s3:ListBucket"], &scope.buckets()),
        allow(&["s3:GetObject"], &[scope.input("bundle/*"), scope.input("images/*"), scope.output("*")]),
        allow(&["s3:PutObject"], &[scope.input("*"), scope.output("*")]),
        // The marker of a job whose client left before it knew the id.
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
    statements.extend(scope.of_every_machine());
    document(statements)
}

/// Of the web tier, beside which `imgcls autoscale` runs.
pub fn web(scope: &Scope<'_>) -> Value {
    let names = scope.names;
    let everything = ["*".to_owned()];
    let mut statements = vec![
        allow(&SEND, &[scope.queue(&names.request_queue)]),
        allow(&LOOK_AT_QUEUE, &[scope.queue(&names.dead_letter_queue())]),
        allow(&RECEIVE, &[scope.queue(&names.result_queue)]),
        allow(&KEEP_REPLY_QUEUE, &[scope.reply_queues()]),
        // These know no narrower resource.
        allow(&["autoscaling:DescribeAutoScalingGroups", "sqs:ListQueues"], &everything),
        allow(&["s3:ListBucket"], &scope.buckets()),
        allow(&["s3:GetObject"], &[scope.input("bundle/*"), scope.input("images/*"), scope.output("*")]),
        allow(&["s3:DeleteObject", "s3:PutObject"], &[scope.input("images/*")]),
        allow(&["s3:PutObject"], &[scope.output("results/*")]),
        allow(&["autoscaling:SetDesiredCapacity"], &[scope.arns.group(scope.worker_group)]),
        json!({
            "Effect": "Allow",
            "Action": ["cloudwatch:PutMetricData"],
            "Resource": everything,
            "Condition": {"StringEquals": {"cloudwatch:namespace": crate::protocol::BACKLOG_NAMESPACE}},
        }),
    ];
    statements.extend(scope.of_every_machine());
    document(statements)
}

/// Every action that a tier's own policy allows, each on one resource that it is allowed on.
pub fn needed(tier: Tier, scope: &Scope<'_>) -> Vec<(String, String)> {
    let document = match tier {
        Tier::Worker => worker(scope),
        Tier::Web => web(scope),
    };
    let mut needed = Vec::new();
    for statement in listed(&document["Statement"]).into_iter().filter(|statement| statement["Effect"] == "Allow") {
        for action in listed(&statement["Action"]) {
            for resource in listed(&statement["Resource"]) {
                let (action, resource) = (action.as_str().unwrap_or_default(), resource.as_str().unwrap_or_default());
                // A name in the place of any: `bundle/*` is asked about as `bundle/x`.
                needed.push((action.to_owned(), resource.replace('*', "x")));
            }
        }
    }
    needed
}

/// Whether a policy document lets its holder do an action on a resource, conditions taken as met: an explicit refusal
/// beats every permission.
pub fn allows(document: &Value, action: &str, resource: &str) -> bool {
    says(document, "Allow", action, resource) && !refuses(document, action, resource)
}

/// Whether it refuses that outright, whatever other documents allow.
pub fn refuses(document: &Value, action: &str, resource: &str) -> bool {
    says(document, "Deny", action, resource)
}

fn says(document: &Value, effect: &str, action: &str, resource: &str) -> bool {
    listed(&document["Statement"]).iter().any(|statement| {
        statement["Effect"] == effect
            && applies(statement, "Action", action)
            && applies(statement, "Resource", resource)
            && (effect == "Allow" || statement.get("Condition").is_none())
    })
}

fn applies(statement: &Value, member: &str, subject: &str) -> bool {
    let ignores_case = member == "Action";
    let is_matched = |value: &Value| {
        listed(value).iter().filter_map(|pattern| pattern.as_str()).any(|pattern| {
            if ignores_case {
                matches(pattern.to_ascii_lowercase().as_bytes(), subject.to_ascii_lowercase().as_bytes())
            } else {
                matches(pattern.as_bytes(), subject.as_bytes())
            }
        })
    };
    match (statement.get(member), statement.get(format!("Not{member}"))) {
        (Some(value), _) => is_matched(value),
        (None, Some(value)) => !is_matched(value),
        (None, None) => false,
    }
}

/// One or a list: policies write both.
fn listed(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        Value::Null => Vec::new(),
        value => vec![value],
    }
}

/// `*` stands for anything, `?` for one byte.
fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    // Where to go on after a mismatch: past the last star, which then swallows one byte more.
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < subject.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, seen));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == subject[seen] => (at, seen) = (at + 1, seen + 1),
            _ => match star {
                Some((after, swallowed)) => {
                    (at, seen) = (after, swallowed + 1);
                    star = Some((after, swallowed + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "123456789012";

    /// Who may do what: W the worker, F the web tier.
    const TABLE: [(&str, &str, &str); 44] = [
        ("W", "sqs:ReceiveMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:DeleteMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:ChangeMessageVisibility", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("F", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("WF", "sqs:GetQueueAttributes", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:DeleteQueue", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:PurgeQueue", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("", "sqs:SetQueueAttributes", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport"),
        ("W", "sqs:SendMessage", "arn:aws:sqs:us-east-1:123456789012:web-app-image-transport-dead"),
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
        ("WF", "s3:DeleteObject", "arn:aws:s3:::in/images/1"),
        ("WF", "s3:PutObject", "arn:aws:s3:::out/results/1.json"),
        ("W", "s3:PutObject", "arn:aws:s3:::out/test_0"),
        ("", "s3:DeleteObject", "arn:aws:s3:::out/results/1.json"),
        ("", "s3:DeleteBucket", "arn:aws:s3:::in"),
        ("", "s3:PutBucketPolicy", "arn:aws:s3:::in"),
        ("", "s3:GetObject", "arn:aws:s3:::other/images/1"),
        ("WF", "logs:PutLogEvents", "arn:aws:logs:us-east-1:123456789012:log-group:imgcls:log-stream:i-1"),
        ("", "logs:DeleteLogGroup", "arn:aws:logs:us-east-1:123456789012:log-group:imgcls"),
        (
            "W",
            "autoscaling:CompleteLifecycleAction",
            "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:u:autoScalingGroupName/apptierAutoscaling",
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
    fn both_roles_may_do_what_they_need_and_no_more() {
        let names = Names { input_bucket: "in".to_owned(), output_bucket: "out".to_owned(), ..Names::local("imgcls") };
        let arns = Arns::new(ACCOUNT, "us-east-1");
        let scope = Scope { arns: &arns, names: &names, worker_group: "apptierAutoscaling", log_group: "imgcls" };
        let (worker, web) = (worker(&scope), web(&scope));
        for (who, action, resource) in TABLE {
            assert_eq!(allows(&worker, action, resource), who.contains('W'), "worker: {action} on {resource}");
            assert_eq!(allows(&web, action, resource), who.contains('F'), "web tier: {action} on {resource}");
        }
    }

    #[test]
    fn no_action_is_wild_and_only_what_knows_no_narrower_resource_is_on_all() {
        let names = Names::local("imgcls");
        let arns = Arns::new(ACCOUNT, "us-east-1");
        let scope = Scope { arns: &arns, names: &names, worker_group: "group", log_group: "imgcls" };
        for document in [worker(&scope), web(&scope)] {
            for statement in document["Statement"].as_array().expect("statements") {
                let actions = listed(&statement["Action"]);
                assert!(actions.iter().all(|action| !action.as_str().expect("an action").contains('*')), "{statement}");
                let is_on_all = listed(&statement["Resource"]).iter().any(|resource| **resource == "*");
                let knows_no_narrower = ["DescribeAutoScalingGroups", "ListQueues", "PutMetricData"];
                let is_known = |action: &&Value| {
                    knows_no_narrower.iter().any(|known| action.as_str().is_some_and(|action| action.ends_with(known)))
                };
                assert!(!is_on_all || actions.iter().all(is_known), "{statement}");
            }
        }
    }

    #[test]
    fn documents_are_read_as_aws_reads_them() {
        let document = json!({"Statement": [
            {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"},
            {"Effect": "Deny", "Action": "S3:delete?bject", "Resource": ["arn:*:kept/*"]},
        ]});
        assert!(allows(&document, "s3:DeleteObject", "arn:aws:s3:::other/1"));
        assert!(!allows(&document, "s3:DeleteObject", "arn:aws:s3:::kept/1"));
        assert!(!allows(&document, "iam:CreateUser", "*") && refuses(&document, "s3:DeleteObject", "arn:x:kept/"));
        assert!(matches(b"a*b*c", b"a--b--b-c") && !matches(b"a*b*c", b"a--c") && matches(b"*", b""));
    }
}
