//! The models of a worker: the list of the settings, the model that a request gets, and the sessions of each.
//!
//! A model is in the list once and for all, while its version may be replaced ([`super::swap`]). Each inference thread
//! has a [`Seat`] for each model, so that it can classify any image.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, ensure};

use super::batch_policy::TunedVersion;
use super::metrics::METRICS;
use super::model_memory::{self, Share};
use super::seat::{Active, Seat};
use crate::model::{self, ModelChoice, ModelPackage, ModelRef, Session, TunedChoice};

/// The longest part of a model's name that an error message repeats.
const SHOWN_CHARS: usize = 100;

/// A version of a model whose files were verified.
#[derive(Clone)]
pub(crate) struct Version {
    pub folder: PathBuf,
    pub package: Arc<ModelPackage>,
    pub reference: ModelRef,
    /// The choice of the settings, completed by the result of `imgcls tune` for this version.
    choice: ModelChoice,
    tuned: Arc<TunedVersion>,
}

/// The versions that the settings name, before their sessions are open.
pub(crate) struct Versions {
    served: Vec<(ModelChoice, Version)>,
    shadow: Option<(ModelChoice, Version)>,
}

/// One model of the list.
pub(crate) struct Model {
    /// The choice of the settings, without results of `imgcls tune`, which belong to a version.
    choice: ModelChoice,
    current: Mutex<Version>,
    seats: Vec<Seat>,
    /// The memory that its sessions take.
    bytes: AtomicU64,
}

/// The models of a worker with their sessions.
pub(crate) struct Models {
    served: Vec<Arc<Model>>,
    shadow: Option<Arc<Model>>,
    /// The memory that all of them may take.
    max_bytes: u64,
}

impl Version {
    /// Loads the version in `folder`.
    ///
    /// # Errors
    /// The errors of [`ModelPackage::load`].
    pub(crate) fn load(choice: &ModelChoice, folder: &Path) -> anyhow::Result<Version> {
        let absolute = std::path::absolute(folder)?;
        let named = absolute.to_str().with_context(|| format!("{} is not UTF-8; rename it", folder.display()))?;
        // The name may mean another version in the next moment; the folder does not.
        let choice = ModelChoice { model: Some(named.to_owned()), ..choice.clone() };
        let tuned_choice = TunedChoice::read(choice);
        let package = Arc::new(ModelPackage::load(&tuned_choice.choice)?);
        let reference = package.model_ref();
        let tuned = TunedVersion { digest: reference.digest.clone(), batches: tuned_choice.batch_times() };
        let (folder, choice) = (folder.to_owned(), tuned_choice.choice);
        Ok(Version { folder, package, reference, choice, tuned: Arc::new(tuned) })
    }

    /// Opens one session and warms it up.
    ///
    /// # Errors
    /// The errors of [`Session::open`].
    pub(crate) fn open(&self) -> anyhow::Result<Active> {
        let session = Session::open(&self.package, &self.choice)?;
        tracing::debug!(model = self.name(), session = session.describe(), "session open");
        Ok(Active { package: Arc::clone(&self.package), tuned: Arc::clone(&self.tuned), session })
    }

    /// Name and version, as a request may name them: `name@version`.
    pub(crate) fn name(&self) -> String {
        format!("{}@{}", self.reference.name, self.reference.version)
    }

    /// The memory that sessions take at least: each has the weights.
    fn least_share(&self, sessions: usize) -> Share {
        Share { model: self.name(), bytes: self.package.file_bytes().saturating_mul(sessions as u64) }
    }
}

/// Returns true if a request that names `wanted` means this model: its name alone, or with the version as
/// `name@version`.
pub(crate) fn accepts(wanted: &str, reference: &ModelRef) -> bool {
    match wanted.strip_prefix(&reference.name) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('@') == Some(reference.version.as_str()),
        None => false,
    }
}

