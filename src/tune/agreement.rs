//! How often the variants of a model answer as its most accurate one does. Speed that costs answers is not chosen.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::model::{self, Limits, ModelChoice, ModelPackage, Session};
use crate::telemetry;

/// A variant whose first class differs more often is chosen only by name.
pub(super) const LEAST: f64 = 0.95;

/// Photographs of several kinds.
const SAMPLES: [&[u8]; 6] = [
    include_bytes!("../loadgen/samples/astronaut.jpg"),
    include_bytes!("../loadgen/samples/camera.jpg"),
    include_bytes!("../loadgen/samples/chelsea.jpg"),
    include_bytes!("../loadgen/samples/clock_motion.jpg"),
    include_bytes!("../loadgen/samples/coffee.jpg"),
    include_bytes!("../loadgen/samples/rocket.jpg"),
];

/// How often the variants agree with the reference.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Agreement {
    /// The variant that the others are compared with.
    pub reference: String,
    /// Images on which they were compared.
    pub images: usize,
    pub variants: Vec<Compared>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Compared {
    pub variant: String,
    /// The share of the images for which the first class is that of the reference.
    pub agreement: f64,
}

impl Agreement {
    /// Returns false for a variant whose answers differ too often from those of the reference.
    pub(super) fn agrees(&self, variant: &str) -> bool {
        self.share(variant).is_none_or(|share| share >= LEAST)
    }

    /// The share of a variant. `None` for the reference and for variants that were not compared.
    pub(super) fn share(&self, variant: &str) -> Option<f64> {
        self.variants.iter().find(|compared| compared.variant == variant).map(|compared| compared.agreement)
    }
}

/// Compares the first classes of the variants with those of the reference.
///
/// # Errors
/// If a variant cannot be run, or the folder has no image.
pub(super) fn compare(choice: &ModelChoice, variants: &[String], folder: Option<&Path>) -> anyhow::Result<Agreement> {
    let reference = model::reference_variant(&ModelChoice { variant: None, ..choice.clone() })?;
    let others: Vec<&String> = variants.iter().filter(|variant| **variant != reference).collect();
    let images = match folder {
        Some(folder) => read_folder(folder)?,
        None => SAMPLES.iter().map(|sample| sample.to_vec()).collect(),
    };
    let mut agreement = Agreement { reference, images: 0, variants: Vec::new() };
    if others.is_empty() {
        return Ok(agreement);
    }
    let expected = first_classes(choice, &agreement.reference, &images)?;
    agreement.images = expected.iter().flatten().count();
    ensure!(agreement.images > 0, "none of the {} images can be decoded; give other --images", images.len());
    for variant in others {
        let found = first_classes(choice, variant, &images)?;
        let equal = expected.iter().zip(&found).filter(|(expected, found)| expected.is_some() && expected == found);
        let share = equal.count() as f64 / agreement.images as f64;
        telemetry::stderr_line(&format!(
            "tune: {variant} agrees with {} on {:.1} % of {} images",
            agreement.reference,
            share * 100.0,
            agreement.images
        ));
        agreement.variants.push(Compared { variant: variant.clone(), agreement: share });
    }
    Ok(agreement)
}

/// The first class of each image, or `None` for one that cannot be decoded.
fn first_classes(choice: &ModelChoice, variant: &str, images: &[Vec<u8>]) -> anyhow::Result<Vec<Option<u32>>> {
    let choice = ModelChoice { variant: Some(variant.to_owned()), ..choice.clone() };
    let package = ModelPackage::load(&choice)?;
    let mut session = Session::open(&package, &choice)?;
    let limits = Limits::default();
    images
        .iter()
        .map(|image| {
            let Ok(tensor) = model::prepare(image, &package, &limits) else { return Ok(None) };
            let rows = session.infer(&[&tensor])?;
            let row = rows.first().context("the model returned no answer for an image")?;
            Ok(model::top_k(&package, row, 1).first().and_then(|best| best.class_index))
        })
        .collect()
}

fn read_folder(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read --images {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    let mut images = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if model::sniff(&bytes).is_some() {
            images.push(bytes);
        }
    }
    ensure!(!images.is_empty(), "--images {} has no image", folder.display());
    Ok(images)
}
