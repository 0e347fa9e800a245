//! Converts properties of CloudFormation to the parameters of Auto Scaling's calls.

use aws_sdk_autoscaling::types::{
    CustomizedMetricSpecification, InstancesDistribution, LaunchTemplate, LaunchTemplateOverrides,
    LaunchTemplateSpecification, MetricDimension, MetricStatistic, MixedInstancesPolicy, StepAdjustment, Tag,
    TargetTrackingConfiguration,
};
use serde_json::Value;

use crate::provision::aws::client::{integer, member, text};
use crate::provision::resource::{ADOPTED_TAG, Resource, tags_of};

/// Converts the properties of a resource to parameters of calls.
pub(super) struct Parameters<'a>(pub &'a Resource);

impl Parameters<'_> {
    fn get(&self, property: &str) -> Option<&Value> {
        self.0.properties.get(property)
    }

    pub(super) fn text(&self, property: &str) -> Option<String> {
        self.get(property).map(text)
    }

    pub(super) fn texts(&self, property: &str) -> Option<Vec<String>> {
        self.get(property).map(|value| texts(Some(value))).filter(|texts| !texts.is_empty())
    }

    pub(super) fn integer(&self, property: &str) -> Option<i32> {
        self.get(property).and_then(integer)
    }

    pub(super) fn flag(&self, property: &str) -> Option<bool> {
        self.get(property).and_then(Value::as_bool)
    }

    pub(super) fn subnets(&self) -> Option<String> {
        self.texts("VPCZoneIdentifier").map(|subnets| subnets.join(","))
    }

    pub(super) fn launch_template(&self) -> Option<LaunchTemplateSpecification> {
        self.get("LaunchTemplate").map(specification)
    }

    pub(super) fn mixed_instances_policy(&self) -> Option<MixedInstancesPolicy> {
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

    pub(super) fn step_adjustments(&self) -> Option<Vec<StepAdjustment>> {
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

    pub(super) fn target_tracking(&self) -> anyhow::Result<Option<TargetTrackingConfiguration>> {
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
        let target = member(self.0, &["TargetTrackingConfiguration", "TargetValue"])?.as_f64();
        let tracking = TargetTrackingConfiguration::builder()
            .customized_metric_specification(specification)
            .set_target_value(target)
            .set_disable_scale_in(tracking["DisableScaleIn"].as_bool())
            .build();
        Ok(Some(tracking))
    }
}

pub(super) fn texts(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().map(text).collect()
}

fn specification(value: &Value) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder()
        .launch_template_name(text(&value["LaunchTemplateName"]))
        .version(text(&value["Version"]))
        .build()
}

pub(super) fn group_tags(resource: &Resource) -> Vec<Tag> {
    let tags = tags_of(&resource.properties).into_iter().map(|(key, value)| {
        Tag::builder()
            .resource_id(&resource.name)
            .resource_type("auto-scaling-group")
            // Machines have the tags of their stack, and are not adopted.
            .propagate_at_launch(key != ADOPTED_TAG)
            .key(key)
            .value(value)
            .build()
    });
    tags.collect()
}
