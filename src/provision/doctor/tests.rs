use serde_json::json;

use super::*;

/// The legacy system with all its faults, as its template deploys it.
fn legacy_system() -> Observed {
    let queue = json!({"VisibilityTimeout": 30, "MaximumMessageSize": 6144, "MessageRetentionPeriod": 420});
    let alarm = |threshold: u32, comparison: &str| {
        json!({
            "Namespace": "AWS/SQS", "MetricName": "ApproximateNumberOfMessagesVisible", "AlarmActions": [],
            "Dimensions": [{
                "Name": "QueueName", "Value": "https://sqs.us-east-1.amazonaws.com/1/web-app-image-transport",
            }],
            "Threshold": threshold, "ComparisonOperator": comparison,
        })
    };
    let everything = json!({"Statement": [{"Effect": "Allow", "Action": ["s3:*", "sqs:*"], "Resource": "*"}]});
    let ssh = json!({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "0.0.0.0/0"});
    Observed {
        queues: vec![("web-app-image-transport".into(), queue.clone()), ("app-web-result-queue".into(), queue)],
        buckets: vec![
            Bucket { name: "in".into(), is_closed: false, other_region: None, statements: Vec::new() },
            Bucket {
                name: "out".into(),
                is_closed: true,
                other_region: Some("eu-west-1".into()),
                statements: Vec::new(),
            },
        ],
        alarms: vec![
            ("ScaleUpAlarm".into(), alarm(1, "GreaterThanThreshold")),
            ("ScaleDownAlarm".into(), alarm(1, "LessThanThreshold")),
        ],
        group: Some(Group {
            name: "apptierAutoscaling".into(),
            properties: json!({"MinSize": "1", "MaxSize": "1"}),
            policies: Vec::new(),
            policy_arns: Vec::new(),
            hooks: Vec::new(),
            template_name: Some("ApptierTemplate".into()),
            template: Some(json!({"InstanceType": "c7g.large"})),
            image_cpu: Some(Cpu::X86_64),
            profile: None,
            security_groups: vec![SecurityGroup {
                name: "launch-wizard".into(),
                exists: true,
                ingress: vec![ssh],
                egress: Vec::new(),
            }],
            failed_start: None,
        }),
        roles: vec![
            Role {
                name: "app-tier".into(),
                tier: Tier::Worker,
                found: Some(FoundRole { trust: json!({}), documents: vec![everything] }),
            },
            Role { name: "web-tier".into(), tier: Tier::Web, found: None },
        ],
        ..Observed::default()
    }
}

#[test]
fn every_fault_of_the_legacy_system_is_found() {
    let names = Names { input_bucket: "in".to_owned(), output_bucket: "out".to_owned(), ..Names::local("imgcls") };
    let target = Target {
        account: "1",
        region: "us-east-1",
        names: &names,
        read_buckets: &[],
        group: "apptierAutoscaling",
        web_group: "webtierAutoscaling",
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
        "role \"app-tier\": its trust policy does not let EC2 assume it",
        "role \"app-tier\": it allows everything in s3",
        "role \"app-tier\": it allows everything in sqs",
        "role \"app-tier\": it lacks autoscaling:CompleteLifecycleAction",
        "role \"web-tier\": it does not exist",
        "alarm \"ScaleUpAlarm\": it reads a metric that does not exist: its dimension is QueueName=https://sqs",
        "alarm \"ScaleUpAlarm\": it has no action",
        "alarm \"ScaleDownAlarm\": it has no action",
        "alarm \"ScaleDownAlarm\": its threshold 1 leaves no gap to the threshold 1 of alarm \"ScaleUpAlarm\"",
        "Auto Scaling group \"apptierAutoscaling\": its smallest and largest size are both 1",
        "Auto Scaling group \"apptierAutoscaling\": it has no scaling policy",
        "Auto Scaling group \"apptierAutoscaling\": its group metrics are not enabled",
        "Auto Scaling group \"apptierAutoscaling\": it has no lifecycle hook for autoscaling:EC2_INSTANCE_TERMINATING",
        "Auto Scaling group \"apptierAutoscaling\": its AMI is for x86_64, instance type c7g.large is arm64",
        "Auto Scaling group \"apptierAutoscaling\": its machines answer IMDSv1",
        "Auto Scaling group \"apptierAutoscaling\": its machines have no role",
        "security group \"launch-wizard\": it lets everybody in: rule tcp 22 from 0.0.0.0/0",
        "security group \"launch-wizard\": no egress rule lets HTTPS (tcp 443) out",
    ] {
        assert!(text.iter().any(|line| line.starts_with(expected)), "{expected}\n{}", text.join("\n"));
    }
    assert!(findings.iter().all(|found| !found.remedy.is_empty()));
    let longest = text.iter().map(String::len).max().unwrap_or_default();
    assert!(longest < 400, "a finding has {longest} characters:\n{}", text.join("\n"));
}
