//! `imgcls batch …`: lists batches, shows how far they are, prints their results, cancels them and sends failed images again.
//!
//! The commands read and write what is stored, so they need no web tier. None of them creates a queue or a bucket.

use std::fmt::Write as _;
use std::pin::pin;

use anyhow::{Context as _, ensure};
use futures::stream::StreamExt as _;
use serde_json::json;
use uuid::Uuid;

use crate::config::{Backend, Names};
use crate::protocol::{Batch, BatchSource, RETENTION_MARGIN};
use crate::telemetry::output;
use crate::transport;
use crate::web::batches::{BatchState, Batches, RowFormat};

/// Settings of one `imgcls batch` command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend of the service.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// Print JSON instead of text.
    pub json: bool,
    /// The command.
    pub action: Action,
}

/// The commands under `imgcls batch`.
#[derive(Debug, Clone)]
pub enum Action {
    /// Lists the newest batches.
    List {
        /// How many are listed.
        limit: usize,
    },
    /// Shows how many images of a batch are in each state.
    Status(Uuid),
    /// Prints a row for each image of a batch, as CSV or as JSON Lines.
    Results(Uuid),
    /// Cancels the jobs of a batch that have no result.
    Cancel(Uuid),
    /// Sends the failed images of a batch again.
    Retry(Uuid),
}

/// Runs the command. Returns false if a part of it was not done; the output says which.
///
/// # Errors
/// The service cannot be used, or there is no such batch. A data directory is not made, since its name may be mistyped.
pub async fn run(config: Config) -> anyhow::Result<bool> {
    if let Some(folder) = config.backend.data_dir() {
        ensure!(folder.is_dir(), "there is no data directory {}: nothing ran there; see --data-dir", folder.display());
    }
    let transport = transport::open(&config.backend, &config.names).await?;
    let batches = Batches { transport, input_bucket: config.names.input_bucket.clone() };
    match config.action {
        Action::List { limit } => list(&batches, limit, config.json).await.map(|()| true),
        Action::Status(id) => {
            let state = batches.state(&read(&batches, id).await?).await?;
            let text = if config.json { serde_json::to_string(&state)? } else { status_text(&state) };
            print(&text).map(|()| true)
        }
        Action::Results(id) => results(&batches, read_own(&batches, id).await?, config.json).await.map(|()| true),
        Action::Cancel(id) => {
            let cancelled = batches.cancel(read_own(&batches, id).await?).await?;
            let text = if config.json {
                json!({"id": id, "cancelled": cancelled}).to_string()
            } else {
                format!("{cancelled} images are cancelled")
            };
            print(&text).map(|()| true)
        }
        Action::Retry(id) => {
            let job_ttl = batches.transport.retention().await?.saturating_sub(RETENTION_MARGIN);
            let retried = batches.retry(read_own(&batches, id).await?, job_ttl).await?;
            let text = if config.json {
                serde_json::to_string(&retried)?
            } else {
                format!("{} images are sent again; {} are not stored any more", retried.sent, retried.without_image)
            };
            print(&text).map(|()| retried.without_image == 0)
        }
    }
}

async fn read(batches: &Batches, id: Uuid) -> anyhow::Result<Batch> {
    let found = batches.read(id).await?;
    found.with_context(|| format!("there is no batch {id}; `imgcls batch list` shows them"))
}

/// Reads a batch whose document has its images.
async fn read_own(batches: &Batches, id: Uuid) -> anyhow::Result<Batch> {
    let batch = read(batches, id).await?;
    ensure!(
        batch.source == BatchSource::Request,
        "the sender of batch {id} has the list of its images: run its `imgcls classify --through queue` again"
    );
    Ok(batch)
}

async fn list(batches: &Batches, limit: usize, is_json: bool) -> anyhow::Result<()> {
    let ids = batches.list().await?;
    let mut states = Vec::new();
    for id in ids.into_iter().rev().take(limit) {
        // A batch may be gone since it was listed.
        if let Some(batch) = batches.read(id).await? {
            states.push(batches.state(&batch).await?);
        }
    }
    if is_json {
        return print(&json!({"batches": states}).to_string());
    }
    let mut text =
        format!("{:36}  {:20}  {:8}  {:>7}  {:>7}  {:>7}\n", "ID", "CREATED", "STATUS", "IMAGES", "QUEUED", "FAILED");
    for state in &states {
        let created = state.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let number = |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let queued = number(state.counts.map(|counts| counts.queued));
        let failed = number(state.counts.map(|counts| counts.failed + counts.expired));
        let (status, images) = (state.status, number(state.images));
        let _ = writeln!(text, "{:36}  {created:20}  {status:8}  {images:>7}  {queued:>7}  {failed:>7}", state.id);
    }
    print(&text)
}

async fn results(batches: &Batches, batch: Batch, is_json: bool) -> anyhow::Result<()> {
    let format = if is_json { RowFormat::Jsonl } else { RowFormat::Csv };
    let ranks = batch.top_k;
    output::print(&format.header(ranks)).context("cannot print the results")?;
    let mut items = pin!(batches.items(batch));
    while let Some(state) = items.next().await {
        output::print(&format.row(&state?, ranks)).context("cannot print the results")?;
    }
    Ok(())
}

fn status_text(state: &BatchState) -> String {
    let mut text = format!("{}  {}", state.id, state.status);
    if let (Some(images), Some(counts)) = (state.images, state.counts) {
        let _ = write!(
            text,
            "\n{images} images: {} succeeded, {} failed, {} expired, {} cancelled, {} queued",
            counts.succeeded, counts.failed, counts.expired, counts.cancelled, counts.queued
        );
    }
    text
}

fn print(text: &str) -> anyhow::Result<()> {
    output::print(&format!("{}\n", text.trim_end())).context("cannot print the result")
}
