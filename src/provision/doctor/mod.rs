//! Diagnoses what does not work in a stack and how to repair it, whether imgcls or somebody else made the stack. A pure
//! function of the observed state. Each finding has AWS's own terms and the value that was found.

mod alarms;
mod balancer;
mod buckets;
mod group;
mod network;
mod queues;
mod roles;
mod store;

use serde::Serialize;
use serde_json::Value;

use super::bundle::Cpu;
use super::tier::Tier;
use crate::config::Names;
pub(super) use balancer::Balancer;

/// The observed state of the resources that a service uses. Properties are in CloudFormation's form.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Observed {
    /// Properties by name. Contains the dead-letter queue if there is one.
    pub queues: Vec<(String, Value)>,
    pub buckets: Vec<Bucket>,
    /// The store, if it is not AWS's own.
    pub store: Option<Store>,
    /// Properties by name.
    pub alarms: Vec<(String, Value)>,
    /// The workers' group.
    pub group: Option<Group>,
    /// The web tier's group. A stack may have none.
    pub web_group: Option<Group>,
    /// The load balancers of the web tier.
    pub balancers: Vec<Balancer>,
    pub roles: Vec<Role>,
    /// The depth of the request queue, read twice while images wait and machines run.
    pub stalled: Option<Stalled>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bucket {
    pub name: String,
    /// True if public access is blocked.
    pub is_closed: bool,
    /// The bucket's region, if it is not the region of the machines.
    pub other_region: Option<String>,
    /// Statements of its policy.
    pub statements: Vec<Value>,
}

/// A store that speaks like S3.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Store {
    pub endpoint_url: String,
    /// It refuses the second of two puts with `If-None-Match: *`. Absent if these credentials cannot find out.
    pub keeps_conditions: Option<bool>,
    /// It takes objects with a checksum in a header. Absent as above.
    pub takes_checksums: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Group {
    pub name: String,
    pub properties: Value,
    pub policies: Vec<Value>,
    /// ARNs of the policies, in the same order.
    pub policy_arns: Vec<String>,
    /// Properties of the lifecycle hooks by name.
    pub hooks: Vec<(String, Value)>,
    /// Name of its launch template.
    pub template_name: Option<String>,
    /// Data of its launch template.
    pub template: Option<Value>,
    /// Processor of its AMI, if known.
    pub image_cpu: Option<Cpu>,
    /// The instance profile that its launch template names.
    pub profile: Option<Profile>,
    /// The security groups that its launch template names.
    pub security_groups: Vec<SecurityGroup>,
    /// The reason why its last attempt to start a machine failed.
    pub failed_start: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Profile {
    pub name: String,
    /// Names of the roles in it. Absent if there is no such profile.
    pub roles: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct SecurityGroup {
    /// The name, or the id if there is no such group.
    pub name: String,
    pub exists: bool,
    pub ingress: Vec<Value>,
    pub egress: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Role {
    pub name: String,
    pub tier: Tier,
    /// Absent if the role does not exist.
    pub found: Option<FoundRole>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct FoundRole {
    /// The trust policy.
    pub trust: Value,
    /// Documents of inline and attached policies.
    pub documents: Vec<Value>,
}

/// Images wait, machines are in service, and nobody receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Stalled {
    pub visible: u64,
    pub in_service: usize,
}

/// The names of the resources to examine.
pub(super) struct Target<'a> {
    pub account: &'a str,
    pub region: &'a str,
    pub names: &'a Names,
    /// The buckets of others that workers read.
    pub read_buckets: &'a [String],
    pub group: &'a str,
    pub web_group: &'a str,
    pub log_group: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub severity: Severity,
    /// The resource at fault, such as `alarm "ScaleUpAlarm"`.
    pub on: String,
    pub fault: String,
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    /// It does not work.
    Broken,
    /// It works at present, but may lose data, or allows access that it should not.
    Risk,
}

/// All findings, in the order in which an image meets the resources.
pub(super) fn diagnose(observed: &Observed, target: &Target<'_>) -> Vec<Finding> {
    let mut findings = Findings::default();
    queues::check(observed, target, &mut findings);
    buckets::check(observed, target, &mut findings);
    store::check(observed, &mut findings);
    roles::check(observed, target, &mut findings);
    alarms::check(observed, target, &mut findings);
    group::check(observed, target, &mut findings);
    balancer::check(observed, target, &mut findings);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn broken(&mut self, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Broken, on, fault, remedy);
    }

    fn risk(&mut self, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Risk, on, fault, remedy);
    }

    fn add(&mut self, severity: Severity, on: &str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, on: on.to_owned(), fault: fault.into(), remedy: remedy.into() });
    }
}

/// Returns whether a policy statement allows something to everybody, without a condition.
fn is_public(statement: &Value) -> bool {
    let principal = &statement["Principal"];
    let is_everybody =
        *principal == "*" || super::policy_evaluation::listed(&principal["AWS"]).iter().any(|one| **one == "*");
    statement["Effect"] == "Allow" && is_everybody && statement.get("Condition").is_none()
}

#[cfg(test)]
mod tests;
