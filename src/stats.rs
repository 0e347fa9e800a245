//! Statistics of latencies: a histogram, its quantiles, a summary, and the rows of a text histogram.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer latencies are recorded as this one. A request that takes longer than an hour is as slow as one that takes an
/// hour.
const MAX_LATENCY: Duration = Duration::from_hours(1);
const SIGNIFICANT_DIGITS: u8 = 3;

/// A latency histogram in bounded memory: a resolution of one microsecond, three significant digits, up to an hour.
///
/// Quantiles come from the histogram. Minimum, mean and maximum are exact.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    micros: Histogram<u64>,
    min: Duration,
    max: Duration,
    sum: Duration,
}

/// The figures of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) min: Duration,
    pub(crate) mean: Duration,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) p99_9: Duration,
    pub(crate) max: Duration,
}

/// One row of a text histogram: the number of latencies in `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(MAX_LATENCY.as_micros()).expect("an hour in µs fits in 64 bits; this is a bug");
        let mut micros = Histogram::new_with_bounds(1, longest, SIGNIFICANT_DIGITS)
            .expect("the bounds and the precision are constants in range; this is a bug");
        micros.auto(false);
        Latencies { micros, min: Duration::MAX, max: Duration::ZERO, sum: Duration::ZERO }
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, latency: Duration) {
        let latency = latency.min(MAX_LATENCY);
        self.micros.saturating_record(latency.as_micros() as u64);
        self.min = self.min.min(latency);
        self.max = self.max.max(latency);
        self.sum += latency;
    }

    pub(crate) fn count(&self) -> u64 {
        self.micros.len()
    }

    /// The latency at `quantile` (0 to 1). Returns `None` when nothing was recorded.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<Duration> {
        (self.count() > 0).then(|| {
            Duration::from_micros(self.micros.value_at_quantile(quantile.clamp(0.0, 1.0))).clamp(self.min, self.max)
        })
    }

    /// Returns `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Summary> {
        Some(Summary {
            count: self.count(),
            min: self.min,
            mean: self.sum.div_f64(self.count().max(1) as f64),
            p50: self.quantile(0.5)?,
            p90: self.quantile(0.9)?,
            p99: self.quantile(0.99)?,
            p99_9: self.quantile(0.999)?,
            max: self.max,
        })
    }

    /// The distribution in about a dozen rows with round edges. The steps are equal if all latencies have the same
    /// order of magnitude, and 1, 2, 5 otherwise, so that neither a narrow peak nor a long tail collapses into one row.
    /// Empty rows between the first and the last are included.
    pub(crate) fn bars(&self) -> Vec<Bar> {
        if self.count() == 0 {
            return Vec::new();
        }
        let (min, max) = (self.min.as_micros() as u64, self.max.as_micros() as u64);
        let edges = if max > min.max(1).saturating_mul(10) { decade_edges(min, max) } else { equal_edges(min, max) };
        let mut bars: Vec<Bar> = edges
            .windows(2)
            .map(|edge| Bar { from: Duration::from_micros(edge[0]), to: Duration::from_micros(edge[1]), count: 0 })
            .collect();
        for recorded in self.micros.iter_recorded() {
            // The lowest value that this count may represent, clamped so that no count is lost at either end.
            let value = self.micros.lowest_equivalent(recorded.value_iterated_to()).clamp(min, max);
            let row = edges.partition_point(|&edge| edge <= value).saturating_sub(1).min(bars.len() - 1);
            bars[row].count += recorded.count_since_last_iteration();
        }
        bars
    }
}

/// Returns the edges of buckets for all values from `min` to `max`, in steps of 1, 2, 5 × 10ⁿ. A value is in the bucket
/// with `edges[i] <= value < edges[i + 1]`.
fn decade_edges(min: u64, max: u64) -> Vec<u64> {
    let steps = (0..12u32).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power)));
    let all: Vec<u64> = std::iter::once(0).chain(steps).collect();
    let first = all.partition_point(|&edge| edge <= min).saturating_sub(1);
    let last = all.partition_point(|&edge| edge <= max);
    all[first..=last.min(all.len() - 1)].to_vec()
}

/// Returns the edges of about ten buckets of equal, round width.
fn equal_edges(min: u64, max: u64) -> Vec<u64> {
    let wanted = (max - min).div_ceil(10).max(1);
    let power = 10u64.pow(wanted.ilog10());
    let step = [1, 2, 5, 10].map(|digit| digit * power).into_iter().find(|&step| step >= wanted).unwrap_or(wanted);
    let first = min / step;
    let last = max / step + 1;
    (first..=last).map(|edge| edge * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(millis: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|milli| latencies.record(Duration::from_millis(milli)));
        latencies
    }

    /// Compares with the precision of the histogram.
    fn close(measured: Duration, expected_millis: u64) -> bool {
        (measured.as_secs_f64() * 1e3 / expected_millis as f64 - 1.0).abs() < 0.002
    }

    #[test]
    fn summary_has_exact_extremes_and_close_quantiles() {
        let summary = latencies(1..=1000).summary().expect("recorded");
        assert_eq!(summary.count, 1000);
        assert_eq!(summary.min, Duration::from_millis(1));
        assert_eq!(summary.max, Duration::from_secs(1));
        assert_eq!(summary.mean, Duration::from_micros(500_500));
        assert!(close(summary.p50, 500) && close(summary.p90, 900), "{summary:?}");
        assert!(close(summary.p99, 990) && close(summary.p99_9, 999), "{summary:?}");
    }

    #[test]
    fn empty_histogram_has_no_summary() {
        let none = Latencies::default();
        assert_eq!((none.summary(), none.quantile(0.5), none.bars()), (None, None, vec![]));
    }

    #[test]
    fn quantiles_are_within_the_recorded_range() {
        let one = latencies([1234]);
        assert_eq!(one.quantile(0.0), Some(Duration::from_millis(1234)));
        assert_eq!(one.quantile(1.0), Some(Duration::from_millis(1234)));
    }

    #[test]
    fn latencies_are_clamped_to_an_hour() {
        let mut extremes = Latencies::default();
        extremes.record(Duration::from_secs(100_000));
        extremes.record(Duration::ZERO);
        let summary = extremes.summary().expect("recorded");
        assert_eq!((summary.count, summary.min, summary.max), (2, Duration::ZERO, MAX_LATENCY));
        assert_eq!(extremes.bars().iter().map(|bar| bar.count).sum::<u64>(), 2);
    }

    #[test]
    fn bars_count_everything_and_have_round_edges() {
        let narrow = latencies(11..=19).bars();
        assert_eq!(narrow.iter().map(|bar| bar.count).sum::<u64>(), 9);
        assert!(narrow.len() >= 5 && narrow.len() <= 12, "{narrow:?}");
        assert_eq!(narrow[0].from, Duration::from_millis(11));

        let tail = latencies((0..1000).map(|i| if i == 999 { 4000 } else { 3 })).bars();
        assert_eq!(tail.iter().map(|bar| bar.count).sum::<u64>(), 1000);
        assert_eq!((tail[0].from, tail[0].count), (Duration::from_millis(2), 999));
        let last = tail.last().expect("rows");
        assert_eq!((last.from, last.to, last.count), (Duration::from_secs(2), Duration::from_secs(5), 1));

        assert_eq!(latencies([7]).bars().len(), 1);
    }
}
