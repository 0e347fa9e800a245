//! The security groups of machines.

use serde_json::Value;

use super::{Findings, Group};
use crate::provision::rules;
use crate::provision::tier::Tier;

/// The ports on which everybody may reach a web tier.
const WEB_PORTS: [i64; 2] = [80, 443];
const HTTPS: i64 = 443;

pub(super) fn check(group: &Group, tier: Tier, on: &str, findings: &mut Findings) {
    for security_group in &group.security_groups {
        let name = &security_group.name;
        if !security_group.exists {
            findings.broken(
                on,
                format!("its security group {name:?} does not exist: no machine starts"),
                "name an existing one in the launch template",
            );
            continue;
        }
        let on = format!("security group {name:?}");
        for rule in security_group.ingress.iter().filter(|rule| is_open(rule) && !is_expected(rule, tier)) {
            findings.risk(
                &on,
                format!("it lets everybody in: rule {}", rules::words(rule)),
                "revoke the rule, or name the addresses that need it",
            );
        }
        if !security_group.egress.iter().any(lets_https_out) {
            findings.broken(
                &on,
                "no egress rule lets HTTPS (tcp 443) out: machines reach neither queues nor buckets",
                "allow tcp 443 to 0.0.0.0/0, or to the endpoints of SQS and S3",
            );
        }
    }
}

pub(super) fn is_open(rule: &Value) -> bool {
    rule["CidrIp"] == "0.0.0.0/0" || rule["CidrIpv6"] == "::/0"
}

/// Returns whether only ports are open that a web tier may offer to everybody.
fn is_expected(rule: &Value, tier: Tier) -> bool {
    tier == Tier::Web
        && rule["FromPort"] == rule["ToPort"]
        && rule["FromPort"].as_i64().is_some_and(|port| WEB_PORTS.contains(&port))
}

fn lets_https_out(rule: &Value) -> bool {
    let is_all = rule["IpProtocol"] == "-1";
    let ports = rule["FromPort"].as_i64().zip(rule["ToPort"].as_i64());
    is_all || rule["IpProtocol"] == "tcp" && ports.is_some_and(|(from, to)| (from..=to).contains(&HTTPS))
}
