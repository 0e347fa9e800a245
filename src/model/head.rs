//! The head of a model: its raw outputs → scores from 0 to 1 → predictions.

use super::description::Activation;
use super::package::ModelPackage;
use crate::prediction::Prediction;

/// The kind of a model's outputs, as far as samples show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// They are not between 0 and 1: softmax or sigmoid has to be applied.
    Logits,
    /// They are probabilities that sum to 1: softmax has been applied.
    Probabilities,
    /// They are between 0 and 1 and do not sum to 1: sigmoid has been applied.
    Independent,
}

/// The deviation of a sum of probabilities from 1 that rounding explains, with half precision and 8-bit arithmetic.
const SUM_TOLERANCE: f32 = 0.02;

/// The deviation of a single probability.
const VALUE_TOLERANCE: f32 = 1e-3;

/// Decides what the outputs of a model are by the raw outputs for a few different images. One image is not enough: its
/// logits may happen to be between 0 and 1. Returns `None` for outputs that are not finite, and without samples.
pub fn head_of(samples: &[Vec<f32>]) -> Option<Head> {
    let mut values = samples.iter().flatten();
    if samples.iter().any(Vec::is_empty) || samples.is_empty() || !values.clone().all(|value| value.is_finite()) {
        return None;
    }
    if !values.all(|value| (-VALUE_TOLERANCE..=1.0 + VALUE_TOLERANCE).contains(value)) {
        return Some(Head::Logits);
    }
    let sums_to_one = |sample: &Vec<f32>| (sample.iter().sum::<f32>() - 1.0).abs() <= SUM_TOLERANCE;
    // The only class of a model would always have the probability 1.
    let is_distribution = |sample: &Vec<f32>| sample.len() > 1 && sums_to_one(sample);
    Some(if samples.iter().all(is_distribution) { Head::Probabilities } else { Head::Independent })
}

impl Activation {
    /// The scores for the raw outputs of one image.
    pub(super) fn scores(self, outputs: &[f32]) -> Vec<f32> {
        match self {
            Activation::Softmax => softmax(outputs),
            Activation::Sigmoid => outputs.iter().map(|output| 1.0 / (1.0 + (-output).exp())).collect(),
            Activation::None => outputs.to_vec(),
        }
    }

    /// The name in model.toml, and of the value of `--activation`.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Softmax => "softmax",
            Activation::Sigmoid => "sigmoid",
            Activation::None => "none",
        }
    }
}

fn softmax(outputs: &[f32]) -> Vec<f32> {
    let largest = outputs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut exponentials: Vec<f32> = outputs.iter().map(|output| (output - largest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    for value in &mut exponentials {
        *value /= sum;
    }
    exponentials
}

/// The `k` most probable classes, best first. Among equal scores the lower class index comes first.
pub fn top_k(package: &ModelPackage, scores: &[f32], k: u32) -> Vec<Prediction> {
    let mut classes: Vec<u32> = (0..scores.len() as u32).collect();
    let better = better(scores);
    let k = classes.len().min(k as usize);
    if k < classes.len() {
        classes.select_nth_unstable_by(k, &better);
        classes.truncate(k);
    }
    classes.sort_unstable_by(&better);
    classes.into_iter().map(|class| prediction(package, scores, class)).collect()
}

/// The labels of an image in a multi-label model: all classes whose score reaches their threshold, best first. Empty
/// for other models.
pub fn labels_above(package: &ModelPackage, scores: &[f32]) -> Vec<Prediction> {
    let Some(thresholds) = &package.output().thresholds else { return Vec::new() };
    let reaches = |class: &u32| thresholds.get(*class as usize).is_some_and(|&least| scores[*class as usize] >= least);
    let mut classes: Vec<u32> = (0..scores.len() as u32).filter(reaches).collect();
    classes.sort_unstable_by(better(scores));
    classes.into_iter().map(|class| prediction(package, scores, class)).collect()
}

fn better(scores: &[f32]) -> impl Fn(&u32, &u32) -> std::cmp::Ordering {
    let score = |class: u32| scores[class as usize];
    move |a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b))
}

fn prediction(package: &ModelPackage, scores: &[f32], class_index: u32) -> Prediction {
    Prediction {
        class_index: Some(class_index),
        label: package.label(class_index).to_owned(),
        score: Some(scores[class_index as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(predictions: Vec<Prediction>) -> Vec<(Option<u32>, String)> {
        predictions.into_iter().map(|prediction| (prediction.class_index, prediction.label)).collect()
    }

    #[test]
    fn best_classes_come_first_and_ties_are_broken_by_index() {
        let package = ModelPackage::for_tests(&["a", "b", "c", "d"]);
        let best = found(top_k(&package, &[0.1, 0.4, 0.1, 0.4], 3));
        assert_eq!(best, [(Some(1), "b".to_owned()), (Some(3), "d".to_owned()), (Some(0), "a".to_owned())]);
        assert_eq!(top_k(&package, &[0.1, 0.4, 0.1, 0.4], 1000).len(), 4);
        assert!(top_k(&package, &[], 5).is_empty());
    }

    #[test]
    fn labels_are_the_classes_that_reach_their_own_threshold() {
        let package = ModelPackage::for_tests(&["a", "b", "c"]);
        assert!(labels_above(&package, &[0.9, 0.9, 0.9]).is_empty());
        let package = package.with_thresholds(&[0.5, 0.8, 0.3]);
        let labels = found(labels_above(&package, &[0.5, 0.7, 0.6]));
        assert_eq!(labels, [(Some(2), "c".to_owned()), (Some(0), "a".to_owned())]);
    }

    #[test]
    fn softmax_sums_to_one_for_scores_of_any_size() {
        let probabilities = softmax(&[1000.0, 1001.0, -1000.0]);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(probabilities[1] > probabilities[0] && probabilities[2] < 1e-6);
    }

    #[test]
    fn sigmoid_maps_each_output_by_itself() {
        let scores = Activation::Sigmoid.scores(&[0.0, 100.0, -100.0]);
        let thousandths: Vec<i32> = scores.iter().map(|score| (score * 1000.0).round() as i32).collect();
        assert_eq!(thousandths, [500, 1000, 0]);
    }

    #[test]
    fn normalised_outputs_are_told_from_logits() {
        let head = |samples: &[&[f32]]| head_of(&samples.iter().map(|sample| sample.to_vec()).collect::<Vec<_>>());
        assert_eq!(head(&[&[0.2, 0.8], &[0.99, 0.01]]), Some(Head::Probabilities));
        assert_eq!(head(&[&[0.2, 0.8], &[0.9, 0.9]]), Some(Head::Independent));
        assert_eq!(head(&[&[0.2, 0.8], &[0.9, -0.2]]), Some(Head::Logits));
        assert_eq!(head(&[&[1.0], &[1.0]]), Some(Head::Independent));
        assert_eq!(head(&[&[0.2, f32::NAN]]), None);
        assert_eq!(head(&[]), None);
    }
}
