//! `imgcls eval DIR|CSV`: measures how often a model is right on labelled images, and compares two models.
//!
//! - `evaluation`: one model on the images; `answer`: what is kept of one image
//! - `calibration`, `mcnemar`: two statistics; `threshold`: conditions that the measures must meet
//! - `report`: the measures as text and JSON; `confusion_file`, `heat_map`: the confusion matrix as a file

mod answer;
mod calibration;
mod confusion_file;
mod evaluation;
mod heat_map;
mod mcnemar;
mod report;
mod threshold;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

pub use self::confusion_file::ConfusionFile;
pub use self::threshold::Threshold;

use self::evaluation::Evaluation;
use self::report::Report;
use crate::dataset;
use crate::model::{Limits, ModelChoice};
use crate::telemetry::output;

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// A folder with one folder of images per class, or a CSV table.
    pub data: PathBuf,
    /// One model, or two to compare.
    pub models: Vec<ModelChoice>,
    /// Limits on the cost of one image.
    pub limits: Limits,
    /// Conditions that every model must meet.
    pub thresholds: Vec<Threshold>,
    /// File for the confusion matrix.
    pub confusion: Option<ConfusionFile>,
    /// Prints JSON instead of text.
    pub json: bool,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All thresholds hold.
    Passed,
    /// A threshold was missed.
    ThresholdMissed,
}

impl Outcome {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Passed => 0,
            Outcome::ThresholdMissed => 99,
        }
    }
}

/// The most models that are compared.
pub const MAX_MODELS: usize = 2;

/// Classifies the images with each model, and prints the report on standard output.
///
/// # Errors
/// If the images or a model cannot be read, a class is not one of the model, no image can be classified, or a file
/// cannot be written.
pub fn run(config: &Config) -> anyhow::Result<Outcome> {
    ensure!(config.models.len() <= MAX_MODELS, "eval compares two models at most; run it again for the others");
    let data = dataset::read(&config.data)?;
    let evaluations = config
        .models
        .iter()
        .map(|choice| Evaluation::of(&data, choice, &config.limits))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(file) = &config.confusion {
        for (index, evaluation) in evaluations.iter().enumerate() {
            file.numbered(index, evaluations.len()).write(evaluation)?;
        }
    }
    let report = Report::new(&config.data, &data, &evaluations, &config.thresholds);
    let text = if config.json { report.to_json() } else { report.to_text() };
    output::print(&text).context("cannot print the report")?;
    Ok(if report.threshold_missed() { Outcome::ThresholdMissed } else { Outcome::Passed })
}
