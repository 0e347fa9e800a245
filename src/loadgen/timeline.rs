//! Answers and failures over the time of a run, in bounded memory.
//!
//! A run is divided into slots of one second. When there are too many, neighbours are merged, and a slot is twice as long.
//! The latencies of a slot are counted in buckets that are a twelfth wide, so that its quantiles are good to a few percent;
//! those of the whole run come from a finer histogram.

use std::time::{Duration, Instant};

const FIRST_WIDTH: Duration = Duration::from_secs(1);
/// More would not be seen in a chart.
const MAX_SLOTS: usize = 600;
/// Bucket 0 is for shorter latencies.
const SHORTEST: Duration = Duration::from_micros(50);
const GROWTH: f64 = 1.08;
/// The last bucket begins at four minutes, and is for longer ones, too.
const BUCKETS: usize = 200;

/// The slots of a run. It begins with the first start.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    began: Option<Instant>,
    width: Duration,
    slots: Vec<Slot>,
}

/// The requests that ended in a part of the run.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub ok: u64,
    pub failed: u64,
    buckets: Box<[u32; BUCKETS]>,
}

impl Default for Timeline {
    fn default() -> Self {
        Timeline { began: None, width: FIRST_WIDTH, slots: Vec::new() }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Slot { ok: 0, failed: 0, buckets: Box::new([0; BUCKETS]) }
    }
}

impl Timeline {
    /// Sets the beginning of the run.
    pub(super) fn begin(&mut self, began: Instant) {
        self.began = Some(began);
    }

    /// Records the end of a request; `None` is a failure.
    pub(super) fn record(&mut self, ended: Instant, latency: Option<Duration>) {
        let after = ended.saturating_duration_since(*self.began.get_or_insert(ended));
        while after.as_nanos() / self.width.as_nanos() >= MAX_SLOTS as u128 {
            self.merge();
        }
        let number = (after.as_nanos() / self.width.as_nanos()) as usize;
        if self.slots.len() <= number {
            self.slots.resize_with(number + 1, Slot::default);
        }
        let slot = &mut self.slots[number];
        match latency {
            Some(latency) => {
                slot.ok += 1;
                let bucket = &mut slot.buckets[bucket(latency)];
                *bucket = bucket.saturating_add(1);
            }
            None => slot.failed += 1,
        }
    }

    /// The length of a slot.
    pub(super) fn width(&self) -> Duration {
        self.width
    }

    /// The slots in order of time, also those in which nothing ended.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn merge(&mut self) {
        self.width *= 2;
        let merged = self.slots.chunks(2).map(|pair| {
            let mut slot = pair[0].clone();
            if let Some(next) = pair.get(1) {
                slot.ok += next.ok;
                slot.failed += next.failed;
                slot.buckets
                    .iter_mut()
                    .zip(next.buckets.iter())
                    .for_each(|(sum, more)| *sum = sum.saturating_add(*more));
            }
            slot
        });
        self.slots = merged.collect();
    }
}

impl Slot {
    /// The latency at `quantile`, 0 to 1; `None` if there was no answer.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Duration> {
        let wanted = ((self.ok as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted
        });
        // The middle of the bucket, as latencies grow.
        found.map(|number| SHORTEST.mul_f64(GROWTH.powf(number as f64 - 0.5)))
    }
}

fn bucket(latency: Duration) -> usize {
    let ratio = latency.as_secs_f64() / SHORTEST.as_secs_f64();
    if ratio <= 1.0 { 0 } else { ((ratio.ln() / GROWTH.ln()).ceil() as usize).min(BUCKETS - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_slot_are_close() {
        let mut timeline = Timeline::default();
        let began = Instant::now();
        timeline.begin(began);
        (1..=100).for_each(|ms| timeline.record(began, Some(Duration::from_millis(ms))));
        timeline.record(began + Duration::from_millis(2_500), None);
        let slots = timeline.slots();
        assert_eq!(slots.iter().map(|slot| (slot.ok, slot.failed)).collect::<Vec<_>>(), [(100, 0), (0, 0), (0, 1)]);
        for (quantile, expected_ms) in [(0.5, 50.0), (0.99, 99.0)] {
            let ms = slots[0].quantile(quantile).unwrap().as_secs_f64() * 1e3;
            assert!((ms / expected_ms - 1.0).abs() < 0.05, "{quantile}: {ms}");
        }
        assert_eq!(slots[1].quantile(0.5), None);
    }

    #[test]
    fn long_runs_have_longer_slots_and_lose_nothing() {
        let mut timeline = Timeline::default();
        let began = Instant::now();
        timeline.begin(began);
        (0..3_000)
            .for_each(|second| timeline.record(began + Duration::from_secs(second), Some(Duration::from_secs(second))));
        assert_eq!((timeline.width(), timeline.slots().len()), (Duration::from_secs(8), 375));
        assert_eq!(timeline.slots().iter().map(|slot| slot.ok).sum::<u64>(), 3_000);
    }
}
