//! The measurements of a run; `report` computes the figures from them afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::client::Counts;
use super::expect::{Mismatch, Verdict};
use super::failure::{Failure, Reason};
use super::timeline::Timeline;
use crate::protocol::TimingsMs;
use crate::stats::Latencies;

/// A start that is later than this without any fault of the target is reported.
pub(super) const MAX_LAG: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Default)]
pub(super) struct Measurement {
    /// Latencies of the successful requests, from their intended starts.
    pub latencies: Latencies,
    pub failed: BTreeMap<Reason, Failures>,
    pub started: u64,
    pub timings: TimingsSum,
    pub top1: u64,
    pub top5: u64,
    /// Answers that were compared with an expectation.
    pub judged: u64,
    /// Successful answers for images without an expectation.
    pub without_expectation: u64,
    /// Wrong answers by the index of the image, so that an image that is sent repeatedly is listed once.
    pub wrong: BTreeMap<usize, Mismatch>,
    pub lag: Lag,
    pub counts: Counts,
    pub timeline: Timeline,
    /// When the last request ended.
    pub last_end: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    pub count: u64,
    /// The explanation of the first failure.
    pub example: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TimingsSum {
    pub count: u64,
    pub sum: TimingsMs,
}

/// How late requests of an open loop were sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lag {
    /// Starts that found every connection busy, because the target is slower than the load.
    pub waited: u64,
    /// Starts that were later than [`MAX_LAG`] although a connection was idle, because this machine is too slow or too
    /// busy.
    pub late: u64,
    pub longest: Duration,
}

impl Measurement {
    pub(super) fn ok(&self) -> u64 {
        self.latencies.count()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failed.values().map(|failures| failures.count).sum()
    }

    pub(super) fn record_answer(
        &mut self,
        latency: Duration,
        timings: Option<TimingsMs>,
        verdict: Verdict,
        image: usize,
    ) {
        self.latencies.record(latency);
        self.record_end(Some(latency));
        if let Some(timings) = timings {
            self.timings.add(timings);
        }
        match verdict {
            Verdict::NoExpectations => {}
            Verdict::WithoutExpectation => self.without_expectation += 1,
            Verdict::Judged { top5, wrong } => {
                self.judged += 1;
                self.top1 += u64::from(wrong.is_none());
                self.top5 += u64::from(top5);
                if let Some(wrong) = wrong {
                    self.wrong.entry(image).or_insert(wrong);
                }
            }
        }
    }

    pub(super) fn record_failure(&mut self, failure: Failure) {
        self.record_end(None);
        let failures = self.failed.entry(failure.reason).or_default();
        failures.count += 1;
        if failures.example.is_none() {
            failures.example = failure.detail;
        }
    }

    fn record_end(&mut self, latency: Option<Duration>) {
        let now = Instant::now();
        self.last_end = Some(now);
        self.timeline.record(now, latency);
    }

    pub(super) fn add_counts(&mut self, counts: Counts) {
        self.counts.connections += counts.connections;
        self.counts.retries += counts.retries;
        self.counts.polls += counts.polls;
    }
}

impl TimingsSum {
    fn add(&mut self, timings: TimingsMs) {
        self.count += 1;
        self.sum.queued += timings.queued;
        self.sum.fetched += timings.fetched;
        self.sum.decoded += timings.decoded;
        self.sum.inferred += timings.inferred;
        self.sum.total += timings.total;
    }

    /// Returns `None` when no answer had timings.
    pub(super) fn mean(&self) -> Option<TimingsMs> {
        let count = (self.count > 0).then_some(self.count as f64)?;
        let TimingsMs { queued, fetched, decoded, inferred, total } = self.sum;
        Some(TimingsMs {
            queued: queued / count,
            fetched: fetched / count,
            decoded: decoded / count,
            inferred: inferred / count,
            total: total / count,
        })
    }
}

impl Lag {
    /// Records how late a start was. `behind` is `None` if no connection was idle when it became due.
    pub(super) fn record(&mut self, behind: Option<Duration>) {
        match behind {
            None => self.waited += 1,
            Some(behind) => {
                self.late += u64::from(behind > MAX_LAG);
                self.longest = self.longest.max(behind);
            }
        }
    }
}
