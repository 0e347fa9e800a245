//! The distribution of service times.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::virtual_time::micros;

/// How long a session takes for an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ServiceTime {
    /// The same for every image.
    Constant(Duration),
    /// Drawn from a log-normal distribution.
    LogNormal(LogNormal),
}

/// A log-normal distribution. Measured service times usually have this shape: most images take about the same time, a
/// few take much longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogNormal {
    mean: Duration,
    mu: f64,
    pub(super) sigma: f64,
}

impl ServiceTime {
    /// 99 % of a normal distribution lie below its mean plus this many standard deviations.
    const Z99: f64 = 2.326_347_874;

    /// The log-normal distribution with this mean and this 99th percentile.
    ///
    /// # Errors
    /// If no log-normal distribution has both: the percentile is below the mean or more than 14.9 times the mean.
    pub fn with_p99(mean: Duration, p99: Duration) -> Result<ServiceTime, String> {
        let ratio = p99.as_secs_f64() / mean.as_secs_f64();
        // mean = exp(mu + sigma²/2) and p99 = exp(mu + z sigma), so ln(ratio) = z sigma − sigma²/2.
        let discriminant = Self::Z99.powi(2) - 2.0 * ratio.ln();
        if !(ratio >= 1.0 && discriminant >= 0.0) {
            return Err(format!(
                "no distribution has a mean of {mean:?} and a p99 of {p99:?}; use a p99 of 1 to 14.9 times the mean"
            ));
        }
        let sigma = Self::Z99 - discriminant.sqrt();
        let mu = mean.as_secs_f64().ln() - sigma * sigma / 2.0;
        Ok(ServiceTime::LogNormal(LogNormal { mean, mu, sigma }))
    }

    /// The mean of the distribution.
    pub fn mean(&self) -> Duration {
        match self {
            ServiceTime::Constant(time) => *time,
            ServiceTime::LogNormal(distribution) => distribution.mean,
        }
    }

    /// The same distribution on a machine that is `speed` times as fast; `speed` is above 0.
    pub(crate) fn at_speed(&self, speed: f64) -> ServiceTime {
        match self {
            ServiceTime::Constant(time) => ServiceTime::Constant(time.div_f64(speed)),
            ServiceTime::LogNormal(LogNormal { mean, mu, sigma }) => {
                ServiceTime::LogNormal(LogNormal { mean: mean.div_f64(speed), mu: mu - speed.ln(), sigma: *sigma })
            }
        }
    }

    /// A random service time in microseconds.
    pub(super) fn sample(&self, random: &mut StdRng) -> u64 {
        match self {
            ServiceTime::Constant(time) => micros(*time),
            ServiceTime::LogNormal(LogNormal { mu, sigma, .. }) => {
                ((mu + sigma * normal(random)).exp() * 1e6).round() as u64
            }
        }
    }
}

/// A sample of the standard normal distribution (Box–Muller transform).
fn normal(random: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::super::run::nearest_rank;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn samples_have_the_requested_mean_and_p99() {
        let service_time = ServiceTime::with_p99(SECOND, 3 * SECOND).expect("a distribution");
        let mut random = StdRng::seed_from_u64(3);
        let mut samples: Vec<u64> = (0..200_000).map(|_| service_time.sample(&mut random)).collect();
        samples.sort_unstable();
        let mean = samples.iter().sum::<u64>() as f64 / samples.len() as f64 / 1e6;
        let p99 = nearest_rank(&samples, 0.99).expect("samples").as_secs_f64();
        assert!((mean - 1.0).abs() < 0.01 && (p99 - 3.0).abs() < 0.1, "{mean} {p99}");
        let mut random = StdRng::seed_from_u64(3);
        let faster = service_time.at_speed(2.0);
        let of_faster: Vec<u64> = (0..200_000).map(|_| faster.sample(&mut random)).collect();
        let faster_mean = of_faster.iter().sum::<u64>() as f64 / of_faster.len() as f64 / 1e6;
        assert!((faster_mean * 2.0 / mean - 1.0).abs() < 1e-3 && faster.mean() == SECOND / 2, "{faster_mean}");
        assert!(
            ServiceTime::with_p99(SECOND, SECOND / 2).is_err() && ServiceTime::with_p99(SECOND, 20 * SECOND).is_err()
        );
    }
}
