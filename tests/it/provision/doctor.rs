//! `provision doctor` is silent about a new stack, and names each fault that is planted.

use std::sync::atomic::Ordering;

use super::{Stack, between, call_emulator, call_s3};
use crate::compatible_store::OldStore;
use crate::emulators::moto_of_stacks;

const QUEUE: &str = "faulty-web-app-image-transport";
const BULK_QUEUE: &str = "faulty-web-app-image-transport-bulk";
const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
const GROUP: &str = "faulty-apptierAutoscaling";
const WORKER_ROLE: &str = "faulty-app-tier-sqs-s3-access-role";
const WEB_ROLE: &str = "faulty-web-tier-sqs-access-role";
const TEMPLATE: &str = "faulty-ApptierTemplate";
const BUCKET: &str = "faulty-imgcls-123456789012-us-east-1-output";
const INPUT_BUCKET: &str = "faulty-imgcls-123456789012-us-east-1-input";

/// A fault: what is planted, and the beginning of the line that names it.
type Fault = (Box<dyn Fn()>, String);

fn fault(plant: impl Fn() + 'static, line: impl Into<String>) -> Fault {
    (Box::new(plant), line.into())
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn sqs(action: &str, queue: &str, rest: &str) {
    let url = encoded(&format!("{}/123456789012/{queue}", moto_of_stacks().url()));
    call_emulator("sqs", &format!("Action={action}&QueueUrl={url}&{rest}"));
}

fn attribute(queue: &'static str, name: &'static str, value: &'static str) -> impl Fn() {
    move || {
        sqs("SetQueueAttributes", queue, &format!("Attribute.1.Name={name}&Attribute.1.Value={}", encoded(value)));
    }
}

fn iam(form: String) -> impl Fn() {
    move || drop(call_emulator("iam", &format!("Version=2010-05-08&{form}")))
}

fn role_policy(role: &str, name: &str, action: &str, resource: &str) -> impl Fn() + use<> {
    let statement = serde_json::json!({"Effect": "Allow", "Action": action, "Resource": resource});
    let document = serde_json::json!({"Version": "2012-10-17", "Statement": [statement]}).to_string();
    iam(format!("Action=PutRolePolicy&RoleName={role}&PolicyName={name}&PolicyDocument={}", encoded(&document)))
}

fn group(form: &'static str) -> impl Fn() {
    move || drop(call_emulator("autoscaling", &format!("AutoScalingGroupName={GROUP}&{form}")))
}

/// The ARN of a scaling policy of the group.
fn policy_arn(name: &str) -> String {
    let form = format!("Action=DescribePolicies&AutoScalingGroupName={GROUP}&PolicyNames.member.1={name}");
    between(&call_emulator("autoscaling", &form).text(), "<PolicyARN>", "</PolicyARN>").to_owned()
}

/// An alarm on the depth of the queue.
fn alarm(name: &str, comparison: &str, threshold: u32, dimension: (&str, &str), action: Option<&str>) {
    let action = action.map(|arn| format!("&AlarmActions.member.1={}", encoded(arn))).unwrap_or_default();
    let form = format!(
        "Action=PutMetricAlarm&AlarmName={name}&Namespace=AWS%2FSQS&MetricName=ApproximateNumberOfMessagesVisible\
         &Statistic=Sum&Period=60&EvaluationPeriods=1&Threshold={threshold}&ComparisonOperator={comparison}\
         &Dimensions.member.1.Name={}&Dimensions.member.1.Value={}{action}",
        dimension.0,
        encoded(dimension.1)
    );
    call_emulator("monitoring", &form);
}

fn security_group(action: &'static str, name: &'static str, rule: &'static str) -> impl Fn() {
    move || {
        let form = format!(
            "Action=DescribeSecurityGroups&Version=2016-11-15&Filter.1.Name=group-name&Filter.1.Value.1={name}"
        );
        let id = between(&call_emulator("ec2", &form).text(), "<groupId>", "</groupId>").to_owned();
        call_emulator("ec2", &format!("Action={action}&Version=2016-11-15&GroupId={id}&{rule}"));
    }
}

/// Makes a version of the workers' launch template with this data, and makes the group use it.
fn template(data: &'static str) -> impl Fn() {
    move || {
        let data = data.replace(' ', "&LaunchTemplateData.");
        let form = format!(
            "Action=CreateLaunchTemplateVersion&Version=2016-11-15&LaunchTemplateName={TEMPLATE}&LaunchTemplateData.{data}"
        );
        let version = between(&call_emulator("ec2", &form).text(), "<versionNumber>", "</versionNumber>").to_owned();
        let in_group = "MixedInstancesPolicy.LaunchTemplate";
        let form = format!(
            "Action=UpdateAutoScalingGroup&AutoScalingGroupName={GROUP}\
             &{in_group}.LaunchTemplateSpecification.LaunchTemplateName={TEMPLATE}\
             &{in_group}.LaunchTemplateSpecification.Version={version}\
             &{in_group}.Overrides.member.1.InstanceType=c7i.large"
        );
        call_emulator("autoscaling", &form);
    }
}

fn faults_of_queues_and_buckets() -> Vec<Fault> {
    let public =
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"ACTION","Resource":"*"}]}"#;
    let of_queue = public.replace("ACTION", "sqs:SendMessage");
    let of_bucket =
        public.replace("ACTION", "s3:GetObject").replace("\"*\"}", &format!("\"arn:aws:s3:::{BUCKET}/*\"}}"));
    let dead_letters = "faulty-web-app-image-transport-dead";
    let on_queue = |fault: &str| format!("queue \"{QUEUE}\": {fault}");
    let on_bulk = |fault: &str| format!("queue \"{BULK_QUEUE}\": {fault}");
    vec![
        fault(attribute(QUEUE, "MaximumMessageSize", "6144"), on_queue("it takes messages of 6144 bytes at most")),
        fault(attribute(QUEUE, "VisibilityTimeout", "5"), on_queue("a message is redelivered after 5 s")),
        fault(attribute(QUEUE, "MessageRetentionPeriod", "420"), on_queue("messages expire after 420 s")),
        fault(attribute(QUEUE, "DelaySeconds", "60"), on_queue("its DelaySeconds is 60")),
        fault(attribute(QUEUE, "SqsManagedSseEnabled", "false"), on_queue("its messages are not encrypted at rest")),
        fault(
            move || {
                sqs(
                    "SetQueueAttributes",
                    QUEUE,
                    &format!("Attribute.1.Name=Policy&Attribute.1.Value={}", encoded(&of_queue)),
                );
            },
            on_queue("its queue policy allows everybody to use it"),
        ),
        fault(
            move || sqs("DeleteQueue", dead_letters, ""),
            on_queue(&format!("the dead-letter queue \"{dead_letters}\" of its RedrivePolicy does not exist")),
        ),
        fault(
            || sqs("DeleteQueue", "faulty-app-web-result-queue", ""),
            "queue \"faulty-app-web-result-queue\": it does not exist",
        ),
        fault(attribute(BULK_QUEUE, "VisibilityTimeout", "5"), on_bulk("a message is redelivered after 5 s")),
        fault(
            move || sqs("DeleteQueue", BULK_QUEUE, ""),
            on_bulk("it does not exist, so batches cannot be classified"),
        ),
        fault(
            || drop(call_s3("DELETE", &format!("/{BUCKET}?publicAccessBlock"), "")),
            format!("bucket \"{BUCKET}\": public access is not blocked"),
        ),
        fault(
            move || drop(call_s3("PUT", &format!("/{BUCKET}?policy"), &of_bucket)),
            format!("bucket \"{BUCKET}\": its bucket policy allows everybody to use it"),
        ),
    ]
}

