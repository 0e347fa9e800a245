//! Service time and overhead from a report of the load generator, and its timeline.
//!
//! In a closed loop that keeps every session busy, the service time is the number of sessions divided by the rate. It
//! includes the work between two images, as it should. The overhead is the time of an answer beyond the time until its
//! result was written.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(super) struct Measured {
    pub service_time: Duration,
    pub overhead: Duration,
}

#[derive(Deserialize)]
struct Report {
    r#loop: String,
    concurrency: u32,
    images_per_second: f64,
    latency_ms: Option<Latency>,
    server_timings_ms: Option<Timings>,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
}

#[derive(Deserialize)]
struct Timings {
    total: f64,
}

/// The timeline of a measured run, to be compared with a simulated one.
pub(super) struct Overlay {
    pub points: Vec<MeasuredPoint>,
}

/// A part of a measured run.
pub(super) struct MeasuredPoint {
    /// The middle of the part, counted from the start of the run.
    pub at_seconds: f64,
    pub answers_per_second: f64,
    /// `None` if nothing was answered.
    pub p90_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct TimelineReport {
    timeline: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    from_seconds: f64,
    seconds: f64,
    ok: u64,
    p90_ms: Option<f64>,
}

/// Reads the timeline of a report.
///
/// # Errors
/// One line if the file is not a report, or one of an earlier release, which has no timeline.
pub(super) fn overlay(path: &Path) -> anyhow::Result<Overlay> {
    let report: TimelineReport = read_report(path)?;
    let point = |row: &Row| MeasuredPoint {
        at_seconds: row.from_seconds + row.seconds / 2.0,
        answers_per_second: row.ok as f64 / row.seconds.max(1e-3),
        p90_seconds: row.p90_ms.map(|ms| ms / 1e3),
    };
    Ok(Overlay { points: report.timeline.iter().map(point).collect() })
}

fn read_report<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let context = || format!("cannot read the report {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    serde_json::from_str(&text).context("not a report of `imgcls loadgen --json`").with_context(context)
}

/// Reads a report of a run in which `sessions` sessions, of all workers together, were busy.
///
/// # Errors
/// One line if the file is not a report, or the run did not keep the sessions busy.
pub(super) fn read(path: &Path, sessions: u32) -> anyhow::Result<Measured> {
    measured(&read_report(path)?, sessions).with_context(|| format!("cannot read the report {}", path.display()))
}

fn measured(report: &Report, sessions: u32) -> anyhow::Result<Measured> {
    ensure!(
        report.r#loop == "closed" && report.concurrency >= sessions.saturating_mul(2),
        "only a closed loop with twice as many requests in flight as sessions keeps {sessions} sessions busy; measure with \
         `imgcls loadgen --json --concurrency {}`, without --rate",
        sessions.saturating_mul(4)
    );
    ensure!(report.images_per_second > 0.0, "no image was classified in that run");
    let service_time = Duration::try_from_secs_f64(f64::from(sessions) / report.images_per_second)?;
    let overhead_ms = match (&report.latency_ms, &report.server_timings_ms) {
        (Some(latency), Some(timings)) => (latency.mean - timings.total).max(0.0),
        _ => 0.0,
    };
    Ok(Measured { service_time, overhead: Duration::try_from_secs_f64(overhead_ms / 1e3)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> anyhow::Result<Measured> {
        measured(&serde_json::from_str(text)?, 2)
    }

    #[test]
    fn service_time_is_sessions_divided_by_rate() {
        let text = r#"{"loop": "closed", "concurrency": 8, "images_per_second": 250.0, "latency_ms": {"mean": 32.0},
            "server_timings_ms": {"total": 30.5}}"#;
        let measured = read_text(text).expect("a report");
        assert_eq!((measured.service_time, measured.overhead), (Duration::from_millis(8), Duration::from_micros(1500)));
        let old_server = text.replace(r#"{"total": 30.5}"#, "null");
        assert_eq!(read_text(&old_server).expect("a report").overhead, Duration::ZERO);
    }

    #[test]
    fn run_with_idle_sessions_is_refused() {
        for text in [
            r#"{"loop": "open", "concurrency": 100, "images_per_second": 1.0}"#,
            r#"{"loop": "closed", "concurrency": 3, "images_per_second": 1.0}"#,
            r#"{"loop": "closed", "concurrency": 8, "images_per_second": 0.0}"#,
            r#"{"loop": "closed", "concurrency": 8, "images_per_second": 1e-300}"#,
            r#"{"concurrency": 8}"#,
        ] {
            assert!(read_text(text).is_err(), "{text}");
        }
    }
}
