//! The choice of a model, completed by what this machine knows.

use std::path::PathBuf;

use super::{ModelChoice, Tuning};

/// A choice of the model, with the result of `imgcls tune` where the choice leaves something open.
#[derive(Debug, Clone)]
pub struct TunedChoice {
    pub choice: ModelChoice,
    pub tuning: Option<Tuning>,
}

impl TunedChoice {
    /// Reads the result of `imgcls tune` from the cache directory of `choice`, if there is one.
    pub fn read(mut choice: ModelChoice) -> TunedChoice {
        let Some((tuning, path)) = Tuning::read(&choice) else { return TunedChoice { choice, tuning: None } };
        tracing::info!(path = %path.display(), ?tuning, "using the result of `imgcls tune` for what no setting says");
        choice.variant.get_or_insert_with(|| tuning.variant.clone());
        choice.intra_threads.get_or_insert(tuning.intra_threads);
        TunedChoice { choice, tuning: Some(tuning) }
    }
}

/// The cache directory of this user. Returns `None` when the environment names no home directory: then nothing is
/// cached.
pub fn default_cache_dir() -> Option<PathBuf> {
    let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(caches.join("imgcls"))
}
