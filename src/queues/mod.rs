//! `imgcls queue …`: what operators do with queues. How deep they are, what lies in the dead letters and why, sending it
//! again, emptying.
//!
//! Depth is asked, never found out by receiving. Dead letters can only be looked at by receiving them, which raises
//! their receive counts; the dead-letter queue moves nothing on, so that this harms nothing.

mod depth;
mod letters;
mod purge;
mod redrive;
mod show;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::config::{Backend, Names};
use crate::queue::{self, Queue, QueueError, Queues};
use crate::store::{self, ObjectStore, StoreError};
use crate::telemetry::output;

#[derive(Debug, Clone)]
pub struct Config {
    pub backend: Backend,
    pub names: Names,
    pub json: bool,
    pub action: Action,
}

#[derive(Debug, Clone)]
pub enum Action {
    Depth,
    /// At most `limit` dead letters.
    Dead {
        limit: usize,
    },
    /// `id`: of a job, or of a message.
    Show {
        id: String,
        save: Option<PathBuf>,
    },
    Redrive(Which),
    /// `is_confirmed`: nobody is asked.
    Purge {
        queue: String,
        is_confirmed: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    All,
    /// Ids of jobs or of messages.
    Ids(Vec<String>),
}

/// Does it; false where something that was asked for could not be done, and was said.
///
/// # Errors
/// Where queue or store cannot be used, or what was asked for is not there.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<bool> {
    let service = Service {
        queues: queue::open(&config.backend).await?,
        input: OnceCell::new(),
        output: OnceCell::new(),
        backend: config.backend,
        names: config.names,
    };
    match config.action {
        Action::Depth => {
            let report = depth::read(&service).await?;
            print(config.json, &report, || text::depths(&report))?;
            Ok(true)
        }
        Action::Dead { limit } => {
            let report = letters::list(&service, limit, &shutdown).await?;
            print(config.json, &report, || text::letters(&report))?;
            Ok(true)
        }
        Action::Show { id, save } => {
            let report = show::show(&service, &id, save.as_deref(), &shutdown).await?;
            print(config.json, &report, || text::letter(&report))?;
            Ok(true)
        }
        Action::Redrive(which) => {
            let report = redrive::redrive(&service, &which, &shutdown).await?;
            print(config.json, &report, || text::redriven(&report))?;
            Ok(report.is_complete())
        }
        Action::Purge { queue, is_confirmed } => {
            let Some(report) = purge::purge(&service, &queue, is_confirmed).await? else { return Ok(false) };
            print(config.json, &report, || text::purged(&report))?;
            Ok(true)
        }
    }
}

/// The queues and objects of one service.
struct Service {
    queues: Arc<dyn Queues>,
    /// Opened by who needs them: to open a bucket makes it where it is missing, and who asks for a depth makes nothing.
    input: OnceCell<Arc<dyn ObjectStore>>,
    output: OnceCell<Arc<dyn ObjectStore>>,
    backend: Backend,
    names: Names,
}

impl Service {
    async fn queue(&self, name: &str) -> anyhow::Result<Arc<dyn Queue>> {
        match self.queues.open(name).await {
            Err(QueueError::NotFound(name)) => {
                bail!(
                    "there is no queue {name:?}: start the service once, or check --stack and the names of the queues"
                )
            }
            opened => opened.with_context(|| format!("cannot open queue {name:?}")),
        }
    }

    async fn input(&self) -> Result<&dyn ObjectStore, StoreError> {
        let open = || store::open(&self.backend, &self.names.input_bucket);
        Ok(&**self.input.get_or_try_init(open).await?)
    }

    async fn output(&self) -> Result<&dyn ObjectStore, StoreError> {
        let open = || store::open(&self.backend, &self.names.output_bucket);
        Ok(&**self.output.get_or_try_init(open).await?)
    }

    async fn dead_letters(&self) -> anyhow::Result<Arc<dyn Queue>> {
        self.queue(&self.names.dead_letter_queue()).await
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