fn faults_of_roles() -> Vec<Fault> {
    let trust = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
    let on = |role: &str, fault: &str| format!("role \"{role}\": {fault}");
    vec![
        fault(
            attribute(QUEUE, "KmsMasterKeyId", KEY),
            on(
                WORKER_ROLE,
                &format!("it lacks kms:Decrypt, kms:GenerateDataKey on {KEY}, with which queue \"{QUEUE}\""),
            ),
        ),
        fault(
            iam(format!("Action=UpdateAssumeRolePolicy&RoleName={WORKER_ROLE}&PolicyDocument={}", encoded(trust))),
            on(WORKER_ROLE, "its trust policy does not let EC2 assume it"),
        ),
        fault(
            iam(format!("Action=DeleteRolePolicy&RoleName={WEB_ROLE}&PolicyName=imgcls")),
            on(
                WEB_ROLE,
                "it lacks autoscaling:DescribeAutoScalingGroups, sqs:ListQueues, cloudwatch:PutMetricData on *",
            ),
        ),
        fault(
            role_policy(WEB_ROLE, "bucket", "s3:GetObject", &format!("arn:aws:s3:::{INPUT_BUCKET}")),
            on(WEB_ROLE, &format!("it allows s3:GetObject on arn:aws:s3:::{INPUT_BUCKET}, which is a bucket")),
        ),
        fault(role_policy(WORKER_ROLE, "wide", "sqs:*", "*"), on(WORKER_ROLE, "it allows everything in sqs")),
        fault(role_policy(WORKER_ROLE, "wider", "s3:*", "*"), on(WORKER_ROLE, "it allows everything in s3")),
        fault(
            iam(format!("Action=RemoveRoleFromInstanceProfile&InstanceProfileName={WEB_ROLE}&RoleName={WEB_ROLE}")),
            format!("Auto Scaling group \"faulty-webtierAutoscaling\": its instance profile \"{WEB_ROLE}\" is empty"),
        ),
    ]
}

