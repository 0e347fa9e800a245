//! `imgcls tune`: measures which variant, threads, sessions and batch size classify the most images per second on this
//! machine, and stores the result for workers that start later.
//!
//! `quiet` refuses a machine that others use. `agreement` compares the answers of the variants. `trial` measures one
//! setting. `report` prints everything.

mod agreement;
mod quiet;
mod report;
mod trial;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use self::quiet::Others;
use self::report::Report;
use self::trial::{Setting, Trial};
use crate::model::{self, BATCH_SIZES, BatchTime, ModelChoice, ModelPackage, Tuning};
use crate::telemetry::{self, output};

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model to measure.
    pub model: ModelChoice,
    /// Duration of all measurements together. Opening a session takes less than a second more for each.
    pub duration: Duration,
    /// A folder of images on which the answers of the variants are compared. `None` means the built-in samples.
    pub images: Option<PathBuf>,
    /// Measures even if other processes use this machine.
    pub busy_ok: bool,
    /// Prints JSON instead of a table.
    pub json: bool,
}

/// The minimum speedup over an earlier setting. Less is noise, and the first settings are the defaults.
const MIN_SPEEDUP: f64 = 1.03;

/// Measures, prints the result and stores it in the cache directory.
///
/// # Errors
/// If other processes use the machine, the model cannot be loaded, or the result cannot be stored. It is printed even if
/// it cannot be stored.
pub fn run(config: &Config) -> anyhow::Result<()> {
    quiet::check(config.busy_ok)?;
    let begun = Instant::now();
    let (cores, others) = (model::cores(), Others::begin());
    let variants = match &config.model.variant {
        Some(variant) => vec![variant.clone()],
        None => ModelPackage::variants(&config.model)?,
    };
    let agreement = agreement::compare(&config.model, &variants, config.images.as_deref())?;
    // A variant that is named is used, whatever it answers.
    let is_allowed = |variant: &str| config.model.variant.is_some() || agreement.agrees(variant);
    let trials = measure(config, &first_round(&variants, cores), is_allowed)?;
    let found = fastest_tuning(&trials, is_allowed).context("no setting was measured; this is a bug")?;
    let kept = found.write(&config.model);
    let report = Report {
        cores,
        seconds: begun.elapsed().as_secs_f64(),
        others_cpu_share: others.share(),
        left_out: variants.iter().filter(|variant| !is_allowed(variant)).cloned().collect(),
        agreement,
        trials,
        found,
        kept: kept.as_ref().ok(),
    };
    let text = if config.json { report.json() } else { report.table() };
    output::print(&text).context("cannot print the result")?;
    kept.map(drop).context("cannot store the result")
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
fn measure(config: &Config, first_round: &[Setting], is_allowed: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Trial>> {
    let batch_sizes = BATCH_SIZES.into_iter().filter(|size| *size > 1);
    let count = first_round.len() + batch_sizes.clone().count();
    let duration = config.duration / count as u32;
    let mut trials: Vec<Trial> = Vec::with_capacity(count);
    let measure = |setting: Setting, trials: &mut Vec<Trial>| {
        let trial = trial::measure(&config.model, setting, duration)?;
        telemetry::stderr_line(&format!("tune: {} of {count}: {}", trials.len() + 1, trial.line()));
        trials.push(trial);
        anyhow::Ok(())
    };
    for setting in first_round {
        measure(setting.clone(), &mut trials)?;
    }
    if let Some(fastest) = fastest(&trials, is_allowed).map(|trial| trial.setting.clone()) {
        for batch_size in batch_sizes {
            measure(Setting { batch_size, ..fastest.clone() }, &mut trials)?;
        }
    }
    Ok(trials)
}

/// The first trial without batches that no later one beats by [`MIN_SPEEDUP`].
fn fastest(trials: &[Trial], is_allowed: impl Fn(&str) -> bool) -> Option<&Trial> {
    let single = trials.iter().filter(|trial| trial.setting.batch_size == 1 && is_allowed(&trial.setting.variant));
    single.reduce(|best, next| if next.images_per_second > best.images_per_second * MIN_SPEEDUP { next } else { best })
}

fn fastest_tuning(trials: &[Trial], is_allowed: impl Fn(&str) -> bool) -> Option<Tuning> {
    let single = fastest(trials, is_allowed)?;
    let is_of_same = |trial: &&Trial| Setting { batch_size: 1, ..trial.setting.clone() } == single.setting;
    let batches: Vec<BatchTime> =
        trials.iter().filter(is_of_same).map(|trial| trial.batch_time(single.batch_ms)).collect();
    let worthwhile = model::worthwhile_batch_size(batches.iter().map(|time| (time.size, time.gain)));
    let Setting { variant, intra_threads, sessions, .. } = single.setting.clone();
    Some(Tuning { variant, intra_threads, sessions, max_batch_size: (worthwhile > 1).then_some(worthwhile), batches })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(variant: &str, sessions: usize, batch_size: usize, images_per_second: f64) -> Trial {
        let setting = Setting { variant: variant.to_owned(), intra_threads: 2 / sessions, sessions, batch_size };
        let batch_ms = 1e3 * (sessions * batch_size) as f64 / images_per_second;
        Trial { setting, images_per_second, batch_ms, infer_ms: batch_ms / 2.0 }
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
        let found = fastest_tuning(&trials, |_| true).unwrap();
        assert_eq!((found.variant.as_str(), found.sessions, found.max_batch_size), ("int8", 2, None));
        assert!(fastest_tuning(&[], |_| true).is_none());
    }

    #[test]
    fn batch_is_chosen_only_if_it_saves_a_twentieth_and_its_gain_is_recorded() {
        let rates = |two: f64, four: f64| [trial("a", 2, 1, 100.0), trial("a", 2, 2, two), trial("a", 2, 4, four)];
        assert_eq!(fastest_tuning(&rates(103.0, 104.0), |_| true).unwrap().max_batch_size, None);
        let found = fastest_tuning(&rates(110.0, 111.0), |_| true).unwrap();
        assert_eq!(found.max_batch_size, Some(2));
        let gains: Vec<(usize, f64)> = found.batches.iter().map(|time| (time.size, time.gain)).collect();
        assert!(matches!(gains[..], [(1, 0.0), (2, two), (4, _)] if (0.08..0.10).contains(&two)), "{gains:?}");
    }

    #[test]
    fn variant_that_disagrees_is_not_chosen_however_fast() {
        let trials = [trial("int8", 2, 1, 200.0), trial("fp16", 2, 1, 100.0), trial("fp16", 2, 2, 120.0)];
        let found = fastest_tuning(&trials, |variant| variant != "int8").unwrap();
        assert_eq!((found.variant.as_str(), found.max_batch_size, found.batches.len()), ("fp16", Some(2), 2));
    }
}
