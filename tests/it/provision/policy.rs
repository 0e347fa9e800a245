//! `provision policy`: the actions that it allows are those that the program calls.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::proxy::{self, Call};
use super::{Stack, balancer, between, call_emulator, environment};
use crate::emulators::{credentials, moto_of_stacks};

/// Actions that no call is named after.
const CHECKED_BY_AWS: [&str; 6] = [
    // Checked when a group is made whose machines start from a launch template.
    "ec2:RunInstances",
    "iam:PassRole",
    "ssm:GetParameters",
    // Checked when an account makes its first group.
    "iam:CreateServiceLinkedRole",
    // Checked when a bucket or a log group is made with tags.
    "logs:TagResource",
    "s3:TagResource",
];

/// Actions of calls that this test does not make: a rollback, reading logs, a region that is not enabled.
const OF_OTHER_COMMANDS: [&str; 3] =
    ["autoscaling:CancelInstanceRefresh", "ec2:DescribeRegions", "logs:FilterLogEvents"];

/// The IAM actions that a call needs.
fn actions(call: &Call) -> Vec<String> {
    let authorization = call.header("authorization").unwrap_or_default();
    let service = authorization.split('/').nth(3).unwrap_or_default();
    let prefix = match service {
        "monitoring" => "cloudwatch",
        "tagging" => "tag",
        other => other,
    };
    match (service, call.operation()) {
        // It needs no permission.
        ("sts", _) => Vec::new(),
        ("budgets", Some(name)) if name.starts_with("Describe") => vec!["budgets:ViewBudget".to_owned()],
        ("budgets", _) => vec!["budgets:ModifyBudget".to_owned()],
        ("s3", _) => s3(call).iter().map(|name| format!("s3:{name}")).collect(),
        (_, Some(name)) => vec![format!("{prefix}:{name}")],
        (_, None) => panic!("an unknown call: {}", call.head),
    }
}

fn s3(call: &Call) -> &'static [&'static str] {
    let (path, query) = call.path().split_once('?').unwrap_or((call.path(), ""));
    let path = path.trim_matches('/');
    let mut parameter =
        query.split('&').filter(|name| !name.starts_with("x-id")).map(|pair| pair.split('=').next().unwrap());
    let asked = parameter
        .find(|name| !["delimiter", "encoding-type", "key-marker", "max-keys", "prefix", ""].contains(name))
        .unwrap_or_default();
    match (call.method(), path.contains('/'), asked) {
        ("GET", false, "") if path.is_empty() => &["ListAllMyBuckets"],
        ("GET", false, "tagging") => &["GetBucketTagging"],
        ("GET", false, "publicAccessBlock") => &["GetBucketPublicAccessBlock"],
        ("GET", false, "encryption") => &["GetEncryptionConfiguration"],
        ("GET", false, "lifecycle") => &["GetLifecycleConfiguration"],
        ("GET", false, "policy") => &["GetBucketPolicy"],
        ("GET", false, "versions") => &["ListBucketVersions"],
        ("GET", false, "location") => &["GetBucketLocation"],
        ("GET", false, "list-type") | ("HEAD", false, "") => &["ListBucket"],
        ("PUT", false, "") => &["CreateBucket"],
        ("PUT", false, "tagging") => &["PutBucketTagging"],
        ("PUT", false, "publicAccessBlock") => &["PutBucketPublicAccessBlock"],
        ("PUT", false, "encryption") => &["PutEncryptionConfiguration"],
        ("PUT", false, "lifecycle") => &["PutLifecycleConfiguration"],
        ("PUT", false, "policy") => &["PutBucketPolicy"],
        ("POST", false, "delete") => &["DeleteObject", "DeleteObjectVersion"],
        ("DELETE", false, "") => &["DeleteBucket"],
        ("DELETE", false, "policy") => &["DeleteBucketPolicy"],
        ("GET" | "HEAD", true, _) => &["GetObject"],
        ("PUT", true, _) => &["PutObject"],
        ("DELETE", true, _) => &["DeleteObject"],
        other => panic!("an unknown call of S3: {other:?} {}", call.path()),
    }
}

fn allowed(policy: &str) -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    let statements = policy["Statement"].as_array().unwrap();
    let actions = statements.iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    actions.map(|action| action.as_str().unwrap().to_owned()).collect()
}

/// Returns whether an entry of a policy, which may end with an asterisk, allows an action.
fn covers(allowed: &str, action: &str) -> bool {
    allowed.strip_suffix('*').map_or(allowed == action, |begin| action.starts_with(begin))
}

