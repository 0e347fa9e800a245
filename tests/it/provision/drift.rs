//! Changes by hand that matter for security: `status` names each in words, and `apply` repairs all of them.

use super::{Stack, between, call_emulator};

fn group_id(name: &str) -> String {
    let form =
        format!("Action=DescribeSecurityGroups&Version=2016-11-15&Filter.1.Name=group-name&Filter.1.Value.1={name}");
    between(&call_emulator("ec2", &form).text(), "<groupId>", "</groupId>").to_owned()
}

fn ec2(form: &str) {
    call_emulator("ec2", &format!("Version=2016-11-15&{form}"));
}

#[test]
fn foreign_access_is_named_in_words_and_removed() {
    let stack = Stack::new("drift");
    stack.succeeds(&["apply"]);
    let (workers, web) = (group_id("drift-imgcls-app-tier"), group_id("drift-imgcls-web-tier"));
    let authorize = |group: &str, rest: &str| {
        ec2(&format!("Action=AuthorizeSecurityGroupIngress&GroupId={group}&IpPermissions.1.{rest}"));
    };
    let ssh = "IpProtocol=tcp&IpPermissions.1.FromPort=22&IpPermissions.1.ToPort=22&IpPermissions.1";
    authorize(&workers, &format!("{ssh}.IpRanges.1.CidrIp=0.0.0.0/0"));
    authorize(&workers, &format!("{ssh}.Ipv6Ranges.1.CidrIpv6=::/0"));
    authorize(&workers, &format!("{ssh}.Groups.1.GroupId={web}"));
    authorize(&web, "IpProtocol=-1&IpPermissions.1.PrefixListIds.1.PrefixListId=pl-0123");
    ec2(&format!(
        "Action=RevokeSecurityGroupEgress&GroupId={workers}&IpPermissions.1.IpProtocol=-1&IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0/0"
    ));
    let document = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action%22%3A%22s3%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
    let iam = |form: &str| call_emulator("iam", &format!("Version=2010-05-08&{form}"));
    let (worker_role, web_role) = ("drift-app-tier-sqs-s3-access-role", "drift-web-tier-sqs-access-role");
    iam(&format!("Action=PutRolePolicy&RoleName={worker_role}&PolicyName=backdoor&PolicyDocument={document}"));
    let created = iam(&format!("Action=CreatePolicy&PolicyName=drift-everything&PolicyDocument={document}")).text();
    let arn = between(&created, "<Arn>", "</Arn>").to_owned();
    iam(&format!("Action=AttachRolePolicy&RoleName={web_role}&PolicyArn={arn}"));
    iam(&format!("Action=PutRolePolicy&RoleName={web_role}&PolicyName=imgcls&PolicyDocument={document}"));
    call_emulator("monitoring", "Action=DisableAlarmActions&AlarmNames.member.1=drift-ScaleUpAlarm");
    let suspend = "Action=SuspendProcesses&AutoScalingGroupName=drift-apptierAutoscaling";
    call_emulator("autoscaling", &format!("{suspend}&ScalingProcesses.member.1=Launch"));

    let status = stack.succeeds(&["status"]);
    for expected in [
        "foreign rule tcp 22 from 0.0.0.0/0",
        "foreign rule tcp 22 from ::/0",
        &format!("foreign rule tcp 22 from {web}"),
        "foreign rule all traffic from pl-0123",
        "missing egress rule all traffic to 0.0.0.0/0",
        "foreign inline policy backdoor",
        "foreign inline policy imgcls: Allow s3:* on *",
        "missing inline policy imgcls: Allow sqs:GetQueueAttributes, sqs:GetQueueUrl, sqs:SendMessage on",
        &format!("foreign attached policy {arn}"),
        "foreign suspended process Launch",
        "ActionsEnabled: false, not true",
    ] {
        assert!(status.contains(expected), "{expected}\n{status}");
    }
    assert!(!status.contains("sha256"), "{status}");
    let plan = stack.succeeds(&["plan"]);
    assert!(plan.contains("− rule tcp 22 from ::/0") && plan.contains("+ egress rule all traffic"), "{plan}");

    stack.succeeds(&["apply"]);
    stack.assert_plan_is_empty();
    let form = format!("Action=DescribeSecurityGroups&Version=2016-11-15&GroupId.1={workers}");
    let rules = call_emulator("ec2", &form).text();
    assert!(!rules.contains("<fromPort>22</fromPort>") && rules.contains("0.0.0.0/0"), "{rules}");
    stack.destroy();
    iam(&format!("Action=DeletePolicy&PolicyArn={arn}"));
}

#[test]
fn instance_profile_without_tags_belongs_to_the_stack_of_its_role() {
    // CloudFormation makes instance profiles without tags.
    let stack = Stack::new("untagged");
    stack.succeeds(&["apply"]);
    for profile in ["untagged-app-tier-sqs-s3-access-role", "untagged-web-tier-sqs-access-role"] {
        let keys = "TagKeys.member.1=imgcls:stack&TagKeys.member.2=imgcls:region";
        let form = format!("Action=UntagInstanceProfile&Version=2010-05-08&InstanceProfileName={profile}&{keys}");
        call_emulator("iam", &form);
    }
    stack.assert_plan_is_empty();
    stack.destroy();
}
