//! The linear head: multinomial logistic regression on the features of a base network.
//!
//! The features are standardised for the training, and the scale is folded into the weights afterwards, so that the head
//! takes the features as they are. The penalty on the weights makes the minimum unique, and sums are added in an order
//! that does not depend on the number of threads: the same images give the same head.

use super::lbfgs::{self, Limits};

/// The penalty: this factor times half of the squared weights is added to the mean loss of an image.
pub(super) const PENALTY: f64 = 0.01;

const LIMITS: Limits = Limits { gradient: 1e-6, iterations: 1_000 };
/// The rows are summed up in so many parts, whatever the number of threads.
const PARTS: usize = 16;
/// How many vectors of the size of the weights the training keeps at once.
pub(super) const VECTORS: usize = PARTS + lbfgs::VECTORS;
/// Features that hardly differ among the images would be magnified without limit. The deviation of each is at least this
/// share of the typical deviation.
const MIN_DEVIATION: f64 = 0.05;

/// Features of labelled images: one row per image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Samples<'a> {
    pub rows: &'a [&'a [f32]],
    /// The class of each row, below `class_count`.
    pub classes: &'a [usize],
    pub class_count: usize,
}

/// Weights and biases, which give a score for each class.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    /// One row per class.
    pub weights: Vec<f32>,
    pub biases: Vec<f32>,
    pub iterations: usize,
    pub has_converged: bool,
}

impl Head {
    /// Trains a head with `threads` threads. The samples must have at least one row, and rows of equal length.
    pub(super) fn train(samples: Samples, threads: usize) -> Head {
        let scale = Scale::of(samples.rows);
        let rows: Vec<Vec<f32>> = samples.rows.iter().map(|row| scale.apply(row)).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let scaled = Samples { rows: &rows, ..samples };
        let (features, classes) = (scale.mean.len(), samples.class_count);
        let start = vec![0.0; classes * (features + 1)];
        let minimum = lbfgs::minimise(start, LIMITS, |at, gradient| loss(scaled, PENALTY, threads, at, gradient));
        let (weights, biases) = minimum.at.split_at(classes * features);
        scale.fold(weights, biases, minimum.iterations, minimum.has_converged)
    }

    /// The score of each class, before softmax.
    pub(super) fn scores(&self, features: &[f32]) -> Vec<f32> {
        let rows = self.weights.chunks_exact(features.len());
        rows.zip(&self.biases)
            .map(|(weights, bias)| {
                let sum: f64 = weights.iter().zip(features).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                (sum + f64::from(*bias)) as f32
            })
            .collect()
    }

    /// The class with the highest score.
    pub(super) fn predict(&self, features: &[f32]) -> usize {
        let scores = self.scores(features);
        let better = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a));
        (0..scores.len()).max_by(better).unwrap_or(0)
    }
}

/// Mean and deviation of each feature.
struct Scale {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Scale {
    fn of(rows: &[&[f32]]) -> Scale {
        let (count, features) = (rows.len() as f64, rows[0].len());
        let mut mean = vec![0.0; features];
        for row in rows {
            mean.iter_mut().zip(*row).for_each(|(sum, value)| *sum += f64::from(*value) / count);
        }
        let mut variance = vec![0.0; features];
        for row in rows {
            for ((sum, value), mean) in variance.iter_mut().zip(*row).zip(&mean) {
                *sum += (f64::from(*value) - mean).powi(2) / count;
            }
        }
        let typical = (variance.iter().sum::<f64>() / features as f64).sqrt();
        let least = if typical > 0.0 { typical * MIN_DEVIATION } else { 1.0 };
        let deviation = variance.into_iter().map(|variance| variance.sqrt().max(least)).collect();
        Scale { mean, deviation }
    }

    fn apply(&self, row: &[f32]) -> Vec<f32> {
        let scaled = row.iter().zip(&self.mean).zip(&self.deviation);
        scaled.map(|((value, mean), deviation)| ((f64::from(*value) - mean) / deviation) as f32).collect()
    }

