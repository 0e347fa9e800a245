//! The resources of a stack on AWS: observes them, and applies single changes. Nothing is decided here.
//!
//! Every service has a file that observes its resources and changes them. Every change is idempotent: if the resource
//! exists already, it is updated to the wanted state.

mod autoscaling;
mod balancer;
mod bucket_events;
mod budgets;
mod checkip;
mod client;
mod cloudwatch;
mod doctor;
mod ec2;
mod iam;
mod images;
mod logs;
mod network;
mod preflight;
mod query;
mod s3;
mod security_groups;
mod signed;
mod sns;
mod sqs;
mod tagging;

use std::collections::HashMap;

use anyhow::anyhow;
use serde_json::Value;

use super::artifacts::Artifacts;
use super::change::{Action, Change};
use super::inventory::{FoundResource, Inventory};
use super::resource::{Kind, Resource, resolve, target_of};
use super::stack::Stack;
use client::Attributes;
pub(super) use client::{Cloud, POLL_DELAYS};

/// Values of attributes that only AWS knows, such as ARNs, by resource id and attribute. Changes refer to them.
#[derive(Debug, Default)]
pub(super) struct KnownAttributes(HashMap<(String, String), String>);

impl KnownAttributes {
    pub(super) fn of(stack: &Stack, inventory: &Inventory) -> KnownAttributes {
        let mut known = KnownAttributes::default();
        for resource in &stack.resources {
            if let Some(found) = inventory.get(resource.kind, &resource.name) {
                known.learn(&resource.id, found.attributes.clone());
            }
        }
        known
    }

    fn learn(&mut self, id: &str, attributes: impl IntoIterator<Item = (String, String)>) {
        self.0.extend(attributes.into_iter().map(|(attribute, value)| ((id.to_owned(), attribute), value)));
    }

    fn get(&self, id: &str, attribute: &str) -> Option<String> {
        self.0.get(&(id.to_owned(), attribute.to_owned())).cloned()
    }
}

impl Cloud {
    /// Observes all resources that have the stack's names or its tag.
    ///
    /// # Errors
    /// One line: the action, the resource, the reason and what to do.
    pub(super) async fn observe(&self, stack: &Stack) -> anyhow::Result<Inventory> {
        let mut inventory = Inventory::default();
        let (logs, queues, (buckets, data), roles, (network, instances), balancers, groups, cloudwatch, topic, budget) =
            tokio::try_join!(
                self.observe_logs(stack),
                self.observe_queues(stack),
                self.observe_buckets(stack),
                self.observe_roles(stack),
                self.observe_ec2(stack),
                self.observe_balancers(stack),
                self.observe_groups(stack),
                self.observe_cloudwatch(stack),
                self.observe_topic(stack),
                self.observe_budget(stack),
            )?;
        let events = self.observe_bucket_events(stack, &queues.found).await?;
        inventory.found =
            [logs, queues.found, buckets, events, roles, network, balancers, groups, cloudwatch, topic, budget]
                .into_iter()
                .flatten()
                .collect();
        (inventory.reply_queues, inventory.queues_in_deletion) = (queues.replies, queues.in_deletion);
        (inventory.buckets_with_data, inventory.instances) = (data, instances);
        stack.recognize_policies(&mut inventory);
        inventory.sort();
        Ok(inventory)
    }

