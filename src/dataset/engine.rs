//! The model on all cores: one session per thread, each of which takes the next file.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::labelled::LabelledImage;
use super::progress::Progress;
use crate::model::{self, Limits, ModelChoice, ModelPackage, Session, TunedChoice};

/// A model with its sessions.
pub(crate) struct Engine {
    pub package: ModelPackage,
    sessions: Vec<Session>,
    limits: Limits,
}

/// Why a file has no scores.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// The file is not an image, and its name does not say that it is one.
    NotAnImage,
    /// An image that cannot be read or decoded, with the reason.
    Broken(String),
}

/// Files without scores.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Number of files that are not images.
    pub not_images: usize,
    /// Index and reason of each broken image.
    pub broken: Vec<(usize, String)>,
}

/// The result of [`Engine::run`].
pub(crate) struct Classified<T> {
    /// Index of the image and what was made of its scores, in the order of the images.
    pub found: Vec<(usize, T)>,
    pub failures: Failures,
    pub elapsed: Duration,
}

impl Engine {
    /// Opens as many sessions as `imgcls tune` found best, or one per core.
    ///
    /// # Errors
    /// If the model cannot be loaded.
    pub(crate) fn open(choice: ModelChoice, limits: &Limits) -> anyhow::Result<Engine> {
        let TunedChoice { choice, tuning } = TunedChoice::read(choice);
        let threads = choice.intra_threads.unwrap_or(1).max(1);
        let count = tuning.map_or_else(|| (model::cores() / threads).max(1), |tuning| tuning.sessions.max(1));
        let package = ModelPackage::load(&choice)?;
        let sessions = (0..count).map(|_| Session::open(&package, &choice)).collect::<anyhow::Result<Vec<_>>>()?;
        tracing::debug!(model = package.summary(), sessions = count, "model loaded");
        Ok(Engine { package, sessions, limits: *limits })
    }

    /// Classifies every image. `make` gets the index of the image, its bytes and its scores, and runs on the thread of
    /// the session, so that only what it returns is kept. `name` begins the lines of progress.
    ///
    /// # Errors
    /// If the model fails. An image that cannot be read or decoded is no error.
    pub(crate) fn run<T: Send>(
        &mut self,
        name: &str,
        images: &[LabelledImage],
        make: impl Fn(usize, &[u8], Vec<f32>) -> T + Sync,
    ) -> anyhow::Result<Classified<T>> {
        let begun = Instant::now();
        let Engine { package, sessions, limits } = self;
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let fault = Mutex::new(None);
        let (sender, receiver) = sync_channel(2 * sessions.len());
        let mut answers: Vec<(usize, Result<T, Failure>)> = Vec::with_capacity(images.len());
        std::thread::scope(|scope| {
            for session in sessions.iter_mut() {
                let sender: SyncSender<(usize, Result<T, Failure>)> = sender.clone();
                let (next, stopped, fault, make, package, limits) =
                    (&next, &stopped, &fault, &make, &*package, &*limits);
                scope.spawn(move || {
                    while !stopped.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(image) = images.get(index) else { break };
                        match classify(&image.path, package, limits, session) {
                            Ok(Ok((bytes, scores))) => {
                                let made = make(index, &bytes, scores);
                                if sender.send((index, Ok(made))).is_err() {
                                    break;
                                }
                            }
                            Ok(Err(failure)) => {
                                if sender.send((index, Err(failure))).is_err() {
                                    break;
                                }
                            }
                            Err(error) => {
                                stopped.store(true, Ordering::Relaxed);
                                let mut fault = fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                                fault.get_or_insert(error);
                            }
                        }
                    }
                });
            }
            drop(sender);
            let mut progress = Progress::new(name, images.len());
            for answer in receiver {
                answers.push(answer);
                progress.advance(answers.len());
            }
        });
        if let Some(error) = fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        answers.sort_unstable_by_key(|(index, _)| *index);
        let mut classified = Classified { found: Vec::new(), failures: Failures::default(), elapsed: begun.elapsed() };
        for (index, answer) in answers {
            match answer {
                Ok(made) => classified.found.push((index, made)),
                Err(Failure::NotAnImage) => classified.failures.not_images += 1,
                Err(Failure::Broken(reason)) => classified.failures.broken.push((index, reason)),
            }
        }
        Ok(classified)
    }
}

type Scored = (Vec<u8>, Vec<f32>);

/// Reads, decodes and infers one file. The outer error is a fault of the model, the inner one is that of the image.
fn classify(
    path: &Path,
    package: &ModelPackage,
    limits: &Limits,
    session: &mut Session,
) -> anyhow::Result<Result<Scored, Failure>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(Failure::Broken(format!("cannot read the file: {error}")))),
    };
    if model::sniff(&bytes).is_none() && !model::has_image_extension(path) {
        return Ok(Err(Failure::NotAnImage));
    }
    let tensor = match model::prepare(&bytes, package, limits) {
        Ok(tensor) => tensor,
        Err(error) => return Ok(Err(Failure::Broken(error.message))),
    };
    let scores = session.infer(&[&tensor]).with_context(|| format!("the model fails on {}", path.display()))?;
    let scores = scores.into_iter().next().context("the model returned no scores")?;
    Ok(Ok((bytes, scores)))
}
