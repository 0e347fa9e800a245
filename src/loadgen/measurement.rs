//! What is measured while the load runs; what it means is worked out afterwards, in `report`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::client::Counts;
use super::expect::{Verdict, Wrong};
use super::failure::{Failure, Reason};
use crate::protocol::TimingsMs;
use crate::stats::Latencies;

/// A start that is late by more than this through no fault of the target is reported.
pub const LATE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// Of the requests that were answered well, from their intended starts.
    pub latencies: Latencies,
    pub failed: BTreeMap<Reason, Failures>,
    pub started: u64,
    pub timings: TimingsSum,
    pub top1: u64,
    pub top5: u64,
    /// Answers that were held against an expectation.
    pub judged: u64,
    /// Good answers to pictures that nothing is expected of.
    pub without_expectation: u64,
    /// By the picture's place, so that a picture that is sent again and again is listed once.
    pub wrong: BTreeMap<usize, Wrong>,
    pub lag: Lag,
    pub counts: Counts,
    /// End of the last request.
    pub last_end: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
pub struct Failures {
    pub count: u64,
    /// What was said about the first of them.
    pub example: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct TimingsSum {
    pub count: u64,
    pub sum: TimingsMs,
}

/// How late requests left, in an open loop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag {
    /// Starts that found every connection busy: the target is slower than the load.
    pub capped: u64,
    /// Starts that were more than [`LATE`] behind although a connection was free: this machine is too slow or too busy.
    pub late: u64,
    pub longest: Duration,
}

impl Measurement {
    pub fn ok(&self) -> u64 {
        self.latencies.count()
    }

    pub fn failures(&self) -> u64 {
        self.failed.values().map(|failures| failures.count).sum()
    }

    pub fn record_answer(&mut self, latency: Duration, timings: Option<TimingsMs>, verdict: Verdict, picture: usize) {
        self.latencies.record(latency);
        if let Some(timings) = timings {
            self.timings.add(timings);
        }
        match verdict {
            Verdict::NotAsked => {}
            Verdict::WithoutExpectation => self.without_expectation += 1,
            Verdict::Judged { top5, wrong } => {
                self.judged += 1;
                self.top1 += u64::from(wrong.is_none());
                self.top5 += u64::from(top5);
                if let Some(wrong) = wrong {
                    self.wrong.entry(picture).or_insert(wrong);
                }
            }
        }
    }

    pub fn record_failure(&mut self, failure: Failure) {
        let failures = self.failed.entry(failure.reason).or_default();
        failures.count += 1;
        if failures.example.is_none() {
            failures.example = failure.said;
        }
    }

    pub fn add_counts(&mut self, counts: Counts) {
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

    /// None where no answer told its timings.
    pub fn mean(&self) -> Option<TimingsMs> {
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
    /// `behind`: how late a start was that a free connection waited for; none where none was free.
    pub fn record(&mut self, behind: Option<Duration>) {
        match behind {
            None => self.capped += 1,
            Some(behind) => {
                self.late += u64::from(behind > LATE);
                self.longest = self.longest.max(behind);
            }
        }
    }
}
