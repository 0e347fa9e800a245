//! The difference between what is wanted and what is found: a pure function, and a value to print, save and carry out.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inventory::{Found, Inventory, Owner};
use super::resource::{Kind, Resource, label, resolve, target_of};
use super::stack::Stack;

/// Of the form of a saved plan.
const VERSION: u32 = 1;
/// Changes with every version of a launch template.
const LATEST_VERSION: &str = "LatestVersionNumber";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    pub stack: Stack,
    /// Of the inventory that this rests on; a saved plan is carried out on no other.
    pub inventory: String,
    /// In the order in which they are carried out.
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub action: Action,
    pub kind: Kind,
    pub name: String,
    /// Within the stack; what is removed may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Of an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub property: String,
    pub found: Option<Value>,
    pub wanted: Value,
}

/// Why nothing is planned. One line with the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Change {
    pub fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

impl Plan {
    /// What has to change so that the stack stands as wanted. `adopt`: what stands under a wanted name and is nobody's
    /// becomes the stack's.
    ///
    /// # Errors
    /// Where a wanted name is taken.
    pub fn new(stack: Stack, inventory: &Inventory, adopt: bool) -> Result<Plan, Refusal> {
        let mut changes: Vec<Change> = Vec::new();
        for resource in &stack.resources {
            let Some(found) = inventory.get(resource.kind, &resource.name) else {
                changes.push(Change::of(Action::Create, resource, Vec::new()));
                continue;
            };
            check_owner(&stack, found, adopt)?;
            let changed: BTreeSet<&str> = changes.iter().filter_map(|change| change.id.as_deref()).collect();
            let differences = differences(&stack, resource, found, inventory, &changed);
            if !differences.is_empty() {
                changes.push(Change::of(Action::Update, resource, differences));
            }
        }
        changes.extend(stack.unwanted(inventory).into_iter().rev().map(Change::delete));
        Ok(Plan { version: VERSION, inventory: inventory.fingerprint(), stack, changes })
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn count(&self, action: Action) -> usize {
        self.changes.iter().filter(|change| change.action == action).count()
    }

    /// # Errors
    /// Where the text is no plan of this program.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let plan: Plan = serde_json::from_str(text).map_err(|error| format!("it is no saved plan ({error})"))?;
        if plan.version == VERSION { Ok(plan) } else { Err("it was saved by another version of imgcls".to_owned()) }
    }

    /// # Errors
    /// Where something has changed since the plan was made.
    pub fn check_inventory(&self, inventory: &Inventory) -> Result<(), Refusal> {
        if inventory.fingerprint() == self.inventory {
            return Ok(());
        }
        Err(Refusal("what stands on AWS has changed since this plan was made; make a new one with `imgcls provision plan --out FILE`".to_owned()))
    }
}

impl Change {
    fn of(action: Action, resource: &Resource, differences: Vec<Difference>) -> Change {
        let (kind, name) = (resource.kind, resource.name.clone());
        Change { action, kind, name, id: Some(resource.id.clone()), differences }
    }

    fn delete(found: &Found) -> Change {
        let (kind, name) = (found.kind, found.name.clone());
        Change { action: Action::Delete, kind, name, id: None, differences: Vec::new() }
    }
}

fn check_owner(stack: &Stack, found: &Found, adopt: bool) -> Result<(), Refusal> {
    let what = label(found.kind, &found.name);
    match &found.owner {
        Owner::This => Ok(()),
        Owner::Nobody if adopt => Ok(()),
        Owner::Nobody => Err(Refusal(format!(
            "{what} stands already and is no part of stack {:?} (it has no tag imgcls:stack): give another --stack or name, or --adopt to take over everything that stands under the stack's names and change it",
            stack.name
        ))),
        Owner::Other(other) => Err(Refusal(format!(
            "{what} belongs to stack {other}, not to {:?} in {}: give another --stack or name",
            stack.name, stack.region
        ))),
    }
}

fn differences(
    stack: &Stack,
    resource: &Resource,
    found: &Found,
    inventory: &Inventory,
    changed: &BTreeSet<&str>,
) -> Vec<Difference> {
    let known = |id: &str, attribute: &str| {
        if attribute == LATEST_VERSION && changed.contains(id) {
            return None;
        }
        stack.attribute(inventory, id, attribute)
    };
    let mut differences = Vec::new();
    for (property, wanted) in &resource.properties {
        let wanted = resolve(wanted, &known);
        let there = found.properties.get(property);
        if !resource.kind.is_fixed(property) && there != Some(&wanted) {
            differences.push(Difference { property: property.clone(), found: there.cloned(), wanted });
        }
    }
    differences
}

/// Where a value differs, by the paths of its members; those that are alike are left out.
pub fn leaves(difference: &Difference) -> Vec<(String, Option<Value>, Option<Value>)> {
    let mut found = Vec::new();
    walk(&difference.property, difference.found.as_ref(), Some(&difference.wanted), &mut found);
    found
}

fn walk(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<(String, Option<Value>, Option<Value>)>) {
    match (from, to) {
        (Some(from), Some(to)) if from == to => {}
        (Some(Value::Object(from)), Some(Value::Object(members))) if target_of(&Value::Object(members.clone())).is_none() => {
            let names: BTreeSet<&String> = from.keys().chain(members.keys()).collect();
            for name in names {
                walk(&format!("{path}.{name}"), from.get(name), members.get(name), found);
            }
        }
        (Some(Value::Array(from)), Some(Value::Array(to))) if from.len() == to.len() => {
            for (index, (from, to)) in from.iter().zip(to).enumerate() {
                walk(&format!("{path}[{index}]"), Some(from), Some(to), found);
            }
        }
        _ => found.push((path.to_owned(), from.cloned(), to.cloned())),
    }
}

/// What has to go so that nothing of the stack is left, machines first.
pub fn removal(inventory: &Inventory) -> Vec<Change> {
    let ours = inventory.found.iter().rev().filter(|found| found.owner == Owner::This);
    let mut changes: Vec<Change> = ours.map(Change::delete).collect();
    let replies = inventory.reply_queues.iter().map(|name| Change {
        action: Action::Delete,
        kind: Kind::Queue,
        name: name.clone(),
        id: None,
        differences: Vec::new(),
    });
    let after_groups = changes.iter().position(|change| change.kind < Kind::AutoScalingGroup).unwrap_or(changes.len());
    changes.splice(after_groups..after_groups, replies);
    changes
}
