//! Bounds what the local backend keeps. Each process that accepts images runs a loop, which deletes images and results that
//! were kept long enough, and the oldest ones of finished jobs when the data would exceed its limit.
//!
//! Data of unfinished jobs is never deleted. An image may be deleted once its job has a result, a result once its image is
//! gone, and neither while a dead letter names the job. If unfinished jobs take the whole limit, [`Space`] refuses images.
//!
//! Several loops may run on one data directory, and several services may share one. Of the processes of a service the one
//! that holds its lock deletes by age, and of all processes the one that holds the lock of the directory removes what belongs
//! to no object. A lock is released when its process ends. Freeing space that an image waits for needs no lock.
//!
//! On AWS the lifecycle rules of the buckets do all of this.

mod deletion;
mod metrics;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

pub use self::deletion::{Deletion, Freed, Pace};
use self::metrics::METRICS;
use crate::config::{Backend, Names};
use crate::sqlite::Fault;
use crate::transport::local::{Kind, LocalData, SeenSegments, Usage};
use crate::transport::{Space, SpaceState};

/// The limit is enforced at least this often, and sooner if an image would exceed it.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// How often old objects are deleted, unless they are kept for a shorter time.
const LONGEST_AGE_INTERVAL: Duration = Duration::from_secs(60);
/// A pass that found nothing to delete is followed by a pause of at least this many times its duration.
const PAUSE_FACTOR: u32 = 20;
/// How long deletions by age continue before the limit is checked again.
const LONGEST_AGE_PASS: Duration = Duration::from_millis(500);
/// The shortest time from the start of one pass to the next, even if images wait for space.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
/// Attempts to get below the limit in one pass.
const MAX_ROUNDS: usize = 4;
/// Batches of pages that one pass returns to the file system.
const MAX_VACUUM_BATCHES: usize = 8;

/// The default limit is what is used already plus this share of what is free, in percent.
const DEFAULT_SHARE_PERCENT: u64 = 50;
/// The process that holds the lock on this file removes what belongs to no object.
const LOCK_FILE: &str = "retention.lock";

/// The configuration of retention.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend; there is nothing to do on AWS.
    pub backend: Backend,
    /// The names of queues and buckets.
    pub names: Names,
    /// How long objects are kept.
    pub keep: Keep,
    /// The limit on all stored data. `None` means what is used already plus half of the free space.
    pub max_data_bytes: Option<u64>,
}

/// How long images and results are kept. A result is kept at least as long as its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// For images.
    pub images: Duration,
    /// For results.
    pub results: Duration,
}

impl Keep {
    /// The defaults of --keep-images and --keep-results.
    pub const DEFAULT: Keep =
        Keep { images: Duration::from_secs(7 * 86_400), results: Duration::from_secs(30 * 86_400) };

    /// How long objects of a kind are kept.
    pub fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Images => self.images,
            Kind::Results => self.results,
        }
    }
}

/// Deletes what need not be kept. [`Retention::run`] is its loop.
pub struct Retention {
    data: LocalData,
    keep: Keep,
    space: Space,
    /// The lock of the data directory.
    of_directory: Lock,
    /// The lock of the service, which has its own buckets and times.
    of_service: Lock,
}

/// The limit if none is configured.
pub fn default_limit(usage: &Usage) -> u64 {
    usage.counted_bytes().saturating_add(usage.disk_free_bytes / 100 * DEFAULT_SHARE_PERCENT)
}

