//! Conditions that a run must meet: `p99<500ms`, `accuracy>=0.8`, `failed==0`, `rate>=100`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::config;
use crate::threshold::{self, Operator};

/// One condition, parsed before anything is sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// The condition as the user wrote it.
    text: String,
    pub(crate) metric: Metric,
    operator: Operator,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Metric {
    /// A latency in milliseconds.
    Latency(LatencyMetric),
    /// The share of judged answers whose first prediction is right, 0 to 1.
    Accuracy,
    Top5,
    /// The number of failed requests.
    Failed,
    Ok,
    /// Images per second.
    Rate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LatencyMetric {
    Min,
    Mean,
    Max,
    /// A quantile, 0 to 1.
    Quantile(f64),
}

impl Metric {
    /// Returns true if the metric can be computed only with `--expect`.
    pub(crate) fn needs_expectations(self) -> bool {
        matches!(self, Metric::Accuracy | Metric::Top5)
    }
}

impl Threshold {
    /// The latency that the condition is about; `None` if it is about something else.
    pub(crate) fn latency(&self) -> Option<LatencyMetric> {
        match self.metric {
            Metric::Latency(latency) => Some(latency),
            _ => None,
        }
    }

    /// The limit of a condition that a latency stays below; `None` if it is about something else.
    pub(crate) fn latency_limit(&self) -> Option<Duration> {
        let is_upper = matches!(self.operator, Operator::Less | Operator::LessOrEqual);
        self.latency().filter(|_| is_upper).map(|_| Duration::from_secs_f64(self.limit / 1e3))
    }

    /// Returns true if the measured value meets the condition. A missing value does not.
    pub fn holds(&self, measured: Option<f64>) -> bool {
        self.operator.holds(measured, self.limit)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, operator, limit) = threshold::split(text, "p99<500ms")?;
        let metric = parse_metric(metric)?;
        let limit = parse_limit(metric, limit)?;
        Ok(Threshold { text: text.trim().to_owned(), metric, operator, limit })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_metric(name: &str) -> Result<Metric, String> {
    let percentile = || name.strip_prefix('p')?.parse::<f64>().ok().filter(|it| (0.0..=100.0).contains(it));
    Ok(match name {
        "min" => Metric::Latency(LatencyMetric::Min),
        "mean" => Metric::Latency(LatencyMetric::Mean),
        "max" => Metric::Latency(LatencyMetric::Max),
        "accuracy" | "top1" => Metric::Accuracy,
        "top5" => Metric::Top5,
        "failed" => Metric::Failed,
        "ok" => Metric::Ok,
        "rate" => Metric::Rate,
        _ => match percentile() {
            Some(percentile) => Metric::Latency(LatencyMetric::Quantile(percentile / 100.0)),
            None => {
                return Err(format!(
                    "unknown metric {name:?}; known metrics are p50, p90, p99, p99.9 (any percentile), min, mean, max, \
                     accuracy, top5, failed, ok and rate"
                ));
            }
        },
    })
}

fn parse_limit(metric: Metric, text: &str) -> Result<f64, String> {
    match metric {
        // A bare number is refused: it would mean seconds in every other flag, but readers expect milliseconds.
        Metric::Latency(_) if threshold::number(text).is_some() => {
            Err(format!("{text:?} lacks its unit: {text}ms or {text}s"))
        }
        Metric::Latency(_) => config::duration(text).map(|duration| duration.as_secs_f64() * 1e3),
        Metric::Accuracy | Metric::Top5 => threshold::share(text),
        Metric::Failed | Metric::Ok | Metric::Rate => {
            threshold::number(text).ok_or_else(|| format!("{text:?} is not a number of at least 0"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str, measured: f64) -> bool {
        text.parse::<Threshold>().expect(text).holds(Some(measured))
    }

    #[test]
    fn every_operator_and_unit_is_supported() {
        assert!(holds("p99<500ms", 499.9) && !holds("p99<500ms", 500.0));
        assert!(holds("p99.9 <= 1.5s", 1500.0) && !holds("p99.9<=1.5s", 1500.1));
        assert!(holds("accuracy>=0.8", 0.8) && !holds("top1>=80%", 0.79));
        assert!(holds("failed==0", 0.0) && !holds("failed==0", 1.0));
        assert!(holds("rate>100", 100.5) && !holds("rate>100", 100.0));
    }

    #[test]
    fn missing_value_does_not_pass() {
        let threshold: Threshold = "p50<1s".parse().expect("valid");
        assert!(!threshold.holds(None) && !threshold.holds(Some(f64::NAN)));
        assert_eq!(threshold.to_string(), "p50<1s");
    }

    #[test]
    fn invalid_thresholds_are_refused() {
        for bad in
            ["", "p99", "p99<", "p99<500", "p101<1s", "p<1s", "speed>1", "accuracy>=8", "failed==-1", "rate>NaN", "=1"]
        {
            assert!(bad.parse::<Threshold>().is_err(), "{bad}");
        }
    }
}
