//! `imgcls tune`: measures which variant, threads, sessions and batch size classify the most images per second on this
//! machine, and stores the result for workers that start later.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::config::Limits;
use crate::model::{self, ModelChoice, ModelPackage, Session, Tensor, Tuning};
use crate::telemetry::{self, output};

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model to measure.
    pub model: ModelChoice,
    /// Duration of all measurements together. Opening a session takes less than a second more for each.
    pub duration: Duration,
    /// Prints JSON instead of a table.
    pub json: bool,
}

/// The image that is classified: a photograph of a common size.
const PHOTOGRAPH: &[u8] = include_bytes!("loadgen/samples/coffee.jpg");

const BATCH_SIZES: [usize; 3] = [2, 4, 8];

/// The minimum speedup over an earlier setting. Less is noise, and the first settings are the defaults.
const MIN_SPEEDUP: f64 = 1.03;

/// Measures, prints the result and stores it in the cache directory.
///
/// # Errors
/// If the model cannot be loaded, or the result cannot be stored. It is printed even if it cannot be stored.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    let cores = model::cores();
    let variants = match &config.model.variant {
        Some(variant) => vec![variant.clone()],
        None => ModelPackage::variants(&config.model)?,
    };
    let trials = measure(config, &first_round(&variants, cores))?;
    let found = fastest_tuning(&trials).context("at least one setting is measured; this is a bug")?;
    let kept = found.write(&config.model);
    let report = Report { cores, seconds: begun.elapsed().as_secs_f64(), trials, found, kept: kept.as_ref().ok() };
    let text = if config.json { report.json() } else { report.table() };
    output::print(&text).context("cannot print the result")?;
    kept.map(drop).context("cannot store the result")
}

/// One way to run the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Setting {
    variant: String,
    intra_threads: usize,
    sessions: usize,
    batch_size: usize,
}

#[derive(Debug, Clone, Serialize)]
struct Trial {
    #[serde(flatten)]
    setting: Setting,
    images_per_second: f64,
    /// Time to decode and infer one batch.
    batch_ms: f64,
}

/// Every variant with every division of the cores among sessions. The first setting is the default.
fn first_round(variants: &[String], cores: usize) -> Vec<Setting> {
    let threads = std::iter::successors(Some(1), |threads| Some(threads * 2)).take_while(|threads| *threads <= cores);
    let setting = |variant: &String, intra_threads: usize| Setting {
        variant: variant.clone(),
        intra_threads,
        sessions: cores / intra_threads,
        batch_size: 1,
    };
    variants.iter().flat_map(|variant| threads.clone().map(move |threads| setting(variant, threads))).collect()
}

/// Measures the first round, then its fastest setting with batches.
fn measure(config: &Config, first_round: &[Setting]) -> anyhow::Result<Vec<Trial>> {
    let count = first_round.len() + BATCH_SIZES.len();
    let duration = config.duration / count as u32;
    let mut trials: Vec<Trial> = Vec::with_capacity(count);
    let measure = |setting: Setting, trials: &mut Vec<Trial>| {
        let trial = trial(&config.model, setting, duration)?;
        telemetry::stderr_line(&format!("tune: {} of {count}: {}", trials.len() + 1, trial.line()));
        trials.push(trial);
        anyhow::Ok(())
    };
    for setting in first_round {
        measure(setting.clone(), &mut trials)?;
    }
    let fastest = fastest(trials.iter()).map(|trial| trial.setting.clone());
    for batch_size in BATCH_SIZES {
        if let Some(fastest) = &fastest {
            measure(Setting { batch_size, ..fastest.clone() }, &mut trials)?;
        }
    }
    Ok(trials)
}

/// Measures one setting. Each session decodes and infers in its own thread, as in a worker.
fn trial(choice: &ModelChoice, setting: Setting, duration: Duration) -> anyhow::Result<Trial> {
    let choice = ModelChoice {
        variant: Some(setting.variant.clone()),
        intra_threads: Some(setting.intra_threads),
        ..choice.clone()
    };
    let package = ModelPackage::load(&choice)?;
    let mut sessions =
        (0..setting.sessions).map(|_| Session::open(&package, &choice)).collect::<anyhow::Result<Vec<_>>>()?;
    let begin = Barrier::new(sessions.len());
    let package = &package;
    let outcomes: Vec<anyhow::Result<(u32, Duration)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let begin = &begin;
                scope.spawn(move || -> anyhow::Result<(u32, Duration)> {
                    let warm = classify(session, package, setting.batch_size);
                    begin.wait(); // after a failure too, because the other threads wait for this one
                    warm?;
                    let begun = Instant::now();
                    let mut batches = 0;
                    while batches == 0 || begun.elapsed() < duration {
                        classify(session, package, setting.batch_size)?;
                        batches += 1;
                    }
                    Ok((batches, begun.elapsed()))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a trial does not panic; this is a bug")).collect()
    });
    let (mut images_per_second, mut batch_seconds) = (0.0, 0.0);
    for outcome in outcomes {
        let (batches, elapsed) = outcome?;
        let seconds = elapsed.as_secs_f64() / f64::from(batches);
        images_per_second += setting.batch_size as f64 / seconds;
        batch_seconds += seconds / setting.sessions as f64;
    }
    Ok(Trial { setting, images_per_second, batch_ms: batch_seconds * 1e3 })
}

