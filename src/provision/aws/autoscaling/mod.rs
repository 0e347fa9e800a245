//! Auto Scaling groups, their policies and lifecycle hooks.

mod parameters;
mod properties;
mod refresh;

use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_autoscaling::types::{Activity, AutoScalingGroup, LifecycleHook, ScalingActivityStatusCode, ScalingPolicy};
use serde_json::Value;

use super::client::{Attributes, Cloud, LONGEST_WAIT, POLL_DELAYS, owner_by_tags, retry_while, text};
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::machines::Starts;
use crate::provision::resource::{Kind, Resource, label, split_group};
use crate::provision::stack::Stack;
use parameters::{Parameters, group_tags, texts};
pub(super) use properties::{group_to_json, hook_to_json, in_service, policy_to_json};
use properties::{hook_found, policy_found};

/// The begin of the description of an activity that starts a machine.
const LAUNCHING: &str = "Launching a new EC2 instance: ";

impl Cloud {
    /// Observes the groups that have the stack's names or its tag, with their policies and hooks.
    pub(super) async fn observe_groups(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let mut found = Vec::new();
        for group in self.groups().await? {
            let name = group.auto_scaling_group_name.clone().unwrap_or_default();
            let owner = owner_by_tags(pairs(&group), stack);
            if stack.find(Kind::AutoScalingGroup, &name).is_none() && owner != Owner::This {
                continue;
            }
            for policy in self.policies(&name).await? {
                found.push(policy_found(&name, &owner, &policy));
            }
            for hook in self.hooks(&name).await? {
                found.push(hook_found(&name, &owner, &hook));
            }
            found.push(FoundResource::new(Kind::AutoScalingGroup, name, owner, group_to_json(&group, &stack.own_tags)));
        }
        Ok(found)
    }

    pub(super) async fn groups(&self) -> anyhow::Result<Vec<AutoScalingGroup>> {
        let mut groups = self.autoscaling.describe_auto_scaling_groups().into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(group) = groups.next().await {
            let group = self.done("autoscaling:DescribeAutoScalingGroups", "the Auto Scaling groups", group)?;
            // A group that is being deleted has a status, and is listed until its machines have terminated.
            if group.status.is_none() {
                found.push(group);
            }
        }
        Ok(found)
    }

