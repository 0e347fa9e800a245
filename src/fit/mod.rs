//! `imgcls model fit`: makes a model of own classes from a folder of images per class.
//!
//! A base network, whose weights stay as they are, turns each image into features. A linear head on them is trained in
//! this process, and written with the base into a package like any other.
//!
//! - `base`: the package of the base, and packages made from it; `graph`: its graph, cut before the last linear layer
//! - `samples`: which images are trained on and which are held out
//! - `head`: the training; `lbfgs`: its optimiser
//! - `report`: the result as text and JSON

mod base;
mod graph;
mod head;
mod lbfgs;
mod report;
mod samples;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use toml::Table;

use self::base::{Base, CutVariant, choice_of};
use self::head::{Head, Samples};
use self::report::{Report, VariantReport};
use self::samples::{Distinct, Sample, Split};
use crate::dataset::{self, Confusion, Dataset, Engine, Failures, LabelledImage};
use crate::model::{self, Library, Limits, ModelChoice, Pointer, Reference, Staging};
use crate::telemetry::output;

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// A folder with one folder of images per class, or a CSV table.
    pub data: PathBuf,
    /// The base network.
    pub base: ModelChoice,
    /// The name of the new model.
    pub name: String,
    /// The models directory.
    pub models_dir: PathBuf,
    /// Limits on the cost of one image.
    pub limits: Limits,
    /// Chooses the images that are held out.
    pub seed: u64,
    /// Prints JSON instead of text.
    pub json: bool,
}

/// Each variant must agree with the head on this share of the images with which it is checked.
const MIN_AGREEMENT: f64 = 0.95;
const MAX_CHECKED: usize = 100;

/// Trains a head on the images, installs the package, and prints the report on standard output.
///
/// # Errors
/// If the images or the base cannot be read, there are too few classes or images, the base has no features that a head
/// could read, or the package cannot be written.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let reference = Reference::parse(&config.name)?;
    ensure!(reference.version.is_none(), "--name takes a name without a version: the version follows from the content");
    let data = dataset::read(&config.data)?;
    samples::check_counts(&data.classes, &data.images_per_class())?;
    let base = Base::read(&config.base)?;
    let library = Library::new(&config.models_dir);

    let cut = base.cut(&base.variant)?;
    check_memory(data.images.len(), data.classes.len(), cut.trunk.width, model::default_model_bytes(1))?;
    let extracted = extract(config, &base, &cut, &data, &library)?;
    samples::check_counts(&data.classes, &counts(&extracted.distinct.samples, data.classes.len()))
        .with_context(|| extracted.left_out())?;
    let trained = train(&extracted.distinct.samples, data.classes.len(), config.seed);

    let provenance = provenance(config, &base, &extracted, &trained);
    let mut variants = vec![cut];
    for name in base.variants.iter().filter(|name| **name != base.variant) {
        match base.cut(name) {
            Ok(variant) => variants.push(variant),
            Err(error) => tracing::warn!("variant {name} is left out: {error:#}"),
        }
    }
    let write = |variants: &[CutVariant]| -> anyhow::Result<(Staging, String)> {
        let staging = library.stage()?;
        let folder = staging.path();
        let version =
            base.write_package(folder, &config.name, &data.classes, variants, &trained.head, provenance.clone())?;
        Ok((staging, version))
    };
    let (mut staging, mut version) = write(&variants)?;
    let checked = check_variants(config, staging.path(), &variants, &data, &extracted.distinct.samples, &trained.head)?;
    if checked.iter().any(|variant| !variant.is_kept) {
        variants.retain(|variant| checked.iter().any(|checked| checked.name == variant.name && checked.is_kept));
        (staging, version) = write(&variants)?;
    }
    let package = library.install(staging, &config.name, &version, Pointer::Move)?;
    let report = Report::new(config, &data, &base, &extracted, &trained, checked, &version, &package);
    let text = if config.json { report.to_json() } else { report.to_text() };
    output::print(&text).context("cannot print the report")
}

/// Refuses a training that needs more than `available` bytes, before hours are spent on the features of the images.
fn check_memory(images: usize, classes: usize, width: usize, available: u64) -> anyhow::Result<()> {
    let product = |factors: [usize; 3]| factors.into_iter().fold(1_u64, |all, one| all.saturating_mul(one as u64));
    // The features as they are and scaled, in single precision, and vectors of weights in double precision.
    let needed = product([images, width, 8]).saturating_add(product([classes * head::VECTORS, width + 1, 8]));
    ensure!(
        needed <= available,
        "the training of {classes} classes on {width} features of {images} images takes {} MB of memory, and {} MB may be used \
         here; give fewer images, or a base with fewer features",
        needed / 1_000_000,
        available / 1_000_000
    );
    Ok(())
}

/// The features of all images.
struct Extracted {
    distinct: Distinct,
    failures: Failures,
    width: usize,
    seconds: f64,
}

impl Extracted {
    /// The files that are missing, for the error about too few images.
    fn left_out(&self) -> String {
        format!(
            "{} broken images, {} copies and {} images that are in two classes are left out",
            self.failures.broken.len(),
            self.distinct.copies,
            self.distinct.contradictions.len()
        )
    }
}

