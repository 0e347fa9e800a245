//! The stack of the legacy system, made in an emulator as its template and its description make it: `doctor` names every
//! fault of it.

use super::{Stack, between, call_at, environment};
use crate::emulators::{Emulator, STRICT};
use crate::harness::request;

const QUEUES: [&str; 2] = ["web-app-image-transport", "app-web-result-queue"];
const BUCKETS: [&str; 2] = ["input-bucket-images", "output-bucket-images"];

/// Everybody may be EC2 in the name of a role that trusts the wrong service.
const WRONG_TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
/// Permissions on objects that name the bucket, and everything else on everything.
const WRONG_POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject"],"Resource":["arn:aws:s3:::input-bucket-images","arn:aws:s3:::output-bucket-images"]},{"Effect":"Allow","Action":"sqs:*","Resource":"*"}]}"#;

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[test]
fn doctor_names_every_fault_of_the_stack_that_the_legacy_template_makes() {
    let emulator = Emulator::start(STRICT);
    make(&emulator);
    let stack = Stack { environment: environment(&emulator.url()), ..Stack::new("imgcls") };
    let buckets = ["--input-bucket", BUCKETS[0], "--output-bucket", BUCKETS[1]];
    let ran = stack.run(&[&["doctor"][..], &buckets].concat());
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    let group = "Auto Scaling group \"apptierAutoscaling\"";
    for expected in [
        "risk    queue \"web-app-image-transport\": it takes messages of 6144 bytes",
        "queue \"web-app-image-transport\": messages expire after 420 s",
        "queue \"web-app-image-transport\": it has no dead-letter queue",
        "queue \"app-web-result-queue\": it takes messages of 6144 bytes",
        "risk    bucket \"input-bucket-images\": public access is not blocked",
        "risk    bucket \"output-bucket-images\": public access is not blocked",
        "broken  role \"app-tier-sqs-s3-access-role\": its trust policy does not let EC2 assume it",
        "role \"app-tier-sqs-s3-access-role\": it allows s3:GetObject on arn:aws:s3:::input-bucket-images, which is a bucket",
        "risk    role \"app-tier-sqs-s3-access-role\": it allows everything in sqs",
        "broken  role \"web-tier-sqs-access-role\": it does not exist",
        "broken  alarm \"ScaleUpAlarm\": it reads a metric that does not exist: its dimension is SQSQueueName=http",
        "broken  alarm \"ScaleDownAlarm\": it reads a metric that does not exist: its dimension is QueueName=http",
        "broken  alarm \"ScaleUpAlarm\": it is raised when more workers are needed, and its scaling policy \"in\" removes workers",
        "alarm \"ScaleDownAlarm\": it has no action",
        "alarm \"ScaleDownAlarm\": its threshold 25 leaves no gap to the threshold 25 of alarm \"ScaleUpAlarm\"",
        &format!("broken  {group}: its smallest and largest size are both 1"),
        &format!("{group}: its group metrics are not enabled"),
        &format!("risk    {group}: it has no lifecycle hook for autoscaling:EC2_INSTANCE_TERMINATING"),
        &format!("risk    {group}: its machines answer IMDSv1"),
        &format!("broken  {group}: its machines have no role"),
        "risk    security group \"launch-wizard-1\": it lets everybody in: rule tcp 22 from 0.0.0.0/0",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}\n{}", ran.stdout);
    }
    assert!(ran.stdout.lines().all(|line| line.chars().count() < 500), "{}", ran.stdout);
}

