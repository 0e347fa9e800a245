//! The choice of the model and of how to run it, from the settings.

use std::path::PathBuf;

/// The model to run and its settings, from the flags.
#[derive(Debug, Clone, Default)]
pub struct ModelChoice {
    /// A folder with a `model.toml`, a name or `name@version` in the models directory, or a name under a `models/`
    /// folder. `None` means `efficientnet-lite0`.
    pub model: Option<String>,
    /// The directory of added models. `None` means that only the models beside the executable have names.
    pub models_dir: Option<PathBuf>,
    /// A variant of model.toml (`int8`, `int7`, `fp16`). `None` picks one by the instructions of this CPU.
    pub variant: Option<String>,
    /// A further set of labels, by its name in model.toml or the path of a file. `None` means the labels of the model.
    pub label_set: Option<String>,
    /// The ONNX Runtime library. `None` searches for it.
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference. `None` means 1.
    pub intra_threads: Option<usize>,
    /// Directory for optimised graphs and the results of `imgcls tune`. `None` disables caching.
    pub cache_dir: Option<PathBuf>,
}

/// The cache directory of this user. Returns `None` when the environment names no home directory: then nothing is
/// cached.
pub fn default_cache_dir() -> Option<PathBuf> {
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("imgcls"))
}

/// The models directory of this user. Returns `None` when the environment names no home directory.
pub fn default_models_dir() -> Option<PathBuf> {
    let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("imgcls/models"))
}

/// The path in a variable. The XDG specification says that relative ones are ignored.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
