//! `imgcls data …`: what operators do with what is stored on this machine. How much that is and how old, deleting what
//! belongs to finished jobs. All of it works while the service runs.

mod text;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::config::Names;
use crate::retention::{self, Deletion, Freed, Pace};
use crate::sqlite::millis;
use crate::transport::local::{Kind, LocalData, SeenSegments, Totals, Usage};

/// What a service keeps that never noted its limits: the defaults of --keep-images and --keep-results.
const DEFAULT_KEEP: [Duration; 2] = [Duration::from_secs(7 * 86_400), Duration::from_secs(30 * 86_400)];

#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub names: Names,
    pub json: bool,
    pub action: Action,
}

#[derive(Debug, Clone)]
pub enum Action {
    Status,
    Prune(Prune),
}

#[derive(Debug, Clone)]
pub struct Prune {
    /// None: by the limits that the service runs with.
    pub older_than: Option<Duration>,
    pub images: bool,
    pub results: bool,
    pub is_dry_run: bool,
}

/// What is stored.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub data_dir: PathBuf,
    pub images: Stored,
    pub results: Stored,
    pub segments: Segments,
    pub database: Pages,
    /// The write-ahead log, which is bounded by itself.
    pub log_bytes: u64,
    /// Segments, and pages of the database in use: what is held against the limit.
    pub used_bytes: u64,
    pub disk_free_bytes: u64,
    pub limits: Limits,
}

/// Objects of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    pub count: u64,
    pub bytes: u64,
    pub oldest: Option<Timestamp>,
    pub oldest_age_seconds: Option<f64>,
    /// Of finished jobs, and older than the limit: what `prune` deletes.
    pub prunable: Counted,
    /// Of finished jobs, whatever their age: what may be deleted where space is needed.
    pub finished: Counted,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    pub count: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Segments {
    pub files: u64,
    pub disk_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Pages {
    pub used_bytes: u64,
    /// Free for what comes next.
    pub free_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    pub keep_images_seconds: u64,
    pub keep_results_seconds: u64,
    pub max_data_bytes: u64,
    /// False: no service has run here yet, and these are the defaults.
    pub are_of_the_service: bool,
}

/// What was deleted, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    pub images: Counted,
    pub results: Counted,
    pub removed_segments: u64,
    /// By how much segments and database shrank while this ran; a service that works meanwhile adds to them.
    pub freed_bytes: u64,
    pub is_dry_run: bool,
    /// By a signal: what was deleted stays deleted.
    pub is_interrupted: bool,
}

/// # Errors
/// Where the data directory cannot be used.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let data = LocalData::open(&config.data_dir, config.names.clone())?;
    match &config.action {
        Action::Status => {
            let report = status(&config, &data, &shutdown).await?;
            print(config.json, &report, || text::report(&report))
        }
        Action::Prune(prune) => {
            let pruned = carry_out(prune, &data, &shutdown).await?;
            print(config.json, &pruned, || text::pruned(&pruned))
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
    let ([images, results], max_data_bytes) = noted.unwrap_or_else(|| (DEFAULT_KEEP, retention::default_limit(usage)));
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

async fn carry_out(prune: &Prune, data: &LocalData, shutdown: &CancellationToken) -> anyhow::Result<Pruned> {
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
        removed_segments = data.sweep(&mut SeenSegments::default(), shutdown).await?.removed_segments;
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

impl From<Freed> for Counted {
    fn from(freed: Freed) -> Self {
        Counted { count: freed.objects, bytes: freed.bytes }
    }
}

/// Prints a result for programs or for people.
fn print(json: bool, report: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let mut out = if json { serde_json::to_string(report)? } else { text() };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that went away has read what it wanted.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
