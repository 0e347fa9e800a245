//! Latencies and what is said about them: a histogram, its quantiles, a summary, bars.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What does not fit is recorded as this; a request that takes longer than an hour is as slow as one that takes one.
const LONGEST: Duration = Duration::from_hours(1);
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies at a resolution of one microsecond, three digits, up to an hour, in bounded memory.
///
/// Quantiles come from the histogram; minimum, mean and maximum are exact.
#[derive(Debug, Clone)]
pub struct Latencies {
    micros: Histogram<u64>,
    min: Duration,
    max: Duration,
    sum: Duration,
}

/// The figures that a report shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub count: u64,
    pub min: Duration,
    pub mean: Duration,
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub p99_9: Duration,
    pub max: Duration,
}

/// One row of a text histogram: how many latencies lay in `from..to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    pub from: Duration,
    pub to: Duration,
    pub count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).expect("an hour in µs fits in 64 bits; this is a bug");
        let mut micros = Histogram::new_with_bounds(1, longest, SIGNIFICANT_DIGITS)
            .expect("the bounds and the precision are constants in range; this is a bug");
        micros.auto(false);
        Latencies { micros, min: Duration::MAX, max: Duration::ZERO, sum: Duration::ZERO }
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        let latency = latency.min(LONGEST);
        self.micros.saturating_record(latency.as_micros() as u64);
        self.min = self.min.min(latency);
        self.max = self.max.max(latency);
        self.sum += latency;
    }

    /// Adds what another one recorded, as if it had been recorded here.
    pub fn merge(&mut self, other: &Latencies) {
        self.micros.add(&other.micros).expect("all histograms have the same bounds; this is a bug");
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
    }

    pub fn count(&self) -> u64 {
        self.micros.len()
    }

    /// The latency that the share `quantile` (0..=1) of all did not exceed. None where nothing was recorded.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        (self.count() > 0).then(|| {
            Duration::from_micros(self.micros.value_at_quantile(quantile.clamp(0.0, 1.0))).clamp(self.min, self.max)
        })
    }

    /// None where nothing was recorded.
    pub fn summary(&self) -> Option<Summary> {
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

    /// The distribution in at most about a dozen rows with round edges: equal steps where all latencies are of one
    /// order, else steps of 1, 2, 5, so that neither a narrow body nor a long tail ends in a single row. Rows without
    /// any stand between the first and the last with some.
    pub fn bars(&self) -> Vec<Bar> {
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
            // The lowest value that this count may stand for; clamped, so that no count is lost at either end.
            let value = self.micros.lowest_equivalent(recorded.value_iterated_to()).clamp(min, max);
            let row = edges.partition_point(|&edge| edge <= value).saturating_sub(1).min(bars.len() - 1);
            bars[row].count += recorded.count_since_last_iteration();
        }
        bars
    }
}

/// `edges[i] <= value < edges[i + 1]` for each value from `min` to `max`, in steps of 1, 2, 5 × 10ⁿ.
fn decade_edges(min: u64, max: u64) -> Vec<u64> {
    let steps = (0..12u32).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power)));
    let all: Vec<u64> = std::iter::once(0).chain(steps).collect();
    let first = all.partition_point(|&edge| edge <= min).saturating_sub(1);
    let last = all.partition_point(|&edge| edge <= max);
    all[first..=last.min(all.len() - 1)].to_vec()
}

/// The same in about ten equal steps of a round width.
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

    /// Within the three digits that are kept.
    fn close(measured: Duration, expected_millis: u64) -> bool {
        (measured.as_secs_f64() * 1e3 / expected_millis as f64 - 1.0).abs() < 0.002
    }

    #[test]
    fn a_summary_of_one_to_a_thousand() {
        let summary = latencies(1..=1000).summary().expect("recorded");
        assert_eq!(summary.count, 1000);
        assert_eq!(summary.min, Duration::from_millis(1));
        assert_eq!(summary.max, Duration::from_secs(1));
        assert_eq!(summary.mean, Duration::from_micros(500_500));
        assert!(close(summary.p50, 500) && close(summary.p90, 900), "{summary:?}");
        assert!(close(summary.p99, 990) && close(summary.p99_9, 999), "{summary:?}");
    }

    #[test]
    fn nothing_recorded_has_no_summary() {
        let none = Latencies::default();
        assert_eq!((none.summary(), none.quantile(0.5), none.bars()), (None, None, vec![]));
    }

    #[test]
    fn a_quantile_never_leaves_what_was_recorded() {
        let one = latencies([1234]);
        assert_eq!(one.quantile(0.0), Some(Duration::from_millis(1234)));
        assert_eq!(one.quantile(1.0), Some(Duration::from_millis(1234)));
    }

    #[test]
    fn longer_than_an_hour_counts_as_an_hour_and_nothing_as_zero() {
        let mut extremes = Latencies::default();
        extremes.record(Duration::from_secs(100_000));
        extremes.record(Duration::ZERO);
        let summary = extremes.summary().expect("recorded");
        assert_eq!((summary.count, summary.min, summary.max), (2, Duration::ZERO, LONGEST));
        assert_eq!(extremes.bars().iter().map(|bar| bar.count).sum::<u64>(), 2);
    }

    #[test]
    fn merging_equals_recording_in_one() {
        let mut merged = latencies(1..=500);
        merged.merge(&latencies(501..=1000));
        merged.merge(&Latencies::default());
        assert_eq!(merged.summary(), latencies(1..=1000).summary());
        assert_eq!(merged.bars(), latencies(1..=1000).bars());
    }

    #[test]
    fn bars_lose_no_count_and_have_round_edges() {
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
