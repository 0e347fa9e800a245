//! The result of `imgcls tune` on this machine, stored in the cache directory.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::choice::ModelChoice;
use super::file::hex;
use super::package::{self, ModelPackage};
use super::{find, graph};

/// The batch sizes that are measured.
pub const BATCH_SIZES: [usize; 4] = [1, 2, 4, 8];
/// A batch is worth the wait of its images only if it saves this share of their time.
pub const MIN_BATCH_GAIN: f64 = 0.05;
/// A smaller batch is preferred if it saves at most this much less.
const NEGLIGIBLE_GAIN: f64 = 0.02;

/// The fastest way to run the model on this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// The variant, as model.toml names it.
    pub variant: String,
    /// Threads inside one inference.
    pub intra_threads: usize,
    /// Sessions that run in parallel.
    pub sessions: usize,
    /// Images per inference. `None` means that batches save less than [`MIN_BATCH_GAIN`].
    pub max_batch_size: Option<usize>,
    /// The time of batches by their size. Empty in files of older releases.
    #[serde(default)]
    pub batches: Vec<BatchTime>,
}

/// How long a session takes for a batch, while the other sessions work too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchTime {
    /// Images in the batch.
    pub size: usize,
    /// Milliseconds to decode and classify the batch.
    pub batch_ms: f64,
    /// Milliseconds of that inside the model.
    pub infer_ms: f64,
    /// The share of the time of an image that the batch saves.
    pub gain: f64,
}

/// The smallest batch that saves about as much as the best one, or 1 if none saves [`MIN_BATCH_GAIN`].
pub fn worthwhile_batch_size(gains: impl Iterator<Item = (usize, f64)> + Clone) -> usize {
    let best = gains.clone().map(|(_, gain)| gain).fold(0.0, f64::max);
    if best < MIN_BATCH_GAIN {
        return 1;
    }
    gains.filter(|(_, gain)| *gain >= best - NEGLIGIBLE_GAIN).map(|(size, _)| size).min().unwrap_or(1)
}

/// The variant that the others are compared with: fp32 if there is one, else that with the largest file.
///
/// # Errors
/// The errors of [`ModelPackage::load`].
pub fn reference_variant(choice: &ModelChoice) -> anyhow::Result<String> {
    let mut widest: Option<(u64, String)> = None;
    // Reversed, because of files of one size the last is found, and the first is the default.
    for variant in ModelPackage::variants(choice)?.into_iter().rev() {
        if variant == "fp32" {
            return Ok(variant);
        }
        let package = ModelPackage::load(&ModelChoice { variant: Some(variant.clone()), ..choice.clone() })?;
        let bytes = std::fs::metadata(package.file()).map_or(0, |metadata| metadata.len());
        if widest.as_ref().is_none_or(|(most, _)| bytes >= *most) {
            widest = Some((bytes, variant));
        }
    }
    widest.map(|(_, variant)| variant).context("the model has no variant for this CPU")
}

/// Larger numbers in a file mean that it is damaged.
const MAX_NUMBER: usize = 4096;
/// A batch that takes an hour was not measured.
const MAX_BATCH_MS: f64 = 3.6e6;

impl Tuning {
    /// Reads the result for this model, runtime, CPU and number of cores. Returns it with its path, or `None` when
    /// there is none. A damaged file is logged and ignored.
    pub fn read(choice: &ModelChoice) -> Option<(Tuning, PathBuf)> {
        let path = path(choice).ok()?;
        let text = std::fs::read(&path).ok()?;
        match parse(&text, choice) {
            Ok(tuning) => Some((tuning, path)),
            Err(error) => {
                tracing::warn!(path = %path.display(), "the `imgcls tune` result is ignored, run it again: {error:#}");
                None
            }
        }
    }

    /// Stores the result for workers that start later. Returns the path of the file.
    ///
    /// # Errors
    /// If there is no cache directory, or it cannot be written.
    pub fn write(&self, choice: &ModelChoice) -> anyhow::Result<PathBuf> {
        let path = path(choice)?;
        let folder = path.parent().context("the file has a parent folder; this is a bug")?;
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}; give another --cache-dir", path.display()))?;
        Ok(path)
    }
}

