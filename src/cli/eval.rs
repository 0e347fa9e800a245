//! `imgcls eval`.

use std::path::PathBuf;

use clap::Args;

use super::limits::LimitArgs;
use super::model::{ModelsDirArgs, RunArgs};
use super::usage::usage;
use crate::eval::{self, ConfusionFile};

#[derive(Debug, Args)]
#[command(
    after_help = "A folder has one folder of images for each class, whose name is a label or an id of the model; a \
    table is a CSV file with the columns `path` and `label`, whose paths begin at its own folder.\n\
    A threshold is METRIC OPERATOR VALUE, as 0.8 or 80%; metrics: top1 top5 macro_f1, and ece, the expected calibration \
    error. Operators: < <= > >= ==. With two models, every threshold must hold for both.\n\
    Exit codes: 0 done, whatever the measures are; 99 a threshold was missed; 1 failed; 2 usage."
)]
pub struct EvalArgs {
    /// A folder of labelled images, or a CSV table
    pub data: PathBuf,
    /// A name or NAME@VERSION that `imgcls model list` shows, or a folder with a model.toml; give it twice to compare two
    /// models [default: efficientnet-lite0]
    #[arg(long = "model", env = "IMGCLS_MODEL", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Exit with 99 unless it holds: 'top1>=0.8', 'top5>=95%', 'ece<0.1', 'macro_f1>=0.8'; may be repeated
    #[arg(long = "threshold", env = "IMGCLS_THRESHOLD", value_delimiter = ',', value_parser = |text: &str| text.parse::<eval::Threshold>())]
    pub thresholds: Vec<eval::Threshold>,
    /// Write the confusion matrix to this file, .csv, .svg or .png; with two models to one file for each
    #[arg(long, env = "IMGCLS_CONFUSION", value_parser = |text: &str| text.parse::<ConfusionFile>())]
    pub confusion: Option<ConfusionFile>,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl EvalArgs {
    /// # Errors
    /// A [`super::UsageError`] if there are too many models.
    pub fn config(&self) -> anyhow::Result<eval::Config> {
        if self.models.len() > eval::MAX_MODELS {
            return Err(usage("eval", "give --model once or twice: two models are compared"));
        }
        let models = match &self.models[..] {
            [] => vec![self.run.choice(None, &self.models_dir)],
            models => models.iter().map(|model| self.run.choice(Some(model), &self.models_dir)).collect(),
        };
        Ok(eval::Config {
            data: self.data.clone(),
            models,
            limits: self.limits.limits(1),
            thresholds: self.thresholds.clone(),
            confusion: self.confusion.clone(),
            json: self.json,
        })
    }
}
