//! The wanted state: the whole stack as a plain value, made from the settings alone.
//!
//! Each child module adds the resources of one area to the [`Builder`].

mod access;
mod balancer;
pub(in crate::provision) mod bucket_events;
mod builder;
mod dashboard;
mod groups;
mod notifications;
mod scaling;
mod storage;

use serde::{Deserialize, Serialize};

use super::bundle::BundleRef;
use super::inventory::{FoundResource, Inventory, Owner};
use super::names::ResourceNames;
use super::package::PackageRef;
use super::resource::{Kind, Resource, split_group};
use super::settings::{Settings, Site};
use builder::Builder;
pub(super) use notifications::budget_filters;

/// The wanted state of a stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stack {
    pub name: String,
    pub region: String,
    pub account: String,
    pub vpc_id: String,
    /// Machines get a public address.
    #[serde(default)]
    pub has_public_addresses: bool,
    /// Size of the volume of each machine.
    #[serde(default)]
    pub volume_gigabytes: u32,
    /// The web tier is reached from its VPC alone, since the user named no network.
    #[serde(default)]
    pub is_private: bool,
    /// Keys of the tags that the user gave.
    #[serde(default)]
    pub own_tags: Vec<String>,
    pub result_queue: String,
    pub bundle: BundleRef,
    /// The models that lie in the input bucket. If there are none, machines run those of the bundle.
    pub packages: Vec<PackageRef>,
    /// Clients of the web tier need a key.
    #[serde(default)]
    pub requires_keys: bool,
    /// In the order in which they are made.
    pub resources: Vec<Resource>,
}

impl Stack {
    pub(super) fn new(settings: &Settings, site: &Site, bundle: &BundleRef, packages: &[PackageRef]) -> Stack {
        let mut builder = Builder::new(settings, site, bundle, packages);
        builder.log_group();
        builder.queues();
        builder.buckets();
        builder.bundle();
        builder.models();
        builder.bucket_policies();
        builder.bucket_events();
        builder.roles();
        builder.security_groups();
        builder.workers();
        builder.scaling();
        builder.balancer();
        builder.web();
        builder.notifications();
        builder.dashboard();
        Stack {
            name: settings.stack.clone(),
            region: site.region.clone(),
            account: site.account.clone(),
            vpc_id: site.network.vpc_id.clone(),
            has_public_addresses: site.network.is_public,
            volume_gigabytes: site.root_volume.gigabytes,
            is_private: settings.allow.is_none(),
            own_tags: settings.tags.iter().map(|(key, _)| key.clone()).collect(),
            result_queue: settings.names.result_queue.clone(),
            bundle: bundle.clone(),
            packages: packages.to_owned(),
            requires_keys: settings.requires_keys && settings.web_instances > 0,
            resources: builder.finish(),
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.id == id)
    }

    pub(super) fn find(&self, kind: Kind, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.kind == kind && resource.name == name)
    }

    pub(super) fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.resources.iter().filter(move |resource| resource.kind == kind).map(|resource| resource.name.as_str())
    }

    /// There is a load balancer, and it has no public address.
    pub(super) fn has_inner_balancer(&self) -> bool {
        self.get("WebBalancer").is_some_and(|balancer| balancer.properties.get("Scheme") == Some(&"internal".into()))
    }

    /// The names that a load balancer of this stack may have.
    pub(super) fn names_of_balancers(&self) -> [String; 2] {
        let names = ResourceNames::of(&self.name);
        [names.balancer(false), names.balancer(true)]
    }

    /// The value of an attribute of the resource `id`. Returns `None` if the resource does not exist yet.
    pub(super) fn attribute(&self, inventory: &Inventory, id: &str, attribute: &str) -> Option<String> {
        let resource = self.get(id)?;
        inventory.get(resource.kind, &resource.name)?.attributes.get(attribute).cloned()
    }

    /// Gives scaling policies that CloudFormation made the names that they would have here. It generates their names, from
    /// their ids in the template. Deleting one by the other name finds none, and the group takes it along.
    pub(super) fn recognize_policies(&self, inventory: &mut Inventory) {
        let wanted = self.resources.iter().filter(|resource| resource.kind == Kind::ScalingPolicy);
        for wanted in wanted {
            if inventory.get(wanted.kind, &wanted.name).is_some() {
                continue;
            }
            let (group, _) = split_group(&wanted.name);
            let is_it = |found: &&mut FoundResource| {
                let (its_group, name) = split_group(&found.name);
                let is_equal = wanted.properties.iter().all(|(name, value)| found.properties.get(name) == Some(value));
                let is_generated = name.contains(&format!("-{}-", wanted.id));
                found.kind == wanted.kind && its_group == group && is_generated && is_equal
            };
            if let Some(found) = inventory.found.iter_mut().find(is_it) {
                found.name.clone_from(&wanted.name);
            }
        }
    }

    /// The stack's resources that are no longer wanted. Bundles and models are never among them: a machine that is
    /// starting may still need an old one.
    pub(super) fn unwanted<'a>(&self, inventory: &'a Inventory) -> Vec<&'a FoundResource> {
        let is_kept = |kind| matches!(kind, Kind::Bundle | Kind::ModelPackage | Kind::ModelPointer);
        let ours = inventory.found.iter().filter(|found| found.owner == Owner::This && !is_kept(found.kind));
        ours.filter(|found| self.find(found.kind, &found.name).is_none()).collect()
    }
}

#[cfg(test)]
impl Settings {
    pub(super) fn stack_for_tests(&self) -> Stack {
        use super::bundle::Cpu;
        let models = vec!["efficientnet-lite0".to_owned()];
        let bundle = BundleRef { digest: "d".repeat(64), cpu: Cpu::X86_64, glibc: None, models };
        Stack::new(self, &Site::for_tests(), &bundle, &[])
    }

    /// The same with models in the bucket.
    pub(super) fn stack_with_models_for_tests(&self, packages: &[PackageRef]) -> Stack {
        let bundle = BundleRef { digest: "d".repeat(64), ..BundleRef::unknown() };
        Stack::new(self, &Site::for_tests(), &bundle, packages)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policies_at(endpoint_url: Option<&str>) -> Vec<Resource> {
        let site = Site { endpoint_url: endpoint_url.map(str::to_owned), ..Site::for_tests() };
        let stack = Stack::new(&Settings::for_tests("imgcls"), &site, &BundleRef::unknown(), &[]);
        stack.resources.into_iter().filter(|resource| resource.kind == Kind::BucketPolicy).collect()
    }

    #[test]
    fn bucket_policies_require_tls_unless_the_endpoint_is_plain_http() {
        for endpoint_url in [None, Some("https://s3.example.com")] {
            let policies = policies_at(endpoint_url);
            for (policy, folder) in policies.iter().zip(["input", "output"]) {
                let bucket = format!("arn:aws:s3:::imgcls-123456789012-us-east-1-{folder}");
                let expected = json!([{
                    "Sid": "ImgclsTlsOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
                    "Resource": [bucket, format!("{bucket}/*")],
                    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                }]);
                assert_eq!(policy.properties["PolicyDocument"]["Statement"], expected);
            }
            assert_eq!(policies.len(), 2, "{endpoint_url:?}");
        }
        assert_eq!(policies_at(Some("http://127.0.0.1:5000")), []);
    }
}
