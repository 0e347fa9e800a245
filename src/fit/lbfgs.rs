//! L-BFGS: minimises a smooth convex function from its values and gradients.

use std::collections::VecDeque;

/// Pairs of steps and changes of the gradient that approximate the curvature.
const MEMORY: usize = 10;
/// How many vectors of the size of its argument [`minimise`] keeps at once: the pairs, and five for the step.
pub(super) const VECTORS: usize = 2 * MEMORY + 5;
/// A step must gain this share of what the slope promises (Armijo's condition).
const SUFFICIENT_DECREASE: f64 = 1e-4;
const MAX_HALVINGS: usize = 40;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The largest component of the gradient at the minimum.
    pub gradient: f64,
    pub iterations: usize,
}

/// The minimum that was found.
#[derive(Debug, Clone)]
pub(super) struct Minimum {
    pub at: Vec<f64>,
    pub iterations: usize,
    /// True if the gradient is small enough, or no step decreases the value further.
    pub has_converged: bool,
}

struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// 1 / (step · change), which is positive.
    inverse: f64,
}

/// Minimises `function` from `start`. The function writes its gradient into the slice and returns its value.
pub(super) fn minimise(
    start: Vec<f64>,
    limits: Limits,
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Minimum {
    let mut at = start;
    let mut gradient = vec![0.0; at.len()];
    let mut value = function(&at, &mut gradient);
    let mut pairs: VecDeque<Pair> = VecDeque::with_capacity(MEMORY);
    for iterations in 0..limits.iterations {
        if largest(&gradient) <= limits.gradient {
            return Minimum { at, iterations, has_converged: true };
        }
        let mut direction = descent_direction(&gradient, &pairs);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            // Rounding has spoiled the approximation: begin again with the steepest descent.
            pairs.clear();
            direction = gradient.iter().map(|component| -component).collect();
            slope = dot(&direction, &gradient);
        }
        let mut length = if pairs.is_empty() { 1.0 / largest(&gradient).max(1.0) } else { 1.0 };
        let mut next_gradient = vec![0.0; at.len()];
        let mut next = Vec::new();
        let mut next_value = f64::INFINITY;
        for _ in 0..MAX_HALVINGS {
            next = at.iter().zip(&direction).map(|(at, direction)| at + length * direction).collect();
            next_value = function(&next, &mut next_gradient);
            if next_value <= value + SUFFICIENT_DECREASE * length * slope {
                break;
            }
            length /= 2.0;
        }
        if next_value.is_nan() || next_value >= value {
            return Minimum { at, iterations, has_converged: !next_value.is_nan() };
        }
        let step: Vec<f64> = next.iter().zip(&at).map(|(next, at)| next - at).collect();
        let change: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(next, before)| next - before).collect();
        let curvature = dot(&step, &change);
        if curvature > 1e-12 * dot(&change, &change) {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { step, change, inverse: 1.0 / curvature });
        }
        (at, gradient, value) = (next, next_gradient, next_value);
    }
    let has_converged = largest(&gradient) <= limits.gradient;
    Minimum { at, iterations: limits.iterations, has_converged }
}

/// The gradient times the approximate inverse of the curvature, negated (the two loops of Nocedal).
fn descent_direction(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|component| -component).collect();
    let mut factors = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let factor = pair.inverse * dot(&pair.step, &direction);
        add(&mut direction, -factor, &pair.change);
        factors.push(factor);
    }
    if let Some(latest) = pairs.back() {
        let scale = 1.0 / (latest.inverse * dot(&latest.change, &latest.change));
        for component in &mut direction {
            *component *= scale;
        }
    }
    for (pair, factor) in pairs.iter().zip(factors.into_iter().rev()) {
        let correction = pair.inverse * dot(&pair.change, &direction);
        add(&mut direction, factor - correction, &pair.step);
    }
    direction
}

fn add(vector: &mut [f64], factor: f64, other: &[f64]) {
    for (component, other) in vector.iter_mut().zip(other) {
        *component += factor * other;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(vector: &[f64]) -> f64 {
    vector.iter().fold(0.0, |largest, component| f64::max(largest, component.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { gradient: 1e-9, iterations: 500 };

    #[test]
    fn quadratic_function_is_minimised_at_its_centre() {
        // Curvatures from 1 to 1,000.
        let curvature = |index: usize| 10.0_f64.powf(index as f64 / 10.0);
        let found = minimise(vec![3.0; 31], LIMITS, |at, gradient| {
            let mut value = 0.0;
            for (index, at) in at.iter().enumerate() {
                let distance = at - index as f64;
                gradient[index] = curvature(index) * distance;
                value += curvature(index) * distance * distance / 2.0;
            }
            value
        });
        assert!(found.has_converged && found.iterations < 400, "{}", found.iterations);
        for (index, at) in found.at.iter().enumerate() {
            assert!((at - index as f64).abs() < 1e-7, "{index}: {at}");
        }
    }

    #[test]
    fn minimum_of_rosenbrocks_valley_is_found() {
        let found = minimise(vec![-1.2, 1.0], LIMITS, |at, gradient| {
            let (x, y) = (at[0], at[1]);
            gradient[0] = -2.0 * (1.0 - x) - 400.0 * x * (y - x * x);
            gradient[1] = 200.0 * (y - x * x);
            (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2)
        });
        assert!(found.has_converged && (found.at[0] - 1.0).abs() < 1e-6 && (found.at[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn iterations_are_limited() {
        let limits = Limits { gradient: 0.0, iterations: 3 };
        let found = minimise(vec![5.0], limits, |at, gradient| {
            gradient[0] = at[0].tanh();
            at[0].cosh().ln()
        });
        assert!(found.iterations <= 3 && found.at[0].abs() < 5.0, "{found:?}");
    }
}