fn faults_of_alarms() -> Vec<Fault> {
    let right = ("QueueName", QUEUE);
    let url = format!("https://sqs.us-east-1.amazonaws.com/123456789012/{QUEUE}");
    let on_group = |fault: &str| format!("Auto Scaling group \"{GROUP}\": {fault}");
    let (greater, less) = ("GreaterThanThreshold", "LessThanThreshold");
    vec![
        fault(
            move || alarm("faulty-by-url", greater, 25, ("QueueName", &url), None),
            "alarm \"faulty-by-url\": it reads a metric that does not exist: its dimension is QueueName=https://sqs",
        ),
        fault(
            move || {
                alarm("faulty-dimension", greater, 25, ("SQSQueueName", QUEUE), Some(&policy_arn("faulty-ScaleUp")));
            },
            format!(
                "alarm \"faulty-dimension\": it reads a metric that does not exist: its dimension is SQSQueueName={QUEUE}"
            ),
        ),
        fault(move || alarm("faulty-idle", greater, 25, right, None), "alarm \"faulty-idle\": it has no action"),
        fault(
            move || alarm("faulty-crossed", greater, 30, right, Some(&policy_arn("faulty-ScaleDown"))),
            "alarm \"faulty-crossed\": it is raised when more workers are needed, and its scaling policy \"faulty-ScaleDown\" removes workers",
        ),
        fault(
            move || alarm("faulty-gap", less, 25, right, Some(&policy_arn("faulty-ScaleDown"))),
            "alarm \"faulty-gap\": its threshold 25 leaves no gap to the threshold 25 of alarm",
        ),
        fault(
            move || {
                let gone = policy_arn("faulty-ScaleUp").replace("policyName/faulty-ScaleUp", "policyName/gone");
                alarm("faulty-nowhere", greater, 25, right, Some(&gone));
            },
            "alarm \"faulty-nowhere\": its action is a scaling policy that does not exist",
        ),
        fault(
            move || {
                let form = format!(
                    "Action=PutMetricAlarm&AlarmName=faulty-group-metric&Namespace=AWS%2FAutoScaling\
                     &MetricName=GroupTotalInstances&Statistic=Sum&Period=60&EvaluationPeriods=1&Threshold=1\
                     &ComparisonOperator=GreaterThanThreshold&Dimensions.member.1.Name=AutoScalingGroupName\
                     &Dimensions.member.1.Value={GROUP}&AlarmActions.member.1={}",
                    encoded(&policy_arn("faulty-ScaleUp"))
                );
                call_emulator("monitoring", &form);
            },
            on_group("its group metric \"GroupTotalInstances\" is not enabled"),
        ),
        fault(
            || {
                call_emulator("monitoring", "Action=DisableAlarmActions&AlarmNames.member.1=faulty-ScaleUpAlarm");
            },
            "alarm \"faulty-ScaleUpAlarm\": its actions are disabled",
        ),
        fault(
            || {
                let all = ["faulty-ScaleDownAlarm", "faulty-crossed", "faulty-gap"];
                let names = all.iter().enumerate().map(|(at, name)| format!("&AlarmNames.member.{}={name}", at + 1));
                call_emulator("monitoring", &format!("Action=DeleteAlarms{}", names.collect::<String>()));
            },
            on_group("no alarm carries out a scaling policy that removes workers"),
        ),
    ]
}

