//! Which model to run, and how.

use std::path::PathBuf;

/// Which model to run and how, as the flags say.
#[derive(Debug, Clone, Default)]
pub struct ModelChoice {
    /// A folder with a `model.toml`, or a name under a `models/` folder. `None` means `efficientnet-lite0`.
    pub model: Option<String>,
    /// A variant of model.toml (`int8`, `fp16`). `None` picks one by the instructions of this CPU.
    pub variant: Option<String>,
    /// The ONNX Runtime library. `None` searches for it.
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference. `None` means 1.
    pub intra_threads: Option<usize>,
    /// Directory for optimised graphs and the results of `imgcls tune`. `None` disables caching.
    pub cache_dir: Option<PathBuf>,
}
