//! The load balancer in front of the web tier: that of the stack, or one that the user made.

use serde::Serialize;
use serde_json::Value;

use super::{Findings, Group, Observed, Target};

/// The longest time that a request waits for its answer, unless the web tier is configured otherwise.
const LONGEST_WAIT_SECONDS: u64 = 600;
/// The parts of the names of policies that allow neither TLS 1.0 nor 1.1.
const MODERN: [&str; 4] = ["-FS-1-2-", "-TLS-1-2-", "-TLS13-1-2-", "-TLS13-1-3-"];

/// A target group that the web tier joins, and the load balancer in front of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(in crate::provision) struct Balancer {
    pub target_group_arn: String,
    /// Name of the target group. Absent if there is none.
    pub target_group: Option<String>,
    /// Each machine with its state and the reason for it.
    pub targets: Vec<(String, String, String)>,
    /// Name of the load balancer. Absent if the target group belongs to none.
    pub name: Option<String>,
    /// The load balancer's state, with the reason if it does not work.
    pub state: String,
    /// Properties of its listeners.
    pub listeners: Vec<Value>,
    pub idle_timeout_seconds: Option<u64>,
}

impl Balancer {
    /// A target group that was not found.
    pub(in crate::provision) fn unknown(target_group_arn: &str) -> Balancer {
        Balancer { target_group_arn: target_group_arn.to_owned(), ..Balancer::default() }
    }
}

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let Some(group) = &observed.web_group else { return };
    let on_group = format!("Auto Scaling group {:?}", target.web_group);
    if !observed.balancers.is_empty() && group.properties["HealthCheckType"] != "ELB" {
        findings.risk(
            &on_group,
            "its HealthCheckType is EC2: a machine that its load balancer finds unhealthy is not replaced",
            "set HealthCheckType to ELB",
        );
    }
    for balancer in &observed.balancers {
        let Some(name) = &balancer.target_group else {
            findings.broken(
                &on_group,
                format!("its target group {} does not exist", balancer.target_group_arn),
                "name another one with --target-group, or give --certificate",
            );
            continue;
        };
        targets(balancer, &format!("target group {name:?}"), findings);
        match &balancer.name {
            None => findings.broken(
                &format!("target group {name:?}"),
                "no load balancer sends to it: nobody reaches the web tier through it",
                "add a listener that forwards to it",
            ),
            Some(name) => load_balancer(balancer, group, &format!("load balancer {name:?}"), findings),
        }
    }
}

fn targets(balancer: &Balancer, on: &str, findings: &mut Findings) {
    let unhealthy: Vec<_> = balancer.targets.iter().filter(|(_, state, _)| state == "unhealthy").collect();
    let Some((machine, _, reason)) = unhealthy.first() else { return };
    let fault = format!(
        "{} of its {} targets are unhealthy, such as {machine}: {}",
        unhealthy.len(),
        balancer.targets.len(),
        if reason.is_empty() { "AWS gives no reason" } else { reason }
    );
    let remedy = "see what the machine logged (`imgcls provision logs`), and whether its security group lets the load balancer in";
    if unhealthy.len() == balancer.targets.len() {
        findings.broken(on, fault, remedy);
    } else {
        findings.risk(on, fault, remedy);
    }
}

fn load_balancer(balancer: &Balancer, group: &Group, on: &str, findings: &mut Findings) {
    // One that was just made is provisioning.
    if balancer.state.starts_with("failed") || balancer.state.starts_with("active_impaired") {
        findings.broken(
            on,
            format!("its state is {}", balancer.state),
            "make it again: `imgcls provision destroy` and `apply`, or in other subnets",
        );
    }
    if let Some(seconds) = balancer.idle_timeout_seconds.filter(|seconds| *seconds <= LONGEST_WAIT_SECONDS) {
        findings.risk(
            on,
            format!(
                "its idle_timeout.timeout_seconds is {seconds}: callers that wait for up to {LONGEST_WAIT_SECONDS} s get 504 before their answer"
            ),
            format!("set it to more than {LONGEST_WAIT_SECONDS}"),
        );
    }
    let forwards = |listener: &Value| {
        let actions = listener["DefaultActions"].as_array().into_iter().flatten();
        actions.into_iter().any(|action| action["TargetGroupArn"] == balancer.target_group_arn.as_str())
    };
    for listener in balancer.listeners.iter().filter(|listener| forwards(listener)) {
        self::listener(listener, on, findings);
    }
    if !balancer.listeners.iter().any(|listener| listener["Protocol"] == "HTTPS") {
        findings.risk(
            on,
            "it has no listener of HTTPS: keys and images cross the network in clear text",
            "add one with a certificate; `imgcls provision --certificate` does",
        );
    }
    let rules =
        group.security_groups.iter().flat_map(|found| found.ingress.iter().map(move |rule| (&found.name, rule)));
    for (name, _) in rules.filter(|(_, rule)| rule["FromPort"] == 80 && super::network::is_open(rule)) {
        findings.risk(
            &format!("security group {name:?}"),
            "rule tcp 80 lets everybody pass the load balancer by, without TLS",
            "let only the load balancer's security group in",
        );
    }
}

fn listener(listener: &Value, on: &str, findings: &mut Findings) {
    let port = &listener["Port"];
    if listener["Protocol"] == "HTTP" {
        findings.risk(
            on,
            format!("its listener {port} forwards HTTP: keys and images cross the network in clear text"),
            "let it redirect to HTTPS, or remove it",
        );
    }
    let policy = listener["SslPolicy"].as_str().unwrap_or_default();
    let is_modern = MODERN.iter().any(|part| policy.contains(part));
    if listener["Protocol"] == "HTTPS" && !is_modern {
        findings.risk(
            on,
            format!("the SslPolicy of its listener {port} is {policy}, which allows TLS 1.0 and 1.1"),
            "set ELBSecurityPolicy-TLS13-1-2-2021-06",
        );
    }
}
