//! Scaling policies: the size of a group after their alarm is raised.

use roxmltree::{Document, Node};

use super::alarm::{Alarm, Comparison};
use super::metrics::{Dimension, Metric};
use crate::cloud::NAMESPACE;

/// The alarms that Auto Scaling creates for a target tracking policy: it scales out after three periods above the
/// target, and in after fifteen periods below nine tenths of it. This is documented for periods of a minute only.
const PERIODS_OUT: u64 = 3;
const PERIODS_IN: u64 = 15;
const IN_BELOW: f64 = 0.9;

/// A policy in the form of `DescribePolicies`.
#[derive(Debug, Clone)]
pub struct Policy {
    pub arn: String,
    /// Seconds from the start of an instance until it counts. If absent, the group's default applies.
    pub warmup: Option<u64>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Step { adjustment_type: String, steps: Vec<Step> },
    Target { metric: Metric, statistic: String, period: u64, target: f64, scales_in: bool },
}

#[derive(Debug, Clone, Copy)]
struct Step {
    from: Option<f64>,
    to: Option<f64>,
    adjustment: f64,
}

/// The size of a group.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    /// Number of desired instances that have not started or warmed up yet. Scaling out counts them as already added.
    pub warming: u32,
    /// Number of instances that are draining and no longer desired. Scaling in counts them as already removed.
    pub terminating: u32,
}

impl Policy {
    /// Parses the answer of `DescribePolicies`.
    pub fn all(answer: &str) -> Vec<Policy> {
        let document = Document::parse(answer).unwrap();
        members(document.root_element(), "ScalingPolicies").map(Policy::read).collect()
    }

    fn read(node: Node) -> Policy {
        let kind = match text(node, "PolicyType") {
            Some("StepScaling") => Kind::Step {
                adjustment_type: text(node, "AdjustmentType").unwrap().to_owned(),
                steps: members(node, "StepAdjustments")
                    .map(|step| Step {
                        from: number(step, "MetricIntervalLowerBound"),
                        to: number(step, "MetricIntervalUpperBound"),
                        adjustment: number(step, "ScalingAdjustment").unwrap(),
                    })
                    .collect(),
            },
            Some("TargetTrackingScaling") => Kind::Target {
                metric: Metric {
                    namespace: text(node, "Namespace").unwrap().to_owned(),
                    name: text(node, "MetricName").unwrap().to_owned(),
                    dimensions: members(node, "Dimensions").map(dimension).collect(),
                },
                statistic: text(node, "Statistic").unwrap().to_owned(),
                period: number(node, "Period").unwrap() as u64,
                target: number(node, "TargetValue").unwrap(),
                scales_in: text(node, "DisableScaleIn") != Some("true"),
            },
            other => panic!("policy type {other:?} is not supported"),
        };
        let warmup = number(node, "EstimatedInstanceWarmup").map(|seconds| seconds as u64);
        Policy { arn: text(node, "PolicyARN").unwrap().to_owned(), warmup, kind }
    }

    /// The alarms that AWS creates for this policy.
    pub fn own_alarms(&self) -> Vec<Alarm> {
        let Kind::Target { metric, statistic, period, target, scales_in } = &self.kind else { return Vec::new() };
        let alarm = |name: &str| Alarm {
            actions: vec![self.arn.clone()],
            ..Alarm::of_metric(name, metric, statistic, *period)
        };
        let out = Alarm { evaluation_periods: PERIODS_OUT, threshold: *target, ..alarm("AlarmHigh") };
        let back = Alarm {
            evaluation_periods: PERIODS_IN,
            threshold: target * IN_BELOW,
            comparison_operator: Comparison::Less,
            ..alarm("AlarmLow")
        };
        if *scales_in { vec![out, back] } else { vec![out] }
    }

    /// The desired capacity after `value` has raised an alarm with `threshold`.
    pub fn desired(&self, capacity: &Capacity, value: f64, threshold: f64) -> u32 {
        let warm = f64::from(capacity.desired - capacity.warming.min(capacity.desired));
        let with_terminating = f64::from(capacity.desired + capacity.terminating);
        let (wanted_out, wanted_in) = match &self.kind {
            Kind::Step { adjustment_type, steps } => {
                let Some(step) = steps.iter().find(|step| step.is_for(value - threshold)) else {
                    return capacity.desired;
                };
                (step.apply(adjustment_type, warm), step.apply(adjustment_type, with_terminating))
            }
            Kind::Target { target, .. } if value > *target => ((warm * value / target).ceil(), f64::INFINITY),
            Kind::Target { target, .. } => (0.0, (f64::from(capacity.desired) * value / target).ceil()),
        };
        let desired = f64::from(capacity.desired);
        let within = |wanted: f64| wanted.clamp(f64::from(capacity.min), f64::from(capacity.max)) as u32;
        if wanted_out > desired {
            within(wanted_out)
        } else if wanted_in < desired && capacity.warming == 0 {
            // The group does not scale in while instances warm up.
            within(wanted_in)
        } else {
            capacity.desired
        }
    }
}

