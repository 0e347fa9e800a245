//! The result, as JSON for programs or as text for people.

use std::fmt::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use super::base::Base;
use super::{Config, Extracted, Trained};
use crate::dataset::{ClassMeasures, Dataset};
use crate::model::ModelRef;

/// A confusion matrix of more classes does not fit on a screen.
const MAX_MATRIX_CLASSES: usize = 12;
const SHOWN: usize = 10;
const NAME_WIDTH: usize = 20;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: String,
    version: String,
    package: String,
    base: ModelRef,
    /// The variant of the base whose features the head was trained on.
    base_variant: String,
    features: usize,
    seed: u64,
    data: String,
    /// Number of images that the saved head was trained on.
    images: usize,
    held_out: HeldOut,
    variants: Vec<VariantReport>,
    converged: bool,
    seconds_features: f64,
    seconds_training: f64,
    loose_files: usize,
    not_images: usize,
    copies: usize,
    contradictions: Vec<[String; 2]>,
    broken: Vec<BrokenImage>,
}

/// The test of a head that was trained on the other images.
#[derive(Debug, Serialize)]
struct HeldOut {
    images: u64,
    accuracy: Option<f64>,
    /// The 95 % confidence interval of the accuracy.
    interval: Option<[f64; 2]>,
    macro_f1: Option<f64>,
    classes: Vec<ClassReport>,
    /// A row per actual and a column per predicted class, in the order of `classes`.
    confusion: Vec<Vec<u64>>,
}

#[derive(Debug, Serialize)]
struct ClassReport {
    label: String,
    #[serde(flatten)]
    measures: ClassMeasures,
}

/// A variant of the new package.
#[derive(Debug, Serialize)]
pub(super) struct VariantReport {
    pub name: String,
    /// The share of the checked images for which it answers as the trained head does.
    pub agreement: f64,
    /// False if it agrees too rarely, and is not in the package.
    pub is_kept: bool,
}

#[derive(Debug, Serialize)]
struct BrokenImage {
    file: String,
    reason: String,
}

