//! The alarms that scale the workers' group.

use serde_json::Value;

use super::{Findings, Group, Observed, Target};

/// The direction in which an alarm or a policy changes the size of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

impl Direction {
    fn verb(self) -> &'static str {
        match self {
            Direction::Out => "adds",
            Direction::In => "removes",
        }
    }

    /// The direction that the comparison of an alarm stands for.
    fn of_comparison(alarm: &Value) -> Option<Direction> {
        match alarm["ComparisonOperator"].as_str()? {
            "GreaterThanThreshold" | "GreaterThanOrEqualToThreshold" => Some(Direction::Out),
            "LessThanThreshold" | "LessThanOrEqualToThreshold" => Some(Direction::In),
            _ => None,
        }
    }

    fn of_policy(policy: &Value) -> Option<Direction> {
        let steps = policy["StepAdjustments"].as_array().into_iter().flatten().map(|step| &step["ScalingAdjustment"]);
        let adjustment = steps.chain([&policy["ScalingAdjustment"]]).find_map(Value::as_i64)?;
        match adjustment {
            1.. => Some(Direction::Out),
            ..0 => Some(Direction::In),
            0 => None,
        }
    }
}

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    for (name, alarm) in &observed.alarms {
        let on = format!("alarm {name:?}");
        dimension(alarm, target, &on, findings);
        actions(alarm, observed.group.as_ref(), &on, findings);
    }
    if let Some(group) = &observed.group {
        both_directions(observed, group, target, findings);
        group_metrics(observed, group, findings);
    }
    gap(observed, target, findings);
}

fn dimension(alarm: &Value, target: &Target<'_>, on: &str, findings: &mut Findings) {
    let (queue, bulk) = (target.names.request_queue.as_str(), target.names.bulk_queue());
    let is_name = |value: &Value| value == queue || *value == bulk;
    let in_metrics = alarm["Metrics"].as_array().into_iter().flatten().map(|query| &query["MetricStat"]["Metric"]);
    for metric in in_metrics.chain([alarm]).filter(|metric| metric["Namespace"] == "AWS/SQS") {
        let dimensions = metric["Dimensions"].as_array();
        let is_right =
            dimensions.is_some_and(|all| all.iter().any(|one| one["Name"] == "QueueName" && is_name(&one["Value"])));
        if is_right {
            continue;
        }
        let word = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let found: Vec<String> = dimensions
            .into_iter()
            .flatten()
            .map(|one| format!("{}={}", word(&one["Name"]), word(&one["Value"])))
            .collect();
        let found = if found.is_empty() { "missing".to_owned() } else { found.join(", ") };
        findings.broken(
            on,
            format!("it reads a metric that does not exist: its dimension is {found}"),
            format!("the dimension of a queue's metrics is QueueName={queue}"),
        );
    }
}

