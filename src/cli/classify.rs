//! `imgcls classify`.

use std::path::PathBuf;

use clap::Args;

use super::limits::LimitArgs;
use super::model::ModelArgs;
use crate::classify;

#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// Image files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Predictions per file
    #[arg(long, env = "IMGCLS_TOP_K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top_k: u32,
    /// Print one JSON object per file
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl ClassifyArgs {
    pub fn config(&self) -> classify::Config {
        classify::Config {
            files: self.files.clone(),
            model: self.model.choice(),
            limits: self.limits.limits(1),
            top_k: self.top_k,
            json: self.json,
        }
    }
}