impl Step {
    /// Returns whether this step applies to `breach`, the difference of value and threshold. The bound that is nearer
    /// to the threshold is inclusive.
    fn is_for(self, breach: f64) -> bool {
        let (from, to) = (self.from.unwrap_or(f64::NEG_INFINITY), self.to.unwrap_or(f64::INFINITY));
        if from >= 0.0 { from <= breach && breach < to } else { from < breach && breach <= to }
    }

    fn apply(self, adjustment_type: &str, capacity: f64) -> f64 {
        match adjustment_type {
            "ChangeInCapacity" => (capacity + self.adjustment).max(0.0),
            "ExactCapacity" => self.adjustment,
            "PercentChangeInCapacity" => {
                let change = capacity * self.adjustment / 100.0;
                // A change of less than one counts as one. Larger changes are rounded towards zero.
                let change = if change.abs() < 1.0 { change.signum() * change.abs().ceil() } else { change.trunc() };
                (capacity + change).max(0.0)
            }
            other => panic!("adjustment {other} is not supported"),
        }
    }
}

fn dimension(node: Node) -> Dimension {
    let word = |name: &str| text(node, name).unwrap().to_owned();
    Dimension { name: word("Name"), value: word("Value") }
}

fn find<'a, 'd>(node: Node<'a, 'd>, name: &str) -> Option<Node<'a, 'd>> {
    node.descendants().find(|node| node.has_tag_name((NAMESPACE, name)))
}

fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    find(node, name)?.text()
}

fn number(node: Node, name: &str) -> Option<f64> {
    text(node, name).map(|text| text.parse().unwrap())
}

fn members<'a, 'd>(node: Node<'a, 'd>, name: &str) -> impl Iterator<Item = Node<'a, 'd>> {
    find(node, name).into_iter().flat_map(|list| list.children()).filter(Node::is_element)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Capacity = Capacity { min: 0, max: 20, desired: 10, warming: 0, terminating: 0 };

    fn policy(kind: Kind) -> Policy {
        Policy { arn: String::new(), warmup: None, kind }
    }

    fn steps(adjustment_type: &str, steps: &[(Option<f64>, Option<f64>, f64)]) -> Policy {
        let steps = steps.iter().map(|&(from, to, adjustment)| Step { from, to, adjustment }).collect();
        policy(Kind::Step { adjustment_type: adjustment_type.to_owned(), steps })
    }

    /// The example in Auto Scaling's manual: thresholds of 60 and 40 per cent, ten instances.
    #[test]
    fn step_policy_follows_the_manual() {
        let out = [(Some(0.0), Some(10.0), 0.0), (Some(10.0), Some(20.0), 10.0), (Some(20.0), None, 30.0)];
        let out = steps("PercentChangeInCapacity", &out);
        assert_eq!([60.0, 70.0, 79.0, 80.0].map(|value| out.desired(&GROUP, value, 60.0)), [10, 11, 11, 13]);
        // While the instance added at 70 per cent warms up, 70 per cent adds none, and 80 per cent two more.
        let warming = Capacity { desired: 11, warming: 1, ..GROUP };
        assert_eq!([70.0, 80.0].map(|value| out.desired(&warming, value, 60.0)), [11, 13]);
        let back = [(Some(-10.0), Some(0.0), 0.0), (Some(-20.0), Some(-10.0), -10.0), (None, Some(-20.0), -30.0)];
        let back = steps("PercentChangeInCapacity", &back);
        assert_eq!([40.0, 30.0, 21.0, 20.0].map(|value| back.desired(&GROUP, value, 40.0)), [10, 9, 9, 7]);
        assert_eq!(back.desired(&warming, 20.0, 40.0), 11, "no scale-in while the group scales out");
    }

    #[test]
    fn step_stays_within_bounds_and_counts_terminating_instances() {
        let one_more = steps("ChangeInCapacity", &[(Some(0.0), None, 1.0)]);
        let one_less = steps("ChangeInCapacity", &[(None, Some(0.0), -1.0)]);
        assert_eq!(one_more.desired(&Capacity { desired: 20, ..GROUP }, 26.0, 25.0), 20);
        assert_eq!(one_less.desired(&Capacity { desired: 0, ..GROUP }, 0.0, 2.0), 0);
        assert_eq!(one_less.desired(&Capacity { terminating: 1, ..GROUP }, 0.0, 2.0), 10);
        assert_eq!(steps("ExactCapacity", &[(Some(0.0), None, 30.0)]).desired(&GROUP, 26.0, 25.0), 20);
    }

    #[test]
    fn target_policy_moves_the_metric_to_its_target() {
        let metric = Metric::new("", "", "", "");
        let kind = Kind::Target { metric, statistic: "Average".to_owned(), period: 10, target: 50.0, scales_in: true };
        let target = policy(kind);
        assert_eq!([75.0, 51.0, 49.0, 22.0, 0.0].map(|value| target.desired(&GROUP, value, 0.0)), [15, 11, 10, 5, 0]);
        let warming = Capacity { warming: 5, ..GROUP };
        assert_eq!([75.0, 125.0, 22.0].map(|value| target.desired(&warming, value, 0.0)), [10, 13, 10]);
    }
}
