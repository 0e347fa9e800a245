//! The result of `imgcls tune` on this machine, stored in the cache directory.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::choice::ModelChoice;
use super::file::hex;
use super::package::{self, ModelPackage};
use super::{find, graph};

/// The fastest way to run the model on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// The variant, as model.toml names it.
    pub variant: String,
    /// Threads inside one inference.
    pub intra_threads: usize,
    /// Sessions that run in parallel.
    pub sessions: usize,
    /// Images per inference. `None` means that batches do not make inference faster, so that the queue's default is
    /// used.
    pub max_batch_size: Option<usize>,
}

/// Larger numbers in a file mean that it is damaged.
const MAX_NUMBER: usize = 4096;

impl Tuning {
    /// Reads the result for this model, runtime, CPU and number of cores. Returns it with its path, or `None` when
    /// there is none. A damaged file is logged and ignored.
    pub(crate) fn read(choice: &ModelChoice) -> Option<(Tuning, PathBuf)> {
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
    pub(crate) fn write(&self, choice: &ModelChoice) -> anyhow::Result<PathBuf> {
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

fn parse(text: &[u8], choice: &ModelChoice) -> anyhow::Result<Tuning> {
    let tuning: Tuning = serde_json::from_slice(text)?;
    let Tuning { variant, intra_threads, sessions, max_batch_size } = &tuning;
    let numbers = [*intra_threads, *sessions, max_batch_size.unwrap_or(1)];
    ensure!(numbers.iter().all(|number| (1..=MAX_NUMBER).contains(number)), "a number is out of range");
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
