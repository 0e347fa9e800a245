//! The flags of `data`.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{OutputArgs, SharedArgs};
use crate::config::{self, Backend};
use crate::data;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    imgcls data status --data-dir /var/lib/imgcls\n  \
    imgcls data prune --images --older-than 1d --dry-run\n\
    Both work while the service runs. On AWS the lifecycle rules of the buckets delete images and results:\n\
    `imgcls provision --keep-images 7d --keep-results 30d`.")]
pub struct DataArgs {
    #[command(subcommand)]
    pub command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Say what is stored, how old it is, what limits it and what may be deleted
    #[command(after_help = "Examples:\n  imgcls data status\n  imgcls data status --json --data-dir /var/lib/imgcls")]
    Status {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete images and results of finished jobs now, oldest first
    ///
    /// What waits is never deleted, nor what a dead letter needs. A result goes only once its image is gone.
    #[command(
        after_help = "Examples:\n  imgcls data prune --older-than 1d --dry-run\n  imgcls data prune --images --older-than 12h"
    )]
    Prune {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Only what was stored longer ago [default: what --keep-images and --keep-results of the service say]
        #[arg(long, env = "IMGCLS_OLDER_THAN", value_parser = config::duration_or_days)]
        older_than: Option<Duration>,
        /// Only images [default: images and results]
        #[arg(long, env = "IMGCLS_IMAGES")]
        images: bool,
        /// Only results, of jobs whose images are gone
        #[arg(long, env = "IMGCLS_RESULTS")]
        results: bool,
        /// Say what would be deleted, and delete nothing
        #[arg(long, env = "IMGCLS_DRY_RUN")]
        dry_run: bool,
    },
}

impl DataArgs {
    /// # Errors
    /// On AWS, and where there is no data directory: a typing error would make one.
    pub async fn config(&self) -> anyhow::Result<data::Config> {
        let shared = self.command.shared();
        let (backend, said_by) = shared.backend();
        let Backend::Local { data_dir } = &backend else {
            bail!(
                "on AWS the lifecycle rules of the buckets delete images and results; `imgcls provision --keep-images 7d \
                 --keep-results 30d` sets them (AWS was chosen by {said_by}; --backend local looks at this machine)"
            );
        };
        if !data_dir.is_dir() {
            bail!("there is no data directory {}: nothing ran there; see --data-dir", data_dir.display());
        }
        Ok(data::Config {
            names: shared.names(&backend).await?,
            data_dir: data_dir.clone(),
            json: self.command.output().json,
            action: self.command.action(),
        })
    }
}

impl DataCommand {
    pub fn shared(&self) -> &SharedArgs {
        match self {
            DataCommand::Status { shared, .. } | DataCommand::Prune { shared, .. } => shared,
        }
    }

    fn output(&self) -> &OutputArgs {
        match self {
            DataCommand::Status { output, .. } | DataCommand::Prune { output, .. } => output,
        }
    }

    fn action(&self) -> data::Action {
        match self {
            DataCommand::Status { .. } => data::Action::Status,
            DataCommand::Prune { older_than, images, results, dry_run, .. } => data::Action::Prune(data::Prune {
                older_than: *older_than,
                images: *images || !results,
                results: *results || !images,
                is_dry_run: *dry_run,
            }),
        }
    }
}
