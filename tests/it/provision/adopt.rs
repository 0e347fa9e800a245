//! Resources that existed before a stack are taken over, and never deleted with it.

use super::{Stack, between, call_emulator, call_s3};
use crate::emulators::moto_of_stacks;

fn queues(stack: &str) -> String {
    call_emulator("sqs", &format!("Action=ListQueues&QueueNamePrefix={stack}-")).text()
}

#[test]
fn adopted_resources_outlive_the_stack() {
    let stack = Stack::at_plain_http_endpoint("older");
    let queue = "older-web-app-image-transport";
    call_emulator("sqs", &format!("Action=CreateQueue&QueueName={queue}"));
    let bucket = stack.input_bucket();
    call_s3("PUT", &format!("/{bucket}"), "");
    call_s3("PUT", &format!("/{bucket}/holiday.jpg"), "an image");
    let document = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%5D%7D";
    let role = "older-web-tier-sqs-access-role";
    let form = format!("Action=CreateRole&RoleName={role}&AssumeRolePolicyDocument={document}");
    call_emulator("iam", &format!("Version=2010-05-08&{form}"));

    let plan = stack.succeeds(&["plan", "--adopt"]);
    for name in [format!("queue \"{queue}\""), format!("bucket \"{bucket}\""), format!("role \"{role}\"")] {
        assert!(plan.contains(&format!("{name} existed before the stack: destroy does not delete it\n")), "{plan}");
    }
    stack.succeeds(&["apply", "--adopt"]);
    let status = stack.succeeds(&["status"]);
    assert!(status.contains("nothing to do") && status.contains("existed before the stack"), "{status}");

    // The bucket has data, which is no reason to refuse: it stays. So does the queue that gets the dead letters.
    let destroyed = stack.succeeds(&["destroy", "--yes"]);
    for kept in [
        format!("= queue              {queue} stays"),
        format!("= queue              {queue}-dead stays"),
        format!("= bucket             {bucket} stays"),
        format!("= role               {role} stays"),
    ] {
        assert!(destroyed.contains(&kept), "{kept}\n{destroyed}");
    }
    assert!(destroyed.ends_with("is left, except 4 that stay\n"), "{destroyed}");
    let left = queues("older");
    assert!(left.contains(queue) && !left.contains("older-app-web-result-queue"), "{left}");
    assert_eq!(call_s3("GET", &format!("/{bucket}/holiday.jpg"), "").text(), "an image");
    call_emulator("iam", &format!("Version=2010-05-08&Action=GetRole&RoleName={role}"));

    // They still belong to the stack, and are used again without a flag.
    stack.succeeds(&["apply"]);
    stack.assert_plan_is_empty();
    assert!(stack.succeeds(&["destroy", "--yes"]).contains(&format!("{queue} stays")));
    let url = format!("{}/123456789012/{queue}", moto_of_stacks().url());
    call_emulator("sqs", &format!("Action=DeleteQueue&QueueUrl={url}"));
}

#[test]
fn group_that_was_adopted_keeps_what_its_machines_start_from() {
    let stack = Stack::new("grown");
    let network = call_emulator("ec2", "Action=DescribeSubnets&Version=2016-11-15").text();
    let subnet = between(&network, "<subnetId>", "</subnetId>");
    let group = "grown-apptierAutoscaling";
    call_emulator(
        "ec2",
        "Action=CreateLaunchTemplate&Version=2016-11-15&LaunchTemplateName=grown-by-hand\
         &LaunchTemplateData.ImageId=ami-12c6146b&LaunchTemplateData.InstanceType=c7i.large",
    );
    let form = format!(
        "Action=CreateAutoScalingGroup&AutoScalingGroupName={group}&MinSize=0&MaxSize=1&VPCZoneIdentifier={subnet}\
         &LaunchTemplate.LaunchTemplateName=grown-by-hand&LaunchTemplate.Version=1"
    );
    call_emulator("autoscaling", &form);
    stack.succeeds(&["apply", "--adopt", "--web-instances", "0"]);
    let destroyed = stack.succeeds(&["destroy", "--yes"]);
    for kept in [
        format!("= Auto Scaling group {group} stays"),
        "= launch template    grown-ApptierTemplate stays".to_owned(),
        format!("= lifecycle hook     {group}/drain stays"),
        "= role               grown-app-tier-sqs-s3-access-role stays".to_owned(),
    ] {
        assert!(destroyed.contains(&kept), "{kept}\n{destroyed}");
    }
    assert!(destroyed.contains("− queue              grown-web-app-image-transport done"), "{destroyed}");
    let form = format!("Action=DescribeAutoScalingGroups&AutoScalingGroupNames.member.1={group}");
    assert!(call_emulator("autoscaling", &form).text().contains("grown-ApptierTemplate"));
    call_emulator(
        "autoscaling",
        &format!("Action=DeleteAutoScalingGroup&ForceDelete=true&AutoScalingGroupName={group}"),
    );
}

#[test]
fn roles_may_use_the_keys_of_adopted_queues() {
    let stack = Stack::new("locked");
    let key = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
    for (queue, key) in [
        ("locked-web-app-image-transport", key),
        ("locked-app-web-result-queue", "alias/ours"),
        ("locked-web-app-image-transport-bulk", "alias/aws/sqs"),
    ] {
        let attribute = format!("Attribute.1.Name=KmsMasterKeyId&Attribute.1.Value={key}");
        call_emulator("sqs", &format!("Action=CreateQueue&QueueName={queue}&{attribute}"));
    }
    let flags = ["--adopt", "--web-instances", "0"];
    let plan: serde_json::Value =
        serde_json::from_str(&stack.succeeds(&[&["plan", "--json"][..], &flags].concat())).unwrap();
    let resources = plan["plan"]["stack"]["resources"].as_array().unwrap();
    for id in ["WorkerRole", "WebRole"] {
        let role = resources.iter().find(|resource| resource["id"] == id).unwrap();
        let statements = role["properties"]["Policies"][0]["PolicyDocument"]["Statement"].as_array().unwrap();
        let of_keys: Vec<_> =
            statements.iter().filter(|one| one["Action"].to_string().contains("kms:GenerateDataKey")).collect();
        assert_eq!(of_keys.len(), 2, "{of_keys:?}");
        assert_eq!(of_keys[0]["Resource"], serde_json::json!([key]));
        assert_eq!(of_keys[1]["Resource"], serde_json::json!(["arn:aws:kms:us-east-1:123456789012:key/*"]));
        let aliases = &of_keys[1]["Condition"]["ForAnyValue:StringEquals"]["kms:ResourceAliases"];
        assert_eq!(*aliases, serde_json::json!(["alias/ours"]));
    }
    stack.succeeds(&[&["apply"][..], &flags].concat());
    let plan = stack.run(&["plan", "--detailed-exitcode", "--web-instances", "0"]);
    assert_eq!(plan.code, Some(0), "{}{}", plan.stdout, plan.stderr);
    let form = "Action=GetRolePolicy&Version=2010-05-08&RoleName=locked-app-tier-sqs-s3-access-role&PolicyName=imgcls";
    assert!(call_emulator("iam", form).text().contains("11111111-2222-3333-4444-555555555555"));
    stack.destroy();
}
