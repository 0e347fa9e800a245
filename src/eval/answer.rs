//! The part of the scores of one image that is kept.

/// The answer for one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Answer {
    /// The true class.
    pub actual: u32,
    /// The class with the highest score.
    pub predicted: u32,
    /// Its score.
    pub confidence: f32,
    /// Number of classes that are ranked above the true one.
    pub rank: usize,
}

impl Answer {
    /// Among equal scores the lower class index comes first, as in results. `actual` must be a class of the model.
    pub(super) fn new(scores: &[f32], actual: u32) -> Answer {
        let score = scores[actual as usize];
        let is_above =
            |(index, other): (usize, &f32)| other.total_cmp(&score).then((actual as usize).cmp(&index)).is_gt();
        let rank = scores.iter().enumerate().filter(|pair| is_above(*pair)).count();
        let best = (0u32..).zip(scores).max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        let (predicted, confidence) = best.map_or((0, 0.0), |(index, score)| (index, *score));
        Answer { actual, predicted, confidence, rank }
    }

    pub(super) fn is_right(&self) -> bool {
        self.predicted == self.actual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_higher_scores_and_earlier_equals() {
        let scores = [0.1, 0.4, 0.1, 0.4];
        let ranks: Vec<usize> = (0..4).map(|actual| Answer::new(&scores, actual).rank).collect();
        assert_eq!(ranks, [2, 0, 3, 1]);
        let answer = Answer::new(&scores, 3);
        assert!(!answer.is_right() && answer.predicted == 1 && Answer::new(&scores, 1).is_right());
        assert!((answer.confidence - 0.4).abs() < f32::EPSILON);
    }
}