fn faults_of_groups() -> Vec<Fault> {
    let on_group = |fault: &str| format!("Auto Scaling group \"{GROUP}\": {fault}");
    let on_workers = |fault: &str| format!("security group \"faulty-imgcls-app-tier\": {fault}");
    let ssh = "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0";
    let hook = "LifecycleTransition=autoscaling%3AEC2_INSTANCE_TERMINATING";
    vec![
        fault(
            security_group("AuthorizeSecurityGroupIngress", "faulty-imgcls-app-tier", ssh),
            on_workers("it lets everybody in: rule tcp 22 from 0.0.0.0/0"),
        ),
        fault(
            security_group(
                "AuthorizeSecurityGroupIngress",
                "faulty-imgcls-web-tier",
                "IpPermissions.1.IpProtocol=-1&IpPermissions.1.Ipv6Ranges.1.CidrIpv6=::/0",
            ),
            "security group \"faulty-imgcls-web-tier\": it lets everybody in: rule all traffic from ::/0",
        ),
        fault(
            security_group(
                "RevokeSecurityGroupEgress",
                "faulty-imgcls-app-tier",
                "IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0",
            ),
            on_workers("no egress rule lets HTTPS (tcp 443) out"),
        ),
        fault(template("InstanceType=c7i.large"), on_group("its machines answer IMDSv1")),
        fault(template("InstanceType=c7i.large"), on_group("its machines have no role")),
        fault(
            template("InstanceType=c7i.large IamInstanceProfile.Name=nobody"),
            on_group("its instance profile \"nobody\" does not exist: no machine starts"),
        ),
        fault(
            template(
                "InstanceType=c7i.large BlockDeviceMapping.1.DeviceName=xvda BlockDeviceMapping.1.Ebs.VolumeSize=8",
            ),
            on_group("the volume \"xvda\" of its machines is not encrypted"),
        ),
        fault(
            template("InstanceType=c7i.large ImageId=resolve:ssm:/aws/service/debian/release/12/latest/arm64"),
            on_group("its AMI is for arm64, instance type c7i.large is x86_64"),
        ),
        fault(
            template("InstanceType=c7i.large SecurityGroupId.1=sg-0123456789abcdef0"),
            on_group("its security group \"sg-0123456789abcdef0\" does not exist: no machine starts"),
        ),
        // moto forgets the launch template of a group whose size is changed.
        fault(
            group("Action=UpdateAutoScalingGroup&MinSize=1&MaxSize=1"),
            on_group("its smallest and largest size are both 1"),
        ),
        fault(
            || {
                attribute(QUEUE, "DelaySeconds", "0")();
                sqs("SendMessage", QUEUE, "MessageBody=waits");
            },
            format!(
                "queue \"{QUEUE}\": 1 images wait, 1 machines of group \"{GROUP}\" are InService, and nobody receives"
            ),
        ),
        fault(
            group("Action=SuspendProcesses&ScalingProcesses.member.1=Launch"),
            on_group("its process Launch is suspended"),
        ),
        fault(
            group("Action=DeleteLifecycleHook&LifecycleHookName=drain"),
            on_group("it has no lifecycle hook for autoscaling:EC2_INSTANCE_TERMINATING"),
        ),
        fault(
            move || {
                let form =
                    format!("Action=PutLifecycleHook&AutoScalingGroupName={GROUP}&LifecycleHookName=other&{hook}");
                call_emulator("autoscaling", &form);
            },
            on_group("workers complete the lifecycle hook drain, its own is other"),
        ),
        fault(
            group(
                "Action=PutScalingPolicy&PolicyName=follows&PolicyType=TargetTrackingScaling\
                &TargetTrackingConfiguration.TargetValue=5&TargetTrackingConfiguration.DisableScaleIn=true\
                &TargetTrackingConfiguration.PredefinedMetricSpecification.PredefinedMetricType=ASGAverageCPUUtilization",
            ),
            on_group("its target tracking policy has DisableScaleIn"),
        ),
        fault(
            || {
                for policy in ["faulty-ScaleUp", "faulty-ScaleDown", "faulty-ScaleFromZero", "follows"] {
                    let form = format!("Action=DeletePolicy&AutoScalingGroupName={GROUP}&PolicyName={policy}");
                    call_emulator("autoscaling", &form);
                }
            },
            on_group("it has no scaling policy"),
        ),
    ]
}

