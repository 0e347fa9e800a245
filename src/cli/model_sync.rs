//! Models that a machine downloads.

use clap::Args;

use super::model::ModelNamesArgs;
use super::usage::usage;
use crate::config::{Backend, Names};
use crate::model::Reference;
use crate::model_sync;

#[derive(Debug, Args)]
pub struct ModelSyncArgs {
    /// Download the packages of --model from the input bucket into --models-dir, and follow the versions that `imgcls
    /// provision --model` makes current there; each --model is then a name
    #[arg(long, env = "IMGCLS_SYNC_MODELS")]
    pub sync_models: bool,
}

impl ModelSyncArgs {
    /// # Errors
    /// A [`super::UsageError`] if there is nothing to download, or no place for it.
    pub(super) fn config(
        &self,
        command: &'static str,
        models: &ModelNamesArgs,
        backend: &Backend,
        names: &Names,
    ) -> anyhow::Result<Option<model_sync::Config>> {
        if !self.sync_models {
            return Ok(None);
        }
        let is_name = |text: &String| Reference::parse(text).is_ok_and(|reference| reference.version.is_none());
        if models.models.is_empty() || !models.models.iter().all(is_name) {
            return Err(usage(command, "with --sync-models give each --model as a name, without a version"));
        }
        let Some(models_dir) = models.models_dir.folder() else {
            return Err(usage(command, "with --sync-models give --models-dir"));
        };
        Ok(Some(model_sync::Config {
            backend: backend.clone(),
            bucket: names.input_bucket.clone(),
            models: models.models.clone(),
            models_dir,
        }))
    }
}
