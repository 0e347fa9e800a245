//! The alarms and the dashboard of a stack.

use std::collections::BTreeSet;

use aws_sdk_cloudwatch::types::{
    ComparisonOperator, Dimension, Metric, MetricAlarm, MetricDataQuery, MetricStat, Statistic, Tag,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::client::{Attributes, CONCURRENT_CALLS, Cloud, integer, member, owner_by_tags, text};
use crate::provision::adoption::adopted_dashboard_mark;
use crate::provision::arns::Arns;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::names::{ResourceNames, dashboard_mark};
use crate::provision::resource::{Kind, Resource, label, number, our_tags, properties, tags_of};
use crate::provision::stack::Stack;

impl Cloud {
    pub(super) async fn observe_cloudwatch(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let mut found = self.observe_alarms(stack).await?;
        found.extend(self.observe_dashboard(stack).await?);
        Ok(found)
    }

    async fn observe_alarms(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let alarms = self.alarms().await?;
        // Reading tags takes a call for each alarm, so only candidates are read.
        let names: BTreeSet<&str> = stack.resources.iter().map(|resource| resource.name.as_str()).collect();
        let is_candidate = |alarm: &&MetricAlarm| {
            let name = alarm.alarm_name.as_deref().unwrap_or_default();
            names.contains(name) || reads_metric_of(alarm, &names)
        };
        let observed = alarms.iter().filter(is_candidate).map(|alarm| self.observe_alarm(stack, alarm));
        let observed: Vec<_> = futures::stream::iter(observed).buffer_unordered(CONCURRENT_CALLS).collect().await;
        let observed: Vec<Option<FoundResource>> = observed.into_iter().collect::<Result<_, _>>()?;
        Ok(observed.into_iter().flatten().collect())
    }

    pub(super) async fn alarms(&self) -> anyhow::Result<Vec<MetricAlarm>> {
        let mut pages = self.cloudwatch.describe_alarms().into_paginator().send();
        let mut alarms = Vec::new();
        while let Some(page) = pages.next().await {
            alarms
                .extend(self.done("cloudwatch:DescribeAlarms", "the alarms", page)?.metric_alarms.unwrap_or_default());
        }
        Ok(alarms)
    }

    async fn observe_alarm(&self, stack: &Stack, alarm: &MetricAlarm) -> anyhow::Result<Option<FoundResource>> {
        let name = alarm.alarm_name.as_deref().unwrap_or_default();
        let own = Arns::new(&stack.account, &stack.region).alarm(name);
        let arn = alarm.alarm_arn.clone().unwrap_or(own);
        let answer = self.cloudwatch.list_tags_for_resource().resource_arn(&arn).send().await;
        let answer = self.if_there("cloudwatch:ListTagsForResource", &label(Kind::Alarm, name), answer)?;
        let tags = answer.and_then(|answer| answer.tags).unwrap_or_default();
        let pairs = || tags.iter().filter_map(|tag| Some((tag.key.as_deref()?, tag.value.as_deref()?)));
        let owner = owner_by_tags(pairs(), stack);
        if stack.find(Kind::Alarm, name).is_none() && owner != Owner::This {
            return Ok(None);
        }
        let mut members = alarm_to_json(alarm);
        members["Tags"] = our_tags(pairs(), &stack.own_tags);
        Ok(Some(FoundResource::new(Kind::Alarm, name, owner, members).with("Arn", arn)))
    }

    async fn observe_dashboard(&self, stack: &Stack) -> anyhow::Result<Option<FoundResource>> {
        let name = ResourceNames::of(&stack.name).dashboard;
        let answer = self.cloudwatch.get_dashboard().dashboard_name(&name).send().await;
        let answer = self.if_there("cloudwatch:GetDashboard", &label(Kind::Dashboard, &name), answer)?;
        Ok(answer.and_then(|answer| answer.dashboard_body).map(|body| {
            let json: Value = serde_json::from_str(&body).unwrap_or_default();
            let marks_of_stack = [dashboard_mark(&stack.name), adopted_dashboard_mark(&stack.name)];
            let widgets = json["widgets"].as_array();
            let marks = widgets.into_iter().flatten().filter_map(|widget| widget["properties"]["markdown"].as_str());
            let is_ours = |text: &str| marks_of_stack.iter().any(|mark| mark == text);
            let owner = if marks.into_iter().any(is_ours) { Owner::This } else { Owner::Nobody };
            // Serialized again, so that white space and order do not count as differences.
            let body = if json.is_null() { body } else { json.to_string() };
            FoundResource::new(Kind::Dashboard, &name, owner, json!({"DashboardBody": body}))
        }))
    }

    pub(super) async fn put_alarm(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let get = |property: &str| resource.properties.get(property);
        let word = |property: &str| get(property).map(text);
        let whole = |property: &str| get(property).and_then(integer);
        let tags: Vec<Tag> = tags_of(&resource.properties)
            .into_iter()
            .map(|(key, value)| Tag::builder().key(key).value(value).build())
            .collect();
        let metrics = get("Metrics").and_then(Value::as_array).map(|metrics| metrics.iter().map(query).collect());
        let actions = get("AlarmActions").and_then(Value::as_array).into_iter().flatten().map(text).collect();
        let call = self
            .cloudwatch
            .put_metric_alarm()
            .alarm_name(name)
            .set_alarm_description(word("AlarmDescription"))
            .set_namespace(word("Namespace"))
            .set_metric_name(word("MetricName"))
            .set_dimensions(get("Dimensions").map(dimensions))
            .set_statistic(word("Statistic").map(|name| Statistic::from(name.as_str())))
            .set_period(whole("Period"))
            .set_evaluation_periods(whole("EvaluationPeriods"))
            .set_threshold(get("Threshold").and_then(Value::as_f64))
            .set_comparison_operator(word("ComparisonOperator").map(|name| ComparisonOperator::from(name.as_str())))
            .set_treat_missing_data(word("TreatMissingData"))
            .set_alarm_actions(Some(actions))
            .set_actions_enabled(get("ActionsEnabled").and_then(Value::as_bool))
            .set_metrics(metrics)
            .set_tags(Some(tags.clone()));
        self.done("cloudwatch:PutMetricAlarm", &what, call.send().await)?;
        // The call above sets tags on creation only.
        if let Some(arn) = found.and_then(|found| found.attributes.get("Arn")) {
            let call = self.cloudwatch.tag_resource().resource_arn(arn).set_tags(Some(tags)).send();
            self.done("cloudwatch:TagResource", &what, call.await)?;
        }
        Ok(Vec::new())
    }

    pub(super) async fn put_dashboard(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let body = text(member(resource, &["DashboardBody"])?);
        let call = self.cloudwatch.put_dashboard().dashboard_name(&resource.name).dashboard_body(body).send();
        self.done("cloudwatch:PutDashboard", &resource.label(), call.await)?;
        Ok(Vec::new())
    }

    pub(super) async fn delete_alarm(&self, name: &str) -> anyhow::Result<()> {
        let call = self.cloudwatch.delete_alarms().alarm_names(name).send();
        self.gone("cloudwatch:DeleteAlarms", &label(Kind::Alarm, name), call.await)
    }

    pub(super) async fn delete_dashboard(&self, name: &str) -> anyhow::Result<()> {
        let call = self.cloudwatch.delete_dashboards().dashboard_names(name).send();
        self.gone("cloudwatch:DeleteDashboards", &label(Kind::Dashboard, name), call.await)
    }
}

/// Returns whether an alarm reads a metric of a resource with one of these names.
fn reads_metric_of(alarm: &MetricAlarm, names: &BTreeSet<&str>) -> bool {
    let own = alarm.dimensions().iter();
    let of_metrics = alarm.metrics().iter().filter_map(|query| query.metric_stat.as_ref()?.metric.as_ref());
    let all = own.chain(of_metrics.flat_map(Metric::dimensions));
    all.filter_map(|dimension| dimension.value.as_deref()).any(|value| names.contains(value))
}

/// The properties of an alarm, in CloudFormation's form.
pub(super) fn alarm_to_json(alarm: &MetricAlarm) -> Value {
    let metrics: Vec<Value> = alarm.metrics().iter().map(query_to_json).collect();
    let dimensions: Vec<Value> = alarm.dimensions().iter().map(dimension_to_json).collect();
    let or_none = |values: Vec<Value>| if values.is_empty() { Value::Null } else { Value::Array(values) };
    json!({
        "AlarmDescription": alarm.alarm_description,
        "Namespace": alarm.namespace,
        "MetricName": alarm.metric_name,
        "Dimensions": or_none(dimensions),
        "Statistic": alarm.statistic.as_ref().map(Statistic::as_str),
        "Period": alarm.period,
        "EvaluationPeriods": alarm.evaluation_periods,
        "Threshold": alarm.threshold.map(number),
        "ComparisonOperator": alarm.comparison_operator.as_ref().map(ComparisonOperator::as_str),
        "TreatMissingData": alarm.treat_missing_data,
        "AlarmActions": alarm.alarm_actions(),
        "ActionsEnabled": alarm.actions_enabled,
        "Metrics": or_none(metrics),
    })
}

fn dimension_to_json(dimension: &Dimension) -> Value {
    json!({"Name": dimension.name, "Value": dimension.value})
}

fn query_to_json(query: &MetricDataQuery) -> Value {
    let stat = query.metric_stat.as_ref().map(|stat| {
        let metric = stat.metric.as_ref();
        let dimensions = metric.map(Metric::dimensions).unwrap_or_default();
        json!({
            "Metric": {
                "Namespace": metric.and_then(|metric| metric.namespace.as_deref()),
                "MetricName": metric.and_then(|metric| metric.metric_name.as_deref()),
                "Dimensions": dimensions.iter().map(dimension_to_json).collect::<Vec<_>>(),
            },
            "Period": stat.period,
            "Stat": stat.stat,
        })
    });
    json!(properties(json!({
        "Id": query.id, "Label": query.label, "Expression": query.expression,
        "MetricStat": stat, "ReturnData": query.return_data,
    })))
}

fn query(value: &Value) -> MetricDataQuery {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let stat = value.get("MetricStat").map(|stat| {
        let metric = Metric::builder()
            .set_namespace(word(&stat["Metric"]["Namespace"]))
            .set_metric_name(word(&stat["Metric"]["MetricName"]))
            .set_dimensions(Some(dimensions(&stat["Metric"]["Dimensions"])))
            .build();
        MetricStat::builder().metric(metric).set_period(integer(&stat["Period"])).set_stat(word(&stat["Stat"])).build()
    });
    MetricDataQuery::builder()
        .set_id(word(&value["Id"]))
        .set_label(word(&value["Label"]))
        .set_expression(word(&value["Expression"]))
        .set_metric_stat(stat)
        .set_return_data(value["ReturnData"].as_bool())
        .build()
}

fn dimensions(value: &Value) -> Vec<Dimension> {
    let dimensions = value.as_array().into_iter().flatten();
    dimensions
        .map(|dimension| Dimension::builder().name(text(&dimension["Name"])).value(text(&dimension["Value"])).build())
        .collect()
}
