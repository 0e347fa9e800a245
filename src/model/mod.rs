//! The model: a folder under `models/`, bytes → pixels → tensor → predictions.

use std::path::PathBuf;

/// Which model to run and how, as the flags say it.
#[derive(Debug, Clone, Default)]
pub struct ModelChoice {
    /// A folder with a `model.toml`, or a name under a `models/` folder. None: `efficientnet-lite0`.
    pub model: Option<String>,
    /// A variant of model.toml (`int8`, `fp16`). None: by what this CPU can do.
    pub variant: Option<String>,
    /// The ONNX Runtime library. None: searched for.
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference. None: 1.
    pub intra_threads: Option<usize>,
    /// Where optimised graphs are kept. None: nowhere.
    pub cache_dir: Option<PathBuf>,
}
