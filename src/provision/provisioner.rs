//! The least permissions of a person who runs `imgcls provision` with the given settings, as an IAM policy.
//!
//! A test (`tests/it/provision/policy.rs`) compares the actions here with the calls that this program makes.

use serde_json::{Value, json};

use super::arns::Arns;
use super::names::{self, ResourceNames, role_path};
use super::partition::Partition;
use super::permissions::{self, allow};
use super::resource::STACK_TAG;
use super::settings::Settings;
use crate::protocol::stack_prefix;

/// Actions that look, or that no resource can be named for. `ec2:RunInstances` is checked when a group is made that starts
/// machines from a launch template.
const EVERYWHERE: [&str; 29] = [
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeInstanceRefreshes",
    "autoscaling:DescribeLifecycleHooks",
    "autoscaling:DescribePolicies",
    "autoscaling:DescribeScalingActivities",
    "cloudwatch:DescribeAlarms",
    // Alarms of others may read the metrics of the stack.
    "cloudwatch:ListTagsForResource",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances",
    "ec2:DescribeLaunchTemplateVersions",
    "ec2:DescribeLaunchTemplates",
    "ec2:DescribeRegions",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
    "ec2:RunInstances",
    // Without --certificate, this program looks whether there is something to delete.
    "elasticloadbalancing:DescribeLoadBalancers",
    "elasticloadbalancing:DescribeTargetGroups",
    "freetier:GetAccountPlanState",
    "iam:GetPolicy",
    "iam:GetPolicyVersion",
    "iam:ListInstanceProfiles",
    "iam:ListRoles",
    "s3:ListAllMyBuckets",
    "servicequotas:GetServiceQuota",
    "sqs:ListQueues",
    "tag:GetResources",
];
const QUEUES: [&str; 7] = [
    "sqs:CreateQueue",
    "sqs:DeleteQueue",
    "sqs:GetQueueAttributes",
    "sqs:GetQueueUrl",
    "sqs:ListQueueTags",
    "sqs:SetQueueAttributes",
    "sqs:TagQueue",
];
/// `s3:TagResource` is checked where a bucket is made with its tags.
const BUCKETS: [&str; 17] = [
    "s3:CreateBucket",
    "s3:DeleteBucket",
    "s3:DeleteBucketPolicy",
    "s3:GetBucketLocation",
    "s3:GetBucketPolicy",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetBucketTagging",
    "s3:GetEncryptionConfiguration",
    "s3:GetLifecycleConfiguration",
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:PutBucketPolicy",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketTagging",
    "s3:PutEncryptionConfiguration",
    "s3:PutLifecycleConfiguration",
    "s3:TagResource",
];
const OBJECTS: [&str; 4] = ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObject", "s3:PutObject"];
const LOG_GROUP: [&str; 7] = [
    "logs:CreateLogGroup",
    "logs:DeleteLogGroup",
    "logs:DescribeLogGroups",
    "logs:FilterLogEvents",
    "logs:ListTagsForResource",
    "logs:PutRetentionPolicy",
    "logs:TagResource",
];
const ROLES: [&str; 15] = [
    "iam:AddRoleToInstanceProfile",
    "iam:CreateInstanceProfile",
    "iam:CreateRole",
    "iam:DeleteInstanceProfile",
    "iam:DeleteRole",
    "iam:DeleteRolePolicy",
    "iam:DetachRolePolicy",
    "iam:GetInstanceProfile",
    "iam:GetRole",
    "iam:GetRolePolicy",
    "iam:ListAttachedRolePolicies",
    "iam:ListRolePolicies",
    "iam:PutRolePolicy",
    "iam:RemoveRoleFromInstanceProfile",
    "iam:UpdateAssumeRolePolicy",
];
const ROLE_TAGS: [&str; 2] = ["iam:TagInstanceProfile", "iam:TagRole"];
/// Actions of EC2 that make something new.
const NEW_ON_EC2: [&str; 2] = ["ec2:CreateLaunchTemplate", "ec2:CreateSecurityGroup"];
/// Actions of EC2 that change a resource with the tag of the stack.
const OWN_ON_EC2: [&str; 9] = [
    "ec2:AuthorizeSecurityGroupEgress",
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:CreateLaunchTemplateVersion",
    "ec2:CreateTags",
    "ec2:DeleteLaunchTemplate",
    "ec2:DeleteSecurityGroup",
    "ec2:ModifyLaunchTemplate",
    "ec2:RevokeSecurityGroupEgress",
    "ec2:RevokeSecurityGroupIngress",
];
const GROUPS: [&str; 12] = [
    "autoscaling:CancelInstanceRefresh",
    "autoscaling:CreateAutoScalingGroup",
    "autoscaling:CreateOrUpdateTags",
    "autoscaling:DeleteAutoScalingGroup",
    "autoscaling:DeleteLifecycleHook",
    "autoscaling:DeletePolicy",
    "autoscaling:EnableMetricsCollection",
    "autoscaling:PutLifecycleHook",
    "autoscaling:PutScalingPolicy",
    "autoscaling:ResumeProcesses",
    "autoscaling:StartInstanceRefresh",
    "autoscaling:UpdateAutoScalingGroup",
];
const TARGET_GROUPS: [&str; 2] =
    ["autoscaling:AttachLoadBalancerTargetGroups", "autoscaling:DetachLoadBalancerTargetGroups"];
