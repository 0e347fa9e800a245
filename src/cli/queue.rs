//! `imgcls queue`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::parse::positive;
use super::shared::{OutputArgs, SharedArgs};
use crate::config::{Backend, Names};
use crate::queue_command;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 done, 1 a part of the request could not be done, 2 usage.")]
pub struct QueueArgs {
    #[command(subcommand)]
    pub command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Print how many messages each queue of the service has, and the age of the oldest if the backend knows it
    Depth {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the dead letters: id, attempts, age, file name, reason
    ///
    /// The only way to read a queue is to receive from it: meanwhile the messages are hidden from others (for 30 s if
    /// this command is killed), and their receive counts rise. A dead-letter queue has no dead letters of its own, so
    /// that this has no consequence.
    #[command(visible_alias = "list")]
    Dead {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Maximum number of dead letters to list
        #[arg(long, env = "IMGCLS_LIMIT", default_value_t = 100, value_parser = positive)]
        limit: usize,
    },
    /// Show one dead letter: its message, the reason, the outcome of its job, its image
    Show {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Id of the job or of the message, as `imgcls queue dead` lists them
        id: String,
        /// Write the image to this file, which must not exist yet
        #[arg(long, env = "IMGCLS_SAVE")]
        save: Option<PathBuf>,
    },
    /// Send dead letters again, with as much time as they had at first
    ///
    /// The failed result of each is removed, never a succeeded one. It may be interrupted and run again at any moment.
    Redrive {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Ids of jobs or of messages
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Send all dead letters that are in the queue now
        #[arg(long, env = "IMGCLS_ALL", conflicts_with = "ids")]
        all: bool,
    },
    /// Delete every message of one queue, after a confirmation
    Purge {
        #[command(flatten)]
        shared: SharedArgs,
        #[command(flatten)]
        output: OutputArgs,
        /// Name of the queue, as `imgcls queue depth` lists them
        queue: String,
        /// Do not ask; required if standard input is no terminal
        #[arg(long)]
        yes: bool,
    },
}

impl QueueArgs {
    pub fn config(&self, backend: Backend, names: Names) -> queue_command::Config {
        let json = self.command.output().json;
        queue_command::Config { names, backend, json, action: self.command.action() }
    }
}

impl QueueCommand {
    pub fn shared(&self) -> &SharedArgs {
        self.common().0
    }

    fn output(&self) -> &OutputArgs {
        self.common().1
    }

    fn common(&self) -> (&SharedArgs, &OutputArgs) {
        match self {
            QueueCommand::Depth { shared, output }
            | QueueCommand::Dead { shared, output, .. }
            | QueueCommand::Show { shared, output, .. }
            | QueueCommand::Redrive { shared, output, .. }
            | QueueCommand::Purge { shared, output, .. } => (shared, output),
        }
    }

    fn action(&self) -> queue_command::Action {
        match self {
            QueueCommand::Depth { .. } => queue_command::Action::Depth,
            QueueCommand::Dead { limit, .. } => queue_command::Action::Dead { limit: *limit },
            QueueCommand::Show { id, save, .. } => queue_command::Action::Show { id: id.clone(), save: save.clone() },
            QueueCommand::Redrive { all: true, .. } => queue_command::Action::Redrive(queue_command::Which::All),
            QueueCommand::Redrive { ids, .. } => queue_command::Action::Redrive(queue_command::Which::Ids(ids.clone())),
            QueueCommand::Purge { queue, yes, .. } => {
                queue_command::Action::Purge { queue: queue.clone(), is_confirmed: *yes }
            }
        }
    }
}
