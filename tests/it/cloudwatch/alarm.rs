//! Alarms: their metrics, and the state that follows from the datapoints.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::math;
use super::metrics::{Metric, Metrics};

/// Number of additional periods that CloudWatch reads if some evaluation periods have no datapoint.
const MORE_PERIODS: u64 = 2;

/// An alarm in the form of `DescribeAlarms`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Alarm {
    #[serde(rename = "AlarmName")]
    pub name: String,
    pub actions_enabled: bool,
    #[serde(rename = "AlarmActions")]
    pub actions: Vec<String>,
    pub evaluation_periods: u64,
    pub threshold: f64,
    pub comparison_operator: Comparison,
    #[serde(default)]
    pub treat_missing_data: MissingData,
    #[serde(flatten)]
    pub(super) single: Option<Single>,
    #[serde(default)]
    pub(super) metrics: Vec<Query>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Single {
    #[serde(flatten)]
    metric: Metric,
    statistic: String,
    period: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Query {
    id: String,
    metric_stat: Option<MetricStat>,
    expression: Option<String>,
    #[serde(default)]
    return_data: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MetricStat {
    metric: Metric,
    period: u64,
    stat: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub enum Comparison {
    #[serde(rename = "GreaterThanThreshold")]
    Greater,
    #[serde(rename = "GreaterThanOrEqualToThreshold")]
    GreaterOrEqual,
    #[serde(rename = "LessThanThreshold")]
    Less,
    #[serde(rename = "LessThanOrEqualToThreshold")]
    LessOrEqual,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MissingData {
    Breaching,
    NotBreaching,
    Ignore,
    #[default]
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ok,
    Alarm,
    InsufficientData,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Ok => "OK",
            State::Alarm => "ALARM",
            State::InsufficientData => "INSUFFICIENT_DATA",
        })
    }
}

impl Alarm {
    pub fn read(described: &Value) -> Alarm {
        serde_json::from_value(described.clone()).unwrap_or_else(|error| panic!("{error}: {described}"))
    }

    /// An alarm on a single metric, as AWS creates it for a target tracking policy.
    pub fn of_metric(name: &str, metric: &Metric, statistic: &str, period: u64) -> Alarm {
        let single = Single { metric: metric.clone(), statistic: statistic.to_owned(), period };
        Alarm {
            name: name.to_owned(),
            actions_enabled: true,
            actions: Vec::new(),
            evaluation_periods: 1,
            threshold: 0.0,
            comparison_operator: Comparison::Greater,
            treat_missing_data: MissingData::Missing,
            single: Some(single),
            metrics: Vec::new(),
        }
    }

    /// The period in seconds.
    pub fn period(&self) -> u64 {
        let of_metrics = self.metrics.iter().filter_map(|query| Some(query.metric_stat.as_ref()?.period));
        self.single.iter().map(|single| single.period).chain(of_metrics).max().unwrap()
    }

    /// The state at `now` after the state `before`, and the newest datapoint.
    pub fn evaluate(&self, metrics: &Metrics, before: State, now: u64) -> (State, Option<f64>) {
        let (period, periods) = (self.period(), self.evaluation_periods + MORE_PERIODS);
        let ended = now / period;
        let starts = (1..=periods.min(ended)).map(|back| (ended - back) * period);
        let datapoints: Vec<Option<f64>> = starts.map(|start| self.datapoint(metrics, start)).collect();
        (self.state(&datapoints, before), datapoints.into_iter().flatten().next())
    }

    /// The newest datapoint, if it puts the alarm into the alarm state.
    pub fn breaching_value(&self, metrics: &Metrics, now: u64) -> Option<f64> {
        let (state, value) = self.evaluate(metrics, State::Ok, now);
        value.filter(|_| state == State::Alarm)
    }

    fn datapoint(&self, metrics: &Metrics, start: u64) -> Option<f64> {
        if let Some(Single { metric, statistic, period }) = &self.single {
            return metrics.statistic(metric, statistic, *period, start);
        }
        let returned = self.metrics.iter().find(|query| query.return_data).unwrap();
        self.value(metrics, &returned.id, start)
    }

    fn value(&self, metrics: &Metrics, id: &str, start: u64) -> Option<f64> {
        let query =
            self.metrics.iter().find(|query| query.id == id).unwrap_or_else(|| panic!("{id:?} is not a metric"));
        match (&query.metric_stat, &query.expression) {
            (Some(stat), _) => metrics.statistic(&stat.metric, &stat.stat, stat.period, start),
            (None, Some(expression)) => math::value(expression, &|id| self.value(metrics, id, start)),
            (None, None) => panic!("metric {id:?} has neither statistic nor expression"),
        }
    }

    /// The state that follows from the newest existing datapoints. The treatment of missing ones only matters if there
    /// are fewer than the evaluation periods.
    fn state(&self, newest_first: &[Option<f64>], before: State) -> State {
        let there: Vec<f64> = newest_first.iter().flatten().copied().take(self.evaluation_periods as usize).collect();
        let is_enough = there.len() as u64 == self.evaluation_periods;
        let all_breach = there.iter().all(|value| self.breaches(*value));
        match self.treat_missing_data {
            _ if !all_breach => State::Ok,
            _ if is_enough => State::Alarm,
            MissingData::NotBreaching => State::Ok,
            MissingData::Ignore => before,
            MissingData::Missing if there.is_empty() => State::InsufficientData,
            MissingData::Breaching | MissingData::Missing => State::Alarm,
        }
    }

    fn breaches(&self, value: f64) -> bool {
        match self.comparison_operator {
            Comparison::Greater => value > self.threshold,
            Comparison::GreaterOrEqual => value >= self.threshold,
            Comparison::Less => value < self.threshold,
            Comparison::LessOrEqual => value <= self.threshold,
        }
    }
}

/// The table in CloudWatch's manual for three of three datapoints and five periods. X breaches, - is missing.
#[test]
fn missing_datapoints_are_treated_as_documented() {
    use State::{Alarm as InAlarm, InsufficientData, Ok};
    let before = Ok;
    for (oldest_first, of_missing, of_ignored, of_breaching, of_not_breaching) in [
        ("0-X-X", Ok, Ok, Ok, Ok),
        ("----0", Ok, Ok, Ok, Ok),
        ("-----", InsufficientData, before, InAlarm, Ok),
        ("0XX-X", InAlarm, InAlarm, InAlarm, InAlarm),
        ("--X--", InAlarm, before, InAlarm, Ok),
    ] {
        let datapoints: Vec<Option<f64>> = oldest_first
            .chars()
            .rev()
            .map(|c| match c {
                'X' => Some(1.0),
                '0' => Some(0.0),
                _ => None,
            })
            .collect();
        for (treat_missing_data, expected) in [
            (MissingData::Missing, of_missing),
            (MissingData::Ignore, of_ignored),
            (MissingData::Breaching, of_breaching),
            (MissingData::NotBreaching, of_not_breaching),
        ] {
            let alarm = Alarm {
                evaluation_periods: 3,
                treat_missing_data,
                ..Alarm::of_metric("", &Metric::new("", "", "", ""), "Sum", 60)
            };
            assert_eq!(alarm.state(&datapoints, before), expected, "{oldest_first} {treat_missing_data:?}");
        }
    }
}