    /// The head for features that are not scaled.
    fn fold(&self, weights: &[f64], biases: &[f64], iterations: usize, has_converged: bool) -> Head {
        let mut head = Head { weights: Vec::new(), biases: Vec::new(), iterations, has_converged };
        for (weights, bias) in weights.chunks_exact(self.mean.len()).zip(biases) {
            let folded: Vec<f64> =
                weights.iter().zip(&self.deviation).map(|(weight, deviation)| weight / deviation).collect();
            let offset: f64 = folded.iter().zip(&self.mean).map(|(weight, mean)| weight * mean).sum();
            head.weights.extend(folded.into_iter().map(|weight| weight as f32));
            head.biases.push((bias - offset) as f32);
        }
        head
    }
}

/// The mean cross-entropy and the penalty on the weights, with their gradient.
fn loss(samples: Samples, penalty: f64, threads: usize, at: &[f64], gradient: &mut [f64]) -> f64 {
    let rows = samples.rows.len();
    let size = rows.div_ceil(PARTS).max(1);
    let parts: Vec<(&[&[f32]], &[usize])> = samples.rows.chunks(size).zip(samples.classes.chunks(size)).collect();
    let per_thread = parts.len().div_ceil(threads.max(1));
    let sums: Vec<(f64, Vec<f64>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .chunks(per_thread)
            .map(|parts| {
                let sum = |(rows, classes): &(&[&[f32]], &[usize])| part_loss(rows, classes, samples.class_count, at);
                scope.spawn(move || parts.iter().map(sum).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("sums do not panic; this is a bug")).collect()
    });
    let mut value = 0.0;
    gradient.fill(0.0);
    for (part, part_gradient) in sums {
        value += part / rows as f64;
        gradient.iter_mut().zip(part_gradient).for_each(|(sum, part)| *sum += part / rows as f64);
    }
    let weights = at.len() - samples.class_count;
    for (component, weight) in gradient[..weights].iter_mut().zip(at) {
        *component += penalty * weight;
        value += penalty * weight * weight / 2.0;
    }
    value
}

/// The sum of the cross-entropies of some rows, and its gradient.
fn part_loss(rows: &[&[f32]], classes: &[usize], class_count: usize, at: &[f64]) -> (f64, Vec<f64>) {
    let features = at.len() / class_count - 1;
    let (weights, biases) = at.split_at(class_count * features);
    let mut gradient = vec![0.0; at.len()];
    let (weight_gradient, bias_gradient) = gradient.split_at_mut(class_count * features);
    let mut value = 0.0;
    let mut scores = vec![0.0; class_count];
    for (row, &class) in rows.iter().zip(classes) {
        for ((score, weights), bias) in scores.iter_mut().zip(weights.chunks_exact(features)).zip(biases) {
            *score = dot(row, weights) + bias;
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        value += sum.ln() + largest - scores[class];
        for (index, score) in scores.iter().enumerate() {
            let residual = (score - largest).exp() / sum - f64::from(u8::from(index == class));
            bias_gradient[index] += residual;
            let gradient = &mut weight_gradient[index * features..(index + 1) * features];
            for (component, value) in gradient.iter_mut().zip(*row) {
                *component += residual * f64::from(*value);
            }
        }
    }
    (value, gradient)
}

/// Eight sums side by side, because the compiler may not reorder the additions of one.
fn dot(row: &[f32], weights: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (row_chunks, weight_chunks) = (row.chunks_exact(8), weights.chunks_exact(8));
    let remainders = row_chunks.remainder().iter().zip(weight_chunks.remainder());
    let remainder: f64 = remainders.map(|(value, weight)| f64::from(*value) * weight).sum();
    for (row, weights) in row_chunks.zip(weight_chunks) {
        for ((sum, value), weight) in sums.iter_mut().zip(row).zip(weights) {
            *sum += f64::from(*value) * weight;
        }
    }
    sums.iter().sum::<f64>() + remainder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(rows: &[Vec<f32>], classes: &[usize], class_count: usize, threads: usize) -> Head {
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        Head::train(Samples { rows: &rows, classes, class_count }, threads)
    }

    /// One feature is 0 in one class and 1 in the other, so it is -1 and 1 when standardised. The weights are then w and
    /// -w, and with p = 1 / (1 + exp(-2w)), the probability of the right class, the gradient is zero where
    /// penalty · w = 1 - p. Bisection gives w.
    #[test]
    fn weights_are_those_of_a_solution_that_is_known() {
        let rows: Vec<Vec<f32>> = (0..40).map(|index| vec![(index % 2) as f32]).collect();
        let classes: Vec<usize> = (0..40).map(|index| index % 2).collect();
        let head = train(&rows, &classes, 2, 2);
        let (mut low, mut high) = (0.0_f64, 100.0);
        for _ in 0..200 {
            let w = f64::midpoint(low, high);
            if PENALTY * w < 1.0 - 1.0 / (1.0 + (-2.0 * w).exp()) { low = w } else { high = w }
        }
        // The feature has deviation 0.5 and mean 0.5.
        let expected = low / 0.5;
        assert!(head.has_converged);
        assert!((f64::from(head.weights[1]) - expected).abs() < 1e-3, "{head:?} {expected}");
        assert!((f64::from(head.weights[0]) + expected).abs() < 1e-3);
        assert!((f64::from(head.biases[1]) + expected * 0.5).abs() < 1e-3, "{head:?}");
    }

    /// Three classes in a plane, and a feature that is always the same.
    fn clusters() -> (Vec<Vec<f32>>, Vec<usize>) {
        let centres = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]];
        let rows = (0..60).map(|index| {
            let [x, y] = centres[index % 3];
            let (dx, dy) = (((index * 7) % 11) as f32 / 11.0 - 0.5, ((index * 5) % 13) as f32 / 13.0 - 0.5);
            vec![x + dx, y + dy, 7.0]
        });
        (rows.collect(), (0..60).map(|index| index % 3).collect())
    }

    #[test]
    fn clusters_are_separated_and_a_constant_feature_has_no_weight() {
        let (rows, classes) = clusters();
        let head = train(&rows, &classes, 3, 2);
        assert!(rows.iter().zip(&classes).all(|(row, class)| head.predict(row) == *class));
        assert!(head.weights.iter().skip(2).step_by(3).all(|weight| weight.abs() < 1e-6), "{head:?}");
    }

    #[test]
    fn number_of_threads_does_not_change_the_head() {
        let (rows, classes) = clusters();
        let one = train(&rows, &classes, 3, 1);
        assert_eq!(one, train(&rows, &classes, 3, 5));
    }

    #[test]
    fn gradient_is_the_slope_of_the_loss() {
        let (rows, classes) = clusters();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let samples = Samples { rows: &rows, classes: &classes, class_count: 3 };
        let at: Vec<f64> = (0..12).map(|index| f64::from(index) / 10.0 - 0.5).collect();
        let mut gradient = vec![0.0; 12];
        loss(samples, 0.1, 2, &at, &mut gradient);
        for index in 0..12 {
            let value = |offset: f64| {
                let mut at = at.clone();
                at[index] += offset;
                loss(samples, 0.1, 1, &at, &mut [0.0; 12])
            };
            let slope = (value(1e-6) - value(-1e-6)) / 2e-6;
            assert!((slope - gradient[index]).abs() < 1e-5, "{index}: {slope} {}", gradient[index]);
        }
    }

    #[test]
    fn dot_product_adds_every_element() {
        let row: Vec<f32> = (1..=19_u8).map(f32::from).collect();
        let weights: Vec<f64> = vec![2.0; 19];
        assert!((dot(&row, &weights) - 380.0).abs() < 1e-9);
    }
}