/// Actions of a load balancer that no resource can be named for.
const READING_BALANCERS: [&str; 4] = [
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeLoadBalancerAttributes",
    "elasticloadbalancing:DescribeTags",
    "elasticloadbalancing:DescribeTargetHealth",
];
/// Actions on the load balancer of the stack, its listener and its target group.
const BALANCERS: [&str; 5] = [
    "elasticloadbalancing:AddTags",
    "elasticloadbalancing:Create*",
    "elasticloadbalancing:Delete*",
    "elasticloadbalancing:Modify*",
    "elasticloadbalancing:Set*",
];
/// Actions that look. With a load balancer a policy would be too long for IAM with each of them by its name.
const LOOKING: [&str; 4] =
    ["autoscaling:Describe", "cloudwatch:Describe", "ec2:Describe", "elasticloadbalancing:Describe"];
const ALARMS: [&str; 3] = ["cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm", "cloudwatch:TagResource"];
const DASHBOARD: [&str; 3] = ["cloudwatch:DeleteDashboards", "cloudwatch:GetDashboard", "cloudwatch:PutDashboard"];
const TOPIC: [&str; 6] = [
    "sns:CreateTopic",
    "sns:DeleteTopic",
    "sns:ListSubscriptionsByTopic",
    "sns:ListTagsForResource",
    "sns:Subscribe",
    "sns:TagResource",
];

/// `adopts`: existing resources are taken over.
pub(super) fn policy(settings: &Settings, adopts: bool, account: &str, region: &str) -> Value {
    let caller = Caller {
        settings,
        adopts,
        arns: Arns::new(account, region),
        names: ResourceNames::of(&settings.stack),
        partition: Partition::of(region).name,
        account,
        region,
    };
    let mut everywhere = EVERYWHERE.to_vec();
    if !settings.notify.emails.is_empty() {
        everywhere.push("sns:Unsubscribe");
    }
    if settings.has_balancer() {
        everywhere.extend(READING_BALANCERS);
    }
    if settings.certificate.is_some() {
        everywhere.retain(|action| !LOOKING.iter().any(|family| action.starts_with(family)));
        everywhere.extend([
            "autoscaling:Describe*",
            "cloudwatch:Describe*",
            "ec2:Describe*",
            "elasticloadbalancing:Describe*",
        ]);
    }
    let mut statements = vec![allow(&everywhere, &["*".to_owned()])];
    statements.extend(caller.storage());
    statements.extend(caller.roles());
    statements.extend(caller.ec2());
    statements.extend(caller.groups());
    statements.extend(caller.balancers());
    statements.extend(caller.watching());
    permissions::document(statements)
}