#[test]
fn doctor_names_what_a_store_that_is_not_of_aws_lacks() {
    let store = OldStore::before(moto_of_stacks().address);
    let mut stack = Stack::at_plain_http_endpoint("compatible");
    stack.environment.push(("AWS_ENDPOINT_URL_S3".to_owned(), store.url.clone()));
    stack.succeeds(&["apply", "--web-instances", "0"]);
    assert_eq!(store.refused.load(Ordering::Relaxed), 0);
    let found = stack.succeeds(&["doctor"]);
    for line in ["it does not refuse a second put with If-None-Match: *", "it refuses checksums of uploads"] {
        assert!(found.contains(&format!("risk    store {}: {line}", store.url)), "{found}");
    }
    // The objects of the probes are gone, so that the buckets hold no data.
    assert!(stack.succeeds(&["destroy", "--yes"]).contains("no resource with the tag imgcls:stack="));
}

#[test]
fn doctor_is_silent_about_a_new_stack_and_names_every_planted_fault() {
    let stack = Stack::at_plain_http_endpoint("faulty");
    stack.succeeds(&["apply"]);
    assert_eq!(stack.succeeds(&["doctor"]), "no problems found\n");
    let unknown = stack.run(&["doctor", "--worker-role", "nobody"]);
    assert!(unknown.stdout.contains("role \"nobody\": it does not exist"), "{}", unknown.stdout);

    let faults = [faults_of_queues_and_buckets(), faults_of_roles(), faults_of_alarms(), faults_of_groups()];
    let faults: Vec<Fault> = faults.into_iter().flatten().collect();
    assert!(faults.len() >= 30, "{}", faults.len());
    let mut before = String::new();
    for (plant, line) in faults {
        let has_line = |text: &str| text.contains(&line);
        plant();
        let ran = stack.run(&["doctor"]);
        assert!(has_line(&ran.stdout), "{line}\n{}{}", ran.stdout, ran.stderr);
        let is_by_itself = !has_line(&before) || line.contains("have no role");
        assert!(is_by_itself, "it was named before it was planted: {line}\n{before}");
        before = ran.stdout;
    }
    // Everything that belongs to the stack is repaired. The rest is removed as it was planted.
    let alarms = ["by-url", "dimension", "idle", "nowhere", "group-metric"].iter().enumerate();
    let names: String = alarms.map(|(at, name)| format!("&AlarmNames.member.{}=faulty-{name}", at + 1)).collect();
    call_emulator("monitoring", &format!("Action=DeleteAlarms{names}"));
    attribute(QUEUE, "Policy", "")();
    sqs("PurgeQueue", QUEUE, "");
    call_s3("DELETE", &format!("/{BUCKET}?policy"), "");
    stack.succeeds(&["apply"]);
    assert_eq!(stack.succeeds(&["doctor"]), "no problems found\n");
    stack.destroy();
}