/// Returns true if a web tier runs on this data directory. One that does holds the lock of the directory.
pub fn is_served(data_dir: &Path) -> bool {
    let Ok(file) = File::open(data_dir.join(LOCK_FILE)) else { return false };
    // A lock that is free is held for a moment only, and the web tier tries again.
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Opens the data of the local backend and measures it. Returns `None` on other backends, which bound their data
/// themselves.
///
/// # Errors
/// The data directory cannot be used.
pub async fn open(config: &Config) -> anyhow::Result<Option<Retention>> {
    let Some(data_dir) = config.backend.data_dir() else { return Ok(None) };
    let data = LocalData::open(data_dir, config.names.clone())?;
    let usage = data.usage().await.context("cannot measure the data directory")?;
    let limit_bytes = config.max_data_bytes.unwrap_or_else(|| default_limit(&usage));
    let retention = Retention {
        data,
        keep: config.keep,
        space: Space::bounded(limit_bytes),
        of_directory: Lock::at(data_dir.join(LOCK_FILE)),
        of_service: Lock::at(data_dir.join(lock_file(&config.names))),
    };
    retention.publish(usage);
    let noted = retention.data.note_limits([config.keep.images, config.keep.results], limit_bytes).await;
    noted.context("cannot write to the data directory")?;
    tracing::info!(
        keep_images_seconds = config.keep.images.as_secs(),
        keep_results_seconds = config.keep.results.as_secs(),
        max_data_bytes = limit_bytes,
        used_bytes = usage.counted_bytes(),
        "bounding the stored data"
    );
    Ok(Some(retention))
}

/// State that the loop keeps from one pass to the next.
struct Progress {
    age_due: Instant,
    collection_due: Instant,
    /// When freeing space is tried again after an attempt that freed nothing.
    freeing_due: Instant,
    seen_segments: SeenSegments,
    has_warned: bool,
}

/// How a pass over old objects ended.
enum AgePass {
    /// More objects may be due.
    Interrupted,
    Deleted,
    NothingDue,
}

impl Retention {
    /// The space that the acceptance of images is checked against.
    pub fn space(&self) -> Space {
        self.space.clone()
    }

    /// Runs until `shutdown`. A fault of the data directory is logged, and the next pass tries again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let now = Instant::now();
        let mut progress = Progress {
            age_due: now,
            collection_due: now,
            freeing_due: now,
            seen_segments: SeenSegments::default(),
            has_warned: false,
        };
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let done = self.run_once(&mut progress, &shutdown).await;
            if let Err(error) = &done {
                tracing::warn!(%error, "cannot delete old images and results; trying again");
            }
            let idle = async {
                tokio::time::sleep(SHORTEST_INTERVAL.saturating_sub(began.elapsed())).await;
                if done.is_err() {
                    // The fault may last, and each attempt costs something.
                    return tokio::time::sleep(LONGEST_INTERVAL).await;
                }
                tokio::select! {
                    () = tokio::time::sleep(self.interval(&progress)) => {}
                    () = self.space.wanted() => {}
                }
            };
            let _ = shutdown.run_until_cancelled(idle).await;
        }
    }

    fn interval(&self, progress: &Progress) -> Duration {
        let work = [(&self.of_service, progress.age_due), (&self.of_directory, progress.collection_due)];
        let due = work.iter().filter(|(lock, _)| lock.held.is_some()).map(|(_, due)| *due).min();
        due.map_or(LONGEST_INTERVAL, |due| due.saturating_duration_since(Instant::now()).min(LONGEST_INTERVAL))
    }

    /// Objects are deleted late by at most a tenth of the time that they are kept, or a minute.
    fn age_interval(&self) -> Duration {
        (self.keep.images.min(self.keep.results) / 10).clamp(Duration::from_millis(100), LONGEST_AGE_INTERVAL)
    }

    async fn run_once(&mut self, progress: &mut Progress, shutdown: &CancellationToken) -> Result<(), Fault> {
        self.measure(progress).await?;
        self.free_space(progress, shutdown).await?;
        let (deletes_old, collects) = (self.of_service.is_held(), self.of_directory.is_held());
        if deletes_old && Instant::now() >= progress.age_due {
            let began = Instant::now();
            progress.age_due = match self.delete_old(shutdown).await? {
                AgePass::Interrupted => Instant::now(),
                AgePass::Deleted => Instant::now() + self.age_interval(),
                AgePass::NothingDue => next_pass(began, self.age_interval()),
            };
        }
        if collects && Instant::now() >= progress.collection_due {
            let began = Instant::now();
            let collected = self.data.collect_garbage(&mut progress.seen_segments, shutdown).await?;
            METRICS.removed_segments.inc_by(collected.removed_segments);
            for _ in 0..MAX_VACUUM_BATCHES {
                if !self.data.vacuum_some().await? || shutdown.is_cancelled() {
                    break;
                }
                tokio::time::sleep(SHORTEST_INTERVAL).await;
            }
            progress.collection_due = next_pass(began, self.age_interval());
        }
        Ok(())
    }

    /// Measures what is stored, publishes it, and warns when the space runs out. Returns by how much the images that
    /// arrived since the last measurement may have raised it.
    async fn measure(&self, progress: &mut Progress) -> Result<u64, Fault> {
        let measuring = self.space.begin_measuring();
        let usage = self.data.usage().await;
        // Also after a failure, since an image may wait for the measurement.
        let arrived_bytes = match &usage {
            Ok(usage) => self.space.end_measuring(measuring, usage.counted_bytes(), usage.disk_free_bytes),
            Err(_) => {
                self.space.fail_measuring();
                0
            }
        };
        METRICS.set_usage(&usage?, self.state().limit_bytes);
        match self.state().warning() {
            Some(warning) if !progress.has_warned => {
                tracing::warn!("{warning}");
                progress.has_warned = true;
            }
            // Not before: while images arrive, the used space goes up and down around the threshold.
            None if self.state().is_far_from_warning() => progress.has_warned = false,
            Some(_) | None => {}
        }
        Ok(arrived_bytes)
    }

    fn publish(&self, usage: Usage) {
        let measuring = self.space.begin_measuring();
        self.space.end_measuring(measuring, usage.counted_bytes(), usage.disk_free_bytes);
        METRICS.set_usage(&usage, self.state().limit_bytes);
    }

    fn state(&self) -> SpaceState {
        self.space.state().expect("this space is bounded; this is a bug")
    }

    /// Deletes the oldest objects of finished jobs until there is space: images first, which take most of it, then
    /// results.
    async fn free_space(&self, progress: &mut Progress, shutdown: &CancellationToken) -> Result<(), Fault> {
        if self.state().target_bytes().is_none() {
            self.space.end_freeing(false);
            return Ok(());
        }
        if Instant::now() < progress.freeing_due {
            return Ok(());
        }
        let began = Instant::now();
        let deletion = Deletion { data: &self.data, pace: Pace::Urgent, shutdown, is_dry_run: false };
        let mut freed = Freed::default();
        for _ in 0..MAX_ROUNDS {
            let Some(target_bytes) = self.state().target_bytes() else { break };
            let mut excess_bytes = self.state().used_bytes.saturating_sub(target_bytes);
            let mut freed_now = 0;
            for kind in [Kind::Images, Kind::Results] {
                let some = deletion.delete(kind, i64::MAX, |so_far| so_far.disk_bytes >= excess_bytes).await?;
                METRICS.count_deleted(kind, some.objects);
                METRICS.count_evicted(kind, some.objects);
                excess_bytes = excess_bytes.saturating_sub(some.disk_bytes);
                freed_now += some.objects;
                freed += some;
            }
            let used_before = self.state().used_bytes;
            let arrived_bytes = self.measure(progress).await?;
            if freed_now == 0 {
                break;
            }
            if self.state().used_bytes >= used_before + arrived_bytes {
                // The file system frees the space later, or together with the whole segment. Deleting more meanwhile would
                // delete objects that can be kept.
                progress.freeing_due = Instant::now() + LONGEST_INTERVAL;
                break;
            }
        }
        if freed.objects == 0 {
            progress.freeing_due = next_pass(began, Duration::ZERO);
        } else {
            tracing::debug!(
                objects = freed.objects,
                bytes = freed.bytes,
                "deleted the oldest objects to stay within --max-data-bytes"
            );
        }
        self.space.end_freeing(freed.objects == 0);
        Ok(())
    }

    async fn delete_old(&self, shutdown: &CancellationToken) -> Result<AgePass, Fault> {
        let now_ms = self.data.now_ms().await?;
        let until = Instant::now() + LONGEST_AGE_PASS;
        let mut deleted = 0;
        let deletion = Deletion { data: &self.data, pace: Pace::Relaxed, shutdown, is_dry_run: false };
        for kind in [Kind::Images, Kind::Results] {
            let before_ms = now_ms.saturating_sub(crate::sqlite::millis(self.keep.of(kind)));
            let freed = deletion.delete(kind, before_ms, |_| Instant::now() >= until).await?;
            METRICS.count_deleted(kind, freed.objects);
            deleted += freed.objects;
            if freed.objects > 0 {
                tracing::debug!(
                    kind = kind.as_str(),
                    objects = freed.objects,
                    bytes = freed.bytes,
                    "deleted objects that were kept long enough"
                );
            }
        }
        Ok(match deleted {
            _ if Instant::now() >= until || shutdown.is_cancelled() => AgePass::Interrupted,
            0 => AgePass::NothingDue,
            _ => AgePass::Deleted,
        })
    }
}

/// The file whose lock the processes of one service compete for. Names of buckets have no underscore.
fn lock_file(names: &Names) -> String {
    format!("retention_{}_{}.lock", names.input_bucket, names.output_bucket)
}

/// A lock that one process at a time holds, for the work that is not done twice.
struct Lock {
    path: PathBuf,
    held: Option<File>,
}

impl Lock {
    fn at(path: PathBuf) -> Lock {
        Lock { path, held: None }
    }

    /// Takes the lock if it is free, and returns true if this process does the work. If the file system has no locks, every
    /// process does.
    fn is_held(&mut self) -> bool {
        if self.held.is_none() {
            match take_lock(&self.path) {
                Ok(lock) => self.held = lock,
                Err(error) => {
                    tracing::debug!(%error, "cannot lock the data directory; every process deletes old data");
                    return true;
                }
            }
        }
        self.held.is_some()
    }
}

/// Returns `None` if another process holds the lock.
fn take_lock(path: &Path) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// When the next pass begins, so that passes take a small share of the time.
fn next_pass(began: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    now + interval.max((now - began) * PAUSE_FACTOR)
}
