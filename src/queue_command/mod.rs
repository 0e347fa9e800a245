//! `imgcls queue …`: reads the depth of queues, lists and shows dead letters, submits them again, and purges queues.
//!
//! No command here creates a queue or a bucket.

mod dead_letters;
mod depth;
mod purge;
mod redrive;
mod show;
mod text;

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, ensure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::{Backend, Names};
use crate::telemetry::output;
use crate::transport::{self, TransportError};

/// The largest image that is read. It is far above the limit of any web tier.
const MAX_IMAGE_BYTES: u64 = 1 << 30;
/// The number of dead letters that are read at once.
const PAGE: usize = 10;

/// Settings of one `imgcls queue` command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend of the queues.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// Print JSON instead of text.
    pub json: bool,
    /// The command.
    pub action: Action,
}

/// The commands under `imgcls queue`.
#[derive(Debug, Clone)]
pub enum Action {
    /// Print how many messages each queue has.
    Depth,
    /// List dead letters.
    Dead {
        /// How many are listed.
        limit: usize,
    },
    /// Shows the dead letter with this id, which is that of a job or of a message.
    Show {
        /// The id of a job or of a message.
        id: String,
        /// Write the image to this file.
        save: Option<PathBuf>,
    },
    /// Send dead letters to the request queue again.
    Redrive(Which),
    /// Deletes all messages of a queue. Asks for confirmation unless `is_confirmed`.
    Purge {
        /// The queue that is emptied.
        queue: String,
        /// Do not ask for confirmation.
        is_confirmed: bool,
    },
}

/// Selects dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Every dead letter.
    All,
    /// Ids of jobs or of messages.
    Ids(Vec<String>),
}

/// Runs the command. Returns false if a part of it was not done; the output says which.
///
/// # Errors
/// The queue or the store cannot be used, or the named dead letter does not exist. A data directory is not made, since its
/// name may be mistyped.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<bool> {
    if let Some(folder) = config.backend.data_dir() {
        ensure!(folder.is_dir(), "there is no data directory {}: nothing ran there; see --data-dir", folder.display());
    }
    let transport = transport::open(&config.backend, &config.names).await?;
    let transport = &*transport;
    match config.action {
        Action::Depth => {
            let report = depth::read(transport).await?;
            print(config.json, &report, || text::depths(&report))?;
            Ok(true)
        }
        Action::Dead { limit } => {
            let report = dead_letters::list(transport, limit, &shutdown).await?;
            print(config.json, &report, || text::dead_letters(&report))?;
            Ok(true)
        }
        Action::Show { id, save } => {
            let report = show::show(transport, &config.names, &id, save.as_deref(), &shutdown).await?;
            print(config.json, &report, || text::dead_letter(&report))?;
            Ok(true)
        }
        Action::Redrive(which) => {
            let report = redrive::redrive(transport, &config.names, &which, &shutdown).await?;
            print(config.json, &report, || text::redriven(&report))?;
            Ok(report.is_complete())
        }
        Action::Purge { queue, is_confirmed } => {
            let Some(report) = purge::purge(transport, &queue, is_confirmed).await? else { return Ok(false) };
            print(config.json, &report, || text::purged(&report))?;
            Ok(true)
        }
    }
}

/// Adds advice for the operator to an error.
fn explained(error: TransportError) -> anyhow::Error {
    match error {
        TransportError::Missing(name) => {
            anyhow!("there is no queue {name:?}: start the service once, or check --stack and the names of the queues")
        }
        error => error.into(),
    }
}

/// Prints a result for programs or for people.
fn print(json: bool, report: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = if json { serde_json::to_string(report)? } else { text() };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    output::print(&out).context("cannot print the result")
}
