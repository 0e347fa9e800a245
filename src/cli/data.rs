//! `imgcls data`.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, Subcommand};

use super::shared::{OutputArgs, SharedArgs};
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
    /// Print what is stored, how old it is, what limits it and what may be deleted
    #[command(after_help = "Examples:\n  imgcls data status\n  imgcls data status --json --data-dir /var/lib/imgcls")]
    Status {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete images and results of finished jobs now, oldest first
    ///
    /// Waiting jobs keep their images, and so do dead letters. A result is deleted only after its image.
    #[command(
        after_help = "Examples:\n  imgcls data prune --older-than 1d --dry-run\n  imgcls data prune --images --older-than 12h"
    )]
    Prune {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Delete only what was stored longer ago [default: what --keep-images and --keep-results of the service say]
        #[arg(long, env = "IMGCLS_OLDER_THAN", value_parser = config::duration_or_days)]
        older_than: Option<Duration>,
        /// Delete only images [default: images and results]
        #[arg(long, env = "IMGCLS_IMAGES")]
        images: bool,
        /// Delete only results, of jobs whose images are deleted
        #[arg(long, env = "IMGCLS_RESULTS")]
        results: bool,
        /// Print what would be deleted, and delete nothing
        #[arg(long, env = "IMGCLS_DRY_RUN")]
        dry_run: bool,
    },
}

impl DataArgs {
    /// `selected_by` names the setting that selected the backend.
    ///
    /// # Errors
    /// If the backend has no data directory.
    pub fn config(&self, backend: &Backend, selected_by: &str) -> anyhow::Result<data::Config> {
        let Some(data_dir) = backend.data_dir() else {
            ensure!(
                backend.aws().is_none(),
                "on AWS the lifecycle rules of the buckets delete images and results; `imgcls provision --keep-images 7d \
                 --keep-results 30d` sets them (AWS was selected by {selected_by}; give --backend local for this machine)"
            );
            bail!(
                "the backend {:?} has no data directory (selected by {selected_by}; give --backend local for this machine)",
                backend.name()
            );
        };
        Ok(data::Config {
            names: self.command.shared().names().with_local_defaults(),
            data_dir: data_dir.to_owned(),
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
