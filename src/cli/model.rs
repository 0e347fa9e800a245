//! Which model runs, and how.

use std::path::PathBuf;

use clap::Args;

use crate::model::{self, ModelChoice};

/// The model of a command that runs one.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A folder with a model.toml, or a name under models/ [default: efficientnet-lite0]
    #[arg(long, env = "IMGCLS_MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The models of a service, the first of which is that of requests that name none.
#[derive(Debug, Args)]
pub struct ModelNamesArgs {
    /// A folder with a model.toml, or a name under models/; may be repeated: then requests choose one by its name, and
    /// the first classifies those that name none [default: efficientnet-lite0]
    #[arg(long = "model", env = "IMGCLS_MODEL", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
}

/// The models of a service that runs them.
#[derive(Debug, Args)]
pub struct ServiceModelArgs {
    #[command(flatten)]
    pub names: ModelNamesArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How a model runs.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// File of the model to use, as model.toml names it (int8, fp16) [default: as `imgcls tune` found,
    /// else by the features of this CPU]
    #[arg(long, env = "IMGCLS_VARIANT")]
    pub variant: Option<String>,
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
        self.run.choice(self.model.as_ref())
    }
}

impl ModelNamesArgs {
    /// The models of a tier that does not run them.
    pub fn choices(&self) -> Vec<ModelChoice> {
        self.each(|model| ModelChoice { model: model.cloned(), ..ModelChoice::default() })
    }

    fn each(&self, choice: impl Fn(Option<&String>) -> ModelChoice) -> Vec<ModelChoice> {
        match &self.models[..] {
            [] => vec![choice(None)],
            models => models.iter().map(|model| choice(Some(model))).collect(),
        }
    }
}

impl ServiceModelArgs {
    /// The models of the service, at least one. The first classifies images of requests that name none.
    pub fn choices(&self) -> Vec<ModelChoice> {
        self.names.each(|model| self.run.choice(model))
    }

    /// The first of [`ServiceModelArgs::choices`].
    pub fn choice(&self) -> ModelChoice {
        self.run.choice(self.names.models.first())
    }
}

impl RunArgs {
    fn choice(&self, model: Option<&String>) -> ModelChoice {
        ModelChoice {
            model: model.cloned(),
            variant: self.variant.clone(),
            ort_dylib: self.ort_dylib.clone(),
            intra_threads: self.intra_threads,
            cache_dir: self.cache_dir.clone().or_else(model::default_cache_dir),
        }
    }
}
