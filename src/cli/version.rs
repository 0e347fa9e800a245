//! `imgcls version`.

use std::path::PathBuf;

use clap::Args;

use super::model::ModelsDirArgs;
use crate::model::ModelChoice;
use crate::version_command;

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print the result as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else searched for near the binary]
    #[arg(long, env = "IMGCLS_ORT_DYLIB")]
    pub ort_dylib: Option<PathBuf>,
}

impl VersionArgs {
    pub fn config(&self) -> version_command::Config {
        let choice = ModelChoice {
            models_dir: self.models_dir.folder(),
            ort_dylib: self.ort_dylib.clone(),
            ..ModelChoice::default()
        };
        version_command::Config { choice, json: self.json }
    }
}
