//! How many images were done and failed, and whether that is too many.

use super::config::MaxFailures;

/// Before the number of images is known, a share is not computed of fewer.
const MIN_IMAGES_OF_SHARE: u64 = 1_000;

/// The counts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Images in the output, those of earlier runs included.
    pub images: u64,
    /// Images among them that failed.
    pub failed: u64,
    /// Images that earlier runs had done.
    pub resumed: u64,
}

impl Counts {
    /// Counts the row of an image. One that `replaces` another replaces one of a failed image.
    pub(super) fn add(&mut self, is_failed: bool, replaces: bool) {
        self.images += u64::from(!replaces);
        self.failed = self.failed.saturating_sub(u64::from(replaces));
        self.failed += u64::from(is_failed);
    }
}

/// The limit on failed images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct FailureLimit {
    pub limit: Option<MaxFailures>,
    /// The number of images of the pile, once it is known.
    pub total: Option<u64>,
}

impl FailureLimit {
    /// Returns true if a run should stop, because the limit is exceeded whatever comes.
    pub(super) fn is_exceeded(&self, counts: Counts) -> bool {
        match self.limit {
            None => false,
            Some(MaxFailures::Count(most)) => counts.failed > most,
            Some(MaxFailures::Share(share)) => {
                let images = match self.total {
                    Some(total) => total.max(counts.images),
                    None => counts.images.max(MIN_IMAGES_OF_SHARE),
                };
                counts.failed as f64 > share * images as f64
            }
        }
    }

    /// Returns true if a run that is done counts as successful.
    pub(super) fn allows(&self, counts: Counts) -> bool {
        let at_end = FailureLimit { total: Some(counts.images), ..*self };
        counts.failed == 0 || (self.limit.is_some() && !at_end.is_exceeded(counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(images: u64, failed: u64) -> Counts {
        Counts { images, failed, resumed: 0 }
    }

    #[test]
    fn a_share_counts_against_all_images_of_the_pile() {
        let mut limit = FailureLimit { limit: Some(MaxFailures::Share(0.01)), total: None };
        assert!(!limit.is_exceeded(counts(5, 5)) && !limit.is_exceeded(counts(10, 10)));
        assert!(limit.is_exceeded(counts(11, 11)) && !limit.is_exceeded(counts(2_000, 20)));
        assert!(!limit.allows(counts(5, 1)) && limit.allows(counts(100, 1)));
        limit.total = Some(200);
        assert!(limit.is_exceeded(counts(5, 3)) && !limit.is_exceeded(counts(5, 2)));
    }

    #[test]
    fn any_failure_counts_without_a_limit_and_never_stops() {
        let limit = FailureLimit { limit: None, total: Some(10) };
        assert!(!limit.is_exceeded(counts(10, 10)) && !limit.allows(counts(10, 1)) && limit.allows(counts(10, 0)));
        let none = FailureLimit { limit: Some(MaxFailures::Count(0)), total: None };
        assert!(none.is_exceeded(counts(1, 1)) && none.allows(counts(1, 0)));
    }
}