fn make(emulator: &Emulator) {
    let call = |service: &str, form: &str| call_at(emulator.address, service, form).text();
    for queue in QUEUES {
        let attributes = [("MaximumMessageSize", "6144"), ("MessageRetentionPeriod", "420")];
        let attributes = attributes
            .iter()
            .enumerate()
            .map(|(at, (name, value))| format!("&Attribute.{}.Name={name}&Attribute.{}.Value={value}", at + 1, at + 1));
        call("sqs", &format!("Action=CreateQueue&QueueName={queue}{}", attributes.collect::<String>()));
    }
    let scope = [("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request")];
    for bucket in BUCKETS {
        assert_eq!(request(emulator.address, "PUT", &format!("/{bucket}"), &scope, b"").unwrap().status, 200);
    }
    let (trust, policy) = (encoded(WRONG_TRUST), encoded(WRONG_POLICY));
    let role = "app-tier-sqs-s3-access-role";
    call("iam", &format!("Action=CreateRole&Version=2010-05-08&RoleName={role}&AssumeRolePolicyDocument={trust}"));
    call(
        "iam",
        &format!("Action=PutRolePolicy&Version=2010-05-08&RoleName={role}&PolicyName=all&PolicyDocument={policy}"),
    );
    machines(&call);
    let url = encoded(&format!("{}/123456789012/{}", emulator.url(), QUEUES[0]));
    let down = |form: &str| call("monitoring", form);
    let scale_in = call("autoscaling", "Action=DescribePolicies&AutoScalingGroupName=apptierAutoscaling");
    let arns: Vec<&str> = scale_in.split("<PolicyARN>").skip(1).map(between_end).collect();
    let wrong_way = arns.iter().find(|arn| arn.contains("policyName/in")).unwrap();
    // Scaling out is wired to the policy that scales in. Scaling in is wired to nothing.
    for (name, comparison, dimension, action) in [
        (
            "ScaleUpAlarm",
            "GreaterThanThreshold",
            "SQSQueueName",
            format!("&AlarmActions.member.1={}", encoded(wrong_way)),
        ),
        ("ScaleDownAlarm", "LessThanThreshold", "QueueName", String::new()),
    ] {
        down(&format!(
            "Action=PutMetricAlarm&AlarmName={name}&Namespace=AWS%2FSQS&MetricName=ApproximateNumberOfMessagesVisible\
             &Statistic=Sum&Period=60&EvaluationPeriods=1&Threshold=25&ComparisonOperator={comparison}\
             &Dimensions.member.1.Name={dimension}&Dimensions.member.1.Value={url}{action}"
        ));
    }
}

fn between_end(text: &str) -> &str {
    text.split('<').next().unwrap()
}

fn machines(call: &dyn Fn(&str, &str) -> String) {
    let ec2 = |form: &str| call("ec2", &format!("Version=2016-11-15&{form}"));
    let subnets = ec2("Action=DescribeSubnets");
    let (vpc, subnet) = (between(&subnets, "<vpcId>", "</vpcId>"), between(&subnets, "<subnetId>", "</subnetId>"));
    let group = ec2(&format!(
        "Action=CreateSecurityGroup&GroupName=launch-wizard-1&GroupDescription=launch-wizard&VpcId={vpc}"
    ));
    let group = between(&group, "<groupId>", "</groupId>");
    let ssh = "IpPermissions.1.IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22";
    ec2(&format!(
        "Action=AuthorizeSecurityGroupIngress&GroupId={group}&{ssh}&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0"
    ));
    let data = "LaunchTemplateData.ImageId=ami-12c6146b&LaunchTemplateData.InstanceType=t2.micro";
    let in_group = format!("LaunchTemplateData.SecurityGroupId.1={group}");
    ec2(&format!("Action=CreateLaunchTemplate&LaunchTemplateName=ApptierTemplate&{data}&{in_group}"));
    let scaling =
        |form: &str| call("autoscaling", &format!("Version=2011-01-01&AutoScalingGroupName=apptierAutoscaling&{form}"));
    scaling(&format!(
        "Action=CreateAutoScalingGroup&MinSize=1&MaxSize=1&VPCZoneIdentifier={subnet}\
         &LaunchTemplate.LaunchTemplateName=ApptierTemplate&LaunchTemplate.Version=1"
    ));
    for (name, adjustment) in [("out", "1"), ("in", "-1")] {
        scaling(&format!(
            "Action=PutScalingPolicy&PolicyName={name}&PolicyType=SimpleScaling&AdjustmentType=ChangeInCapacity\
             &ScalingAdjustment={adjustment}"
        ));
    }
}