    /// Applies one change of a plan.
    ///
    /// # Errors
    /// As [`Cloud::observe`].
    pub(super) async fn apply(
        &self,
        change: &Change,
        stack: &Stack,
        inventory: &Inventory,
        known: &mut KnownAttributes,
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<()> {
        let wanted = change.id.as_deref().and_then(|id| stack.get(id));
        match (change.action, wanted) {
            (Action::Delete, _) => {
                let found = inventory.get(change.kind, &change.name);
                self.delete(change, stack, found).await
            }
            (_, None) => Err(anyhow!("the plan does not contain the resource {}", change.label())),
            (Action::Create | Action::Update, Some(wanted)) => {
                let resource = resolved(wanted, known)?;
                let attributes = self.put(&resource, change, stack, inventory, artifacts).await?;
                known.learn(&wanted.id, attributes);
                Ok(())
            }
        }
    }

    async fn put(
        &self,
        resource: &Resource,
        change: &Change,
        stack: &Stack,
        inventory: &Inventory,
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<Attributes> {
        let found = inventory.get(change.kind, &change.name).filter(|_| change.action == Action::Update);
        match resource.kind {
            Kind::LogGroup => self.put_log_group(resource, found).await,
            Kind::Queue => {
                let is_in_deletion = inventory.queues_in_deletion.contains(&resource.name);
                self.put_queue(resource, found, is_in_deletion).await
            }
            Kind::Bucket => self.put_bucket(resource, found).await,
            Kind::BucketPolicy => self.put_bucket_policy(resource).await,
            Kind::QueuePolicy => self.put_queue_policy(resource).await,
            Kind::BucketNotification => self.put_notifications(resource, stack).await,
            Kind::Bundle => self.put_bundle(resource, stack, artifacts).await,
            Kind::ModelPackage => self.put_model_package(resource, stack, artifacts).await,
            Kind::ModelPointer => self.put_model_pointer(resource, stack).await,
            Kind::Role => self.put_role(resource, found).await,
            Kind::InstanceProfile => self.put_instance_profile(resource, found).await,
            Kind::SecurityGroup => self.put_security_group(resource, found).await,
            Kind::TargetGroup => self.put_target_group(resource, found).await,
            Kind::LoadBalancer => self.put_load_balancer(resource, change, found).await,
            Kind::Listener => self.put_listener(resource, found).await,
            Kind::LaunchTemplate => self.put_launch_template(resource, change, found).await,
            Kind::AutoScalingGroup => self.put_group(resource, found).await,
            Kind::LifecycleHook => self.put_hook(resource).await,
            Kind::ScalingPolicy => self.put_scaling_policy(resource).await,
            Kind::Topic => self.put_topic(resource, found).await,
            Kind::Alarm => self.put_alarm(resource, found).await,
            Kind::Dashboard => self.put_dashboard(resource).await,
            Kind::Budget => self.put_budget(resource, stack, found).await,
        }
    }

    async fn delete(&self, change: &Change, stack: &Stack, found: Option<&FoundResource>) -> anyhow::Result<()> {
        let name = change.name.as_str();
        match change.kind {
            Kind::LogGroup => self.delete_log_group(name).await,
            Kind::Queue => self.delete_queue(name).await,
            Kind::Bucket => self.delete_bucket(name).await,
            Kind::BucketPolicy => self.delete_bucket_policy(name).await,
            Kind::QueuePolicy => self.delete_queue_policy(name).await,
            Kind::BucketNotification => self.delete_notifications(name, stack).await,
            Kind::Bundle | Kind::ModelPackage | Kind::ModelPointer => self.delete_artifact(name, stack).await,
            Kind::Role => self.delete_role(name).await,
            Kind::InstanceProfile => self.delete_instance_profile(name).await,
            Kind::SecurityGroup => self.delete_security_group(name, found).await,
            Kind::TargetGroup => self.delete_target_group(name, found).await,
            Kind::LoadBalancer => self.delete_load_balancer(name, found).await,
            Kind::Listener => self.delete_listener(name, found).await,
            Kind::LaunchTemplate => self.delete_launch_template(name).await,
            Kind::AutoScalingGroup => self.delete_group(name).await,
            Kind::LifecycleHook => self.delete_hook(name).await,
            Kind::ScalingPolicy => self.delete_scaling_policy(name).await,
            Kind::Topic => self.delete_topic(name, stack).await,
            Kind::Alarm => self.delete_alarm(name).await,
            Kind::Dashboard => self.delete_dashboard(name).await,
            Kind::Budget => self.delete_budget(name, stack).await,
        }
    }
}

/// Replaces every reference in the properties of a resource.
fn resolved(wanted: &Resource, known: &KnownAttributes) -> anyhow::Result<Resource> {
    let properties = wanted.properties.iter().map(|(name, value)| {
        let value = resolve(value, &|id, attribute| known.get(id, attribute));
        (name.clone(), value)
    });
    let resource = Resource { properties: properties.collect(), ..wanted.clone() };
    match resource.properties.values().find_map(unresolved) {
        Some(reference) => Err(anyhow!("{} needs {reference}, which does not exist; run this again", wanted.label())),
        None => Ok(resource),
    }
}

fn unresolved(value: &Value) -> Option<String> {
    if let Some((id, attribute)) = target_of(value) {
        return Some(format!("{id}.{attribute}"));
    }
    match value {
        Value::Array(items) => items.iter().find_map(unresolved),
        Value::Object(members) => members.values().find_map(unresolved),
        _ => None,
    }
}
