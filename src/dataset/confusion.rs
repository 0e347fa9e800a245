//! Counts of actual and predicted classes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// How often images of each class were taken for each class. Classes are indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Confusion {
    /// Counts by actual and predicted class.
    counts: BTreeMap<(u32, u32), u64>,
}

/// The measures of one class that has images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct ClassMeasures {
    /// The index of the class.
    pub class_index: u32,
    /// Number of images of this class.
    pub images: u64,
    /// The share of the images taken for this class that are of it; 0 if none was taken for it.
    pub precision: f64,
    /// The share of the images of this class that were taken for it.
    pub recall: f64,
    /// The harmonic mean of precision and recall.
    pub f1: f64,
}

/// The counts as a table: a row for each class that has images, a column for each class that images were taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub rows: Vec<u32>,
    /// The classes of the rows first, in the same order.
    pub columns: Vec<u32>,
    /// One list for each row.
    pub counts: Vec<Vec<u64>>,
}

impl Confusion {
    pub(crate) fn record(&mut self, actual: u32, predicted: u32) {
        *self.counts.entry((actual, predicted)).or_default() += 1;
    }

    pub(crate) fn images(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn correct(&self) -> u64 {
        self.counts.iter().filter(|((actual, predicted), _)| actual == predicted).map(|(_, count)| count).sum()
    }

    /// The share of the images whose class was predicted. `None` without images.
    pub(crate) fn accuracy(&self) -> Option<f64> {
        (self.images() > 0).then(|| self.correct() as f64 / self.images() as f64)
    }

    /// The 95 % confidence interval of [`Confusion::accuracy`].
    pub(crate) fn accuracy_interval(&self) -> Option<[f64; 2]> {
        wilson_interval(self.correct(), self.images())
    }

    /// The measures of the classes that have images, by index.
    pub(crate) fn classes(&self) -> Vec<ClassMeasures> {
        let (mut actual_images, mut predicted_images) = (BTreeMap::new(), BTreeMap::new());
        for (&(actual, predicted), &count) in &self.counts {
            *actual_images.entry(actual).or_insert(0) += count;
            *predicted_images.entry(predicted).or_insert(0) += count;
        }
        let measures = |(&class_index, &images): (&u32, &u64)| {
            let correct = self.count(class_index, class_index) as f64;
            let predicted = predicted_images.get(&class_index).copied().unwrap_or(0) as f64;
            let precision = if predicted > 0.0 { correct / predicted } else { 0.0 };
            let recall = correct / images as f64;
            let f1 = if correct > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
            ClassMeasures { class_index, images, precision, recall, f1 }
        };
        actual_images.iter().map(measures).collect()
    }

    /// The mean F1 of the classes that have images. `None` without images.
    pub(crate) fn macro_f1(&self) -> Option<f64> {
        let classes = self.classes();
        let sum: f64 = classes.iter().map(|class| class.f1).sum();
        (!classes.is_empty()).then(|| sum / classes.len() as f64)
    }

    /// Actual class, predicted class and count of the mistakes, the most frequent first.
    pub(crate) fn mistakes(&self) -> Vec<(u32, u32, u64)> {
        let mut mistakes: Vec<(u32, u32, u64)> = self
            .counts
            .iter()
            .filter(|((actual, predicted), _)| actual != predicted)
            .map(|(&(actual, predicted), &count)| (actual, predicted, count))
            .collect();
        mistakes.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
        mistakes
    }

    pub(crate) fn matrix(&self) -> Matrix {
        let rows: BTreeSet<u32> = self.counts.keys().map(|(actual, _)| *actual).collect();
        let others: BTreeSet<u32> =
            self.counts.keys().map(|(_, predicted)| *predicted).filter(|class| !rows.contains(class)).collect();
        let rows: Vec<u32> = rows.into_iter().collect();
        let columns: Vec<u32> = rows.iter().copied().chain(others).collect();
        let row = |actual: &u32| columns.iter().map(|predicted| self.count(*actual, *predicted)).collect();
        let counts = rows.iter().map(row).collect();
        Matrix { rows, columns, counts }
    }

    fn count(&self, actual: u32, predicted: u32) -> u64 {
        self.counts.get(&(actual, predicted)).copied().unwrap_or(0)
    }
}

/// The 95 % confidence interval of a share, by Wilson's score. `None` without images.
fn wilson_interval(hits: u64, images: u64) -> Option<[f64; 2]> {
    const Z: f64 = 1.959_963_984_540_054;
    if images == 0 {
        return None;
    }
    let (count, share) = (images as f64, hits as f64 / images as f64);
    let denominator = 1.0 + Z * Z / count;
    let centre = (share + Z * Z / (2.0 * count)) / denominator;
    let half = Z / denominator * (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt();
    Some([(centre - half).max(0.0), (centre + half).min(1.0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion(pairs: &[(u32, u32, u64)]) -> Confusion {
        let mut confusion = Confusion::default();
        for &(actual, predicted, count) in pairs {
            (0..count).for_each(|_| confusion.record(actual, predicted));
        }
        confusion
    }

    /// Two classes with images and one that only images of others were taken for.
    fn example() -> Confusion {
        confusion(&[(1, 1, 6), (1, 4, 2), (1, 9, 2), (4, 4, 5), (4, 1, 3)])
    }

    #[test]
    fn measures_are_those_of_the_textbook() {
        let example = example();
        assert_eq!((example.images(), example.correct()), (18, 11));
        let [first, second] = example.classes()[..] else { panic!("two classes") };
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        assert_eq!((first.class_index, first.images, second.class_index, second.images), (1, 10, 4, 8));
        close(first.precision, 6.0 / 9.0);
        close(first.recall, 0.6);
        close(first.f1, 2.0 * 6.0 / (2.0 * 6.0 + 3.0 + 4.0));
        close(second.precision, 5.0 / 7.0);
        close(second.f1, 2.0 * 5.0 / (2.0 * 5.0 + 2.0 + 3.0));
        close(example.macro_f1().unwrap(), f64::midpoint(first.f1, second.f1));
        close(example.accuracy().unwrap(), 11.0 / 18.0);
        assert_eq!(Confusion::default().accuracy(), None);
        let missed = confusion(&[(0, 1, 1)]).classes()[0];
        assert!(missed.precision == 0.0 && missed.f1 == 0.0);
    }

    #[test]
    fn matrix_has_the_classes_with_images_first() {
        let matrix = example().matrix();
        assert_eq!((matrix.rows, matrix.columns), (vec![1, 4], vec![1, 4, 9]));
        assert_eq!(matrix.counts, [[6, 2, 2], [3, 5, 0]]);
        assert_eq!(example().mistakes(), [(4, 1, 3), (1, 4, 2), (1, 9, 2)]);
    }

    #[test]
    fn interval_is_wilsons() {
        let [low, high] = wilson_interval(8, 10).unwrap();
        assert!((low - 0.490_162).abs() < 1e-5 && (high - 0.943_318).abs() < 1e-5, "{low} {high}");
        let [low, high] = wilson_interval(10, 10).unwrap();
        assert!(low > 0.72 && high <= 1.0, "{low} {high}");
        assert_eq!(wilson_interval(0, 0), None);
    }
}
