//! Auto Scaling groups, their policies and lifecycle hooks.

use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_autoscaling::types::{
    AutoScalingGroup, CustomizedMetricSpecification, InstancesDistribution, LaunchTemplate, LaunchTemplateOverrides,
    LaunchTemplateSpecification, LifecycleHook, MetricDimension, MetricStatistic, MixedInstancesPolicy,
    ScalingActivityStatusCode, ScalingPolicy, StepAdjustment, Tag, TargetTrackingConfiguration,
};
use serde_json::{Value, json};

use super::{Attributes, Cloud, LONGEST_WAIT, LOOK_AGAIN_EVERY, at, integer, owner_by_tags, patiently, text};
use crate::provision::inventory::{Found, Owner};
use crate::provision::resource::{
    Kind, Resource, STACK_TAG, in_group, label, number, properties, split_group, tags_of,
};
use crate::provision::stack::Stack;

impl Cloud {
    /// Groups under the stack's names or with its tag, and what belongs to them.
    pub(super) async fn observe_groups(&self, stack: &Stack) -> anyhow::Result<Vec<Found>> {
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
            found.push(Found::new(Kind::AutoScalingGroup, name, owner, group_to_json(&group)));
        }
        Ok(found)
    }

    pub(super) async fn groups(&self) -> anyhow::Result<Vec<AutoScalingGroup>> {
        let mut groups = self.autoscaling.describe_auto_scaling_groups().into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(group) = groups.next().await {
            let group = self.done("autoscaling:DescribeAutoScalingGroups", "the Auto Scaling groups", group)?;
            // One that is being deleted is listed until its machines have ended.
            if group.status.is_none() {
                found.push(group);
            }
        }
        Ok(found)
    }

    /// Why the last try of each group to start a machine failed, where it did: for want of a quota, of a kind of machine,
    /// of an image. A group goes on trying.
    pub async fn failed_starts(&self, groups: impl Iterator<Item = &str>) -> anyhow::Result<Vec<(String, String)>> {
        let mut failed = Vec::new();
        for group in groups {
            let call = self.autoscaling.describe_scaling_activities().auto_scaling_group_name(group).max_records(1);
            let what = label(Kind::AutoScalingGroup, group);
            let answer = self.done("autoscaling:DescribeScalingActivities", &what, call.send().await)?;
            let last = answer.activities.unwrap_or_default().into_iter().next();
            let last = last.filter(|activity| activity.status_code == Some(ScalingActivityStatusCode::Failed));
            if let Some(reason) = last.and_then(|activity| activity.status_message) {
                failed.push((group.to_owned(), reason.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
        }
        Ok(failed)
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

    async fn hooks(&self, group: &str) -> anyhow::Result<Vec<LifecycleHook>> {
        let answer = self.autoscaling.describe_lifecycle_hooks().auto_scaling_group_name(group).send().await;
        let what = label(Kind::AutoScalingGroup, group);
        Ok(self.done("autoscaling:DescribeLifecycleHooks", &what, answer)?.lifecycle_hooks.unwrap_or_default())
    }

    pub(super) async fn put_group(&self, resource: &Resource, found: Option<&Found>) -> anyhow::Result<Attributes> {
        match found {
            None => self.make_group(resource).await?,
            Some(found) => self.change_group(resource, found).await?,
        }
        self.collect_metrics(resource).await?;
        Ok(Vec::new())
    }

    async fn make_group(&self, resource: &Resource) -> anyhow::Result<()> {
        let say = Said(resource);
        // An instance profile made a moment ago is not known everywhere yet.
        let is_too_early = |error: &aws_sdk_autoscaling::error::SdkError<_, _>| {
            error.message().is_some_and(|message| message.to_ascii_lowercase().contains("instance profile"))
        };
        let made = patiently(is_too_early, async || {
            self.autoscaling
                .create_auto_scaling_group()
                .auto_scaling_group_name(&resource.name)
                .set_min_size(say.integer("MinSize"))
                .set_max_size(say.integer("MaxSize"))
                .set_vpc_zone_identifier(say.subnets())
                .set_mixed_instances_policy(say.mixed_instances_policy())
                .set_launch_template(say.launch_template())
                .set_capacity_rebalance(say.flag("CapacityRebalance"))
                .set_default_instance_warmup(say.integer("DefaultInstanceWarmup"))
                .set_new_instances_protected_from_scale_in(say.flag("NewInstancesProtectedFromScaleIn"))
                .set_target_group_arns(say.texts("TargetGroupARNs"))
                .set_tags(Some(group_tags(resource)))
                .send()
                .await
        });
        self.done("autoscaling:CreateAutoScalingGroup", &resource.label(), made.await).map(drop)
    }

    async fn change_group(&self, resource: &Resource, found: &Found) -> anyhow::Result<()> {
        let (say, what) = (Said(resource), resource.label());
        // First, so that a group that is taken over is the stack's before anything of it changes.
        let call = self.autoscaling.create_or_update_tags().set_tags(Some(group_tags(resource))).send();
        self.done("autoscaling:CreateOrUpdateTags", &what, call.await)?;
        let call = self
            .autoscaling
            .update_auto_scaling_group()
            .auto_scaling_group_name(&resource.name)
            .set_min_size(say.integer("MinSize"))
            .set_max_size(say.integer("MaxSize"))
            .set_vpc_zone_identifier(say.subnets())
            .set_mixed_instances_policy(say.mixed_instances_policy())
            .set_launch_template(say.launch_template())
            .set_capacity_rebalance(say.flag("CapacityRebalance"))
            .set_default_instance_warmup(say.integer("DefaultInstanceWarmup"))
            .set_new_instances_protected_from_scale_in(say.flag("NewInstancesProtectedFromScaleIn"));
        self.done("autoscaling:UpdateAutoScalingGroup", &what, call.send().await)?;
        self.join_target_groups(resource, found).await
    }

    async fn join_target_groups(&self, resource: &Resource, found: &Found) -> anyhow::Result<()> {
        let wanted = Said(resource).texts("TargetGroupARNs").unwrap_or_default();
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
        let say = Said(resource);
        let call = self
            .autoscaling
            .put_lifecycle_hook()
            .auto_scaling_group_name(group)
            .lifecycle_hook_name(name)
            .set_lifecycle_transition(say.text("LifecycleTransition"))
            .set_heartbeat_timeout(say.integer("HeartbeatTimeout"))
            .set_default_result(say.text("DefaultResult"));
        self.done("autoscaling:PutLifecycleHook", &resource.label(), call.send().await)?;
        Ok(Vec::new())
    }

    pub(super) async fn put_scaling_policy(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let (group, name) = split_group(&resource.name);
        let say = Said(resource);
        let call = self
            .autoscaling
            .put_scaling_policy()
            .auto_scaling_group_name(group)
            .policy_name(name)
            .set_policy_type(say.text("PolicyType"))
            .set_adjustment_type(say.text("AdjustmentType"))
            .set_metric_aggregation_type(say.text("MetricAggregationType"))
            .set_estimated_instance_warmup(say.integer("EstimatedInstanceWarmup"))
            .set_step_adjustments(say.step_adjustments())
            .set_target_tracking_configuration(say.target_tracking()?);
        let answer = self.done("autoscaling:PutScalingPolicy", &resource.label(), call.send().await)?;
        let arn = match answer.policy_arn.filter(|arn| !arn.is_empty()) {
            Some(arn) => Some(arn),
            // Not every server tells it here.
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

    /// Auto Scaling says of what is missing that the call is not valid.
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

    /// With its machines; returns when all have ended.
    pub(super) async fn delete_group(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::AutoScalingGroup, name);
        let call = self.autoscaling.delete_auto_scaling_group().auto_scaling_group_name(name).force_delete(true);
        self.gone_from_group("autoscaling:DeleteAutoScalingGroup", Kind::AutoScalingGroup, name, call.send().await)?;
        let end = tokio::time::Instant::now() + LONGEST_WAIT;
        loop {
            let call = self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(name).send();
            let answer = self.done("autoscaling:DescribeAutoScalingGroups", &what, call.await)?;
            if answer.auto_scaling_groups.is_none_or(|groups| groups.is_empty()) {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                anyhow::bail!(
                    "{what} is still ending its machines after {} minutes; run this again",
                    LONGEST_WAIT.as_secs() / 60
                );
            }
            tokio::time::sleep(LOOK_AGAIN_EVERY).await;
        }
    }
}

fn is_missing<E, R>(error: &aws_sdk_autoscaling::error::SdkError<E, R>) -> bool
where
    E: aws_sdk_autoscaling::error::ProvideErrorMetadata,
{
    error.code() == Some("ValidationError")
        && error.message().is_some_and(|message| message.contains("not found") || message.contains("No "))
}

/// The properties of a resource, as the calls take them.
struct Said<'a>(&'a Resource);

impl Said<'_> {
    fn get(&self, property: &str) -> Option<&Value> {
        self.0.properties.get(property)
    }

    fn text(&self, property: &str) -> Option<String> {
        self.get(property).map(text)
    }

    fn texts(&self, property: &str) -> Option<Vec<String>> {
        self.get(property).map(|value| texts(Some(value))).filter(|texts| !texts.is_empty())
    }

    fn integer(&self, property: &str) -> Option<i32> {
        self.get(property).and_then(integer)
    }

    fn flag(&self, property: &str) -> Option<bool> {
        self.get(property).and_then(Value::as_bool)
    }

    fn subnets(&self) -> Option<String> {
        self.texts("VPCZoneIdentifier").map(|subnets| subnets.join(","))
    }

    fn launch_template(&self) -> Option<LaunchTemplateSpecification> {
        self.get("LaunchTemplate").map(specification)
    }

    fn mixed_instances_policy(&self) -> Option<MixedInstancesPolicy> {
        let policy = self.get("MixedInstancesPolicy")?;
        let distribution = &policy["InstancesDistribution"];
        let word = |name: &str| distribution[name].as_str().map(str::to_owned);
        let distribution = InstancesDistribution::builder()
            .set_on_demand_base_capacity(integer(&distribution["OnDemandBaseCapacity"]))
            .set_on_demand_percentage_above_base_capacity(integer(&distribution["OnDemandPercentageAboveBaseCapacity"]))
            .set_on_demand_allocation_strategy(word("OnDemandAllocationStrategy"))
            .set_spot_allocation_strategy(word("SpotAllocationStrategy"))
            .build();
        let template = &policy["LaunchTemplate"];
        let types = template["Overrides"].as_array().into_iter().flatten();
        let overrides: Vec<LaunchTemplateOverrides> = types
            .map(|entry| LaunchTemplateOverrides::builder().instance_type(text(&entry["InstanceType"])).build())
            .collect();
        let template = LaunchTemplate::builder()
            .launch_template_specification(specification(&template["LaunchTemplateSpecification"]))
            .set_overrides(Some(overrides))
            .build();
        Some(MixedInstancesPolicy::builder().instances_distribution(distribution).launch_template(template).build())
    }

    fn step_adjustments(&self) -> Option<Vec<StepAdjustment>> {
        let steps = self.get("StepAdjustments")?.as_array()?;
        let steps = steps.iter().map(|step| {
            StepAdjustment::builder()
                .set_metric_interval_lower_bound(step["MetricIntervalLowerBound"].as_f64())
                .set_metric_interval_upper_bound(step["MetricIntervalUpperBound"].as_f64())
                .set_scaling_adjustment(integer(&step["ScalingAdjustment"]))
                .build()
        });
        Some(steps.collect())
    }

    fn target_tracking(&self) -> anyhow::Result<Option<TargetTrackingConfiguration>> {
        let Some(tracking) = self.get("TargetTrackingConfiguration") else { return Ok(None) };
        let metric = &tracking["CustomizedMetricSpecification"];
        let word = |name: &str| metric[name].as_str().map(str::to_owned);
        let dimensions = metric["Dimensions"].as_array().into_iter().flatten().map(|dimension| {
            MetricDimension::builder().name(text(&dimension["Name"])).value(text(&dimension["Value"])).build()
        });
        let specification = CustomizedMetricSpecification::builder()
            .set_namespace(word("Namespace"))
            .set_metric_name(word("MetricName"))
            .set_dimensions(Some(dimensions.collect()))
            .set_statistic(word("Statistic").map(|name| MetricStatistic::from(name.as_str())))
            .set_period(integer(&metric["Period"]))
            .build();
        let target = at(self.0, &["TargetTrackingConfiguration", "TargetValue"])?.as_f64();
        let tracking = TargetTrackingConfiguration::builder()
            .customized_metric_specification(specification)
            .set_target_value(target)
            .set_disable_scale_in(tracking["DisableScaleIn"].as_bool())
            .build();
        Ok(Some(tracking))
    }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().map(text).collect()
}

fn specification(value: &Value) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder()
        .launch_template_name(text(&value["LaunchTemplateName"]))
        .version(text(&value["Version"]))
        .build()
}

fn group_tags(resource: &Resource) -> Vec<Tag> {
    let tags = tags_of(&resource.properties).into_iter().map(|(key, value)| {
        Tag::builder()
            .resource_id(&resource.name)
            .resource_type("auto-scaling-group")
            .key(key)
            .value(value)
            .propagate_at_launch(true)
            .build()
    });
    tags.collect()
}

fn pairs(group: &AutoScalingGroup) -> impl Iterator<Item = (&str, &str)> {
    group.tags().iter().filter_map(|tag| Some((tag.key.as_deref()?, tag.value.as_deref()?)))
}

pub(super) fn group_to_json(group: &AutoScalingGroup) -> Value {
    let mut subnets: Vec<&str> = group.vpc_zone_identifier.as_deref().unwrap_or_default().split(',').collect();
    subnets.sort_unstable();
    let mut metrics: Vec<&str> = group.enabled_metrics().iter().filter_map(|metric| metric.metric.as_deref()).collect();
    metrics.sort_unstable();
    let collection = (!metrics.is_empty()).then(|| json!([{"Granularity": "1Minute", "Metrics": metrics}]));
    let tags = group.tags().iter().filter(|tag| tag.key.as_deref() == Some(STACK_TAG));
    let tags: Vec<Value> = tags
        .map(|tag| json!({"Key": tag.key, "PropagateAtLaunch": tag.propagate_at_launch, "Value": tag.value}))
        .collect();
    json!({
        "MinSize": group.min_size.map(|size| size.to_string()),
        "MaxSize": group.max_size.map(|size| size.to_string()),
        "VPCZoneIdentifier": subnets,
        "MixedInstancesPolicy": group.mixed_instances_policy.as_ref().map(mixed_to_json),
        "LaunchTemplate": group.launch_template.as_ref().map(specification_to_json),
        "CapacityRebalance": group.capacity_rebalance.unwrap_or_default(),
        "DefaultInstanceWarmup": group.default_instance_warmup,
        "MetricsCollection": collection,
        "NewInstancesProtectedFromScaleIn": group.new_instances_protected_from_scale_in.unwrap_or_default(),
        "TargetGroupARNs": group.target_group_arns(),
        "Tags": tags,
    })
}

fn mixed_to_json(policy: &MixedInstancesPolicy) -> Value {
    let distribution = policy.instances_distribution.as_ref().map(|distribution| {
        json!({
            "OnDemandBaseCapacity": distribution.on_demand_base_capacity,
            "OnDemandPercentageAboveBaseCapacity": distribution.on_demand_percentage_above_base_capacity,
            "OnDemandAllocationStrategy": distribution.on_demand_allocation_strategy,
            "SpotAllocationStrategy": distribution.spot_allocation_strategy,
        })
    });
    let template = policy.launch_template.as_ref();
    let overrides = template.map(LaunchTemplate::overrides).unwrap_or_default();
    let overrides: Vec<Value> = overrides.iter().map(|entry| json!({"InstanceType": entry.instance_type})).collect();
    let specification = template.and_then(|template| template.launch_template_specification.as_ref());
    json!({
        "InstancesDistribution": distribution,
        "LaunchTemplate": {
            "LaunchTemplateSpecification": specification.map(specification_to_json), "Overrides": overrides,
        },
    })
}

fn specification_to_json(specification: &LaunchTemplateSpecification) -> Value {
    json!({"LaunchTemplateName": specification.launch_template_name, "Version": specification.version})
}

fn policy_found(group: &str, owner: &Owner, policy: &ScalingPolicy) -> Found {
    let name = in_group(group, policy.policy_name.as_deref().unwrap_or_default());
    let arn = policy.policy_arn.clone().unwrap_or_default();
    Found::new(Kind::ScalingPolicy, name, owner.clone(), policy_to_json(group, policy)).with("Ref", arn)
}

pub(super) fn policy_to_json(group: &str, policy: &ScalingPolicy) -> Value {
    let steps: Vec<Value> = policy
        .step_adjustments()
        .iter()
        .map(|step| {
            json!(properties(json!({
                "MetricIntervalLowerBound": step.metric_interval_lower_bound.map(number),
                "MetricIntervalUpperBound": step.metric_interval_upper_bound.map(number),
                "ScalingAdjustment": step.scaling_adjustment,
            })))
        })
        .collect();
    let tracking = policy.target_tracking_configuration.as_ref().map(|tracking| {
        let metric = tracking.customized_metric_specification.as_ref().map(|metric| {
            let dimensions = metric.dimensions().iter();
            let dimensions: Vec<Value> =
                dimensions.map(|dimension| json!({"Name": dimension.name, "Value": dimension.value})).collect();
            json!(properties(json!({
                "Namespace": metric.namespace, "MetricName": metric.metric_name, "Dimensions": dimensions,
                "Statistic": metric.statistic.as_ref().map(MetricStatistic::as_str), "Period": metric.period,
            })))
        });
        json!({
            "CustomizedMetricSpecification": metric,
            "TargetValue": tracking.target_value.map(number),
            "DisableScaleIn": tracking.disable_scale_in.unwrap_or_default(),
        })
    });
    json!({
        "AutoScalingGroupName": group,
        "PolicyType": policy.policy_type,
        "AdjustmentType": policy.adjustment_type,
        "MetricAggregationType": policy.metric_aggregation_type,
        "EstimatedInstanceWarmup": policy.estimated_instance_warmup,
        "StepAdjustments": (!steps.is_empty()).then_some(steps),
        "TargetTrackingConfiguration": tracking,
    })
}

fn hook_found(group: &str, owner: &Owner, hook: &LifecycleHook) -> Found {
    let name = in_group(group, hook.lifecycle_hook_name.as_deref().unwrap_or_default());
    let members = json!({
        "AutoScalingGroupName": group,
        "LifecycleTransition": hook.lifecycle_transition,
        "HeartbeatTimeout": hook.heartbeat_timeout,
        "DefaultResult": hook.default_result,
    });
    Found::new(Kind::LifecycleHook, name, owner.clone(), members)
}
