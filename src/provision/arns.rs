//! Amazon Resource Names in one account and region.

use super::names::role_path;
use super::partition::Partition;

pub(super) struct Arns<'a> {
    account: &'a str,
    region: &'a str,
}

impl<'a> Arns<'a> {
    pub(super) fn new(account: &'a str, region: &'a str) -> Self {
        Arns { account, region }
    }

    pub(super) fn queue(&self, name: &str) -> String {
        self.regional("sqs", name)
    }

    /// Bucket names are globally unique, so their ARN names neither account nor region.
    pub(super) fn bucket(&self, name: &str) -> String {
        format!("arn:{}:s3:::{name}", Partition::of(self.region).name)
    }

    /// IAM is global, so the ARN names no region.
    pub(super) fn instance_profile(&self, stack: &str, name: &str) -> String {
        let (partition, account, path) = (Partition::of(self.region).name, self.account, role_path(stack));
        format!("arn:{partition}:iam::{account}:instance-profile{path}{name}")
    }

    /// A pattern for an Auto Scaling group: its ARN contains an id that only AWS knows.
    pub(super) fn group(&self, name: &str) -> String {
        self.regional("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{name}"))
    }

    pub(super) fn log_group(&self, name: &str) -> String {
        self.regional("logs", &format!("log-group:{name}"))
    }

    /// A KMS key, by its id.
    pub(super) fn key(&self, id: &str) -> String {
        self.regional("kms", &format!("key/{id}"))
    }

    pub(super) fn topic(&self, name: &str) -> String {
        self.regional("sns", name)
    }

    /// A pattern for a load balancer, its target group and its listeners: their ARNs contain ids that only AWS knows.
    pub(super) fn balancers(&self, names: &str) -> String {
        self.regional("elasticloadbalancing", &format!("*/{names}"))
    }

    pub(super) fn alarm(&self, name: &str) -> String {
        self.regional("cloudwatch", &format!("alarm:{name}"))
    }

    fn regional(&self, service: &str, rest: &str) -> String {
        format!("arn:{}:{service}:{}:{}:{rest}", Partition::of(self.region).name, self.region, self.account)
    }
}
