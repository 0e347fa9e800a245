//! What `imgcls tune` found about this machine, kept beside the optimised graphs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ModelChoice, ModelPackage, find, onnx, package};

/// How the model runs fastest here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// File of the model, as model.toml names it.
    pub variant: String,
    /// Threads inside one inference.
    pub intra_threads: usize,
    /// Sessions side by side.
    pub sessions: usize,
    /// Images inferred together. None: more than one gains nothing, so that what the queue gains by decides.
    pub max_batch_size: Option<usize>,
}

/// More is no finding about a machine, but a damaged file.
const MOST: usize = 4096;

impl Tuning {
    /// What was found for this model, runtime, CPU and number of cores, and the file that says it. None where nothing
    /// was; a file that is damaged is named in the log and counts as nothing.
    pub fn read(choice: &ModelChoice) -> Option<(Tuning, PathBuf)> {
        let path = path(choice).ok()?;
        let text = std::fs::read(&path).ok()?;
        match parse(&text, choice) {
            Ok(tuning) => Some((tuning, path)),
            Err(error) => {
                tracing::warn!(path = %path.display(), "what `imgcls tune` wrote is not taken: {error:#}");
                None
            }
        }
    }

    /// Keeps it for the workers that start from now on; the file's path.
    ///
    /// # Errors
    /// Where there is no cache directory, or it cannot be written.
    pub fn write(&self, choice: &ModelChoice) -> anyhow::Result<PathBuf> {
        let path = path(choice)?;
        let folder = path.parent().context("a file in a folder; this is a bug")?;
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("{} cannot be written; give another --cache-dir", path.display()))?;
        Ok(path)
    }
}

fn parse(text: &[u8], choice: &ModelChoice) -> anyhow::Result<Tuning> {
    let tuning: Tuning = serde_json::from_slice(text)?;
    let Tuning { variant, intra_threads, sessions, max_batch_size } = &tuning;
    let numbers = [*intra_threads, *sessions, max_batch_size.unwrap_or(1)];
    ensure!(numbers.iter().all(|number| (1..=MOST).contains(number)), "its numbers are out of range");
    ensure!(ModelPackage::variants(choice)?.contains(variant), "it names a variant that is not there");
    Ok(tuning)
}

fn path(choice: &ModelChoice) -> anyhow::Result<PathBuf> {
    let folder = choice.cache_dir.as_ref().context("there is no cache directory; give one with --cache-dir")?;
    let description = package::description_file(choice)?;
    let model = std::fs::read(&description).with_context(|| format!("cannot read {}", description.display()))?;
    let runtime = find::runtime_library(choice)?;
    Ok(folder.join(format!("tune-{}.json", key(&model, &runtime, cores())?)))
}

/// The description names the digest of each file of the model; a runtime is told by its versioned name and its length.
fn key(model: &[u8], runtime: &Path, cores: usize) -> anyhow::Result<String> {
    let runtime = std::fs::canonicalize(runtime)?;
    let name = runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let machine = format!("{name} {} {} {cores}", runtime.metadata()?.len(), onnx::cpu_features());
    let mut hash = Sha256::new();
    hash.update(Sha256::digest(model));
    hash.update(machine);
    Ok(package::hex(&hash.finalize()[..16]))
}

/// What this process may use: affinity and the limits of its control group count.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_model_runtime_or_number_of_cores_has_findings_of_its_own() {
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
