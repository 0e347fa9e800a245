//! `imgcls tune`: which variant, threads, sessions and batch size classify the most images a second on this machine;
//! workers that start later take what was found.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::config::Limits;
use crate::model::{self, ModelChoice, ModelPackage, Session, Tensor, Tuning};
use crate::telemetry::{self, output};

#[derive(Debug, Clone)]
pub struct Config {
    pub model: ModelChoice,
    /// For all measurements together; opening sessions comes on top, less than a second each.
    pub duration: Duration,
    pub json: bool,
}

/// What is classified: a photograph of the size that most are sent in.
const PHOTOGRAPH: &[u8] = include_bytes!("loadgen/samples/coffee.jpg");

const BATCH_SIZES: [usize; 3] = [2, 4, 8];

/// A faster setting has to be faster by this much: less is noise, and the first ones measured are the defaults.
const WORTH_IT: f64 = 1.03;

/// Measures, prints, and keeps what was found in the cache directory.
///
/// # Errors
/// Where there is no model to run, or what was found cannot be kept; it is printed all the same.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let begun = Instant::now();
    let cores = model::cores();
    let variants = match &config.model.variant {
        Some(variant) => vec![variant.clone()],
        None => ModelPackage::variants(&config.model)?,
    };
    let trials = measure(config, &first_round(&variants, cores))?;
    let found = find(&trials).context("nothing was measured; this is a bug")?;
    let kept = found.write(&config.model);
    let report = Report { cores, seconds: begun.elapsed().as_secs_f64(), trials, found, kept: kept.as_ref().ok() };
    let text = if config.json { report.json() } else { report.table() };
    output::print(&text).context("cannot print what was found")?;
    kept.map(drop).context("what was found is not kept")
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
    /// From the first image of a batch to the answers.
    batch_ms: f64,
}

/// Every variant with the cores shared out among sessions in every way; the first is what runs untuned.
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

/// The first round, then the best of it with batches.
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

/// Decodes and infers as the sessions of a worker do: each with a thread of its own, as fast as it can.
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
                    begin.wait(); // also where it failed: the others wait for this one
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
        threads.into_iter().map(|thread| thread.join().expect("no panic in a trial; this is a bug")).collect()
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

/// The first that no other beats by more than noise.
fn fastest<'a>(trials: impl Iterator<Item = &'a Trial>) -> Option<&'a Trial> {
    trials.reduce(|best, next| if next.images_per_second > best.images_per_second * WORTH_IT { next } else { best })
}

fn find(trials: &[Trial]) -> Option<Tuning> {
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
    /// The file; none where it could not be written.
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
        let mut text = serde_json::to_string(self).expect("strings and finite numbers; this is a bug");
        text.push('\n');
        text
    }

    fn table(&self) -> String {
        let mut text = String::from("variant   sessions  threads  batch  images/s  ms a batch\n");
        for Trial { setting, images_per_second, batch_ms } in &self.trials {
            let Setting { variant, intra_threads, sessions, batch_size } = setting;
            let mark = if self.is_found(setting) { "  ←" } else { "" };
            let _ = writeln!(
                text,
                "{variant:<8}  {sessions:>8}  {intra_threads:>7}  {batch_size:>5}  {images_per_second:>8.1}  \
                 {batch_ms:>10.2}{mark}"
            );
        }
        if let Some(path) = self.kept {
            let _ = writeln!(text, "kept in {}; workers that start from now on take it", path.display());
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
    fn every_variant_gets_the_cores_in_every_way() {
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
    fn noise_beats_nothing() {
        let trials = [trial("int8", 2, 1, 100.0), trial("int8", 1, 1, 102.0), trial("fp16", 2, 1, 50.0)];
        let found = find(&trials).unwrap();
        assert_eq!((found.variant.as_str(), found.sessions, found.max_batch_size), ("int8", 2, None));
        let trials = [trial("int8", 2, 1, 100.0), trial("int8", 2, 2, 110.0), trial("int8", 2, 4, 111.0)];
        assert_eq!(find(&trials).unwrap().max_batch_size, Some(2));
        assert!(find(&[]).is_none());
    }
}