/// Runs the base on every image. The package for that lives in a folder that is deleted afterwards.
fn extract(
    config: &Config,
    base: &Base,
    cut: &CutVariant,
    data: &Dataset,
    library: &Library,
) -> anyhow::Result<Extracted> {
    let begun = Instant::now();
    let staging = library.stage()?;
    base.write_feature_package(staging.path(), cut)?;
    // The graph is used once, so it is not cached.
    let choice = ModelChoice { cache_dir: None, ..choice_of(staging.path(), &cut.name, &config.base)? };
    let mut engine = Engine::open(choice, &config.limits)?;
    let classified = engine.run("fit", &data.images, |image, bytes, features| Sample {
        image,
        class: data.images[image].class,
        digest: samples::digest(bytes),
        features,
    })?;
    let samples: Vec<Sample> = classified.found.into_iter().map(|(_, sample)| sample).collect();
    if samples.is_empty() {
        match classified.failures.broken.first() {
            Some((image, reason)) => {
                bail!("no image can be decoded; the first is {}: {reason}", data.images[*image].path.display())
            }
            None => bail!("none of the {} files is an image", data.images.len()),
        }
    }
    Ok(Extracted {
        distinct: samples::distinct(samples),
        failures: classified.failures,
        width: cut.trunk.width,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The head, and how good one that was trained without the held-out images is on these.
struct Trained {
    head: Head,
    split: Split,
    /// Actual and predicted classes of the held-out images.
    held_out: Confusion,
    seconds: f64,
}

/// Trains two heads: one on four fifths of the images, which is tested on the held-out fifth, and then the one that is
/// kept, on all of them.
fn train(samples: &[Sample], class_count: usize, seed: u64) -> Trained {
    let begun = Instant::now();
    let split = samples::split(samples, class_count, seed);
    let tested = train_on(samples, &split.training, class_count);
    let mut held_out = Confusion::default();
    for index in &split.held_out {
        let sample = &samples[*index];
        held_out.record(sample.class as u32, tested.predict(&sample.features) as u32);
    }
    let all: Vec<usize> = (0..samples.len()).collect();
    let head = train_on(samples, &all, class_count);
    Trained { head, split, held_out, seconds: begun.elapsed().as_secs_f64() }
}

fn train_on(samples: &[Sample], indexes: &[usize], class_count: usize) -> Head {
    let rows: Vec<&[f32]> = indexes.iter().map(|index| samples[*index].features.as_slice()).collect();
    let classes: Vec<usize> = indexes.iter().map(|index| samples[*index].class).collect();
    Head::train(Samples { rows: &rows, classes: &classes, class_count }, model::cores())
}

/// Classifies some images with every variant of the package, and compares the answers with those of the head.
///
/// # Errors
/// If the variant that the head was trained with does not agree with it.
fn check_variants(
    config: &Config,
    package: &Path,
    variants: &[CutVariant],
    data: &Dataset,
    samples: &[Sample],
    head: &Head,
) -> anyhow::Result<Vec<VariantReport>> {
    let step = samples.len().div_ceil(MAX_CHECKED).max(1);
    let checked: Vec<&Sample> = samples.iter().step_by(step).collect();
    let images: Vec<LabelledImage> = checked.iter().map(|sample| data.images[sample.image].clone()).collect();
    let mut reports = Vec::new();
    for (index, variant) in variants.iter().enumerate() {
        let mut engine = Engine::open(choice_of(package, &variant.name, &config.base)?, &config.limits)?;
        let answers = engine.run("fit", &images, |image, _, scores| {
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)));
            best == Some(head.predict(&checked[image].features))
        })?;
        let equal = answers.found.iter().filter(|(_, is_equal)| *is_equal).count();
        let agreement = equal as f64 / images.len().max(1) as f64;
        let is_kept = agreement >= MIN_AGREEMENT;
        ensure!(
            is_kept || index > 0,
            "the written model agrees with the trained head on {equal} of {} images only; this is a bug",
            images.len()
        );
        reports.push(VariantReport { name: variant.name.clone(), agreement, is_kept });
    }
    Ok(reports)
}

fn counts(samples: &[Sample], class_count: usize) -> Vec<usize> {
    let mut counts = vec![0; class_count];
    for sample in samples {
        counts[sample.class] += 1;
    }
    counts
}

/// How the model was made. It holds no time, so that the same images give the same file.
fn provenance(config: &Config, base: &Base, extracted: &Extracted, trained: &Trained) -> Table {
    let mut table = Table::new();
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let mut put = |key: &str, value: toml::Value| table.insert(key.to_owned(), value);
    put("base", base.model.name.clone().into());
    put("base_version", base.model.version.clone().into());
    put("base_digest", base.model.digest.clone().into());
    put("base_variant", base.variant.clone().into());
    put("seed", i64::try_from(config.seed).unwrap_or(i64::MAX).into());
    put("images", whole(extracted.distinct.samples.len()).into());
    put("held_out_images", whole(trained.split.held_out.len()).into());
    if let Some(accuracy) = trained.held_out.accuracy() {
        put("held_out_top1", accuracy.into());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_that_does_not_fit_into_memory_is_refused() {
        assert!(check_memory(1_000, 10, 1_280, 256 << 20).is_ok());
        for (images, classes, width) in
            [(100_000, 10, 62_720), (1_000, 100_000, 2_048), (usize::MAX, 2, usize::MAX - 1)]
        {
            let error = check_memory(images, classes, width, 8 << 30).unwrap_err().to_string();
            assert!(error.contains("fewer images") && !error.contains('\n'), "{error}");
        }
    }
}
