//! The figures of the report.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use crate::dataset::{ClassMeasures, Dataset};
use crate::eval::evaluation::Evaluation;
use crate::eval::mcnemar;
use crate::eval::threshold::{Metric, Threshold};
use crate::model::ModelRef;

/// A p-value below which a difference is called unlikely to be chance.
const SIGNIFICANT: f64 = 0.05;

#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub data: String,
    pub files: usize,
    pub classes: usize,
    /// Number of files that belong to no class.
    pub loose_files: usize,
    pub models: Vec<ModelFigures>,
    /// Only with two models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    pub thresholds: Vec<ThresholdResult>,
}

/// All measures are shares; `None` where they cannot be computed.
#[derive(Debug, Serialize)]
pub(super) struct ModelFigures {
    pub model: ModelRef,
    /// Number of classified images.
    pub images: u64,
    pub top1: Option<f64>,
    /// The 95 % confidence interval of `top1`.
    pub top1_interval: Option<[f64; 2]>,
    pub top5: Option<f64>,
    pub macro_f1: Option<f64>,
    /// The expected calibration error.
    pub ece: Option<f64>,
    pub images_per_second: f64,
    /// Number of classes of the model.
    pub model_classes: usize,
    /// The classes that have images.
    pub classes: Vec<ClassFigures>,
    /// The most frequent first.
    pub mistakes: Vec<Mistake>,
    pub not_images: usize,
    pub broken: Vec<BrokenImage>,
}

#[derive(Debug, Serialize)]
pub(super) struct ClassFigures {
    pub label: String,
    #[serde(flatten)]
    pub measures: ClassMeasures,
}

#[derive(Debug, Serialize)]
pub(super) struct Mistake {
    pub actual: String,
    pub predicted: String,
    pub images: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct BrokenImage {
    pub file: String,
    pub reason: String,
}

/// McNemar's exact test on the images that both models classified.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    pub images: u64,
    pub both_right: u64,
    pub only_first_right: u64,
    pub only_second_right: u64,
    pub both_wrong: u64,
    pub p_value: f64,
    /// False if the difference is unlikely to be chance (p < 0.05).
    pub may_be_chance: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct ThresholdResult {
    pub threshold: String,
    /// The name of the model.
    pub model: String,
    pub measured: Option<f64>,
    pub passed: bool,
}

impl Figures {
    pub(super) fn new(path: &Path, data: &Dataset, evaluations: &[Evaluation], thresholds: &[Threshold]) -> Figures {
        let checked = evaluations.iter().flat_map(|evaluation| {
            thresholds.iter().map(|threshold| {
                let measured = evaluation.measure(threshold.metric);
                ThresholdResult {
                    threshold: threshold.to_string(),
                    model: evaluation.package.model_ref().name,
                    measured,
                    passed: threshold.holds(measured),
                }
            })
        });
        Figures {
            data: path.display().to_string(),
            files: data.images.len(),
            classes: data.classes.len(),
            loose_files: data.loose_files,
            models: evaluations.iter().map(|evaluation| ModelFigures::new(data, evaluation)).collect(),
            comparison: match evaluations {
                [first, second] => Some(Comparison::new(first, second)),
                _ => None,
            },
            thresholds: checked.collect(),
        }
    }
}

impl ModelFigures {
    fn new(data: &Dataset, evaluation: &Evaluation) -> ModelFigures {
        let confusion = &evaluation.confusion;
        let name = |class: u32| evaluation.class_name(class);
        let classes = confusion.classes().into_iter();
        let mistakes = confusion.mistakes().into_iter();
        let broken = evaluation.failures.broken.iter();
        ModelFigures {
            model: evaluation.package.model_ref(),
            images: confusion.images(),
            top1: evaluation.measure(Metric::Top1),
            top1_interval: confusion.accuracy_interval(),
            top5: evaluation.measure(Metric::Top5),
            macro_f1: evaluation.measure(Metric::MacroF1),
            ece: evaluation.measure(Metric::Ece),
            images_per_second: evaluation.images_per_second,
            model_classes: evaluation.package.classes(),
            classes: classes.map(|measures| ClassFigures { label: name(measures.class_index), measures }).collect(),
            mistakes: mistakes
                .map(|(actual, predicted, images)| Mistake { actual: name(actual), predicted: name(predicted), images })
                .collect(),
            not_images: evaluation.failures.not_images,
            broken: broken
                .map(|(image, reason)| BrokenImage {
                    file: data.images[*image].path.display().to_string(),
                    reason: reason.clone(),
                })
                .collect(),
        }
    }
}

impl Comparison {
    fn new(first: &Evaluation, second: &Evaluation) -> Comparison {
        let second: HashMap<usize, bool> =
            second.answers.iter().map(|(image, answer)| (*image, answer.is_right())).collect();
        let mut counts = [[0_u64; 2]; 2];
        for (image, answer) in &first.answers {
            if let Some(second_is_right) = second.get(image) {
                counts[usize::from(answer.is_right())][usize::from(*second_is_right)] += 1;
            }
        }
        let [[both_wrong, only_second_right], [only_first_right, both_right]] = counts;
        let p_value = mcnemar::p_value(only_first_right, only_second_right);
        Comparison {
            images: both_wrong + both_right + only_first_right + only_second_right,
            both_right,
            only_first_right,
            only_second_right,
            both_wrong,
            p_value,
            may_be_chance: p_value >= SIGNIFICANT,
        }
    }
}
