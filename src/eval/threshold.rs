//! Conditions that the measures must meet: `top1>=0.8`, `ece<5%`.

use std::fmt;
use std::str::FromStr;

use crate::threshold::{self, Operator};

/// One condition, parsed before anything is classified.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// The condition as the user wrote it.
    text: String,
    pub(super) metric: Metric,
    operator: Operator,
    limit: f64,
}

/// A measure of a model, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Top1,
    Top5,
    /// The expected calibration error.
    Ece,
    MacroF1,
}

impl Threshold {
    pub(super) fn holds(&self, measured: Option<f64>) -> bool {
        self.operator.holds(measured, self.limit)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (metric, operator, limit) = threshold::split(text, "top1>=0.8")?;
        let metric = match metric {
            "top1" | "accuracy" => Metric::Top1,
            "top5" => Metric::Top5,
            "ece" => Metric::Ece,
            "macro_f1" => Metric::MacroF1,
            _ => return Err(format!("unknown metric {metric:?}; known metrics are top1, top5, ece and macro_f1")),
        };
        Ok(Threshold { text: text.trim().to_owned(), metric, operator, limit: threshold::share(limit)? })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_takes_a_share() {
        let holds = |text: &str, measured: f64| text.parse::<Threshold>().expect(text).holds(Some(measured));
        assert!(holds("top1>=80%", 0.8) && !holds("accuracy > 0.8", 0.8));
        assert!(holds("ece<0.05", 0.01) && !holds("macro_f1>=0.5", 0.4) && holds("top5==1", 1.0));
        for wrong in ["top1", "p99<1s", "top1>=8", "ece<-1"] {
            assert!(wrong.parse::<Threshold>().is_err(), "{wrong}");
        }
    }
}