/// Changes by hand that only an update repairs.
fn change_by_hand(stack: &str) {
    let ec2 = |form: &str| call_emulator("ec2", &format!("Version=2016-11-15&{form}")).text();
    let filter = format!("Filter.1.Name=group-name&Filter.1.Value.1={stack}-imgcls-app-tier");
    let groups = ec2(&format!("Action=DescribeSecurityGroups&{filter}"));
    let id = between(&groups, "<groupId>", "</groupId>");
    let ssh = "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22";
    for (direction, rest) in [
        ("AuthorizeSecurityGroupIngress", format!("{ssh}&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0")),
        ("AuthorizeSecurityGroupEgress", format!("{ssh}&IpPermissions.1.IpRanges.1.CidrIp=10.0.0.0/8")),
        (
            "RevokeSecurityGroupEgress",
            "IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0".to_owned(),
        ),
    ] {
        ec2(&format!("Action={direction}&GroupId={id}&{rest}"));
    }
    let document = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22s3%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
    let iam = |form: &str| call_emulator("iam", &format!("Version=2010-05-08&{form}"));
    let role = format!("{stack}-app-tier-sqs-s3-access-role");
    iam(&format!("Action=PutRolePolicy&RoleName={role}&PolicyName=backdoor&PolicyDocument={document}"));
    let created = iam(&format!("Action=CreatePolicy&PolicyName={stack}-everything&PolicyDocument={document}")).text();
    let arn = between(&created, "<Arn>", "</Arn>");
    iam(&format!("Action=AttachRolePolicy&RoleName={role}&PolicyArn={arn}"));
    let untag = format!("Action=UntagInstanceProfile&InstanceProfileName={role}");
    iam(&format!("{untag}&TagKeys.member.1=imgcls:region"));
    let suspend = format!("Action=SuspendProcesses&AutoScalingGroupName={stack}-apptierAutoscaling");
    call_emulator("autoscaling", &format!("{suspend}&ScalingProcesses.member.1=Launch"));
    let dead = format!("{}/123456789012/{stack}-web-app-image-transport-dead", moto_of_stacks().url());
    call_emulator("sqs", &format!("Action=DeleteQueue&QueueUrl={dead}"));
}