fn action_arns(alarm: &Value) -> impl Iterator<Item = &str> {
    alarm["AlarmActions"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The policies of the group that an alarm carries out.
fn policies_of<'a>(alarm: &'a Value, group: &'a Group) -> impl Iterator<Item = &'a Value> {
    let arns = group.policy_arns.iter().zip(&group.policies);
    arns.filter(|(arn, _)| action_arns(alarm).any(|action| action == **arn)).map(|(_, policy)| policy)
}

fn actions(alarm: &Value, group: Option<&Group>, on: &str, findings: &mut Findings) {
    let mut actions = action_arns(alarm).peekable();
    if actions.peek().is_none() {
        findings.broken(
            on,
            "it has no action, so it has no effect",
            "name a scaling policy of the group as its action",
        );
        return;
    }
    if alarm["ActionsEnabled"] == false {
        findings.broken(on, "its actions are disabled (ActionsEnabled is false)", "enable them");
    }
    let Some(group) = group else { return };
    let is_unknown =
        |action: &str| action.contains(":scalingPolicy:") && !group.policy_arns.iter().any(|arn| arn == action);
    if actions.all(is_unknown) {
        findings.broken(
            on,
            "its action is a scaling policy that does not exist",
            format!("name a policy of group {:?}", group.name),
        );
    }
    let Some(direction) = Direction::of_comparison(alarm) else { return };
    for policy in policies_of(alarm, group) {
        if let Some(wrong) = Direction::of_policy(policy).filter(|found| *found != direction) {
            findings.broken(
                on,
                format!(
                    "it is raised when more workers are {}, and its scaling policy {} {} workers",
                    if direction == Direction::Out { "needed" } else { "there than needed" },
                    policy["PolicyName"],
                    wrong.verb()
                ),
                format!("name the policy of group {:?} that {} workers", group.name, direction.verb()),
            );
        }
    }
}

/// Returns whether an alarm changes the size of the group in a direction.
fn acts(alarm: &Value, group: &Group, direction: Direction) -> bool {
    alarm["ActionsEnabled"] != false
        && policies_of(alarm, group).any(|policy| Direction::of_policy(policy) == Some(direction))
}

fn both_directions(observed: &Observed, group: &Group, target: &Target<'_>, findings: &mut Findings) {
    let on = format!("Auto Scaling group {:?}", target.group);
    let follows_metric = group.policies.iter().any(|policy| policy["PolicyType"] == "TargetTrackingScaling");
    if follows_metric || group.policies.is_empty() {
        return;
    }
    if observed.alarms.is_empty() {
        findings.broken(
            &on,
            "no alarm reads the request queue, so the group never scales",
            "add the two alarms; `imgcls provision` does",
        );
        return;
    }
    for direction in [Direction::Out, Direction::In] {
        if !observed.alarms.iter().any(|(_, alarm)| acts(alarm, group, direction)) {
            let verb = direction.verb();
            findings.broken(
                &on,
                format!("no alarm carries out a scaling policy that {verb} workers"),
                format!("name a policy that {verb} workers as the action of an alarm on the request queue"),
            );
        }
    }
}

/// An alarm on the group itself gets no data unless the group publishes its metrics.
fn group_metrics(observed: &Observed, group: &Group, findings: &mut Findings) {
    let collected: Vec<&Value> = group.properties["MetricsCollection"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|collection| collection["Metrics"].as_array().into_iter().flatten())
        .collect();
    let on = format!("Auto Scaling group {:?}", group.name);
    for (name, alarm) in &observed.alarms {
        let queries = alarm["Metrics"].as_array().into_iter().flatten().map(|query| &query["MetricStat"]["Metric"]);
        let of_group = queries.chain([alarm]).filter(|metric| metric["Namespace"] == "AWS/AutoScaling");
        for metric in of_group.map(|metric| &metric["MetricName"]).filter(|metric| !collected.contains(metric)) {
            findings.broken(
                &on,
                format!("its group metric {metric} is not enabled, and alarm {name:?} reads it"),
                "enable the group metrics (aws autoscaling enable-metrics-collection --granularity 1Minute)",
            );
        }
    }
    if collected.is_empty() {
        findings.risk(
            &on,
            "its group metrics are not enabled: nobody sees its size over time",
            "enable the group metrics",
        );
    }
}

/// Alarms on the depth of the queues alone that are raised together make the group swing.
fn gap(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let of_depth = |direction: Direction| {
        observed.alarms.iter().filter_map(move |(name, alarm)| {
            let in_metrics =
                alarm["Metrics"].as_array().into_iter().flatten().map(|query| &query["MetricStat"]["Metric"]);
            let read: Vec<&Value> =
                in_metrics.chain([alarm]).map(|metric| &metric["MetricName"]).filter(|name| !name.is_null()).collect();
            let is_of_depth =
                !read.is_empty() && read.iter().all(|name| **name == "ApproximateNumberOfMessagesVisible");
            let threshold = alarm["Threshold"].as_f64()?;
            (is_of_depth && Direction::of_comparison(alarm) == Some(direction)).then_some((name, threshold))
        })
    };
    for (low, below) in of_depth(Direction::In) {
        for (high, above) in of_depth(Direction::Out).filter(|(_, above)| *above <= below) {
            findings.broken(
                &format!("alarm {low:?}"),
                format!("its threshold {below} leaves no gap to the threshold {above} of alarm {high:?}: the group adds and removes the same worker"),
                format!("set the threshold that removes workers of {:?} well below the one that adds them", target.group),
            );
        }
    }
}
