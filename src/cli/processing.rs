//! How workers process images: the settings of `worker` that a command which starts workers passes on.

use clap::Args;

use super::cache::CacheArgs;
use super::limits::{BatchArgs, LeaseArgs, LimitArgs};
use super::model::ServiceModelArgs;
use super::model_run::ModelRunArgs;

#[derive(Debug, Args)]
pub struct ProcessingArgs {
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub model: ServiceModelArgs,
    #[command(flatten)]
    pub model_run: ModelRunArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
}
