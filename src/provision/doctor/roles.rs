//! The roles: existence, trust policy and permissions.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Findings, FoundRole, Observed, Target};
use crate::provision::arns::Arns;
use crate::provision::permissions::{self, Scope};
use crate::provision::policy_evaluation::{self, listed};
use crate::provision::tier::Tier;

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let arns = Arns::new(target.account, target.region);
    let Target { names, read_buckets, group: worker_group, web_group, log_group, .. } = *target;
    let scope = Scope { arns: &arns, names, read_buckets, worker_group, web_group, log_group, session_manager: false };
    for role in &observed.roles {
        let on = format!("role {:?}", role.name);
        let Some(found) = &role.found else {
            let flag = match role.tier {
                Tier::Worker => "--worker-role",
                Tier::Web => "--web-role",
            };
            findings.broken(
                &on,
                "it does not exist",
                format!("name it with {flag}, or let `imgcls provision` make it"),
            );
            continue;
        };
        if !trusts_instances(&found.trust, target.region) {
            findings.broken(
                &on,
                format!("its trust policy does not let EC2 assume it: {}", found.trust["Statement"]),
                "allow sts:AssumeRole to the service ec2.amazonaws.com",
            );
        }
        permissions(found, role.tier, &scope, &on, findings);
        customer_keys(found, observed, &arns, &on, findings);
    }
}

fn trusts_instances(trust: &Value, region: &str) -> bool {
    let service = permissions::instance_service(region);
    let names = |value: &Value, word: &str| listed(value).iter().any(|one| **one == word);
    let is_about_instances = |statement: &&Value| {
        let principal = &statement["Principal"];
        let is_service = *principal == "*" || names(&principal["Service"], service);
        let action = &statement["Action"];
        is_service && (names(action, "sts:AssumeRole") || names(action, "sts:*") || names(action, "*"))
    };
    let statements: Vec<&Value> = listed(&trust["Statement"]).into_iter().filter(is_about_instances).collect();
    statements.iter().any(|statement| statement["Effect"] == "Allow")
        && !statements.iter().any(|statement| statement["Effect"] == "Deny")
}

fn permissions(role: &FoundRole, tier: Tier, scope: &Scope<'_>, on: &str, findings: &mut Findings) {
    let allowed = |action: &str, resource: &str| is_allowed(role, action, resource);
    // By resource, since one statement of a policy grants them together.
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (action, resource) in permissions::needed(tier, scope) {
        // Evaluation takes concrete names, so a wildcard becomes one: `bundle/*` is checked as `bundle/x`.
        if !allowed(&action, &resource.replace('*', "x")) {
            missing.entry(resource).or_default().push(action);
        }
    }
    for (resource, actions) in missing {
        findings.broken(
            on,
            format!("it lacks {} on {resource}", actions.join(", ")),
            "add these actions to a policy of the role; `imgcls provision export` prints the whole policy",
        );
    }
    bucket_in_place_of_objects(role, on, findings);
    let wide = [
        ("s3:DeleteBucket", "arn:aws:s3:::some-other-bucket"),
        ("sqs:DeleteQueue", "arn:aws:sqs:us-east-1:1:some-other-queue"),
    ];
    for (action, resource) in wide {
        if allowed(action, resource) {
            let service = action.split(':').next().unwrap_or_default();
            findings.risk(
                on,
                format!("it allows everything in {service}, on every resource of the account"),
                "name the actions and the resources that the tier needs; `imgcls provision export` prints them",
            );
        }
    }
}

fn is_allowed(role: &FoundRole, action: &str, resource: &str) -> bool {
    let documents = &role.documents;
    documents.iter().any(|document| policy_evaluation::allows(document, action, resource))
        && !documents.iter().any(|document| policy_evaluation::denies(document, action, resource))
}

/// A process that sends to a queue with a customer's key, or receives from it, needs permission to use the key.
fn customer_keys(role: &FoundRole, observed: &Observed, arns: &Arns<'_>, on: &str, findings: &mut Findings) {
    for (queue, properties) in &observed.queues {
        // A policy names an alias only as a condition, which is not evaluated here.
        let key = properties["KmsMasterKeyId"].as_str().filter(|key| !key.is_empty() && !key.contains("alias/"));
        let Some(key) = key else { continue };
        let key = if key.starts_with("arn:") { key.to_owned() } else { arns.key(key) };
        let needed = ["kms:Decrypt", "kms:GenerateDataKey"].into_iter();
        let missing: Vec<&str> = needed.filter(|action| !is_allowed(role, action, &key)).collect();
        if !missing.is_empty() {
            findings.broken(
                on,
                format!("it lacks {} on {key}, with which queue {queue:?} is encrypted", missing.join(", ")),
                "add these actions to a policy of the role; `imgcls provision` does",
            );
        }
    }
}

/// Permissions on objects that name a bucket allow nothing.
fn bucket_in_place_of_objects(role: &FoundRole, on: &str, findings: &mut Findings) {
    let statements = role.documents.iter().flat_map(|document| listed(&document["Statement"]));
    for statement in statements.filter(|statement| statement["Effect"] == "Allow") {
        let actions: Vec<&str> = listed(&statement["Action"]).into_iter().filter_map(Value::as_str).collect();
        let of_objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"];
        let Some(action) = of_objects.into_iter().find(|action| actions.contains(action)) else { continue };
        let resources: Vec<&str> = listed(&statement["Resource"]).into_iter().filter_map(Value::as_str).collect();
        let is_of_objects = |resource: &&&str| resource.contains('/') || resource.ends_with('*');
        if let Some(bucket) = resources.first().filter(|_| !resources.iter().any(|resource| is_of_objects(&resource))) {
            findings.broken(
                on,
                format!("it allows {action} on {bucket}, which is a bucket and not its objects"),
                format!("name {bucket}/* as the resource"),
            );
        }
    }
}