impl Versions {
    /// Loads every model of the settings.
    ///
    /// # Errors
    /// A message of one line about the first model that cannot be loaded, or that is listed twice.
    pub(crate) fn load(served: &[ModelChoice], shadow: Option<&ModelChoice>) -> anyhow::Result<Versions> {
        let load = |choice: &ModelChoice| -> anyhow::Result<(ModelChoice, Version)> {
            let folder = model::model_folder(choice)?;
            Ok((choice.clone(), Version::load(choice, &folder)?))
        };
        let served = served.iter().map(load).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!served.is_empty(), "no model is given");
        for (index, (_, version)) in served.iter().enumerate() {
            let is_twice = served[..index].iter().any(|(_, earlier)| earlier.name() == version.name());
            ensure!(!is_twice, "--model lists {} twice; list each model once", version.name());
        }
        let shadow = shadow.map(|choice| load(choice).context("--shadow")).transpose()?;
        Ok(Versions { served, shadow })
    }

    /// Opens `sessions` sessions of each model and one of the shadow model.
    ///
    /// # Errors
    /// A message of one line, if a session cannot be opened or the models take more than `max_bytes`.
    pub(crate) fn open(self, sessions: usize, max_bytes: u64) -> anyhow::Result<Models> {
        let Versions { served, shadow } = self;
        // This comes before anything is opened, so that models that cannot fit do not use up the memory of the machine.
        let served_shares = served.iter().map(|(_, version)| version.least_share(sessions));
        let shadow_shares = shadow.iter().map(|(_, version)| version.least_share(1));
        model_memory::check(&served_shares.chain(shadow_shares).collect::<Vec<_>>(), max_bytes)?;
        let open = |(choice, version): (ModelChoice, Version), count: usize| -> anyhow::Result<Arc<Model>> {
            Ok(Arc::new(Model::open(choice, version, count)?))
        };
        let served = served.into_iter().map(|model| open(model, sessions)).collect::<anyhow::Result<Vec<_>>>()?;
        let shadow = shadow.map(|model| open(model, 1).context("--shadow")).transpose()?;
        let models = Models { served, shadow, max_bytes };
        model_memory::check(&models.shares(), max_bytes)?;
        Ok(models)
    }
}

/// Opens sessions side by side, which takes less time than one after the other.
fn open_together(version: &Version, count: usize) -> anyhow::Result<Vec<Active>> {
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..count).map(|_| scope.spawn(|| version.open())).collect();
        let opened = opening.into_iter().map(std::thread::ScopedJoinHandle::join);
        opened
            .map(|opened| opened.map_err(|_| anyhow::anyhow!("a thread panicked while it opened a session"))?)
            .collect()
    })
}

impl Models {
    /// The place in the list of the model that a request gets.
    ///
    /// # Errors
    /// The text for the client, if there is no such model.
    pub(crate) fn select(&self, wanted: Option<&str>) -> Result<usize, String> {
        let Some(wanted) = wanted else { return Ok(0) };
        let found = self.served.iter().position(|model| accepts(wanted, &model.current().reference));
        found.ok_or_else(|| {
            let names: Vec<String> = self.served.iter().map(|model| model.current().reference.name.clone()).collect();
            let wanted: String = wanted.chars().take(SHOWN_CHARS).collect();
            format!("this service has no model {wanted:?}; it has: {}", names.join(", "))
        })
    }

    /// The package of the version in use.
    pub(crate) fn package(&self, model: usize) -> Arc<ModelPackage> {
        Arc::clone(&self.served[model].current().package)
    }

