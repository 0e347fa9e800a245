//! Arrival processes: when requests are meant to start, seeded, so that two runs see the same.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How the starts of an open loop are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// Every 1/rate seconds.
    #[default]
    Constant,
    /// Independent of each other, as people are: gaps are exponential with mean 1/rate.
    Poisson,
}

impl Arrivals {
    pub fn as_str(self) -> &'static str {
        match self {
            Arrivals::Constant => "constant",
            Arrivals::Poisson => "poisson",
        }
    }

    /// The intended starts, as offsets from the beginning; without end, never decreasing.
    ///
    /// # Panics
    /// Where `rate` is not above 0: the command line has checked it.
    pub fn offsets(self, rate_per_second: f64, seed: u64) -> Offsets {
        assert!(rate_per_second > 0.0, "a rate is above 0; this is a bug");
        Offsets { arrivals: self, rate_per_second, random: StdRng::seed_from_u64(seed), count: 0, seconds: 0.0 }
    }
}

/// Intended starts as offsets from the beginning; see [`Arrivals::offsets`].
#[derive(Debug, Clone)]
pub struct Offsets {
    arrivals: Arrivals,
    rate_per_second: f64,
    random: StdRng,
    count: u64,
    seconds: f64,
}

impl Iterator for Offsets {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.seconds = match self.arrivals {
            // From the count, not by adding gaps up: rounding errors do not pile up over a long run.
            Arrivals::Constant => self.count as f64 / self.rate_per_second,
            Arrivals::Poisson => self.seconds - (1.0 - self.random.random::<f64>()).ln() / self.rate_per_second,
        };
        self.count += 1;
        // Centuries away is for ever.
        Some(Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_arrivals_and_another_seed_others() {
        let arrivals = |seed| Arrivals::Poisson.offsets(50.0, seed).take(1000).collect::<Vec<_>>();
        assert_eq!(arrivals(7), arrivals(7));
        assert_ne!(arrivals(7), arrivals(8));
    }

    #[test]
    fn constant_arrivals_are_even_from_zero_on_and_do_not_drift() {
        let mut offsets = Arrivals::Constant.offsets(1000.0, 1);
        assert_eq!(offsets.next(), Some(Duration::ZERO));
        assert_eq!(offsets.next(), Some(Duration::from_millis(1)));
        assert_eq!(offsets.nth(999_997), Some(Duration::from_millis(999_999)));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_process() {
        let offsets: Vec<f64> = Arrivals::Poisson.offsets(200.0, 1).take(100_000).map(|at| at.as_secs_f64()).collect();
        assert!(offsets.is_sorted());
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 200.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        // Exponential gaps: the standard deviation equals the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "deviation {}", variance.sqrt());
    }

    #[test]
    fn a_vanishing_rate_ends_in_for_ever_not_in_a_panic() {
        assert_eq!(Arrivals::Constant.offsets(1e-300, 1).nth(1), Some(Duration::MAX));
    }
}
