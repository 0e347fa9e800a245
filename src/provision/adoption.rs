//! The part of the actual state that a stack takes over: resources that existed before it, and KMS keys of a customer.
//!
//! A resource that was taken over has a tag that says so, and is never deleted with the stack.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::arns::Arns;
use super::inventory::{FoundResource, Inventory, Owner};
use super::names::dashboard_mark;
use super::permissions;
use super::resource::{ADOPTED_TAG, Kind, Resource, label, split_group};
use super::stack::Stack;

/// The begin of the names of keys that AWS manages. Everybody in the account may use them through the service.
const MANAGED_BY_AWS: [&str; 2] = ["alias/aws/", "aws/"];

/// The stack with the tags of adopted resources, and with permissions for the customer's keys of queues and buckets.
/// A stack that was adapted before does not change.
pub(super) fn adapted(mut stack: Stack, inventory: &Inventory, adopt: bool) -> Stack {
    let name = stack.name.clone();
    for resource in &mut stack.resources {
        let found = inventory.get(resource.kind, &resource.name);
        if found.is_some_and(|found| is_adopted(found) || (adopt && found.owner == Owner::Nobody)) {
            mark(resource, &name);
        }
    }
    let keys = customer_keys(&stack, inventory);
    let statements = permissions::customer_keys(&Arns::new(&stack.account, &stack.region), &keys);
    for resource in stack.resources.iter_mut().filter(|resource| resource.kind == Kind::Role) {
        let policies = resource.properties.get_mut("Policies").and_then(Value::as_array_mut);
        for policy in policies.into_iter().flatten() {
            if let Some(all) = policy["PolicyDocument"]["Statement"].as_array_mut() {
                all.retain(|statement| !permissions::is_of_customer_keys(statement));
                all.extend(statements.iter().cloned());
            }
        }
    }
    stack
}

/// Marks a wanted resource as adopted.
fn mark(resource: &mut Resource, stack: &str) {
    if let Some(tags) = resource.properties.get_mut("Tags").and_then(Value::as_array_mut) {
        if tags.iter().any(|tag| tag["Key"] == ADOPTED_TAG) {
            return;
        }
        let mut tag = json!({"Key": ADOPTED_TAG, "Value": "true"});
        if resource.kind == Kind::AutoScalingGroup {
            tag["PropagateAtLaunch"] = false.into();
        }
        tags.push(tag);
        tags.sort_by_key(|tag| tag["Key"].as_str().unwrap_or_default().to_owned());
    }
    if let Some(Value::String(body)) = resource.properties.get_mut("DashboardBody") {
        let mark = dashboard_mark(stack);
        *body = body.replace(&format!("\"{mark}\""), &format!("\"{}\"", adopted_dashboard_mark(stack)));
    }
}

/// The text widget of a dashboard that was adopted.
pub(super) fn adopted_dashboard_mark(stack: &str) -> String {
    format!("{} {ADOPTED_TAG}", dashboard_mark(stack))
}

/// Returns whether a resource existed before the stack that owns it.
pub(super) fn is_adopted(found: &FoundResource) -> bool {
    let tags = found.properties.get("Tags").and_then(Value::as_array);
    let is_tagged = tags.is_some_and(|tags| tags.iter().any(|tag| tag["Key"] == ADOPTED_TAG));
    let body = found.properties.get("DashboardBody").and_then(Value::as_str);
    found.owner == Owner::This && (is_tagged || body.is_some_and(|body| body.contains(ADOPTED_TAG)))
}

/// A line for a resource of the wanted stack that was adopted, or is about to be.
pub(super) fn note(resource: &Resource, found: &FoundResource, adopt: bool) -> Option<String> {
    let is_new = adopt && found.owner == Owner::Nobody && can_be_kept(resource);
    (is_new || is_adopted(found))
        .then(|| format!("{} existed before the stack: destroy does not delete it", label(found.kind, &found.name)))
}

fn can_be_kept(resource: &Resource) -> bool {
    resource.properties.contains_key("Tags") || resource.kind == Kind::Dashboard
}

/// The stack's resources that `destroy` does not delete: those that were adopted, and those without which they would not
/// work, or which AWS would refuse to delete.
pub(super) fn kept(inventory: &Inventory) -> BTreeSet<(Kind, &str)> {
    let mut kept = BTreeSet::new();
    for found in inventory.found.iter().filter(|found| is_adopted(found)) {
        kept.insert((found.kind, found.name.as_str()));
        match found.kind {
            Kind::Queue => {
                let target =
                    found.properties.get("RedrivePolicy").and_then(|policy| policy["deadLetterTargetArn"].as_str());
                kept.extend(target.and_then(|arn| arn.rsplit(':').next()).map(|name| (Kind::Queue, name)));
            }
            Kind::InstanceProfile => {
                let roles = found.properties.get("Roles").and_then(Value::as_array);
                kept.extend(roles.into_iter().flatten().filter_map(Value::as_str).map(|name| (Kind::Role, name)));
            }
            Kind::AutoScalingGroup => kept.extend(of_group(inventory, &found.name)),
            Kind::LoadBalancer => kept.extend(of_balancer(inventory, &found.name)),
            _ => {}
        }
    }
    kept
}

/// The hooks and policies of a group, and what its machines start from.
fn of_group<'a>(inventory: &'a Inventory, group: &str) -> impl Iterator<Item = (Kind, &'a str)> {
    let group = group.to_owned();
    let is_needed = move |found: &&FoundResource| match found.kind {
        Kind::LifecycleHook | Kind::ScalingPolicy => split_group(&found.name).0 == group,
        Kind::LaunchTemplate | Kind::SecurityGroup | Kind::Role | Kind::InstanceProfile => true,
        _ => false,
    };
    inventory.found.iter().filter(is_needed).map(|found| (found.kind, found.name.as_str()))
}

/// The listeners of a load balancer, their target group, and the security groups.
fn of_balancer<'a>(inventory: &'a Inventory, balancer: &str) -> impl Iterator<Item = (Kind, &'a str)> {
    let balancer = balancer.to_owned();
    let is_needed = move |found: &&FoundResource| match found.kind {
        Kind::Listener => split_group(&found.name).0 == balancer,
        Kind::TargetGroup => found.name == balancer,
        Kind::SecurityGroup => true,
        _ => false,
    };
    inventory.found.iter().filter(is_needed).map(|found| (found.kind, found.name.as_str()))
}

/// The keys of a customer that encrypt the stack's queues and buckets.
fn customer_keys(stack: &Stack, inventory: &Inventory) -> BTreeSet<String> {
    let found = stack.resources.iter().filter_map(|resource| inventory.get(resource.kind, &resource.name));
    let keys = found.filter_map(FoundResource::kms_key);
    keys.filter(|key| !MANAGED_BY_AWS.iter().any(|prefix| key.starts_with(prefix))).map(str::to_owned).collect()
}