    /// Locks the session of a thread for a batch of images of one model.
    pub(crate) fn begin_batch(&self, model: usize, thread: usize) -> MutexGuard<'_, Active> {
        self.served[model].begin_batch(thread)
    }

    /// The versions in use, with what `imgcls tune` measured of them, in the order of the list.
    pub(crate) fn tuned(&self) -> Vec<Arc<TunedVersion>> {
        self.served.iter().map(|model| model.version().tuned).collect()
    }

    /// The model that is compared with the first of the list.
    pub(crate) fn shadow(&self) -> Option<&Arc<Model>> {
        self.shadow.as_ref()
    }

    /// Every model that is loaded, the shadow model too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.served.iter().chain(&self.shadow)
    }

    /// Opens the sessions of another version of a model beside those in use, and offers them to the threads. They are
    /// opened one after the other, because the images of clients need the other cores.
    ///
    /// # Errors
    /// A message of one line; nothing has changed then.
    pub(crate) fn replace(&self, model: &Model, next: Version) -> anyhow::Result<()> {
        let share = model.share_of_next(&next);
        let beside: Vec<Share> = self.shares().into_iter().chain([share.clone()]).collect();
        model_memory::check(&beside, self.max_bytes).context("it does not fit beside the version in use")?;
        let opened = model.seats.iter().map(|_| next.open()).collect::<anyhow::Result<Vec<_>>>()?;
        // The threads get it first, so that a request that names this version finds it in use.
        for (seat, active) in model.seats.iter().zip(opened) {
            seat.offer(active);
        }
        model.bytes.store(share.bytes, Ordering::Relaxed);
        METRICS.model_in_use(&next.reference, true);
        let old = std::mem::replace(&mut *model.current(), next);
        METRICS.model_in_use(&old.reference, false);
        Ok(())
    }

    fn shares(&self) -> Vec<Share> {
        self.all().map(|model| model.share()).collect()
    }

    /// The models, for the log.
    pub(crate) fn summary(&self) -> String {
        let summaries: Vec<String> = self.served.iter().map(|model| model.current().package.summary()).collect();
        summaries.join("; ")
    }
}

impl Model {
    fn open(choice: ModelChoice, version: Version, sessions: usize) -> anyhow::Result<Model> {
        let least = version.least_share(sessions).bytes;
        let (opened, bytes) = model_memory::measure(least, || open_together(&version, sessions))?;
        METRICS.model_in_use(&version.reference, true);
        let seats = opened.into_iter().map(Seat::new).collect();
        Ok(Model { choice, current: Mutex::new(version), seats, bytes: AtomicU64::new(bytes) })
    }

    pub(crate) fn choice(&self) -> &ModelChoice {
        &self.choice
    }

    /// The version in use.
    pub(crate) fn version(&self) -> Version {
        self.current().clone()
    }

    /// Locks the session of a thread for a batch.
    pub(crate) fn begin_batch(&self, thread: usize) -> MutexGuard<'_, Active> {
        self.seats[thread].begin_batch()
    }

    fn share(&self) -> Share {
        Share { model: self.version().name(), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// The memory that another version takes, as far as can be said before it is loaded.
    fn share_of_next(&self, next: &Version) -> Share {
        let (of_files, of_next) = (self.version().least_share(self.seats.len()), next.least_share(self.seats.len()));
        let bytes = model_memory::expected(self.share().bytes, of_files.bytes, of_next.bytes);
        Share { bytes, ..of_next }
    }

    /// Returns true once every thread runs the version in use, so that the sessions of the one before are gone.
    pub(crate) fn has_switched(&self) -> bool {
        // Every seat is asked, because asking one that is idle switches it.
        self.seats.iter().filter(|seat| !seat.has_switched()).count() == 0
    }

    fn current(&self) -> MutexGuard<'_, Version> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_model_or_one_of_its_versions() {
        let reference =
            ModelRef { name: "birds".to_owned(), version: "3f2a".to_owned(), digest: "sha256:0".to_owned() };
        for (wanted, is_accepted) in [
            ("birds", true),
            ("birds@3f2a", true),
            ("birds@", false),
            ("birds@0000", false),
            ("bird", false),
            ("birds3f2a", false),
            ("", false),
        ] {
            assert_eq!(accepts(wanted, &reference), is_accepted, "{wanted:?}");
        }
    }
}