impl Report {
    #[allow(clippy::too_many_arguments, reason = "each is another result of one step")]
    pub(super) fn new(
        config: &Config,
        data: &Dataset,
        base: &Base,
        extracted: &Extracted,
        trained: &Trained,
        variants: Vec<VariantReport>,
        version: &str,
        package: &Path,
    ) -> Report {
        let file = |image: usize| data.images[image].path.display().to_string();
        let broken = extracted.failures.broken.iter();
        Report {
            name: config.name.clone(),
            version: version.to_owned(),
            package: package.display().to_string(),
            base: base.model.clone(),
            base_variant: base.variant.clone(),
            features: extracted.width,
            seed: config.seed,
            data: config.data.display().to_string(),
            images: extracted.distinct.samples.len(),
            held_out: HeldOut::new(data, trained),
            variants,
            converged: trained.head.has_converged,
            seconds_features: extracted.seconds,
            seconds_training: trained.seconds,
            loose_files: data.loose_files,
            not_images: extracted.failures.not_images,
            copies: extracted.distinct.copies,
            contradictions: extracted.distinct.contradictions.iter().map(|(a, b)| [file(*a), file(*b)]).collect(),
            broken: broken.map(|(image, reason)| BrokenImage { file: file(*image), reason: reason.clone() }).collect(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and finite numbers; this is a bug") + "\n"
    }

    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("writing to a String cannot fail; this is a bug");
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Report { name, version, base, base_variant, features, images, .. } = self;
        let classes = self.held_out.classes.len();
        writeln!(out, "{images} images of {classes} classes in {}", self.data)?;
        self.write_left_out(out)?;
        writeln!(
            out,
            "{features} features of {} {} ({base_variant}) in {:.1} s",
            base.name, base.version, self.seconds_features
        )?;
        writeln!(out, "two heads trained in {:.1} s", self.seconds_training)?;
        if !self.converged {
            writeln!(out, "the training stopped at its limit of steps; the head is usable and not quite the best")?;
        }
        let held_out = &self.held_out;
        writeln!(
            out,
            "\nOf {} images that were held out (seed {}), a head that was trained on the other {} has {} right{}.",
            held_out.images,
            self.seed,
            self.images as u64 - held_out.images,
            percent(held_out.accuracy),
            held_out.interval.map_or_else(String::new, |[low, high]| {
                format!(" (95 % interval: {} to {})", percent(Some(low)), percent(Some(high)))
            })
        )?;
        writeln!(out, "The saved head was trained on all {images}.")?;
        held_out.write(out)?;
        writeln!(out, "\nvariants")?;
        for variant in &self.variants {
            let verdict = if variant.is_kept { "" } else { "; left out" };
            writeln!(
                out,
                "  {:<8} agrees with the trained head on {}{verdict}",
                variant.name,
                percent(Some(variant.agreement))
            )?;
        }
        writeln!(out, "\nmodel {name} {version} in {}", self.package)?;
        writeln!(out, "Classify with it: imgcls classify --model {name} FILE")
    }

    fn write_left_out(&self, out: &mut String) -> fmt::Result {
        for (count, reason) in [
            (self.loose_files, "files directly in the folder belong to no class"),
            (self.not_images, "files are no image"),
            (self.copies, "files are copies of another one of their class"),
        ] {
            if count > 0 {
                writeln!(out, "left out: {count} {reason}")?;
            }
        }
        for [one, other] in self.contradictions.iter().take(SHOWN) {
            writeln!(out, "left out: {one} and {other} are the same image in two classes")?;
        }
        for broken in self.broken.iter().take(SHOWN) {
            writeln!(out, "left out: {}: {}", broken.file, broken.reason)?;
        }
        let more = self.contradictions.len().saturating_sub(SHOWN) + self.broken.len().saturating_sub(SHOWN);
        if more > 0 {
            writeln!(out, "left out: {more} more images, which --json lists")?;
        }
        Ok(())
    }
}

impl HeldOut {
    fn new(data: &Dataset, trained: &Trained) -> HeldOut {
        let confusion = &trained.held_out;
        let label = |class: u32| data.classes[class as usize].clone();
        // Every class has an image that is held out, so the matrix has a row and a column for each.
        HeldOut {
            images: confusion.images(),
            accuracy: confusion.accuracy(),
            interval: confusion.accuracy_interval(),
            macro_f1: confusion.macro_f1(),
            classes: confusion
                .classes()
                .into_iter()
                .map(|measures| ClassReport { label: label(measures.class_index), measures })
                .collect(),
            confusion: confusion.matrix().counts,
        }
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        if self.classes.len() <= MAX_MATRIX_CLASSES {
            return self.write_matrix(out);
        }
        writeln!(out, "\n{:<NAME_WIDTH$}  images  precision  recall", "classes with the lowest recall")?;
        let mut classes: Vec<&ClassReport> = self.classes.iter().collect();
        classes.sort_by(|a, b| a.measures.recall.total_cmp(&b.measures.recall));
        for ClassReport { label, measures } in classes.into_iter().take(SHOWN) {
            let (precision, recall) = (percent(Some(measures.precision)), percent(Some(measures.recall)));
            writeln!(out, "{:<30}  {:>6}  {precision:>9}  {recall:>6}", cut(label, 30), measures.images)?;
        }
        Ok(())
    }

    /// A row per actual and a column per predicted class.
    fn write_matrix(&self, out: &mut String) -> fmt::Result {
        const COLUMN: usize = 9;
        let head: String =
            self.classes.iter().map(|class| format!("  {:>COLUMN$}", cut(&class.label, COLUMN))).collect();
        writeln!(out, "\n{:<NAME_WIDTH$}{head}", "actual, predicted:")?;
        for (class, counts) in self.classes.iter().zip(&self.confusion) {
            let cells: String = counts.iter().map(|count| format!("  {count:>COLUMN$}")).collect();
            writeln!(out, "{:<NAME_WIDTH$}{cells}", cut(&class.label, NAME_WIDTH))?;
        }
        Ok(())
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width - 1).chain(['…']).collect() }
}
