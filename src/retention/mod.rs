//! Bounds what the local backend keeps: a loop in each process that takes images deletes images and results that are
//! older than they are to be kept, and the oldest of finished jobs where the data would exceed its limit.
//!
//! What waits is never deleted: an image goes once its job has a result, a result once its image is gone, and neither
//! while a dead letter names the job. Where what waits takes the whole limit by itself, [`Space`] refuses images.
//!
//! Several loops on one data directory do no harm. One at a time holds a lock and does the regular work, so that it is
//! done once; the lock ends with its process. Freeing space that an image waits for needs no lock.
//!
//! On AWS the lifecycle rules of the buckets do all that.

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

/// The limit is enforced at least this often, and sooner where an image would exceed it.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5);
/// How often objects that are too old are looked for, unless they are kept for a shorter time.
const LONGEST_AGE_INTERVAL: Duration = Duration::from_secs(60);
/// A look for what is too old or unused takes at most this share of the time, as 1 to N.
const REST_FACTOR: u32 = 20;
/// How long deletions by age go on before the limit is looked at again.
const AGE_STRETCH: Duration = Duration::from_millis(500);
/// Looks that are wanted follow each other no faster.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
/// Attempts to get below the limit before the next measurement is told.
const MAX_ROUNDS: usize = 4;
/// Batches of pages that are given back to the file system in one stretch.
const VACUUMS: usize = 8;

/// Without a limit of its own: what is used already and this share of what is free, in percent.
const DEFAULT_SHARE_PERCENT: u64 = 50;
/// Whoever holds the lock on this file does the regular work.
const LOCK_FILE: &str = "retention.lock";

#[derive(Debug, Clone)]
pub struct Config {
    pub backend: Backend,
    pub names: Names,
    pub keep: Keep,
    /// None: half of the free space, and what is used already.
    pub max_data_bytes: Option<u64>,
}

/// How long images and results are kept. A result is kept at least as long as its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub images: Duration,
    pub results: Duration,
}

impl Keep {
    pub fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Images => self.images,
            Kind::Results => self.results,
        }
    }
}

/// The loop, before it runs.
pub struct Retention {
    data: LocalData,
    keep: Keep,
    space: Space,
    lock_path: PathBuf,
    /// Held by this process.
    lock: Option<File>,
}

/// The limit for a data directory of which nothing else was said.
pub fn default_limit(usage: &Usage) -> u64 {
    usage.counted_bytes().saturating_add(usage.disk_free_bytes / 100 * DEFAULT_SHARE_PERCENT)
}

/// Opens the data of the local backend and measures it. None on AWS.
///
/// # Errors
/// Where the data directory cannot be used.
pub async fn open(config: &Config) -> anyhow::Result<Option<Retention>> {
    let Backend::Local { data_dir } = &config.backend else { return Ok(None) };
    let data = LocalData::open(data_dir, config.names.clone())?;
    let usage = data.usage().await.context("cannot measure the data directory")?;
    let limit_bytes = config.max_data_bytes.unwrap_or_else(|| default_limit(&usage));
    let retention = Retention {
        data,
        keep: config.keep,
        space: Space::bounded(limit_bytes),
        lock_path: data_dir.join(LOCK_FILE),
        lock: None,
    };
    retention.tell(usage);
    let noted = retention.data.note_limits([config.keep.images, config.keep.results], limit_bytes).await;
    noted.context("cannot write to the data directory")?;
    tracing::info!(
        keep_images_seconds = config.keep.images.as_secs(),
        keep_results_seconds = config.keep.results.as_secs(),
        max_data_bytes = limit_bytes,
        used_bytes = usage.counted_bytes(),
        "what is kept"
    );
    Ok(Some(retention))
}

/// What the loop remembers between its looks.
struct Memory {
    age_due: Instant,
    sweep_due: Instant,
    /// When freeing is tried again after an attempt that freed nothing.
    freeing_due: Instant,
    seen_segments: SeenSegments,
    has_warned: bool,
}

/// How a look for what is too old ended.
enum AgeLook {
    /// There may be more.
    Interrupted,
    Deleted,
    NothingDue,
}

impl Retention {
    /// For whoever takes images.
    pub fn space(&self) -> Space {
        self.space.clone()
    }

