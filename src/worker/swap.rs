//! Follows the versions of models: when `imgcls model use` makes another version the current one, it is loaded and
//! warmed up beside the one in use, and each inference thread switches to it between two batches (decision 32).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;
use super::models::{Model, Models, Version};
use crate::model;
use crate::retry::{Backoff, Schedule};

/// How often the current versions are looked up, which reads one small file for each model.
const EVERY: Duration = Duration::from_secs(2);
/// How long a version that could not be loaded is left alone, because it may be incomplete: its files may still be
/// copied.
const RETRIES: Schedule = Schedule::new(Duration::from_secs(10), Duration::from_secs(600));
/// How often idle threads are asked to switch, until all have.
const SWITCH_POLL: Duration = Duration::from_millis(20);

/// Follows all models until `stop`.
///
/// # Errors
/// The thread that loads a version panicked.
pub(crate) async fn follow(models: Arc<Models>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut follower = Follower::new(models);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let stopped = stop.clone();
        let check = tokio::task::spawn_blocking(move || {
            follower.check(&stopped);
            follower
        });
        // A version that is being loaded at a shutdown is not waited for: nothing depends on it.
        let Some(checked) = stop.run_until_cancelled(check).await else { return Ok(()) };
        follower = checked.context("the thread that loads other versions of models panicked")?;
    }
}

struct Follower {
    models: Arc<Models>,
    /// For each model the folder that could not be used, until another one is current.
    refused: Vec<Option<Refused>>,
}

struct Refused {
    /// `None` if no folder was found.
    folder: Option<PathBuf>,
    backoff: Backoff,
    retry_at: Instant,
}

impl Follower {
    fn new(models: Arc<Models>) -> Follower {
        let refused = models.all().map(|_| None).collect();
        Follower { models, refused }
    }

    /// Looks up the current version of each model, and switches to those that are new. Blocks while one is loaded.
    fn check(&mut self, stop: &CancellationToken) {
        for (model, refused) in self.models.all().zip(&mut self.refused) {
            let found = model::model_folder(model.choice());
            let in_use = model.version();
            if found.as_ref().is_ok_and(|folder| *folder == in_use.folder) {
                *refused = None;
                continue;
            }
            let folder = found.as_ref().ok().cloned();
            if refused.as_ref().is_some_and(|refused| refused.folder == folder && Instant::now() < refused.retry_at) {
                continue;
            }
            match found.and_then(|folder| switch(&self.models, model, &folder, stop)) {
                Ok(()) => *refused = None,
                Err(error) => *refused = Some(refuse(refused.take(), folder, &in_use, &error)),
            }
        }
    }
}

/// Records a version that cannot be used. It is logged when it is found first, not at each retry.
fn refuse(earlier: Option<Refused>, folder: Option<PathBuf>, in_use: &Version, error: &anyhow::Error) -> Refused {
    METRICS.swaps.with_label_values(&["failed"]).inc();
    let earlier = earlier.filter(|earlier| earlier.folder == folder);
    if earlier.is_none() {
        let (name, in_use) = (&in_use.reference.name, in_use.name());
        tracing::warn!(
            in_use,
            "cannot switch model {name} to its current version, and go on with the one in use: {error:#}; `imgcls model \
             check {name}` says more, `imgcls model rollback {name}` makes the version before it current"
        );
    }
    let mut backoff = earlier.map_or_else(|| RETRIES.start(), |earlier| earlier.backoff);
    let retry_at = Instant::now() + backoff.next_delay();
    Refused { folder, backoff, retry_at }
}

/// Loads the version in `folder`, makes it the one in use, and returns when all threads have switched to it, or at
/// `stop`.
fn switch(models: &Models, model: &Model, folder: &Path, stop: &CancellationToken) -> anyhow::Result<()> {
    let began = Instant::now();
    let old = model.version();
    let next = Version::load(model.choice(), folder)?;
    ensure!(
        next.reference.name == old.reference.name,
        "{} holds the model {}, not {}",
        folder.display(),
        next.reference.name,
        old.reference.name
    );
    let name = next.name();
    models.replace(model, next)?;
    while !model.has_switched() {
        if stop.is_cancelled() {
            return Ok(());
        }
        std::thread::sleep(SWITCH_POLL);
    }
    METRICS.swaps.with_label_values(&["switched"]).inc();
    tracing::info!(
        from = old.name(),
        to = name,
        after_ms = began.elapsed().as_millis() as u64,
        "switched to another version"
    );
    Ok(())
}