struct Caller<'a> {
    settings: &'a Settings,
    adopts: bool,
    arns: Arns<'a>,
    names: ResourceNames,
    partition: &'a str,
    account: &'a str,
    region: &'a str,
}

impl Caller<'_> {
    fn storage(&self) -> Vec<Value> {
        let names = &self.settings.names;
        let queues = [&names.request_queue, &names.result_queue];
        // The queues for batches, callbacks, dead letters and replies have names that begin with those. One pattern for both is
        // shorter, and IAM limits the length of a policy.
        let queues = queues.map(|name| self.arns.queue(&format!("{name}*")));
        let buckets = [&names.input_bucket, &names.output_bucket].map(|name| self.arns.bucket(name));
        let objects = buckets.clone().map(|bucket| format!("{bucket}/*"));
        // One statement for both is shorter. Each action applies to its own kind of resource.
        let in_s3 = [&BUCKETS[..], &OBJECTS].concat();
        let log_group = self.arns.log_group(&self.names.log_group);
        vec![
            allow(&QUEUES, &queues),
            allow(&in_s3, &[buckets, objects].concat()),
            allow(&LOG_GROUP, &[format!("{log_group}:*"), log_group]),
        ]
    }

    /// IAM checks the name of a role that does not exist yet without a path.
    fn roles(&self) -> Vec<Value> {
        let path = role_path(&self.settings.stack);
        let iam = |rest: String| format!("arn:{}:iam::{}:{rest}", self.partition, self.account);
        let names = [&self.names.worker_role, &self.names.web_role];
        let named = |kind: &str| names.map(|name| iam(format!("{kind}/{name}")));
        let below_path = |kind: &str| iam(format!("{kind}{path}*"));
        let kinds = ["role", "instance-profile"];
        let all: Vec<String> =
            kinds.iter().flat_map(|kind| named(kind).into_iter().chain([below_path(kind)])).collect();
        let mut passed = vec![below_path("role")];
        if self.adopts {
            passed.extend(named("role"));
        }
        let service = permissions::instance_service(self.region);
        let services = [
            ("autoscaling", true),
            ("elasticloadbalancing", self.settings.certificate.is_some()),
            ("spot", self.settings.spot_percent > 0),
        ];
        let services = services.iter().filter(|(_, is_used)| *is_used);
        let service_names: Vec<String> = services.map(|(name, _)| format!("{name}.amazonaws.com")).collect();
        let boundary = self.settings.permissions_boundary.as_ref().map(|_| "iam:PutRolePermissionsBoundary");
        let of_roles: Vec<&str> = ROLES.into_iter().chain(ROLE_TAGS).chain(boundary).collect();
        vec![
            allow(&of_roles, &all),
            when(allow(&["iam:PassRole"], &passed), "StringEquals", &json!({ "iam:PassedToService": service })),
            // The first group of an account makes the role with which Auto Scaling works, and so does the first load balancer.
            when(
                allow(&["iam:CreateServiceLinkedRole"], &["*".to_owned()]),
                "StringEquals",
                &json!({ "iam:AWSServiceName": service_names }),
            ),
        ]
    }

    fn ec2(&self) -> Vec<Value> {
        let all = [format!("arn:{}:ec2:{}:{}:*", self.partition, self.region, self.account)];
        let is_own = json!({ (format!("aws:ResourceTag/{STACK_TAG}")): self.settings.stack });
        let tags_new = json!({"ec2:CreateAction": ["CreateLaunchTemplate", "CreateSecurityGroup", "RunInstances"]});
        // A condition limits the resources. Their ARNs would only make the policy longer.
        let any = ["*".to_owned()];
        let mut statements = vec![
            allow(&NEW_ON_EC2, &all),
            when(allow(&OWN_ON_EC2, &any), "StringEquals", &is_own),
            if self.adopts {
                allow(&["ec2:CreateTags"], &all)
            } else {
                when(allow(&["ec2:CreateTags"], &any), "StringEquals", &tags_new)
            },
        ];
        if let Some(parameter) = self.image_parameter() {
            statements.push(allow(&["ssm:GetParameters"], &[parameter]));
        }
        statements
    }

    /// The parameter that names the AMI. AWS reads it with the permissions of the caller that makes the group.
    fn image_parameter(&self) -> Option<String> {
        let image = self.settings.image.as_deref().unwrap_or("resolve:ssm:/aws/service/debian/*");
        let name = image.strip_prefix("resolve:ssm:")?.trim_start_matches('/');
        Some(format!("arn:{}:ssm:{}:*:parameter/{name}", self.partition, self.region))
    }

    fn groups(&self) -> Vec<Value> {
        let mut groups = vec![self.arns.group(&self.names.worker_group)];
        if self.settings.web_instances > 0 {
            groups.push(self.arns.group(&self.names.web_group));
        }
        let mut actions = GROUPS.to_vec();
        if self.settings.has_balancer() {
            actions.extend(TARGET_GROUPS);
        }
        vec![allow(&actions, &groups)]
    }

    fn balancers(&self) -> Option<Value> {
        self.settings.certificate.as_ref()?;
        Some(allow(&BALANCERS, &[self.arns.balancers(&self.names.balancers())]))
    }

    /// The names of a stack with a prefix are shorter as a pattern.
    fn alarms(&self) -> Vec<String> {
        let names = &self.names;
        let all = [
            &names.scale_up_alarm,
            &names.scale_down_alarm,
            &names.scale_from_zero_alarm,
            &names.dead_letters_alarm,
            &names.oldest_image_alarm,
            &names.missing_workers_alarm,
            &names.missing_web_machines_alarm,
        ];
        match stack_prefix(&self.settings.stack) {
            prefix if prefix.is_empty() => all.into_iter().cloned().collect(),
            prefix => vec![format!("{prefix}*Alarm")],
        }
    }

    fn watching(&self) -> Vec<Value> {
        let names = &self.names;
        let notify = &self.settings.notify;
        let alarms: Vec<String> = self.alarms().iter().map(|name| self.arns.alarm(name)).collect();
        let global = |service: &str, rest: String| format!("arn:{}:{service}::{}:{rest}", self.partition, self.account);
        let dashboard = global("cloudwatch", format!("dashboard/{}", names.dashboard));
        let budget = global("budgets", format!("budget/{}", names::budget(&self.settings.stack, self.region)));
        let topic = self.arns.topic(&names.topic);
        let in_cloudwatch = [&ALARMS[..], &DASHBOARD].concat();
        // Without --notify and --budget, this program looks whether there is something to delete.
        let mut told = if notify.emails.is_empty() { vec!["sns:ListTagsForResource"] } else { TOPIC.to_vec() };
        let mut resources = vec![topic];
        if Partition::of(self.region).budgets().is_some() {
            told.push("budgets:ViewBudget");
            resources.push(budget);
        }
        if notify.monthly_budget.is_some() {
            told.push("budgets:ModifyBudget");
        }
        vec![allow(&in_cloudwatch, &[alarms, vec![dashboard]].concat()), allow(&told, &resources)]
    }
}

fn when(mut statement: Value, test: &str, condition: &Value) -> Value {
    statement["Condition"] = json!({ test: condition });
    statement
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest managed policy that IAM takes, without white space.
    const LONGEST_POLICY: usize = 6_144;

    #[test]
    fn policy_is_short_enough_for_a_managed_policy() {
        for stack in ["imgcls", "twenty-bytes-in-name"] {
            let mut settings = Settings::for_tests(stack);
            settings.notify.emails = vec!["ops@example.org".to_owned()];
            settings.notify.monthly_budget = Some(50.0);
            settings.certificate = Some("arn".to_owned());
            settings.spot_percent = 50;
            settings.permissions_boundary = Some("arn".to_owned());
            let text = policy(&settings, false, "123456789012", "ap-southeast-1").to_string();
            assert!(text.len() <= LONGEST_POLICY, "{stack}: {} bytes", text.len());
        }
    }
}