/// Changes of a load balancer by hand that only an update repairs.
fn change_balancer_by_hand(name: &str) {
    let elb = |form: &str| call_emulator("elasticloadbalancing", &format!("Version=2015-12-01&{form}")).text();
    let found = elb(&format!("Action=DescribeLoadBalancers&Names.member.1={name}"));
    let balancer = between(&found, "<LoadBalancerArn>", "</LoadBalancerArn>");
    let subnets: Vec<&str> = found.split("<SubnetId>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect();
    let subnets = format!("Subnets.member.1={}&Subnets.member.2={}", subnets[0], subnets[1]);
    elb(&format!("Action=SetSubnets&LoadBalancerArn={balancer}&{subnets}"));
    let workers = format!("Filter.1.Name=group-name&Filter.1.Value.1={}-app-tier", name.trim_end_matches("-vpc"));
    let groups = call_emulator("ec2", &format!("Action=DescribeSecurityGroups&Version=2016-11-15&{workers}")).text();
    let group = between(&groups, "<groupId>", "</groupId>");
    elb(&format!("Action=SetSecurityGroups&LoadBalancerArn={balancer}&SecurityGroups.member.1={group}"));
    let found = elb(&format!("Action=DescribeListeners&LoadBalancerArn={balancer}"));
    let listener = between(&found, "<ListenerArn>", "</ListenerArn>");
    let found = elb(&format!("Action=DescribeTargetGroups&LoadBalancerArn={balancer}"));
    let target_group = between(&found, "<TargetGroupArn>", "</TargetGroupArn>");
    elb(&format!("Action=ModifyTargetGroup&TargetGroupArn={target_group}&HealthCheckPath=/"));
    let forward = format!("DefaultActions.member.1.Type=forward&DefaultActions.member.1.TargetGroupArn={target_group}");
    elb(&format!("Action=ModifyListener&ListenerArn={listener}&SslPolicy=ELBSecurityPolicy-2016-08&{forward}"));
    elb(&format!("Action=CreateListener&LoadBalancerArn={balancer}&Port=80&Protocol=HTTP&{forward}"));
}

#[test]
fn policy_allows_the_actions_that_are_called_and_no_others() {
    let called = Arc::new(Mutex::new(BTreeSet::new()));
    let recorded = Arc::clone(&called);
    let address = proxy::start(move |call| {
        recorded.lock().unwrap().extend(actions(call));
        call.forward_to(moto_of_stacks().address)
    });
    let url = format!("http://{address}");
    let network = call_emulator("ec2", "Action=DescribeVpcs&Version=2016-11-15").text();
    let target_group = |name: &str| {
        let vpc = between(&network, "<vpcId>", "</vpcId>");
        let form = format!("Action=CreateTargetGroup&Version=2015-12-01&Name={name}&Protocol=HTTP&Port=80&VpcId={vpc}");
        between(&call_emulator("elasticloadbalancing", &form).text(), "<TargetGroupArn>", "</TargetGroupArn>")
            .to_owned()
    };
    let (first, second) = (target_group("allowed-first"), target_group("allowed-second"));
    let told = ["--notify", "ops@example.org", "--budget", "50", "--target-group", &first];
    let changed = [
        &["--notify", "new@example.org", "--budget", "60", "--target-group", &second, "--keep-images", "3d"][..],
        &[
            "--visibility-timeout",
            "60s",
            "--max",
            "9",
            "--policy",
            "target",
            "--service-time",
            "20ms",
            "--max-image-age",
            "1h",
        ],
    ]
    .concat();
    let stack = Stack { environment: environment(&url), ..Stack::new("allowed") };
    stack.succeeds(&[&["apply"][..], &told].concat());
    stack.run(&["doctor"]);
    change_by_hand("allowed");
    stack.run(&[&["doctor"][..], &told].concat());
    stack.succeeds(&[&["apply"][..], &told].concat());
    stack.succeeds(&[&["apply"][..], &changed].concat());
    stack.succeeds(&[&["plan", "--image", "ami-12c6146b"][..], &told].concat());
    stack.destroy();

    // A stack at one endpoint: its buckets can be used, for keys and for data that is deleted.
    let mut environment = credentials();
    environment.push(("AWS_REGION".to_owned(), "us-east-1".to_owned()));
    environment.push(("AWS_ENDPOINT_URL".to_owned(), url.clone()));
    let used = Stack { environment, ..Stack::new("allowed-used") };
    used.succeeds(&["apply", "--auth", "required"]);
    used.succeeds(&["apply", "--auth", "required"]);
    used.destroy();

    // A stack with a load balancer of its own.
    let balanced = Stack { environment: super::environment(&url), ..Stack::new("allowed-tls") };
    let certificate = ["--certificate", &balancer::certificate()];
    balanced.succeeds(&[&["apply"][..], &certificate].concat());
    balanced.run(&[&["doctor"][..], &certificate].concat());
    change_balancer_by_hand("allowed-tls-imgcls-vpc");
    balanced.succeeds(&[&["apply"][..], &certificate].concat());
    balanced.destroy();

    let mut allowed = allowed(&stack.succeeds(&[&["policy"][..], &told].concat()));
    allowed.extend(self::allowed(&balanced.succeeds(&[&["policy"][..], &certificate].concat())));
    let called = called.lock().unwrap().clone();
    let missing: Vec<_> = called.iter().filter(|action| !allowed.iter().any(|one| covers(one, action))).collect();
    assert!(missing.is_empty(), "called, and not allowed: {missing:?}");
    let is_used = |allowed: &&String| called.iter().any(|action| covers(allowed, action));
    let unused: Vec<_> = allowed.iter().filter(|one| !is_used(one)).map(String::as_str).collect();
    let mut expected = [&CHECKED_BY_AWS[..], &OF_OTHER_COMMANDS].concat();
    expected.sort_unstable();
    assert_eq!(unused, expected, "allowed, and not called");
}

#[test]
fn policy_names_the_resources_of_the_stack_and_follows_its_settings() {
    let stack = Stack::new("narrow");
    let plain = stack.succeeds(&["policy", "--web-instances", "0"]);
    for absent in [
        "ModifyBudget",
        "sns:Subscribe",
        "AttachLoadBalancerTargetGroups",
        "CreateLoadBalancer",
        "elasticloadbalancing.amazonaws.com",
        "spot.amazonaws.com",
        "webtierAuto",
    ] {
        assert!(!plain.contains(absent), "{absent}\n{plain}");
    }
    let policy: Value = serde_json::from_str(&plain).unwrap();
    for statement in policy["Statement"].as_array().unwrap() {
        let is_everywhere = statement["Resource"].as_array().unwrap().iter().any(|resource| resource == "*");
        let changes = |action: &Value| {
            let name = action.as_str().unwrap().split_once(':').unwrap().1;
            !["Describe", "Get", "List"].iter().any(|reading| name.starts_with(reading)) && name != "RunInstances"
        };
        let is_free = is_everywhere && statement.get("Condition").is_none();
        assert!(!is_free || !statement["Action"].as_array().unwrap().iter().any(changes), "{statement}");
        assert!(!statement["Action"].to_string().contains('*'), "{statement}");
    }
    let with_all = stack.succeeds(&["policy", "--notify", "a@example.org", "--budget", "5", "--spot-share", "50"]);
    for present in ["budgets:ModifyBudget", "sns:Subscribe", "spot.amazonaws.com", "narrow-webtierAutoscaling"] {
        assert!(with_all.contains(present), "{present}\n{with_all}");
    }
}
