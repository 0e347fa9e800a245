//! What is found on AWS: a plain value. It holds what the stack wants or owns, and nothing else of the account.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::resource::{Kind, Properties, REGION_TAG, STACK_TAG};

/// Whose a resource is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    This,
    Nobody,
    /// Another stack.
    Other(String),
}

impl Owner {
    /// By its tags, as seen from a stack in a region.
    pub fn of<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, stack: &str, region: &str) -> Owner {
        let tags: BTreeMap<&str, &str> = tags.into_iter().collect();
        match (tags.get(STACK_TAG), tags.get(REGION_TAG)) {
            (None, _) => Owner::Nobody,
            (Some(&owner), None) if owner == stack => Owner::This,
            (Some(&owner), Some(&its)) if owner == stack && its == region => Owner::This,
            (Some(&owner), None) => Owner::Other(owner.to_owned()),
            (Some(&owner), Some(&its)) => Owner::Other(format!("{owner} in {its}")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    pub kind: Kind,
    pub name: String,
    pub owner: Owner,
    /// What other resources refer to: `Arn`, `GroupId`, …; `Ref` as in a template.
    pub attributes: BTreeMap<String, String>,
    pub properties: Properties,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    pub group: String,
    pub state: String,
    pub address: Option<String>,
    /// Of the launch template that it was started from.
    pub template_version: Option<String>,
}

impl Instance {
    pub fn is_up(&self) -> bool {
        ["pending", "running"].contains(&self.state.as_str())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Sorted by kind and name.
    pub found: Vec<Found>,
    /// Queues of web processes that run, or ran.
    pub reply_queues: Vec<String>,
    /// Buckets of the stack that hold more than bundles.
    pub buckets_with_data: Vec<String>,
    /// Machines that the stack's groups have started; they come and go by themselves.
    pub instances: Vec<Instance>,
}

impl Inventory {
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Found> {
        self.found.iter().find(|found| found.kind == kind && found.name == name)
    }

    pub fn sort(&mut self) {
        self.found.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        self.found.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
        self.reply_queues.sort_unstable();
        self.buckets_with_data.sort_unstable();
        self.instances.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// A digest of what a plan rests on. Machines and reply queues come and go; no plan depends on them.
    pub fn fingerprint(&self) -> String {
        let text = serde_json::to_vec(&self.found).expect("a plain value; this is a bug");
        format!("{:x}", Sha256::digest(text))
    }
}

impl Found {
    pub fn new(kind: Kind, name: impl Into<String>, owner: Owner, properties: Value) -> Found {
        let properties = super::resource::properties(properties);
        Found { kind, name: name.into(), owner, attributes: BTreeMap::new(), properties }
    }

    #[must_use]
    pub fn with(mut self, attribute: &str, value: impl Into<String>) -> Found {
        self.attributes.insert(attribute.to_owned(), value.into());
        self
    }
}
