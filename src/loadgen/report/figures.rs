//! The figures of a run and whether it met its thresholds.

use std::time::Duration;

use serde::Serialize;

use crate::loadgen::config::Config;
use crate::loadgen::driver::RunResult;
use crate::loadgen::expect::Mismatch;
use crate::loadgen::failure::{Reason, printable};
use crate::loadgen::measurement::Measurement;
use crate::loadgen::rubric::Item;
use crate::loadgen::target::Api;
use crate::loadgen::threshold::{LatencyMetric, Metric, Threshold};
use crate::protocol::TimingsMs;
use crate::stats::{Bar, Summary};
use crate::workload::Arrivals;

/// Minimum number of requests for a p99.9; with fewer it would be a guess.
const MIN_P99_9_COUNT: u64 = 1000;

/// The report. Its JSON form is a stable interface: names carry their units, and values that were not measured are
/// null.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub url: String,
    pub api: &'static str,
    /// `closed` or `open`.
    pub r#loop: &'static str,
    pub concurrency: usize,
    /// The rate of an open loop, if it is constant.
    pub intended_rate_per_second: Option<f64>,
    pub arrivals: Option<&'static str>,
    pub seed: Option<u64>,
    /// True if the run was stopped before all requests were sent and answered.
    pub interrupted: bool,
    pub requests: Requests,
    pub failures: Vec<FailureGroup>,
    pub wall_seconds: f64,
    /// Successful answers divided by wall time.
    pub images_per_second: f64,
    /// Latencies of successful answers, from the intended start.
    pub latency_ms: Option<LatencyMs>,
    /// More percentiles of the same, as far as the number of answers allows.
    pub latency_percentiles: Vec<Percentile>,
    pub latency_histogram: Vec<HistogramRow>,
    /// The requests that ended in each second; in a long run in each longer part.
    pub timeline: Vec<TimelineRow>,
    /// Means of the timings in the answers.
    pub server_timings_ms: Option<TimingsMs>,
    pub generator: Option<Generator>,
    pub accuracy: Option<Accuracy>,
    pub thresholds: Vec<ThresholdResult>,
    /// The points of a rubric; `None` without one.
    pub grade: Option<Grade>,
    /// Advice on known kinds of failures.
    pub hints: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Requests {
    pub planned: u64,
    pub started: u64,
    pub ok: u64,
    pub failed: u64,
    /// Requests that were sent and then given up when the run was interrupted.
    pub abandoned: u64,
    /// Requests that were sent again because the server had closed the kept-alive connection.
    pub retried: u64,
    /// Polls of jobs that were not final in the first answer.
    pub polls: u64,
    pub connections: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct FailureGroup {
    pub reason: String,
    pub count: u64,
    /// The explanation of the first of them.
    pub example: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LatencyMs {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    /// `None` if there were fewer than a thousand requests.
    pub p99_9: Option<f64>,
    pub max: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct HistogramRow {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Percentile {
    pub percentile: f64,
    pub ms: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct TimelineRow {
    pub from_seconds: f64,
    pub seconds: f64,
    pub ok: u64,
    pub failed: u64,
    /// Latencies of the answers in this part, good to a few percent; `None` if there was none.
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

/// How well an open loop kept its schedule.
#[derive(Debug, Serialize)]
pub(crate) struct Generator {
    /// Starts that waited because every connection was busy. The wait is part of their latency.
    pub waited_for_connection: u64,
    /// Starts that were more than 10 ms late because of this machine.
    pub late: u64,
    pub longest_lag_ms: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Accuracy {
    pub top1: Option<f64>,
    /// `None` if the target has the API of the legacy system, which returns one label.
    pub top5: Option<f64>,
    pub judged: u64,
    pub top1_correct: u64,
    pub top5_correct: Option<u64>,
    pub without_expectation: u64,
    /// At most ten images whose first prediction was not the expected one.
    pub wrong: Vec<WrongAnswer>,
    /// The number of all such images.
    #[serde(rename = "wrong_pictures")]
    pub wrong_images: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct WrongAnswer {
    pub file: String,
    pub expected: String,
    pub got: String,
    pub score: Option<f32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ThresholdResult {
    pub threshold: String,
    /// Latencies are in milliseconds, accuracies are shares.
    pub measured: Option<f64>,
    pub passed: bool,
    #[serde(skip)]
    pub metric: Metric,
}

/// The points of a rubric that the run has earned.
#[derive(Debug, Serialize)]
pub(crate) struct Grade {
    pub points: f64,
    pub of: f64,
    pub items: Vec<GradeItem>,
}

#[derive(Debug, Serialize)]
pub(crate) struct GradeItem {
    /// The meaning of the condition, as the rubric says; may be empty.
    pub what: String,
    pub points: f64,
    pub of: f64,
    #[serde(flatten)]
    pub result: ThresholdResult,
}

impl Report {
    pub(crate) fn new(config: &Config, result: &RunResult, rubric: &[Item], name_of: impl Fn(usize) -> String) -> Self {
        let measurement = &result.measurement;
        let summary = measurement.latencies.summary();
        let (ok, failed) = (measurement.ok(), measurement.failures());
        let wall_seconds = result.wall.as_secs_f64();
        let mut report = Report {
            url: config.url.to_string(),
            api: config.api.as_str(),
            r#loop: if config.arrivals.is_some() { "open" } else { "closed" },
            concurrency: config.concurrency,
            intended_rate_per_second: config.arrivals.as_ref().and_then(Arrivals::rate),
            arrivals: config.arrivals.as_ref().map(Arrivals::as_str),
            seed: config.arrivals.as_ref().map(|_| config.seed),
            interrupted: result.interrupted,
            requests: Requests {
                planned: result.planned,
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
            latency_percentiles: percentiles(measurement),
            latency_histogram: measurement.latencies.bars().into_iter().map(HistogramRow::from).collect(),
            timeline: timeline(measurement),
            server_timings_ms: measurement.timings.mean(),
            generator: config.arrivals.as_ref().map(|_| Generator {
                waited_for_connection: measurement.lag.waited,
                late: measurement.lag.late,
                longest_lag_ms: ms(measurement.lag.longest),
            }),
            accuracy: config.expect.is_some().then(|| Accuracy::new(measurement, config.api, name_of)),
            thresholds: Vec::new(),
            grade: None,
            hints: hints(config, measurement),
        };
        report.thresholds = config.thresholds.iter().map(|it| report.check(it, measurement)).collect();
        report.grade = (!rubric.is_empty()).then(|| report.grade(rubric, measurement));
        report
    }

    pub(crate) fn threshold_missed(&self) -> bool {
        self.thresholds.iter().any(|threshold| !threshold.passed)
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers; this is a bug") + "\n"
    }

    fn grade(&self, rubric: &[Item], measurement: &Measurement) -> Grade {
        let item = |item: &Item| {
            let result = self.check(&item.condition, measurement);
            let points = if result.passed { item.points } else { 0.0 };
            GradeItem { what: item.what.clone(), points, of: item.points, result }
        };
        let items: Vec<GradeItem> = rubric.iter().map(item).collect();
        let sum = |of: fn(&GradeItem) -> f64| items.iter().map(of).sum();
        Grade { points: sum(|item| item.points), of: sum(|item| item.of), items }
    }

    fn check(&self, threshold: &Threshold, measurement: &Measurement) -> ThresholdResult {
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
        ThresholdResult {
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
        let wrong = measurement.wrong.iter().take(Self::WRONG_SHOWN).map(|(&image, wrong)| {
            let Mismatch { expected, got, score } = wrong.clone();
            WrongAnswer { file: printable(&name_of(image)), expected, got, score }
        });
        Accuracy {
            top1: share(measurement.top1),
            top5: top5_correct.and_then(share),
            judged: measurement.judged,
            top1_correct: measurement.top1,
            top5_correct,
            without_expectation: measurement.without_expectation,
            wrong: wrong.collect(),
            wrong_images: measurement.wrong.len(),
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
            p99_9: (summary.count >= MIN_P99_9_COUNT).then(|| ms(summary.p99_9)),
            max: ms(summary.max),
        }
    }
}

impl From<Bar> for HistogramRow {
    fn from(bar: Bar) -> Self {
        HistogramRow { from_ms: ms(bar.from), to_ms: ms(bar.to), count: bar.count }
    }
}

/// A percentile is given if at least one answer is above it.
fn percentiles(measurement: &Measurement) -> Vec<Percentile> {
    const PERCENTILES: [f64; 14] = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.9, 99.99];
    let count = measurement.ok() as f64;
    let is_known = |percentile: &f64| count * (1.0 - percentile / 100.0) >= 1.0 - 1e-9;
    let value = |percentile: f64| {
        let latency = measurement.latencies.quantile(percentile / 100.0)?;
        Some(Percentile { percentile, ms: ms(latency) })
    };
    PERCENTILES.into_iter().filter(is_known).filter_map(value).collect()
}

fn timeline(measurement: &Measurement) -> Vec<TimelineRow> {
    let width = measurement.timeline.width();
    let rows = measurement.timeline.slots().iter().zip(0u32..).map(|(slot, number)| TimelineRow {
        from_seconds: (width * number).as_secs_f64(),
        seconds: width.as_secs_f64(),
        ok: slot.ok,
        failed: slot.failed,
        p50_ms: slot.quantile(0.5).map(ms),
        p90_ms: slot.quantile(0.9).map(ms),
        p99_ms: slot.quantile(0.99).map(ms),
    });
    rows.collect()
}

/// Groups of failures, the most frequent first.
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

/// Rounded to a microsecond, so that JSON shows no digits that were not measured.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
