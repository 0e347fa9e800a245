//! The stack on AWS: what is found there, and single changes to it. Nothing is decided here.
//!
//! Every service has a file that observes (calls → [`Found`]) and changes (a resource → calls). A change may be done
//! again at any moment: what is there already is brought up to what is wanted.

mod autoscaling;
mod cloudwatch;
mod doctor;
mod ec2;
mod iam;
mod logs;
mod query;
mod s3;
mod signed;
mod sqs;

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use serde_json::Value;

use super::bundle::Bundle;
use super::inventory::{Found, Inventory, Owner};
use super::plan::{Action, Change};
use super::resource::{Kind, Resource, resolve};
use super::stack::Stack;
use crate::aws::{Aws, Fault};
use signed::Signed;

/// Calls under way at a time where each of many resources is asked about.
const CONCURRENT_CALLS: usize = 8;
/// Between two looks at something that AWS takes its time for.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(3);
/// A role made a moment ago, a queue that was deleted a moment ago, a group that ends its machines.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

pub struct Cloud {
    aws: Aws,
    sqs: aws_sdk_sqs::Client,
    s3: aws_sdk_s3::Client,
    cloudwatch: aws_sdk_cloudwatch::Client,
    autoscaling: aws_sdk_autoscaling::Client,
    signed: Signed,
}

/// What changes refer to that only AWS knows, by id and attribute.
#[derive(Debug, Default)]
pub struct Known(HashMap<(String, String), String>);

impl Known {
    pub fn of(stack: &Stack, inventory: &Inventory) -> Known {
        let mut known = Known::default();
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

/// What a change made known, by attribute.
type Attributes = Vec<(String, String)>;

impl Cloud {
    pub fn new(aws: Aws) -> Cloud {
        // An emulator's address has no name for each bucket.
        let s3 = aws_sdk_s3::config::Builder::from(aws.sdk()).force_path_style(aws.has_endpoint("S3")).build();
        Cloud {
            sqs: aws_sdk_sqs::Client::new(aws.sdk()),
            s3: aws_sdk_s3::Client::from_conf(s3),
            cloudwatch: aws_sdk_cloudwatch::Client::new(aws.sdk()),
            autoscaling: aws_sdk_autoscaling::Client::new(aws.sdk()),
            signed: Signed::new(aws.sdk().clone()),
            aws,
        }
    }

    pub fn aws(&self) -> &Aws {
        &self.aws
    }

    /// What stands on AWS under the stack's names or with its tag.
    ///
    /// # Errors
    /// One line: which action on what was refused, and the way out.
    pub async fn observe(&self, stack: &Stack) -> anyhow::Result<Inventory> {
        let mut inventory = Inventory::default();
        let (logs, (queues, replies), (buckets, data), roles, (network, instances), groups, watch) = tokio::try_join!(
            self.observe_logs(stack),
            self.observe_queues(stack),
            self.observe_buckets(stack),
            self.observe_roles(stack),
            self.observe_ec2(stack),
            self.observe_groups(stack),
            self.observe_watch(stack),
        )?;
        inventory.found = [logs, queues, buckets, roles, network, groups, watch].into_iter().flatten().collect();
        (inventory.reply_queues, inventory.buckets_with_data, inventory.instances) = (replies, data, instances);
        inventory.sort();
        Ok(inventory)
    }

    /// Carries out one change of a plan.
    ///
    /// # Errors
    /// One line, as [`Cloud::observe`].
    pub async fn carry_out(
        &self,
        change: &Change,
        stack: &Stack,
        inventory: &Inventory,
        known: &mut Known,
        bundle: Option<&Bundle>,
    ) -> anyhow::Result<()> {
        let wanted = change.id.as_deref().and_then(|id| stack.get(id));
        match (change.action, wanted) {
            (Action::Delete, _) => {
                let found = inventory.get(change.kind, &change.name);
                self.delete(change, stack, found).await
            }
            (_, None) => Err(anyhow!("the plan has no {} among what it wants", change.label())),
            (action, Some(wanted)) => {
                let resource = resolved(wanted, known)?;
                let found = inventory.get(change.kind, &change.name).filter(|_| action == Action::Update);
                let attributes = self.put(&resource, change, stack, found, bundle).await?;
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
        found: Option<&Found>,
        bundle: Option<&Bundle>,
    ) -> anyhow::Result<Attributes> {
        match resource.kind {
            Kind::LogGroup => self.put_log_group(resource, found).await,
            Kind::Queue => self.put_queue(resource, found).await,
            Kind::Bucket => self.put_bucket(resource, found).await,
            Kind::BucketPolicy => self.put_bucket_policy(resource).await,
            Kind::Bundle => self.put_bundle(resource, stack, bundle).await,
            Kind::Role => self.put_role(resource, found).await,
            Kind::InstanceProfile => self.put_instance_profile(resource, found).await,
            Kind::SecurityGroup => self.put_security_group(resource, found).await,
            Kind::LaunchTemplate => self.put_launch_template(resource, change, found).await,
            Kind::AutoScalingGroup => self.put_group(resource, found).await,
            Kind::LifecycleHook => self.put_hook(resource).await,
            Kind::ScalingPolicy => self.put_scaling_policy(resource).await,
            Kind::Alarm => self.put_alarm(resource, found).await,
            Kind::Dashboard => self.put_dashboard(resource).await,
        }
    }

    async fn delete(&self, change: &Change, stack: &Stack, found: Option<&Found>) -> anyhow::Result<()> {
        let name = change.name.as_str();
        match change.kind {
            Kind::LogGroup => self.delete_log_group(name).await,
            Kind::Queue => self.delete_queue(name).await,
            Kind::Bucket => self.delete_bucket(name).await,
            Kind::BucketPolicy => self.delete_bucket_policy(name).await,
            Kind::Bundle => self.delete_bundle(name, stack).await,
            Kind::Role => self.delete_role(name).await,
            Kind::InstanceProfile => self.delete_instance_profile(name).await,
            Kind::SecurityGroup => self.delete_security_group(name, found).await,
            Kind::LaunchTemplate => self.delete_launch_template(name).await,
            Kind::AutoScalingGroup => self.delete_group(name).await,
            Kind::LifecycleHook => self.delete_hook(name).await,
            Kind::ScalingPolicy => self.delete_scaling_policy(name).await,
            Kind::Alarm => self.delete_alarm(name).await,
            Kind::Dashboard => self.delete_dashboard(name).await,
        }
    }

    fn fault<E>(&self, action: &str, resource: &str, error: &SdkError<E, HttpResponse>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        self.aws.fault(action, resource, error)
    }

    /// The answer; what is missing is an error.
    fn done<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<T>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        answer.map_err(|error| match self.fault(action, resource, &error) {
            Fault::Missing => anyhow!("{action}: {resource} is not there; run this again"),
            Fault::Unavailable(reason) | Fault::Fatal(reason) => anyhow!(reason),
        })
    }

    /// The answer, or none where what was asked for is missing.
    fn if_there<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<Option<T>>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if self.fault(action, resource, &error) == Fault::Missing => Ok(None),
            Err(error) => self.done(action, resource, Err(error)).map(Some),
        }
    }

    /// Of something that is to be gone: done, or missing already.
    fn gone<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<()>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        self.if_there(action, resource, answer).map(drop)
    }
}

