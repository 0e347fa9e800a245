//! Which model runs, and how.

use std::path::PathBuf;

use clap::Args;

use crate::model::{self, ModelChoice};

/// The model of a command that runs one.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A name or NAME@VERSION that `imgcls model list` shows, or a folder with a model.toml [default: efficientnet-lite0]
    #[arg(long, env = "IMGCLS_MODEL")]
    pub model: Option<String>,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The models of a service, the first of which is that of requests that name none.
#[derive(Debug, Args)]
pub struct ModelNamesArgs {
    /// A name or NAME@VERSION that `imgcls model list` shows, or a folder with a model.toml; may be repeated: then
    /// requests choose one by its name, and the first classifies those that name none [default: efficientnet-lite0]
    #[arg(long = "model", env = "IMGCLS_MODEL", value_name = "MODEL", value_delimiter = ',')]
    pub models: Vec<String>,
    #[command(flatten)]
    pub models_dir: ModelsDirArgs,
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
    /// File of the model to use, as model.toml names it (int8, int7, fp16) [default: as `imgcls tune` found,
    /// else by the features of this CPU]
    #[arg(long, env = "IMGCLS_VARIANT")]
    pub variant: Option<String>,
    #[command(flatten)]
    pub labels: LabelSetArg,
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
        self.run.choice(self.model.as_ref(), &self.models_dir)
    }
}

impl ModelNamesArgs {
    /// The models of a tier that does not run them, with the set of labels that its workers answer with.
    pub fn choices(&self, labels: &LabelSetArg) -> Vec<ModelChoice> {
        let models_dir = self.models_dir.folder();
        self.each(|model| ModelChoice {
            model: model.cloned(),
            models_dir: models_dir.clone(),
            label_set: labels.label_set.clone(),
            ..ModelChoice::default()
        })
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
        self.names.each(|model| self.run.choice(model, &self.names.models_dir))
    }

    /// The first of [`ServiceModelArgs::choices`].
    pub fn choice(&self) -> ModelChoice {
        self.run.choice(self.names.models.first(), &self.names.models_dir)
    }
}

impl RunArgs {
    pub(super) fn choice(&self, model: Option<&String>, models_dir: &ModelsDirArgs) -> ModelChoice {
        ModelChoice {
            model: model.cloned(),
            models_dir: models_dir.folder(),
            variant: self.variant.clone(),
            label_set: self.labels.label_set.clone(),
            ort_dylib: self.ort_dylib.clone(),
            intra_threads: self.intra_threads,
            cache_dir: self.cache_dir.clone().or_else(model::default_cache_dir),
        }
    }
}

/// The names with which a model answers.
#[derive(Debug, Clone, Args)]
pub struct LabelSetArg {
    /// Other names to answer with: a set of labels of the model, or a file with a name for each class, in class order
    /// (lines, or a list in JSON) [default: the labels of the model]
    #[arg(long, value_name = "NAME|FILE", env = "IMGCLS_LABEL_SET")]
    pub label_set: Option<String>,
}

/// The directory of added models.
#[derive(Debug, Clone, Args)]
pub struct ModelsDirArgs {
    /// Directory of the models that `imgcls model add` added; a name is looked up there first [default:
    /// $XDG_DATA_HOME/imgcls/models, or ~/.local/share/imgcls/models]
    #[arg(long, env = "IMGCLS_MODELS_DIR")]
    pub models_dir: Option<PathBuf>,
}

impl ModelsDirArgs {
    pub fn folder(&self) -> Option<PathBuf> {
        self.models_dir.clone().or_else(model::default_models_dir)
    }
}
