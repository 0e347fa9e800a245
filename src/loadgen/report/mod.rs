//! What a measurement means: the figures of a run, and whether it passed. `text` and JSON show the same figures.

mod text;

use std::time::Duration;

use serde::Serialize;

use super::Config;
use super::driver::Driven;
use super::expect::Wrong;
use super::failure::{Reason, printable};
use super::measurement::Measurement;
use super::target::Api;
use super::threshold::{LatencyMetric, Metric, Threshold};
use crate::protocol::TimingsMs;
use crate::stats::{Bar, Summary};
use crate::workload::Arrivals;

/// Below it a p99.9 is a guess.
const P99_9_COUNT: u64 = 1000;

/// The report; its JSON is a stable interface: names carry their units, what was not measured is null.
#[derive(Debug, Serialize)]
pub struct Report {
    pub url: String,
    pub api: &'static str,
    /// `closed` or `open`.
    pub r#loop: &'static str,
    pub concurrency: usize,
    /// Of an open loop whose rate is one figure.
    pub intended_rate_per_second: Option<f64>,
    pub arrivals: Option<&'static str>,
    pub seed: Option<u64>,
    /// Stopped before all requests were sent and answered.
    pub interrupted: bool,
    pub requests: Requests,
    pub failures: Vec<FailureGroup>,
    pub wall_seconds: f64,
    /// Good answers by wall time.
    pub images_per_second: f64,
    /// Of good answers, from the intended start.
    pub latency_ms: Option<LatencyMs>,
    pub latency_histogram: Vec<HistogramRow>,
    /// Means of what the answers tell.
    pub server_timings_ms: Option<TimingsMs>,
    pub generator: Option<Generator>,
    pub accuracy: Option<Accuracy>,
    pub thresholds: Vec<Checked>,
    /// What to do about failures, where it is known.
    pub hints: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Requests {
    pub planned: u64,
    pub started: u64,
    pub ok: u64,
    pub failed: u64,
    /// Sent, but given up at an interruption.
    pub abandoned: u64,
    /// Sent a second time because a kept connection had been closed under them.
    pub retried: u64,
    /// Questions about jobs that were not final with the first answer.
    pub polls: u64,
    pub connections: u64,
}

#[derive(Debug, Serialize)]
pub struct FailureGroup {
    pub reason: String,
    pub count: u64,
    /// What was said about the first of them.
    pub example: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct LatencyMs {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    /// From a thousand requests on.
    pub p99_9: Option<f64>,
    pub max: f64,
}

#[derive(Debug, Serialize)]
pub struct HistogramRow {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

/// How well an open loop kept its own times.
#[derive(Debug, Serialize)]
pub struct Generator {
    /// Starts that waited because every connection was busy; the wait is in their latency.
    pub waited_for_connection: u64,
    /// Starts that were more than 10 ms late through this machine's fault.
    pub late: u64,
    pub longest_lag_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct Accuracy {
    pub top1: Option<f64>,
    /// None in the original's API, which answers one label.
    pub top5: Option<f64>,
    pub judged: u64,
    pub top1_correct: u64,
    pub top5_correct: Option<u64>,
    pub without_expectation: u64,
    /// Pictures whose first prediction was not the expected one, at most ten.
    pub wrong: Vec<WrongAnswer>,
    /// How many such pictures there are.
    pub wrong_pictures: usize,
}

#[derive(Debug, Serialize)]
pub struct WrongAnswer {
    pub file: String,
    pub expected: String,
    pub got: String,
    pub score: Option<f32>,
}

#[derive(Debug, Serialize)]
pub struct Checked {
    pub threshold: String,
    /// Latencies in milliseconds, accuracies as shares.
    pub measured: Option<f64>,
    pub passed: bool,
    #[serde(skip)]
    metric: Metric,
}

impl Report {
    pub fn new(config: &Config, driven: &Driven, name_of: impl Fn(usize) -> String) -> Self {
        let measurement = &driven.measurement;
        let summary = measurement.latencies.summary();
        let (ok, failed) = (measurement.ok(), measurement.failures());
        let wall_seconds = driven.wall.as_secs_f64();
        let mut report = Report {
            url: config.url.to_string(),
            api: config.api.as_str(),
            r#loop: if config.arrivals.is_some() { "open" } else { "closed" },
            concurrency: config.concurrency,
            intended_rate_per_second: config.arrivals.as_ref().and_then(Arrivals::rate),
            arrivals: config.arrivals.as_ref().map(Arrivals::as_str),
            seed: config.arrivals.as_ref().map(|_| config.seed),
            interrupted: driven.interrupted,
            requests: Requests {
                planned: config.num_request,
                started: measurement.started,
                ok,
                failed,
                abandoned: measurement.started.saturating_sub(ok + failed),
                retried: measurement.counts.retries,
                polls: measurement.counts.polls,
                connections: measurement.counts.connections,
            },
            failures: failure_groups(measurement),
            wall_seconds,
            images_per_second: if wall_seconds > 0.0 { ok as f64 / wall_seconds } else { 0.0 },
            latency_ms: summary.map(LatencyMs::from),
            latency_histogram: measurement.latencies.bars().into_iter().map(HistogramRow::from).collect(),
            server_timings_ms: measurement.timings.mean(),
            generator: config.arrivals.as_ref().map(|_| Generator {
                waited_for_connection: measurement.lag.capped,
                late: measurement.lag.late,
                longest_lag_ms: ms(measurement.lag.longest),
            }),
            accuracy: config.expect.is_some().then(|| Accuracy::new(measurement, config.api, name_of)),
            thresholds: Vec::new(),
            hints: hints(config, measurement),
        };
        report.thresholds = config.thresholds.iter().map(|it| report.check(it, measurement)).collect();
        report
    }

