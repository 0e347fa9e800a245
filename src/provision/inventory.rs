//! The actual state: the resources on AWS that have a name which the stack wants, or that the stack owns. It is a plain
//! value, and holds nothing else of the account.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::resource::{Kind, Properties, REGION_TAG, STACK_TAG};

/// The owner of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Owner {
    /// The stack itself.
    This,
    /// No stack: the resource has no tag.
    Nobody,
    /// Another stack, by name.
    Other(String),
}

impl Owner {
    /// Reads the owner from the tags of a resource, as seen from a stack in a region.
    pub(super) fn of<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, stack: &str, region: &str) -> Owner {
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

/// A resource that exists on AWS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct FoundResource {
    pub kind: Kind,
    pub name: String,
    pub owner: Owner,
    /// Attributes that other resources refer to, such as `Arn` or `GroupId`. `Ref` means the same as in a template.
    pub attributes: BTreeMap<String, String>,
    pub properties: Properties,
}

/// A machine of one of the stack's groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Instance {
    pub id: String,
    pub group: String,
    pub state: String,
    pub address: Option<String>,
    /// Version of the launch template that it was started from.
    pub template_version: Option<String>,
    /// When it was started, in seconds since 1970.
    #[serde(default)]
    pub started_at: Option<i64>,
}

impl Instance {
    pub(super) fn is_up(&self) -> bool {
        ["pending", "running"].contains(&self.state.as_str())
    }
}

/// The actual state of a stack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Inventory {
    /// Sorted by kind and name.
    pub found: Vec<FoundResource>,
    /// Reply queues of web processes, both running and dead ones.
    pub reply_queues: Vec<String>,
    /// Queues of the stack that were deleted and are still listed. They do not count as found.
    #[serde(default)]
    pub queues_in_deletion: Vec<String>,
    /// Buckets of the stack that contain images or results.
    pub buckets_with_data: Vec<String>,
    /// Machines that the stack's groups have started.
    pub instances: Vec<Instance>,
}

impl Inventory {
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&FoundResource> {
        self.found.iter().find(|found| found.kind == kind && found.name == name)
    }

    pub(super) fn sort(&mut self) {
        self.found.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        self.found.dedup_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
        self.reply_queues.sort_unstable();
        self.queues_in_deletion.sort_unstable();
        self.buckets_with_data.sort_unstable();
        self.instances.sort_by(|a, b| a.id.cmp(&b.id));
    }

    /// A digest of the state that a plan depends on. Machines and reply queues are no part of it.
    pub(super) fn fingerprint(&self) -> String {
        let text = serde_json::to_vec(&self.found).expect("a plain value; this is a bug");
        format!("{:x}", Sha256::digest(text))
    }
}

impl FoundResource {
    pub(super) fn new(kind: Kind, name: impl Into<String>, owner: Owner, properties: Value) -> FoundResource {
        let properties = super::resource::properties(properties);
        FoundResource { kind, name: name.into(), owner, attributes: BTreeMap::new(), properties }
    }

    /// The KMS key of a customer that encrypts a queue or a bucket.
    pub(super) fn kms_key(&self) -> Option<&str> {
        let property = |name: &str| self.properties.get(name).unwrap_or(&Value::Null);
        match self.kind {
            Kind::Queue => property("KmsMasterKeyId").as_str().filter(|key| !key.is_empty()),
            Kind::Bucket => {
                let rule = &property("BucketEncryption")["ServerSideEncryptionConfiguration"][0];
                let default = &rule["ServerSideEncryptionByDefault"];
                let is_kms = default["SSEAlgorithm"].as_str().is_some_and(|name| name.starts_with("aws:kms"));
                is_kms.then(|| default["KMSMasterKeyID"].as_str().unwrap_or("aws/s3"))
            }
            _ => None,
        }
    }

    #[must_use]
    pub(super) fn with(mut self, attribute: &str, value: impl Into<String>) -> FoundResource {
        self.attributes.insert(attribute.to_owned(), value.into());
        self
    }
}
