//! `imgcls data …`: shows how much data is stored on this machine and how old it is, and deletes data of finished jobs. The
//! service may run meanwhile.

mod report;
mod text;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use self::report::{Counted, Limits, Pages, Pruned, Report, Segments, Stored};
use crate::config::Names;
use crate::retention::{self, Deletion, Freed, Keep, Pace};
use crate::sqlite::millis;
use crate::transport::local::{Kind, LocalData, SeenSegments, Totals, Usage};

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The names of queues and buckets.
    pub names: Names,
    /// Print JSON.
    pub json: bool,
    /// The action that was asked for.
    pub action: Action,
}

/// The actions of the command.
#[derive(Debug, Clone)]
pub enum Action {
    /// Report what is stored.
    Status,
    /// Delete old objects of finished jobs.
    Prune(Prune),
}

/// Selects the objects to delete.
#[derive(Debug, Clone)]
pub struct Prune {
    /// The least age of deleted objects. `None` means how long the service keeps them.
    pub older_than: Option<Duration>,
    /// Delete images.
    pub images: bool,
    /// Delete results.
    pub results: bool,
    /// Only count.
    pub is_dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// The data directory does not exist or cannot be used. The name may be mistyped, so it is not made.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let folder = &config.data_dir;
    ensure!(folder.is_dir(), "there is no data directory {}: nothing ran there; see --data-dir", folder.display());
    let data = LocalData::open(&config.data_dir, config.names.clone())?;
    match &config.action {
        Action::Status => {
            let report = status(&config, &data, &shutdown).await?;
            print_report(config.json, &report, || text::report(&report))
        }
        Action::Prune(prune) => {
            let pruned = prune_data(prune, &data, &shutdown).await?;
            print_report(config.json, &pruned, || text::pruned(&pruned))
        }
    }
}

async fn status(config: &Config, data: &LocalData, shutdown: &CancellationToken) -> anyhow::Result<Report> {
    let usage = data.usage().await.context("cannot measure the data directory")?;
    let limits = limits(data, &usage).await?;
    let now_ms = data.now_ms().await?;
    Ok(Report {
        data_dir: config.data_dir.clone(),
        images: stored(data, Kind::Images, now_ms, limits.keep_images_seconds, shutdown).await?,
        results: stored(data, Kind::Results, now_ms, limits.keep_results_seconds, shutdown).await?,
        segments: Segments { files: usage.segment_files, disk_bytes: usage.segment_bytes },
        database: Pages { used_bytes: usage.database_bytes, free_bytes: usage.database_free_bytes },
        log_bytes: usage.log_bytes,
        used_bytes: usage.counted_bytes(),
        disk_free_bytes: usage.disk_free_bytes,
        limits,
    })
}

async fn limits(data: &LocalData, usage: &Usage) -> anyhow::Result<Limits> {
    let noted = data.noted_limits().await?;
    let default = || ([Keep::DEFAULT.images, Keep::DEFAULT.results], retention::default_limit(usage));
    let ([images, results], max_data_bytes) = noted.unwrap_or_else(default);
    Ok(Limits {
        keep_images_seconds: images.as_secs(),
        keep_results_seconds: results.as_secs(),
        max_data_bytes,
        are_of_the_service: noted.is_some(),
    })
}

async fn stored(
    data: &LocalData,
    kind: Kind,
    now_ms: i64,
    keep_seconds: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<Stored> {
    let Totals { objects, bytes, oldest_ms } = data.totals(kind).await?;
    let counting = Deletion { data, pace: Pace::Relaxed, shutdown, is_dry_run: true };
    let old_ms = now_ms.saturating_sub(millis(Duration::from_secs(keep_seconds)));
    let prunable = counting.delete(kind, old_ms, |_| false).await?;
    let finished = counting.delete(kind, i64::MAX, |_| false).await?;
    Ok(Stored {
        count: objects,
        bytes,
        oldest: oldest_ms.and_then(|oldest_ms| Timestamp::from_millisecond(oldest_ms).ok()),
        oldest_age_seconds: oldest_ms.map(|oldest_ms| now_ms.saturating_sub(oldest_ms).max(0) as f64 / 1e3),
        prunable: prunable.into(),
        finished: finished.into(),
    })
}

async fn prune_data(prune: &Prune, data: &LocalData, shutdown: &CancellationToken) -> anyhow::Result<Pruned> {
    let before = data.usage().await.context("cannot measure the data directory")?;
    let limits = limits(data, &before).await?;
    let now_ms = data.now_ms().await?;
    let deletion = Deletion { data, pace: Pace::Relaxed, shutdown, is_dry_run: prune.is_dry_run };
    let delete = async |kind, keep_seconds| {
        let older_than = prune.older_than.unwrap_or(Duration::from_secs(keep_seconds));
        deletion.delete(kind, now_ms.saturating_sub(millis(older_than)), |_| false).await
    };
    let (mut images, mut results) = (Freed::default(), Freed::default());
    if prune.images {
        images = delete(Kind::Images, limits.keep_images_seconds).await?;
    }
    if prune.results {
        results = delete(Kind::Results, limits.keep_results_seconds).await?;
    }
    let mut removed_segments = 0;
    if !prune.is_dry_run {
        removed_segments = data.collect_garbage(&mut SeenSegments::default(), shutdown).await?.removed_segments;
        while !shutdown.is_cancelled() && data.vacuum_some().await? {}
    }
    let after = data.usage().await.context("cannot measure the data directory")?;
    Ok(Pruned {
        images: images.into(),
        results: results.into(),
        removed_segments,
        freed_bytes: before.counted_bytes().saturating_sub(after.counted_bytes()),
        is_dry_run: prune.is_dry_run,
        is_interrupted: shutdown.is_cancelled(),
    })
}

/// Prints a result as JSON or as text.
fn print_report(json: bool, report: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = if json { serde_json::to_string(report)? } else { text() };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that closes the pipe has read what it wanted.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