/// A choice of the model, with the result of `imgcls tune` where the choice leaves something open.
#[derive(Debug, Clone)]
pub struct TunedChoice {
    /// The choice that the settings make.
    pub choice: ModelChoice,
    /// The result of `imgcls tune`, if there is one for this machine.
    pub tuning: Option<Tuning>,
}

impl TunedChoice {
    /// Reads the result of `imgcls tune` from the cache directory of `choice`, if there is one.
    pub fn read(mut choice: ModelChoice) -> TunedChoice {
        let Some((tuning, path)) = Tuning::read(&choice) else { return TunedChoice { choice, tuning: None } };
        tracing::info!(
            path = %path.display(),
            variant = tuning.variant,
            sessions = tuning.sessions,
            threads = tuning.intra_threads,
            max_batch_size = tuning.max_batch_size,
            "using the result of `imgcls tune` for what no setting says"
        );
        choice.variant.get_or_insert_with(|| tuning.variant.clone());
        choice.intra_threads.get_or_insert(tuning.intra_threads);
        TunedChoice { choice, tuning: Some(tuning) }
    }

    /// The times of batches that `imgcls tune` measured. Empty if it did not, or if the settings choose another variant or
    /// other threads than those that it measured.
    pub fn batch_times(&self) -> Vec<BatchTime> {
        let is_as_measured = |tuning: &&Tuning| {
            self.choice.variant.as_ref() == Some(&tuning.variant)
                && self.choice.intra_threads == Some(tuning.intra_threads)
        };
        self.tuning.as_ref().filter(is_as_measured).map(|tuning| tuning.batches.clone()).unwrap_or_default()
    }
}

fn parse(text: &[u8], choice: &ModelChoice) -> anyhow::Result<Tuning> {
    let tuning: Tuning = serde_json::from_slice(text)?;
    let Tuning { variant, intra_threads, sessions, max_batch_size, batches } = &tuning;
    let numbers = [*intra_threads, *sessions, max_batch_size.unwrap_or(1)];
    ensure!(numbers.iter().all(|number| (1..=MAX_NUMBER).contains(number)), "a number is out of range");
    let is_time = |ms: f64| (0.0..MAX_BATCH_MS).contains(&ms);
    let is_measured = |time: &BatchTime| time.size > 0 && is_time(time.batch_ms) && is_time(time.infer_ms);
    ensure!(batches.iter().all(is_measured), "the time of a batch is out of range");
    ensure!(ModelPackage::variants(choice)?.contains(variant), "the model has no variant of that name");
    Ok(tuning)
}

fn path(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    let folder = choice.cache_dir.as_ref().context("there is no cache directory; give one with --cache-dir")?;
    let description = package::description_file(choice)?;
    let model = std::fs::read(&description).with_context(|| format!("cannot read {}", description.display()))?;
    let runtime = find::runtime_library(choice)?;
    Ok(folder.join(format!("tune-{}.json", key(&model, &runtime, cores())?)))
}

/// Identifies the model by its description, which contains the digest of each file, and the runtime by its versioned
/// name and its size.
fn key(model: &[u8], runtime: &Path, cores: usize) -> anyhow::Result<String> {
    let runtime = std::fs::canonicalize(runtime)?;
    let name = runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let machine = format!("{name} {} {} {cores}", runtime.metadata()?.len(), graph::cpu_features());
    let mut hash = Sha256::new();
    hash.update(Sha256::digest(model));
    hash.update(machine);
    Ok(hex(&hash.finalize()[..16]))
}

/// The number of cores that this process may use, according to its CPU affinity and the limits of its cgroup.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_separate_for_each_model_runtime_and_number_of_cores() {
        let folder = tempfile::tempdir().unwrap();
        let library = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (old, new) = (library("libort.so.1", "one"), library("libort.so.2", "two"));
        let keys = [
            key(b"a model", &old, 2).unwrap(),
            key(b"a model", &new, 2).unwrap(),
            key(b"a model", &old, 4).unwrap(),
            key(b"another", &old, 2).unwrap(),
        ];
        assert!((1..keys.len()).all(|index| !keys[..index].contains(&keys[index])), "{keys:?}");
        assert_eq!(keys[0], key(b"a model", &old, 2).unwrap());
    }
}