    /// Reads what became of the last attempts of groups to start machines.
    pub(in crate::provision) async fn starts(&self, groups: impl Iterator<Item = &str>) -> anyhow::Result<Starts> {
        let mut starts = Starts::default();
        for group in groups {
            let call = self.autoscaling.describe_scaling_activities().auto_scaling_group_name(group).max_records(100);
            let what = label(Kind::AutoScalingGroup, group);
            let answer = self.done("autoscaling:DescribeScalingActivities", &what, call.send().await)?;
            let activities = answer.activities.unwrap_or_default();
            let last = activities.first();
            let last = last.filter(|activity| activity.status_code == Some(ScalingActivityStatusCode::Failed));
            if let Some(reason) = last.and_then(|activity| activity.status_message.as_deref()) {
                starts.failed.push((group.to_owned(), reason.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
            starts.in_service_at.extend(activities.iter().filter_map(in_service_at));
        }
        Ok(starts)
    }

    pub(super) async fn policies(&self, group: &str) -> anyhow::Result<Vec<ScalingPolicy>> {
        let mut policies =
            self.autoscaling.describe_policies().auto_scaling_group_name(group).into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(policy) = policies.next().await {
            found.push(self.done("autoscaling:DescribePolicies", &label(Kind::AutoScalingGroup, group), policy)?);
        }
        Ok(found)
    }

    pub(super) async fn hooks(&self, group: &str) -> anyhow::Result<Vec<LifecycleHook>> {
        let answer = self.autoscaling.describe_lifecycle_hooks().auto_scaling_group_name(group).send().await;
        let what = label(Kind::AutoScalingGroup, group);
        Ok(self.done("autoscaling:DescribeLifecycleHooks", &what, answer)?.lifecycle_hooks.unwrap_or_default())
    }

    pub(super) async fn put_group(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        match found {
            None => self.create_group(resource).await?,
            Some(found) => self.update_group(resource, found).await?,
        }
        self.collect_metrics(resource).await?;
        Ok(Vec::new())
    }

    async fn create_group(&self, resource: &Resource) -> anyhow::Result<()> {
        let parameters = Parameters(resource);
        // IAM is eventually consistent, so Auto Scaling may not see a new instance profile yet.
        let is_transient = |error: &aws_sdk_autoscaling::error::SdkError<_, _>| {
            error.message().is_some_and(|message| message.to_ascii_lowercase().contains("instance profile"))
        };
        let created = retry_while(is_transient, async || {
            self.autoscaling
                .create_auto_scaling_group()
                .auto_scaling_group_name(&resource.name)
                .set_min_size(parameters.integer("MinSize"))
                .set_max_size(parameters.integer("MaxSize"))
                .set_vpc_zone_identifier(parameters.subnets())
                .set_mixed_instances_policy(parameters.mixed_instances_policy())
                .set_launch_template(parameters.launch_template())
                .set_capacity_rebalance(parameters.flag("CapacityRebalance"))
                .set_default_instance_warmup(parameters.integer("DefaultInstanceWarmup"))
                .set_health_check_type(parameters.text("HealthCheckType"))
                .set_health_check_grace_period(parameters.integer("HealthCheckGracePeriod"))
                .set_new_instances_protected_from_scale_in(parameters.flag("NewInstancesProtectedFromScaleIn"))
                .set_target_group_arns(parameters.texts("TargetGroupARNs"))
                .set_tags(Some(group_tags(resource)))
                .send()
                .await
        });
        self.done("autoscaling:CreateAutoScalingGroup", &resource.label(), created.await).map(drop)
    }

    async fn update_group(&self, resource: &Resource, found: &FoundResource) -> anyhow::Result<()> {
        let (parameters, what) = (Parameters(resource), resource.label());
        // Tags first: an adopted group belongs to the stack before anything else of it changes.
        let call = self.autoscaling.create_or_update_tags().set_tags(Some(group_tags(resource))).send();
        self.done("autoscaling:CreateOrUpdateTags", &what, call.await)?;
        let call = self
            .autoscaling
            .update_auto_scaling_group()
            .auto_scaling_group_name(&resource.name)
            .set_min_size(parameters.integer("MinSize"))
            .set_max_size(parameters.integer("MaxSize"))
            .set_vpc_zone_identifier(parameters.subnets())
            .set_mixed_instances_policy(parameters.mixed_instances_policy())
            .set_launch_template(parameters.launch_template())
            .set_capacity_rebalance(parameters.flag("CapacityRebalance"))
            .set_default_instance_warmup(parameters.integer("DefaultInstanceWarmup"))
            .set_health_check_type(parameters.text("HealthCheckType"))
            .set_health_check_grace_period(parameters.integer("HealthCheckGracePeriod"))
            .set_new_instances_protected_from_scale_in(parameters.flag("NewInstancesProtectedFromScaleIn"));
        self.done("autoscaling:UpdateAutoScalingGroup", &what, call.send().await)?;
        self.resume_processes(resource, found).await?;
        self.join_target_groups(resource, found).await
    }

    /// Resumes the processes of a group that somebody suspended.
    async fn resume_processes(&self, resource: &Resource, found: &FoundResource) -> anyhow::Result<()> {
        let suspended = texts(found.properties.get("SuspendedProcesses"));
        if suspended.is_empty() {
            return Ok(());
        }
        let call = self.autoscaling.resume_processes().auto_scaling_group_name(&resource.name);
        let answer = call.set_scaling_processes(Some(suspended)).send().await;
        self.done("autoscaling:ResumeProcesses", &resource.label(), answer).map(drop)
    }

    async fn join_target_groups(&self, resource: &Resource, found: &FoundResource) -> anyhow::Result<()> {
        let wanted = Parameters(resource).texts("TargetGroupARNs").unwrap_or_default();
        let there: Vec<String> = texts(found.properties.get("TargetGroupARNs"));
        let joined: Vec<String> = wanted.iter().filter(|arn| !there.contains(arn)).cloned().collect();
        let left: Vec<String> = there.iter().filter(|arn| !wanted.contains(arn)).cloned().collect();
        if resource.properties.contains_key("TargetGroupARNs") && !joined.is_empty() {
            let call = self.autoscaling.attach_load_balancer_target_groups().auto_scaling_group_name(&resource.name);
            let answer = call.set_target_group_arns(Some(joined)).send().await;
            self.done("autoscaling:AttachLoadBalancerTargetGroups", &resource.label(), answer)?;
        }
        if resource.properties.contains_key("TargetGroupARNs") && !left.is_empty() {
            let call = self.autoscaling.detach_load_balancer_target_groups().auto_scaling_group_name(&resource.name);
            let answer = call.set_target_group_arns(Some(left)).send().await;
            self.done("autoscaling:DetachLoadBalancerTargetGroups", &resource.label(), answer)?;
        }
        Ok(())
    }

    async fn collect_metrics(&self, resource: &Resource) -> anyhow::Result<()> {
        let collections = resource.properties.get("MetricsCollection").and_then(Value::as_array);
        for collection in collections.into_iter().flatten() {
            let call = self
                .autoscaling
                .enable_metrics_collection()
                .auto_scaling_group_name(&resource.name)
                .granularity(text(&collection["Granularity"]))
                .set_metrics(Some(texts(collection.get("Metrics"))))
                .send();
            self.done("autoscaling:EnableMetricsCollection", &resource.label(), call.await)?;
        }
        Ok(())
    }

    pub(super) async fn put_hook(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let (group, name) = split_group(&resource.name);
        let parameters = Parameters(resource);
        let call = self
            .autoscaling
            .put_lifecycle_hook()
            .auto_scaling_group_name(group)
            .lifecycle_hook_name(name)
            .set_lifecycle_transition(parameters.text("LifecycleTransition"))
            .set_heartbeat_timeout(parameters.integer("HeartbeatTimeout"))
            .set_default_result(parameters.text("DefaultResult"));
        self.done("autoscaling:PutLifecycleHook", &resource.label(), call.send().await)?;
        Ok(Vec::new())
    }

    pub(super) async fn put_scaling_policy(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let (group, name) = split_group(&resource.name);
        let parameters = Parameters(resource);
        let call = self
            .autoscaling
            .put_scaling_policy()
            .auto_scaling_group_name(group)
            .policy_name(name)
            .set_policy_type(parameters.text("PolicyType"))
            .set_adjustment_type(parameters.text("AdjustmentType"))
            .set_metric_aggregation_type(parameters.text("MetricAggregationType"))
            .set_estimated_instance_warmup(parameters.integer("EstimatedInstanceWarmup"))
            .set_step_adjustments(parameters.step_adjustments())
            .set_target_tracking_configuration(parameters.target_tracking()?);
        let answer = self.done("autoscaling:PutScalingPolicy", &resource.label(), call.send().await)?;
        let arn = match answer.policy_arn.filter(|arn| !arn.is_empty()) {
            Some(arn) => Some(arn),
            // Emulators omit the ARN here.
            None => {
                let policies = self.policies(group).await?;
                policies
                    .into_iter()
                    .find(|policy| policy.policy_name.as_deref() == Some(name))
                    .and_then(|policy| policy.policy_arn)
            }
        };
        Ok(arn.map(|arn| ("Ref".to_owned(), arn)).into_iter().collect())
    }

    pub(super) async fn delete_scaling_policy(&self, full_name: &str) -> anyhow::Result<()> {
        let (group, name) = split_group(full_name);
        let call = self.autoscaling.delete_policy().auto_scaling_group_name(group).policy_name(name).send();
        self.gone_from_group("autoscaling:DeletePolicy", Kind::ScalingPolicy, full_name, call.await)
    }

    pub(super) async fn delete_hook(&self, full_name: &str) -> anyhow::Result<()> {
        let (group, name) = split_group(full_name);
        let call =
            self.autoscaling.delete_lifecycle_hook().auto_scaling_group_name(group).lifecycle_hook_name(name).send();
        self.gone_from_group("autoscaling:DeleteLifecycleHook", Kind::LifecycleHook, full_name, call.await)
    }

    /// Checks the answer of a deletion. Auto Scaling reports a missing resource as a validation error.
    fn gone_from_group<T, E>(
        &self,
        action: &str,
        kind: Kind,
        name: &str,
        answer: Result<T, aws_sdk_autoscaling::error::SdkError<E, aws_sdk_sqs::config::http::HttpResponse>>,
    ) -> anyhow::Result<()>
    where
        E: aws_sdk_autoscaling::error::ProvideErrorMetadata + std::error::Error + 'static,
    {
        match answer {
            Err(error) if is_missing(&error) => Ok(()),
            answer => self.gone(action, &label(kind, name), answer),
        }
    }

    /// Deletes a group with its machines. Returns when all of them have terminated.
    pub(super) async fn delete_group(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::AutoScalingGroup, name);
        let call = self.autoscaling.delete_auto_scaling_group().auto_scaling_group_name(name).force_delete(true);
        self.gone_from_group("autoscaling:DeleteAutoScalingGroup", Kind::AutoScalingGroup, name, call.send().await)?;
        let deadline = tokio::time::Instant::now() + LONGEST_WAIT;
        let mut backoff = POLL_DELAYS.start();
        loop {
            let call = self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(name).send();
            let answer = self.done("autoscaling:DescribeAutoScalingGroups", &what, call.await)?;
            if answer.auto_scaling_groups.is_none_or(|groups| groups.is_empty()) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                anyhow::bail!(
                    "{what} has not terminated its machines after {} minutes; run this again",
                    LONGEST_WAIT.as_secs() / 60
                );
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// The machine that an activity started, and when it was in service: after its hook, and so after its service had started.
fn in_service_at(activity: &Activity) -> Option<(String, i64)> {
    if activity.status_code != Some(ScalingActivityStatusCode::Successful) {
        return None;
    }
    let machine = activity.description.as_deref()?.strip_prefix(LAUNCHING)?.trim();
    Some((machine.to_owned(), activity.end_time?.secs()))
}

fn is_missing<E, R>(error: &aws_sdk_autoscaling::error::SdkError<E, R>) -> bool
where
    E: aws_sdk_autoscaling::error::ProvideErrorMetadata,
{
    error.code() == Some("ValidationError")
        && error.message().is_some_and(|message| message.contains("not found") || message.contains("No "))
}

fn pairs(group: &AutoScalingGroup) -> impl Iterator<Item = (&str, &str)> {
    group.tags().iter().filter_map(|tag| Some((tag.key.as_deref()?, tag.value.as_deref()?)))
}
