//! Which model runs, and how.

use std::path::PathBuf;

use clap::Args;

use crate::model::{self, ModelChoice};

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A folder with a model.toml, or a name under models/ [default: efficientnet-lite0]
    #[arg(long, env = "IMGCLS_MODEL")]
    pub model: Option<String>,
    /// File of the model to use, as model.toml names it (int8, fp16) [default: as `imgcls tune` found,
    /// else by the features of this CPU]
    #[arg(long, env = "IMGCLS_VARIANT")]
    pub variant: Option<String>,
    /// Set of labels to answer with, as model.toml names it [default: the labels of the model]
    #[arg(long, env = "IMGCLS_LABEL_SET")]
    pub label_set: Option<String>,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else searched for near the binary]
    #[arg(long, env = "IMGCLS_ORT_DYLIB")]
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference; two sessions of one thread are faster than one session of two
    #[arg(long, env = "IMGCLS_INTRA_THREADS")]
    pub intra_threads: Option<usize>,
    /// Directory of optimised graphs and of the result of `imgcls tune` [default: $XDG_CACHE_HOME/imgcls, or
    /// ~/.cache/imgcls]
    #[arg(long, env = "IMGCLS_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
}

impl ModelArgs {
    pub fn choice(&self) -> ModelChoice {
        ModelChoice {
            model: self.model.clone(),
            variant: self.variant.clone(),
            label_set: self.label_set.clone(),
            ort_dylib: self.ort_dylib.clone(),
            intra_threads: self.intra_threads,
            cache_dir: self.cache_dir.clone().or_else(model::default_cache_dir),
        }
    }
}