/// The resource with every reference replaced.
fn resolved(wanted: &Resource, known: &Known) -> anyhow::Result<Resource> {
    let properties = wanted.properties.iter().map(|(name, value)| {
        let value = resolve(value, &|id, attribute| known.get(id, attribute));
        (name.clone(), value)
    });
    let resource = Resource { properties: properties.collect(), ..wanted.clone() };
    match resource.properties.values().find_map(unresolved) {
        Some(reference) => Err(anyhow!("{} needs {reference}, which is not there; run this again", wanted.label())),
        None => Ok(resource),
    }
}

fn unresolved(value: &Value) -> Option<String> {
    if let Some((id, attribute)) = super::resource::target_of(value) {
        return Some(format!("{id}.{attribute}"));
    }
    match value {
        Value::Array(items) => items.iter().find_map(unresolved),
        Value::Object(members) => members.values().find_map(unresolved),
        _ => None,
    }
}

/// Tries again while `is_temporary` says so, for as long as AWS may take.
async fn patiently<T, E>(
    is_temporary: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = tokio::time::Instant::now() + LONGEST_WAIT;
    loop {
        match attempt().await {
            Err(error) if is_temporary(&error) && tokio::time::Instant::now() < end => {
                tokio::time::sleep(LOOK_AGAIN_EVERY).await;
            }
            answer => return answer,
        }
    }
}

fn owner_by_tags<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, stack: &Stack) -> Owner {
    Owner::of(tags, &stack.name, &stack.region)
}

/// A member of a property, by path; for properties that this program wrote, so that what is missing is a bug.
fn at<'a>(resource: &'a Resource, path: &[&str]) -> anyhow::Result<&'a Value> {
    let find = || {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(resource.properties.get(*first)?, |value, member| value.get(member))
    };
    find().with_context(|| format!("{} has no {}; the plan was changed by hand", resource.label(), path.join(".")))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn integer(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).or_else(|| value.as_str()?.parse().ok())
}