fn classify(session: &mut Session, package: &ModelPackage, batch_size: usize) -> anyhow::Result<()> {
    let limits = Limits::default();
    let tensors =
        (0..batch_size).map(|_| model::prepare(PHOTOGRAPH, package, &limits)).collect::<Result<Vec<Tensor>, _>>()?;
    session.infer(&tensors.iter().collect::<Vec<_>>())?;
    Ok(())
}

/// The first trial that no later one beats by [`MIN_SPEEDUP`].
fn fastest<'a>(trials: impl Iterator<Item = &'a Trial>) -> Option<&'a Trial> {
    trials.reduce(|best, next| if next.images_per_second > best.images_per_second * MIN_SPEEDUP { next } else { best })
}

fn fastest_tuning(trials: &[Trial]) -> Option<Tuning> {
    let Setting { variant, intra_threads, sessions, batch_size } = fastest(trials.iter())?.setting.clone();
    let max_batch_size = (batch_size > 1).then_some(batch_size);
    Some(Tuning { variant, intra_threads, sessions, max_batch_size })
}

#[derive(Serialize)]
struct Report<'a> {
    cores: usize,
    seconds: f64,
    trials: Vec<Trial>,
    found: Tuning,
    /// The file with the result. `None` if it could not be written.
    kept: Option<&'a PathBuf>,
}

impl Trial {
    fn line(&self) -> String {
        let Setting { variant, intra_threads, sessions, batch_size } = &self.setting;
        format!(
            "{variant}, {sessions} × {intra_threads} threads, batches of {batch_size}: {:.1} images/s",
            self.images_per_second
        )
    }
}

impl Report<'_> {
    fn json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("strings and finite numbers serialise; this is a bug");
        text.push('\n');
        text
    }

    fn table(&self) -> String {
        let mut text = String::from("variant   sessions  threads  batch  images/s  ms/batch\n");
        for Trial { setting, images_per_second, batch_ms } in &self.trials {
            let Setting { variant, intra_threads, sessions, batch_size } = setting;
            let mark = if self.is_found(setting) { "  ←" } else { "" };
            let _ = writeln!(
                text,
                "{variant:<8}  {sessions:>8}  {intra_threads:>7}  {batch_size:>5}  {images_per_second:>8.1}  \
                 {batch_ms:>8.2}{mark}"
            );
        }
        if let Some(path) = self.kept {
            let _ = writeln!(text, "stored in {}; workers that start from now on use it", path.display());
        }
        text
    }

    fn is_found(&self, setting: &Setting) -> bool {
        let Tuning { variant, intra_threads, sessions, max_batch_size } = &self.found;
        (variant, intra_threads, sessions, max_batch_size.unwrap_or(1))
            == (&setting.variant, &setting.intra_threads, &setting.sessions, setting.batch_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(variant: &str, sessions: usize, batch_size: usize, images_per_second: f64) -> Trial {
        let setting = Setting { variant: variant.to_owned(), intra_threads: 2 / sessions, sessions, batch_size };
        Trial { setting, images_per_second, batch_ms: 1.0 }
    }

    #[test]
    fn first_round_divides_the_cores_in_every_way_for_every_variant() {
        let names = ["int8".to_owned(), "fp16".to_owned()];
        let shares = |cores| -> Vec<(String, usize, usize)> {
            let settings = first_round(&names, cores).into_iter();
            settings.map(|setting| (setting.variant, setting.sessions, setting.intra_threads)).collect()
        };
        let expected = [("int8", 6, 1), ("int8", 3, 2), ("int8", 1, 4), ("fp16", 6, 1), ("fp16", 3, 2), ("fp16", 1, 4)];
        assert_eq!(shares(6), expected.map(|(variant, sessions, threads)| (variant.to_owned(), sessions, threads)));
        assert_eq!(shares(1).len(), 2);
    }

    #[test]
    fn setting_that_is_faster_by_noise_is_not_chosen() {
        let trials = [trial("int8", 2, 1, 100.0), trial("int8", 1, 1, 102.0), trial("fp16", 2, 1, 50.0)];
        let found = fastest_tuning(&trials).unwrap();
        assert_eq!((found.variant.as_str(), found.sessions, found.max_batch_size), ("int8", 2, None));
        let trials = [trial("int8", 2, 1, 100.0), trial("int8", 2, 2, 110.0), trial("int8", 2, 4, 111.0)];
        assert_eq!(fastest_tuning(&trials).unwrap().max_batch_size, Some(2));
        assert!(fastest_tuning(&[]).is_none());
    }
}
