//! One change of a plan, and what differs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inventory::FoundResource;
use super::resource::{Kind, Resource, label, target_of};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Change {
    pub action: Action,
    pub kind: Kind,
    pub name: String,
    /// The resource's id within the stack. A deletion has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The differing properties of an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Difference {
    pub property: String,
    pub found: Option<Value>,
    pub wanted: Value,
}

impl Change {
    pub(super) fn of(action: Action, resource: &Resource, differences: Vec<Difference>) -> Change {
        let (kind, name) = (resource.kind, resource.name.clone());
        Change { action, kind, name, id: Some(resource.id.clone()), differences }
    }

    pub(super) fn differs(&self, property: &str) -> bool {
        self.differences.iter().any(|difference| difference.property == property)
    }

    pub(super) fn delete(found: &FoundResource) -> Change {
        let (kind, name) = (found.kind, found.name.clone());
        Change { action: Action::Delete, kind, name, id: None, differences: Vec::new() }
    }

    pub(super) fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

/// The differing members of a value: path, actual and wanted value of each.
pub(super) fn leaves(difference: &Difference) -> Vec<(String, Option<Value>, Option<Value>)> {
    let mut found = Vec::new();
    walk(&difference.property, difference.found.as_ref(), Some(&difference.wanted), &mut found);
    found
}

fn walk(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<(String, Option<Value>, Option<Value>)>) {
    match (from, to) {
        (Some(from), Some(to)) if from == to => {}
        (Some(Value::Object(from)), Some(Value::Object(members)))
            if target_of(&Value::Object(members.clone())).is_none() =>
        {
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
