//! The report: one set of figures, shown as JSON for programs or as text for people.

mod figures;
mod text;

use std::path::Path;

use self::figures::Figures;
use super::evaluation::Evaluation;
use super::threshold::Threshold;
use crate::dataset::Dataset;

/// The measures of one or two models.
pub(super) struct Report(Figures);

impl Report {
    pub(super) fn new(path: &Path, data: &Dataset, evaluations: &[Evaluation], thresholds: &[Threshold]) -> Report {
        Report(Figures::new(path, data, evaluations, thresholds))
    }

    pub(super) fn threshold_missed(&self) -> bool {
        self.0.thresholds.iter().any(|threshold| !threshold.passed)
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.0).expect("strings and finite numbers; this is a bug") + "\n"
    }

    pub(super) fn to_text(&self) -> String {
        text::render(&self.0)
    }
}
