//! `imgcls batch`.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::parse::positive;
use super::shared::{OutputArgs, SharedArgs};
use crate::batch_command;
use crate::config::{Backend, Names};

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 done, 1 a part of the request could not be done, 2 usage.")]
pub struct BatchCommandArgs {
    #[command(subcommand)]
    pub command: BatchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BatchCommand {
    /// List the newest batches of the service, and how far they are
    List {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Maximum number of batches to list
        #[arg(long, env = "IMGCLS_LIMIT", default_value_t = 100, value_parser = positive)]
        limit: usize,
    },
    /// Show how many images of a batch succeeded, failed or wait
    Status {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the batch
        id: Uuid,
    },
    /// Print a row of CSV for each image of a batch, or with --json an object a line; those without a result are `queued`
    Results {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the batch
        id: Uuid,
    },
    /// Cancel the images of a batch that have no result
    Cancel {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the batch
        id: Uuid,
    },
    /// Send the images of a batch again that failed or expired
    ///
    /// The failed result of each is removed, never a succeeded one. It may be interrupted and run again at any moment.
    Retry {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the batch
        id: Uuid,
    },
}

impl BatchCommandArgs {
    pub fn config(&self, backend: Backend, names: Names) -> batch_command::Config {
        batch_command::Config { backend, names, json: self.command.is_json(), action: self.command.action() }
    }
}

impl BatchCommand {
    pub fn shared(&self) -> &SharedArgs {
        match self {
            BatchCommand::List { shared, .. }
            | BatchCommand::Status { shared, .. }
            | BatchCommand::Results { shared, .. }
            | BatchCommand::Cancel { shared, .. }
            | BatchCommand::Retry { shared, .. } => shared,
        }
    }

    fn is_json(&self) -> bool {
        let (BatchCommand::List { output, .. }
        | BatchCommand::Status { output, .. }
        | BatchCommand::Results { output, .. }
        | BatchCommand::Cancel { output, .. }
        | BatchCommand::Retry { output, .. }) = self;
        output.json
    }

    fn action(&self) -> batch_command::Action {
        match *self {
            BatchCommand::List { limit, .. } => batch_command::Action::List { limit },
            BatchCommand::Status { id, .. } => batch_command::Action::Status(id),
            BatchCommand::Results { id, .. } => batch_command::Action::Results(id),
            BatchCommand::Cancel { id, .. } => batch_command::Action::Cancel(id),
            BatchCommand::Retry { id, .. } => batch_command::Action::Retry(id),
        }
    }
}
