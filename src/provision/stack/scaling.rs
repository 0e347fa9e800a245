//! Scaling policies of the workers' group, and their alarms.

use std::time::Duration;

use serde_json::{Value, json};

use super::builder::{Builder, INSTANCE_WARMUP, MINUTE};
use crate::protocol::{BACKLOG_DIMENSION, BACKLOG_METRIC, BACKLOG_NAMESPACE, ServiceClass as Class};
use crate::provision::resource::{Kind, in_group, number, reference};
use crate::scaling_policy::{Policy, StepPolicy, TargetPolicy};

const BACKLOG_PERIOD: u64 = 10;
const VISIBLE: &str = "ApproximateNumberOfMessagesVisible";
const IN_FLIGHT: &str = "ApproximateNumberOfMessagesNotVisible";
/// The images that wait in both queues. A queue that nobody used for hours has no value, and counts as empty.
const ALL_VISIBLE: &str = "FILL(visible, 0) + FILL(bulk_visible, 0)";

impl Builder<'_> {
    pub(super) fn scaling(&mut self) {
        self.step_policy("ScaleFromZeroPolicy", "ScaleFromZero", 1);
        let from_zero = self.names.scale_from_zero_alarm.clone();
        let members = self.alarm_at_zero();
        match self.settings.policy {
            Policy::Step(step) => self.step_scaling(&step),
            Policy::Target(target) => self.target_tracking(&target),
        }
        self.add("ScaleFromZeroAlarm", Kind::Alarm, from_zero, members);
    }

    fn step_scaling(&mut self, step: &StepPolicy) {
        self.step_policy("ScaleUpPolicy", "ScaleUp", 1);
        self.step_policy("ScaleDownPolicy", "ScaleDown", -1);
        let (up, down) = (self.names.scale_up_alarm.clone(), self.names.scale_down_alarm.clone());
        let up_members = json!({
            "AlarmDescription": format!("More than {} images wait: one worker more", step.scale_out_above),
            "Metrics": [
                self.queue_metric("visible", Class::Interactive, VISIBLE, whole_minutes(step.scale_out_period)),
                self.queue_metric("bulk_visible", Class::Bulk, VISIBLE, whole_minutes(step.scale_out_period)),
                {"Id": "waiting", "Label": "waiting", "Expression": ALL_VISIBLE, "ReturnData": true},
            ],
            "EvaluationPeriods": 1,
            "Threshold": number(step.scale_out_above as f64),
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",
            "ActionsEnabled": true,
            "AlarmActions": [reference("ScaleUpPolicy")],
            "Tags": self.tags(),
        });
        let (below, period) = (step.scale_in_below, whole_minutes(step.scale_in_period));
        // The last worker stays as long as there is an image, so its work is then reported as just enough for one
        // worker.
        // SQS publishes the number in flight only while there is one, so that without `FILL` an idle queue would have no
        // value, and the group would never scale in. Workers receive from both queues, so the numbers of waiting images have
        // values as long as there is a worker; a late value must not count as none.
        let all = "visible + bulk_visible + FILL(in_flight, 0) + FILL(bulk_in_flight, 0)";
        let work = format!("IF(workers <= 1 AND {all} >= 1, {below}, {all})");
        let down_members = json!({
            "AlarmDescription":
                format!("Fewer than {below} images wait or are in work: one worker less, the last one at none"),
            "Metrics": [
                self.queue_metric("visible", Class::Interactive, VISIBLE, period),
                self.queue_metric("in_flight", Class::Interactive, IN_FLIGHT, period),
                self.queue_metric("bulk_visible", Class::Bulk, VISIBLE, period),
                self.queue_metric("bulk_in_flight", Class::Bulk, IN_FLIGHT, period),
                self.workers_metric(period),
                {"Id": "work", "Label": "work", "Expression": work, "ReturnData": true},
            ],
            "EvaluationPeriods": 1,
            "Threshold": number(below as f64),
            "ComparisonOperator": "LessThanThreshold",
            "TreatMissingData": "notBreaching",
            "ActionsEnabled": true,
            "AlarmActions": [reference("ScaleDownPolicy")],
            "Tags": self.tags(),
        });
        self.add("ScaleUpAlarm", Kind::Alarm, up, up_members);
        self.add("ScaleDownAlarm", Kind::Alarm, down, down_members);
    }

    /// A single policy scales out and in. Auto Scaling creates and owns its alarms.
    fn target_tracking(&mut self, target: &TargetPolicy) {
        let group = self.names.worker_group.clone();
        let members = json!({
            "AutoScalingGroupName": group,
            "PolicyType": "TargetTrackingScaling",
            "EstimatedInstanceWarmup": INSTANCE_WARMUP.as_secs(),
            "TargetTrackingConfiguration": {
                "CustomizedMetricSpecification": {
                    "Namespace": BACKLOG_NAMESPACE,
                    "MetricName": BACKLOG_METRIC,
                    "Dimensions": [{"Name": BACKLOG_DIMENSION, "Value": self.settings.stack}],
                    "Statistic": "Average",
                    "Period": BACKLOG_PERIOD,
                },
                "TargetValue": number(target.backlog_per_worker()),
                "DisableScaleIn": false,
            },
        });
        self.add(
            "BacklogPolicy",
            Kind::ScalingPolicy,
            in_group(&group, &self.names.scaling_policy("BacklogPerWorker")),
            members,
        );
    }

    /// An alarm that is raised while an image waits and there is no worker. It reads the size of the group too: an
    /// alarm on the queue alone would add a worker every minute for as long as a single image waits. Its policy adds a
    /// worker rather than setting the capacity to one, since metrics are a minute old and the group may have grown
    /// since.
    fn alarm_at_zero(&self) -> Value {
        json!({
            "AlarmDescription": "An image waits and there is no worker: one worker",
            "Metrics": [
                self.queue_metric("visible", Class::Interactive, VISIBLE, MINUTE),
                self.queue_metric("bulk_visible", Class::Bulk, VISIBLE, MINUTE),
                self.workers_metric(MINUTE),
                {
                    "Id": "needed", "Label": "needed",
                    "Expression": format!("IF({ALL_VISIBLE} >= 1 AND workers < 1, 1, 0)"), "ReturnData": true,
                },
            ],
            "EvaluationPeriods": 1,
            "Threshold": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching",
            "ActionsEnabled": true,
            "AlarmActions": [reference("ScaleFromZeroPolicy")],
            "Tags": self.tags(),
        })
    }

    fn queue_metric(&self, id: &str, class: Class, name: &str, period: u64) -> Value {
        let names = &self.settings.names;
        let queue = match class {
            Class::Interactive => names.request_queue.clone(),
            Class::Bulk => names.bulk_queue(),
        };
        json!({
            "Id": id,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/SQS",
                    "MetricName": name,
                    "Dimensions": [{"Name": "QueueName", "Value": queue}],
                },
                "Period": period,
                "Stat": statistic(period),
            },
            "ReturnData": false,
        })
    }

    fn workers_metric(&self, period: u64) -> Value {
        json!({
            "Id": "workers",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/AutoScaling",
                    "MetricName": "GroupDesiredCapacity",
                    "Dimensions": [{"Name": "AutoScalingGroupName", "Value": self.names.worker_group}],
                },
                "Period": period,
                "Stat": "Average",
            },
            "ReturnData": false,
        })
    }

    fn step_policy(&mut self, id: &str, name: &str, adjustment: i32) {
        let bound = if adjustment > 0 { "MetricIntervalLowerBound" } else { "MetricIntervalUpperBound" };
        let group = self.names.worker_group.clone();
        let mut members = json!({
            "AutoScalingGroupName": group,
            "PolicyType": "StepScaling",
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "StepAdjustments": [{bound: 0, "ScalingAdjustment": adjustment}],
        });
        if adjustment > 0 {
            members["EstimatedInstanceWarmup"] = INSTANCE_WARMUP.as_secs().into();
        }
        self.add(id, Kind::ScalingPolicy, in_group(&group, &self.names.scaling_policy(name)), members);
    }
}

/// The statistic of a queue's metric, which has one value a minute. In a longer period, a sum would add up the depths of
/// several minutes.
fn statistic(period: u64) -> &'static str {
    if period == MINUTE { "Sum" } else { "Average" }
}

/// Rounds up to whole minutes: CloudWatch has one value a minute of each metric of SQS.
fn whole_minutes(period: Duration) -> u64 {
    period.as_secs().div_ceil(MINUTE).max(1) * MINUTE
}
