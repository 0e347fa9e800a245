//! The running machines of a stack: addresses of the web tier, and machines that run an older version.

use std::collections::BTreeMap;

use serde::Serialize;

use super::doctor::Stalled;
use super::inventory::Inventory;
use super::names::ResourceNames;
use super::resource::{DNS_NAME, LATEST_VERSION};
use super::stack::Stack;

/// The state of a stack's machines.
#[derive(Debug, Serialize)]
pub(super) struct Machines {
    /// Addresses of the web tier.
    pub web: Vec<String>,
    pub outdated: Vec<Outdated>,
    /// Images wait, and none of the machines receives.
    pub stalled: Option<Stalled>,
    /// How long each machine took from its start until its service was ready.
    pub ready_after_seconds: BTreeMap<String, i64>,
    /// Groups whose last attempt to start a machine failed, each with the reason.
    pub failed_starts: Vec<(String, String)>,
}

/// The outcome of the last attempts of groups to start machines.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// The groups whose last attempt failed, each with the reason: a quota, the capacity for an instance type or the AMI. A
    /// group retries by itself.
    pub failed: Vec<(String, String)>,
    /// When each machine was in service, in seconds since 1970.
    pub in_service_at: BTreeMap<String, i64>,
}

/// Machines of a group that were started from an older version of its launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Outdated {
    pub group: String,
    pub machines: usize,
    /// The newest refresh of the group.
    pub refresh: Option<Refresh>,
}

/// An instance refresh: a group replaces its machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Refresh {
    pub state: RefreshState,
    /// How much of it is done.
    pub percent: Option<i32>,
    /// AWS's explanation of its state.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RefreshState {
    /// It has not ended.
    Running,
    /// It replaced all machines.
    Ended,
    /// It ended before it had replaced all.
    Cancelled,
    Failed,
}

/// Machines that run an older build or have older settings than the stack. Nothing is known about the versions of a
/// launch template that the user supplies. Refreshes are not known here.
pub(super) fn outdated(stack: &Stack, inventory: &Inventory) -> Vec<Outdated> {
    let groups = [("WorkerGroup", "WorkerTemplate"), ("WebGroup", "WebTemplate")];
    let outdated = groups.iter().filter_map(|(group, template)| {
        let group = stack.get(group)?.name.clone();
        let latest = stack.attribute(inventory, template, LATEST_VERSION)?;
        let is_older = |version: &String| *version != latest;
        let machines = inventory.instances.iter().filter(|machine| {
            machine.group == group && machine.is_up() && machine.template_version.as_ref().is_some_and(is_older)
        });
        Some(Outdated { machines: machines.count(), group, refresh: None }).filter(|outdated| outdated.machines > 0)
    });
    outdated.collect()
}

/// How long each machine took until it was in service.
pub(super) fn ready_after_seconds(starts: &Starts, inventory: &Inventory) -> BTreeMap<String, i64> {
    let times = inventory.instances.iter().filter_map(|machine| {
        let seconds = starts.in_service_at.get(&machine.id)? - machine.started_at?;
        (seconds >= 0).then(|| (machine.id.clone(), seconds))
    });
    times.collect()
}

/// The address of the load balancer, or else those of the web tier's machines that are up.
pub(super) fn web_addresses(stack: &Stack, inventory: &Inventory) -> Vec<String> {
    if stack.get("WebBalancer").is_some() {
        let name = stack.attribute(inventory, "WebBalancer", DNS_NAME);
        return name.into_iter().map(|name| format!("https://{name}/")).collect();
    }
    let group = ResourceNames::of(&stack.name).web_group;
    let machines = inventory.instances.iter().filter(|machine| machine.group == group && machine.is_up());
    machines.filter_map(|instance| instance.address.as_ref()).map(|address| format!("http://{address}/")).collect()
}
