//! `imgcls model fit`.

use std::path::PathBuf;

use clap::Args;

use super::limits::LimitArgs;
use super::model::{ModelsDirArgs, RunArgs};
use super::usage::usage;
use crate::fit;

#[derive(Debug, Args)]
#[command(
    after_help = "The folder has one folder of images for each class, whose name becomes the label; a table is a CSV \
    file with the columns `path` and `label`. A fifth of the images is held out to measure the accuracy; the model that is \
    saved is trained on all of them. The same images, base and seed give the same model on the same machine.\n\
    The base needs an output `features`, as the shipped models have it, or a final Gemm or MatMul."
)]
pub struct FitArgs {
    /// A folder of labelled images, or a CSV table
    pub data: PathBuf,
    /// The network whose features are used: a name or NAME@VERSION that `imgcls model list` shows, or a folder with a
    /// model.toml [default: efficientnet-lite0]
    #[arg(long, env = "IMGCLS_BASE")]
    pub base: Option<String>,
    /// Name of the new model; a model of this name gets another version, which becomes the current one
    #[arg(long, env = "IMGCLS_NAME")]
    pub name: String,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    /// Number that chooses which images are held out
    #[arg(long, env = "IMGCLS_SEED", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: u64,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Print the report as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl FitArgs {
    /// # Errors
    /// A [`super::UsageError`] if there is no directory for models.
    pub fn config(&self) -> anyhow::Result<fit::Config> {
        let Some(models_dir) = self.models_dir.folder() else {
            return Err(usage("model", "give --models-dir: the environment names no home directory"));
        };
        Ok(fit::Config {
            data: self.data.clone(),
            base: self.run.choice(self.base.as_ref(), &self.models_dir),
            name: self.name.clone(),
            models_dir,
            limits: self.limits.limits(1),
            seed: self.seed,
            json: self.json,
        })
    }
}
