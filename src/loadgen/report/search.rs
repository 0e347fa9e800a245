//! The report of a search for the highest rate that keeps conditions.

use std::fmt::Write as _;

use serde::Serialize;

use super::figures::ThresholdResult;

/// The report. Its JSON form is a stable interface.
#[derive(Debug, Serialize)]
pub(crate) struct SearchReport {
    pub url: String,
    pub conditions: Vec<String>,
    /// The highest rate that kept the conditions twice; `None` if no rate did.
    pub rate_per_second: Option<f64>,
    /// The lowest rate above it that did not; `None` if the search ended before it found one.
    pub fails_at_per_second: Option<f64>,
    /// True if the run was stopped before the search was over.
    pub interrupted: bool,
    /// The trials in their order.
    pub trials: Vec<TrialReport>,
    /// Advice on what limited the search.
    pub hints: Vec<String>,
}

/// A trial at one rate.
#[derive(Debug, Serialize)]
pub(crate) struct TrialReport {
    pub rate_per_second: f64,
    pub seconds: f64,
    pub ok: u64,
    pub failed: u64,
    /// True if the trial was ended because answers were far behind.
    pub cut_off: bool,
    /// Starts that were late because of the machine that sends.
    pub late: u64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub conditions: Vec<ThresholdResult>,
    pub passed: bool,
}

impl SearchReport {
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers; this is a bug") + "\n"
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}, highest rate with {}\n", self.url, self.conditions.join(", "));
        for trial in &self.trials {
            let latency = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
            let _ = writeln!(
                text,
                "  {:>9.2}/s  {:>6} ok  {:>5} failed  p50 {:>10}  p99 {:>10}  {}{}",
                trial.rate_per_second,
                trial.ok,
                trial.failed,
                latency(trial.p50_ms),
                latency(trial.p99_ms),
                if trial.passed { "holds" } else { "MISS" },
                if trial.cut_off { ", cut off" } else { "" }
            );
        }
        let _ = match (self.rate_per_second, self.fails_at_per_second) {
            (Some(rate), Some(above)) => {
                writeln!(text, "\nrate          {rate:.2}/s holds twice, {above:.2}/s does not")
            }
            (Some(rate), None) => {
                writeln!(text, "\nrate          {rate:.2}/s holds twice; no rate that does not was found")
            }
            (None, _) => writeln!(text, "\nrate          none was found"),
        };
        if self.interrupted {
            text.push_str("interrupted\n");
        }
        for hint in &self.hints {
            let _ = writeln!(text, "\nhint: {hint}");
        }
        text
    }
}
