//! The expected calibration error: how far the scores are from the share of right answers.

use super::answer::Answer;

const BINS: usize = 15;

/// Puts the answers into 15 bins of equal width by their confidence, and returns the mean difference between confidence
/// and accuracy of the bins, weighted by their sizes. `None` without answers, or if a score is no probability.
pub(super) fn expected_calibration_error<'a>(answers: impl Iterator<Item = &'a Answer>) -> Option<f64> {
    let mut bins = [(0.0, 0.0); BINS];
    let mut count = 0;
    for answer in answers {
        let confidence = f64::from(answer.confidence);
        if !(0.0..=1.0 + 1e-6).contains(&confidence) {
            return None;
        }
        let (confidences, right) = &mut bins[((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1];
        *confidences += confidence;
        *right += f64::from(u8::from(answer.is_right()));
        count += 1;
    }
    let difference: f64 = bins.iter().map(|(confidences, right)| (confidences - right).abs()).sum();
    (count > 0).then(|| difference / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(confidence: f32, is_right: bool) -> Answer {
        Answer { actual: 0, predicted: u32::from(!is_right), confidence, rank: 0 }
    }

    #[test]
    fn error_is_the_weighted_difference_of_confidence_and_accuracy() {
        // Two bins: 4 answers of 0.9 with 3 right, and 2 of 0.5 with 0 right.
        let answers: Vec<Answer> = [true, true, true, false]
            .map(|right| answer(0.9, right))
            .into_iter()
            .chain([answer(0.5, false); 2])
            .collect();
        let expected = (4.0 * (0.9 - 0.75) + 2.0 * 0.5) / 6.0;
        let error = expected_calibration_error(answers.iter()).unwrap();
        assert!((error - expected).abs() < 1e-6, "{error}");
        assert_eq!(expected_calibration_error([].iter()), None);
        assert_eq!(expected_calibration_error([answer(3.2, true)].iter()), None);
        assert_eq!(expected_calibration_error([answer(1.0, true), answer(0.0, false)].iter()), Some(0.0));
    }
}