    /// Works until `shutdown`. A fault of the data directory is logged, and the next look tries again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let now = Instant::now();
        let mut memory = Memory {
            age_due: now,
            sweep_due: now,
            freeing_due: now,
            seen_segments: SeenSegments::default(),
            has_warned: false,
        };
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let looked = self.look(&mut memory, &shutdown).await;
            if let Err(error) = &looked {
                tracing::warn!(%error, "cannot delete what is no longer to be kept; trying again");
            }
            let idle = async {
                tokio::time::sleep(SHORTEST_INTERVAL.saturating_sub(began.elapsed())).await;
                if looked.is_err() {
                    // A fault may last, and trying costs something each time.
                    return tokio::time::sleep(LONGEST_INTERVAL).await;
                }
                tokio::select! {
                    () = tokio::time::sleep(self.interval(&memory)) => {}
                    () = self.space.wanted() => {}
                }
            };
            let _ = shutdown.run_until_cancelled(idle).await;
        }
    }

    fn interval(&self, memory: &Memory) -> Duration {
        let next =
            if self.lock.is_some() { memory.age_due.min(memory.sweep_due) } else { Instant::now() + LONGEST_INTERVAL };
        next.saturating_duration_since(Instant::now()).min(LONGEST_INTERVAL)
    }

    /// Objects are deleted at most a tenth of their time too late, or a minute.
    fn age_interval(&self) -> Duration {
        (self.keep.images.min(self.keep.results) / 10).clamp(Duration::from_millis(100), LONGEST_AGE_INTERVAL)
    }

    async fn look(&mut self, memory: &mut Memory, shutdown: &CancellationToken) -> Result<(), Fault> {
        self.measure(memory).await?;
        self.free_space(memory, shutdown).await?;
        if !self.has_lock() {
            return Ok(());
        }
        if Instant::now() >= memory.age_due {
            let began = Instant::now();
            memory.age_due = match self.delete_old(shutdown).await? {
                AgeLook::Interrupted => Instant::now(),
                AgeLook::Deleted => Instant::now() + self.age_interval(),
                AgeLook::NothingDue => rested(began, self.age_interval()),
            };
        }
        if Instant::now() >= memory.sweep_due {
            let began = Instant::now();
            let swept = self.data.sweep(&mut memory.seen_segments, shutdown).await?;
            METRICS.removed_segments.inc_by(swept.removed_segments);
            for _ in 0..VACUUMS {
                if !self.data.vacuum_some().await? || shutdown.is_cancelled() {
                    break;
                }
                tokio::time::sleep(SHORTEST_INTERVAL).await;
            }
            memory.sweep_due = rested(began, self.age_interval());
        }
        Ok(())
    }

    /// Measures what is stored, and says so to whoever takes images.
    async fn measure(&self, memory: &mut Memory) -> Result<(), Fault> {
        let measuring = self.space.begin_measuring();
        let usage = self.data.usage().await;
        // Told in any case: somebody may wait for it.
        match &usage {
            Ok(usage) => self.space.end_measuring(measuring, usage.counted_bytes(), usage.disk_free_bytes),
            Err(_) => self.space.fail_measuring(),
        }
        METRICS.tell(&usage?, self.state().limit_bytes);
        match self.state().warning() {
            Some(warning) if !memory.has_warned => {
                tracing::warn!("{warning}");
                memory.has_warned = true;
            }
            // Not at once: while images come, what is used goes up and down around that share.
            None if self.state().is_far_from_warning() => memory.has_warned = false,
            Some(_) | None => {}
        }
        Ok(())
    }

    fn tell(&self, usage: Usage) {
        let measuring = self.space.begin_measuring();
        self.space.end_measuring(measuring, usage.counted_bytes(), usage.disk_free_bytes);
        METRICS.tell(&usage, self.state().limit_bytes);
    }

    fn state(&self) -> SpaceState {
        self.space.state().expect("this space is bounded; this is a bug")
    }

    /// Deletes the oldest objects of finished jobs until there is space: images first, which take most of it, then
    /// results.
    async fn free_space(&self, memory: &mut Memory, shutdown: &CancellationToken) -> Result<(), Fault> {
        if self.state().target_bytes().is_none() {
            self.space.end_freeing(false);
            return Ok(());
        }
        if Instant::now() < memory.freeing_due {
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
                METRICS.deleted(kind, some.objects);
                excess_bytes = excess_bytes.saturating_sub(some.disk_bytes);
                freed_now += some.objects;
                freed += some;
            }
            let used_before = self.state().used_bytes;
            self.measure(memory).await?;
            if freed_now == 0 {
                break;
            }
            if self.state().used_bytes >= used_before {
                // The file system frees the space later, or with the whole segment: what else would be deleted meanwhile
                // could have been kept.
                memory.freeing_due = Instant::now() + LONGEST_INTERVAL;
                break;
            }
        }
        if freed.objects == 0 {
            memory.freeing_due = rested(began, Duration::ZERO);
        } else {
            tracing::debug!(
                objects = freed.objects,
                bytes = freed.bytes,
                "deleted the oldest to stay within --max-data-bytes"
            );
        }
        self.space.end_freeing(freed.objects == 0);
        Ok(())
    }

    async fn delete_old(&self, shutdown: &CancellationToken) -> Result<AgeLook, Fault> {
        let now_ms = self.data.now_ms().await?;
        let until = Instant::now() + AGE_STRETCH;
        let mut deleted = 0;
        let deletion = Deletion { data: &self.data, pace: Pace::Relaxed, shutdown, is_dry_run: false };
        for kind in [Kind::Images, Kind::Results] {
            let before_ms = now_ms.saturating_sub(crate::sqlite::millis(self.keep.of(kind)));
            let freed = deletion.delete(kind, before_ms, |_| Instant::now() >= until).await?;
            METRICS.deleted(kind, freed.objects);
            deleted += freed.objects;
            if freed.objects > 0 {
                tracing::debug!(
                    ?kind,
                    objects = freed.objects,
                    bytes = freed.bytes,
                    "deleted what was kept long enough"
                );
            }
        }
        Ok(match deleted {
            _ if Instant::now() >= until || shutdown.is_cancelled() => AgeLook::Interrupted,
            0 => AgeLook::NothingDue,
            _ => AgeLook::Deleted,
        })
    }

    /// Whether this process does the regular work. Without locks on the file system, every process does.
    fn has_lock(&mut self) -> bool {
        if self.lock.is_none() {
            match take_lock(&self.lock_path) {
                Ok(lock) => self.lock = lock,
                Err(error) => {
                    tracing::debug!(%error, "cannot lock the data directory; every process looks after what is kept");
                    return true;
                }
            }
        }
        self.lock.is_some()
    }
}

/// None where another process has it.
fn take_lock(path: &Path) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// When to begin again, so that the work takes a small share of the time.
fn rested(began: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    now + interval.max((now - began) * REST_FACTOR)
}
