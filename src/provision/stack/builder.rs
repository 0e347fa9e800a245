//! Collects the resources of a stack in the order in which they are made.

use std::time::Duration;

use serde_json::{Value, json};

use crate::provision::arns::Arns;
use crate::provision::bundle::BundleRef;
use crate::provision::names::ResourceNames;
use crate::provision::package::PackageRef;
use crate::provision::resource::{Kind, REGION_TAG, Resource, STACK_TAG, properties};
use crate::provision::settings::{Settings, Site};

/// Time that an instance needs to start: system, bundle and model.
pub(super) const INSTANCE_WARMUP: Duration = Duration::from_secs(120);
/// Seconds.
pub(super) const MINUTE: u64 = 60;

pub(super) struct Builder<'a> {
    pub settings: &'a Settings,
    pub site: &'a Site,
    pub bundle: &'a BundleRef,
    pub packages: &'a [PackageRef],
    pub names: ResourceNames,
    pub arns: Arns<'a>,
    resources: Vec<Resource>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        site: &'a Site,
        bundle: &'a BundleRef,
        packages: &'a [PackageRef],
    ) -> Builder<'a> {
        Builder {
            settings,
            site,
            bundle,
            packages,
            names: ResourceNames::of(&settings.stack),
            arns: Arns::new(&site.account, &site.region),
            resources: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<Resource> {
        self.resources
    }

    pub(super) fn add(&mut self, id: &str, kind: Kind, name: impl Into<String>, members: Value) {
        self.resources.push(Resource { id: id.to_owned(), kind, name: name.into(), properties: properties(members) });
    }

    pub(super) fn tags(&self) -> Value {
        self.sorted_tags(&[(STACK_TAG, &self.settings.stack)])
    }

    /// Tags of IAM resources. They are global, so a second tag names the region of their stack.
    pub(super) fn tags_with_region(&self) -> Value {
        self.sorted_tags(&[(REGION_TAG, &self.site.region), (STACK_TAG, &self.settings.stack)])
    }

    pub(super) fn group_tags(&self) -> Value {
        let mut tags = self.tags();
        for tag in tags.as_array_mut().into_iter().flatten() {
            tag["PropagateAtLaunch"] = true.into();
        }
        tags
    }

    /// These tags and those of the user, by their keys, as they are observed.
    fn sorted_tags(&self, ours: &[(&str, &str)]) -> Value {
        let own = self.settings.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut tags: Vec<(&str, &str)> = ours.iter().copied().chain(own).collect();
        tags.sort_unstable();
        tags.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
    }
}
