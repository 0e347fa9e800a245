//! Converts the answers of Auto Scaling to properties of CloudFormation.

use aws_sdk_autoscaling::types::{
    AutoScalingGroup, LaunchTemplate, LaunchTemplateSpecification, LifecycleHook, MetricStatistic,
    MixedInstancesPolicy, ScalingPolicy,
};
use serde_json::{Value, json};

use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::resource::{Kind, in_group, is_our_tag, number, properties};

/// `own_tags`: keys of the tags that the user gave.
pub(in crate::provision::aws) fn group_to_json(group: &AutoScalingGroup, own_tags: &[String]) -> Value {
    let mut subnets: Vec<&str> = group.vpc_zone_identifier.as_deref().unwrap_or_default().split(',').collect();
    subnets.sort_unstable();
    let mut metrics: Vec<&str> = group.enabled_metrics().iter().filter_map(|metric| metric.metric.as_deref()).collect();
    metrics.sort_unstable();
    let collection = (!metrics.is_empty()).then(|| json!([{"Granularity": "1Minute", "Metrics": metrics}]));
    let suspended = group.suspended_processes().iter().filter_map(|process| process.process_name.as_deref());
    let mut suspended: Vec<&str> = suspended.collect();
    suspended.sort_unstable();
    let is_ours = |key: Option<&str>| key.is_some_and(|key| is_our_tag(key, own_tags));
    let mut tags: Vec<_> = group.tags().iter().filter(|tag| is_ours(tag.key.as_deref())).collect();
    tags.sort_by_key(|tag| tag.key.clone());
    let tags: Vec<Value> = tags
        .into_iter()
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
        "SuspendedProcesses": suspended,
        "NewInstancesProtectedFromScaleIn": group.new_instances_protected_from_scale_in.unwrap_or_default(),
        "HealthCheckType": group.health_check_type,
        "HealthCheckGracePeriod": group.health_check_grace_period,
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

pub(super) fn policy_found(group: &str, owner: &Owner, policy: &ScalingPolicy) -> FoundResource {
    let name = in_group(group, policy.policy_name.as_deref().unwrap_or_default());
    let arn = policy.policy_arn.clone().unwrap_or_default();
    FoundResource::new(Kind::ScalingPolicy, name, owner.clone(), policy_to_json(group, policy)).with("Ref", arn)
}

pub(in crate::provision::aws) fn policy_to_json(group: &str, policy: &ScalingPolicy) -> Value {
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
        "PolicyName": policy.policy_name,
        "PolicyType": policy.policy_type,
        "ScalingAdjustment": policy.scaling_adjustment,
        "AdjustmentType": policy.adjustment_type,
        "MetricAggregationType": policy.metric_aggregation_type,
        "EstimatedInstanceWarmup": policy.estimated_instance_warmup,
        "StepAdjustments": (!steps.is_empty()).then_some(steps),
        "TargetTrackingConfiguration": tracking,
    })
}

pub(super) fn hook_found(group: &str, owner: &Owner, hook: &LifecycleHook) -> FoundResource {
    let name = in_group(group, hook.lifecycle_hook_name.as_deref().unwrap_or_default());
    FoundResource::new(Kind::LifecycleHook, name, owner.clone(), hook_to_json(group, hook))
}

pub(in crate::provision::aws) fn hook_to_json(group: &str, hook: &LifecycleHook) -> Value {
    json!({
        "AutoScalingGroupName": group,
        "LifecycleTransition": hook.lifecycle_transition,
        "HeartbeatTimeout": hook.heartbeat_timeout,
        "DefaultResult": hook.default_result,
    })
}

/// The number of machines of a group that are in service.
pub(in crate::provision::aws) fn in_service(group: &AutoScalingGroup) -> usize {
    let instances = group.instances().iter();
    instances.filter(|one| one.lifecycle_state.as_ref().is_some_and(|state| state.as_str() == "InService")).count()
}
