//! The report as text for people.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::figures::{LatencyMs, Report, RunReport};
use super::phrases::time;
use crate::scaling_policy::discrete_events::MAX_RUN_TIME;

const LABEL_WIDTH: usize = 24;
const MIN_COLUMN_WIDTH: usize = 12;

pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    write(&mut text, report).expect("a String takes everything; this is a bug");
    text
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
    let currency = &report.prices.currency;
    writeln!(out, "{} requests, {}, seed {}", report.requests, report.arrivals_text, report.seed)?;
    let sessions = if report.sessions_per_worker == 1 { "session" } else { "sessions" };
    writeln!(
        out,
        "a worker: {} with {} {sessions}, {} an image each",
        report.instance_type, report.sessions_per_worker, report.service_text
    )?;
    writeln!(
        out,
        "prices of {} for {}: {:.4} {currency} an hour of a worker{}",
        report.prices.date,
        report.prices.region,
        report.instance_hour,
        if report.spot_share > 0.0 { format!(", {:.0} % Spot", report.spot_share * 100.0) } else { String::new() }
    )?;
    writeln!(out)?;
    for run in &report.runs {
        for (line, text) in run.text.lines().enumerate() {
            writeln!(out, "{:<10}  {text}", if line == 0 { run.column.as_str() } else { "" })?;
        }
    }
    writeln!(out)?;
    write_table(out, report)
}

fn write_table(out: &mut String, report: &Report) -> fmt::Result {
    let width = report.runs.iter().map(|run| run.column.len()).max().unwrap_or(0).max(MIN_COLUMN_WIDTH);
    let mut row = |label: &str, value: &dyn Fn(&RunReport) -> String| {
        write!(out, "{label:<LABEL_WIDTH$}")?;
        for run in &report.runs {
            write!(out, "  {:>width$}", value(run))?;
        }
        writeln!(out)
    };
    let latency = |pick: fn(&LatencyMs) -> f64| {
        move |run: &RunReport| run.latency_ms.as_ref().map_or("-".to_owned(), |it| milliseconds(pick(it)))
    };
    let currency = &report.prices.currency;
    row("", &|run| run.column.clone())?;
    row("done", &|run| run.completed.to_string())?;
    row("last one after", &|run| {
        run.drained_at_seconds.map_or(not_completed(), |it| time(Duration::from_secs_f64(it)))
    })?;
    row("latency p50", &latency(|it| it.p50))?;
    row("latency p90", &latency(|it| it.p90))?;
    row("latency p99", &latency(|it| it.p99))?;
    row("latency max", &latency(|it| it.max))?;
    row(&format!("within {}", time(Duration::from_secs_f64(report.slo_seconds))), &|run| percent(run.share_within))?;
    row("most waiting", &|run| run.most_visible.to_string())?;
    row("most workers", &|run| run.most_workers.to_string())?;
    row("workers started", &|run| run.workers_started.to_string())?;
    if report.deaths_per_worker_hour > 0.0 {
        row("workers died", &|run| run.worker_deaths.to_string())?;
        row("images delivered again", &|run| run.redelivered.to_string())?;
    }
    row("worker hours", &|run| format!("{:.2}", run.worker_hours))?;
    row("busy", &|run| percent(Some(run.utilization)))?;
    row(&format!("workers, {currency}"), &|run| format!("{:.4}", run.cost.workers))?;
    row(&format!("queue and store, {currency}"), &|run| format!("{:.4}", run.cost.calls))?;
    row(&format!("1000 images, {currency}"), &|run| {
        run.cost.per_thousand_images.map_or("-".to_owned(), |it| format!("{it:.4}"))
    })
}

fn not_completed() -> String {
    format!("over {} days", MAX_RUN_TIME.as_secs() / 86_400)
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn milliseconds(ms: f64) -> String {
    time(Duration::from_secs_f64(ms / 1e3))
}