    pub fn threshold_missed(&self) -> bool {
        self.thresholds.iter().any(|threshold| !threshold.passed)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers; this is a bug") + "\n"
    }

    pub fn to_text(&self) -> String {
        text::render(self)
    }

    fn check(&self, threshold: &Threshold, measurement: &Measurement) -> Checked {
        let latency = |pick: fn(&LatencyMs) -> f64| self.latency_ms.as_ref().map(pick);
        let measured = match threshold.metric {
            Metric::Latency(LatencyMetric::Min) => latency(|it| it.min),
            Metric::Latency(LatencyMetric::Mean) => latency(|it| it.mean),
            Metric::Latency(LatencyMetric::Max) => latency(|it| it.max),
            Metric::Latency(LatencyMetric::Quantile(quantile)) => measurement.latencies.quantile(quantile).map(ms),
            Metric::Accuracy => self.accuracy.as_ref().and_then(|it| it.top1),
            Metric::Top5 => self.accuracy.as_ref().and_then(|it| it.top5),
            Metric::Failed => Some(self.requests.failed as f64),
            Metric::Ok => Some(self.requests.ok as f64),
            Metric::Rate => Some(self.images_per_second),
        };
        Checked {
            threshold: threshold.to_string(),
            measured,
            passed: threshold.holds(measured),
            metric: threshold.metric,
        }
    }
}

impl Accuracy {
    const WRONG_SHOWN: usize = 10;

    fn new(measurement: &Measurement, api: Api, name_of: impl Fn(usize) -> String) -> Self {
        let share = |correct: u64| (measurement.judged > 0).then(|| correct as f64 / measurement.judged as f64);
        let top5_correct = (api == Api::V1).then_some(measurement.top5);
        let wrong = measurement.wrong.iter().take(Self::WRONG_SHOWN).map(|(&picture, wrong)| {
            let Wrong { expected, got, score } = wrong.clone();
            WrongAnswer { file: printable(&name_of(picture)), expected, got, score }
        });
        Accuracy {
            top1: share(measurement.top1),
            top5: top5_correct.and_then(share),
            judged: measurement.judged,
            top1_correct: measurement.top1,
            top5_correct,
            without_expectation: measurement.without_expectation,
            wrong: wrong.collect(),
            wrong_pictures: measurement.wrong.len(),
        }
    }
}

impl From<Summary> for LatencyMs {
    fn from(summary: Summary) -> Self {
        LatencyMs {
            count: summary.count,
            min: ms(summary.min),
            mean: ms(summary.mean),
            p50: ms(summary.p50),
            p90: ms(summary.p90),
            p99: ms(summary.p99),
            p99_9: (summary.count >= P99_9_COUNT).then(|| ms(summary.p99_9)),
            max: ms(summary.max),
        }
    }
}

impl From<Bar> for HistogramRow {
    fn from(bar: Bar) -> Self {
        HistogramRow { from_ms: ms(bar.from), to_ms: ms(bar.to), count: bar.count }
    }
}

/// The most frequent first.
fn failure_groups(measurement: &Measurement) -> Vec<FailureGroup> {
    let mut groups: Vec<_> = measurement
        .failed
        .iter()
        .map(|(reason, failures)| FailureGroup {
            reason: reason.to_string(),
            count: failures.count,
            example: failures.example.clone(),
        })
        .collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

fn hints(config: &Config, measurement: &Measurement) -> Vec<String> {
    let failed = |reason: &Reason| measurement.failed.contains_key(reason);
    let mut hints = Vec::new();
    if config.api == Api::V1 && measurement.ok() == 0 && [404, 405].into_iter().any(|it| failed(&Reason::Status(it))) {
        hints.push(
            "the target does not know POST /v1/classify: if it is the legacy system, give `--api legacy`".to_owned(),
        );
    }
    if failed(&Reason::Status(503)) {
        hints.push("503 is how a full server sheds load: lower --concurrency or --rate, or add workers".to_owned());
    }
    hints
}

/// To the microsecond, so that JSON shows no digits that were not measured.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
