//! The report as text for people.

use std::fmt::{self, Write as _};

use super::figures::{Accuracy, Grade, HistogramRow, LatencyMs, Report, ThresholdResult};
use crate::loadgen::threshold::Metric;
use crate::protocol::TimingsMs;

const BAR_WIDTH: u64 = 40;

pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    write(&mut text, report).expect("a String takes everything; this is a bug");
    text
}

fn write(out: &mut String, report: &Report) -> fmt::Result {
    let requests = &report.requests;
    let interrupted = if report.interrupted { ", interrupted" } else { "" };
    writeln!(
        out,
        "{} of {} requests to {} in {}{interrupted}",
        requests.ok + requests.failed,
        requests.planned,
        report.url,
        seconds(report.wall_seconds)
    )?;
    writeln!(out, "  {:<12}{} ok, {} failed", "requests", requests.ok, requests.failed)?;
    for group in &report.failures {
        let example = group.example.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        writeln!(out, "  {:<12}{} × {}{example}", "", group.count, group.reason)?;
    }
    if requests.abandoned > 0 {
        writeln!(out, "  {:<12}{} sent, but given up when the run was interrupted", "", requests.abandoned)?;
    }
    if requests.retried > 0 {
        writeln!(out, "  {:<12}{} sent again, because the server had closed the connection", "", requests.retried)?;
    }
    writeln!(out, "  {:<12}{:.1}", "images/s", report.images_per_second)?;
    if let Some(latency) = &report.latency_ms {
        write_latency(out, latency)?;
    }
    if let Some(timings) = &report.server_timings_ms {
        write_timings(out, timings)?;
    }
    write_generator(out, report)?;
    if let Some(accuracy) = &report.accuracy {
        write_accuracy(out, accuracy)?;
    }
    write_histogram(out, &report.latency_histogram)?;
    write_thresholds(out, &report.thresholds)?;
    if let Some(grade) = &report.grade {
        write_grade(out, grade)?;
    }
    if let Some(accuracy) = &report.accuracy {
        write_wrong(out, accuracy)?;
    }
    for hint in &report.hints {
        writeln!(out, "\nhint: {hint}")?;
    }
    Ok(())
}

fn write_latency(out: &mut String, latency: &LatencyMs) -> fmt::Result {
    write!(out, "  {:<12}", "latency")?;
    for (name, value) in [("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99)] {
        write!(out, "{name} {}  ", ms(value))?;
    }
    if let Some(p99_9) = latency.p99_9 {
        write!(out, "p99.9 {}  ", ms(p99_9))?;
    }
    writeln!(out, "max {}", ms(latency.max))
}

fn write_timings(out: &mut String, timings: &TimingsMs) -> fmt::Result {
    writeln!(
        out,
        "  {:<12}queued {}  fetched {}  decoded {}  inferred {}  total {}  (means)",
        "in server",
        ms(timings.queued),
        ms(timings.fetched),
        ms(timings.decoded),
        ms(timings.inferred),
        ms(timings.total)
    )
}

fn write_generator(out: &mut String, report: &Report) -> fmt::Result {
    let Some(generator) = &report.generator else { return Ok(()) };
    if generator.waited_for_connection > 0 {
        writeln!(
            out,
            "  {:<12}{} starts waited because all {} connections were busy; the wait is in their latency",
            "open loop", generator.waited_for_connection, report.concurrency
        )?;
    }
    if generator.late > 0 {
        writeln!(
            out,
            "  {:<12}{} starts were more than 10 ms late, the worst {}: this machine is too slow for the load, latencies are too high",
            "generator lag",
            generator.late,
            ms(generator.longest_lag_ms)
        )?;
    }
    Ok(())
}

fn write_accuracy(out: &mut String, accuracy: &Accuracy) -> fmt::Result {
    write!(out, "  {:<12}", "accuracy")?;
    match accuracy.top1 {
        None => write!(out, "no answer to judge")?,
        Some(top1) => write!(out, "top-1 {top1:.4} ({} of {})", accuracy.top1_correct, accuracy.judged)?,
    }
    if let (Some(top5), Some(correct)) = (accuracy.top5, accuracy.top5_correct) {
        write!(out, "  top-5 {top5:.4} ({correct} of {})", accuracy.judged)?;
    }
    if accuracy.without_expectation > 0 {
        write!(out, "  {} without an expectation", accuracy.without_expectation)?;
    }
    writeln!(out)
}

fn write_histogram(out: &mut String, rows: &[HistogramRow]) -> fmt::Result {
    let Some(most) = rows.iter().map(|row| row.count).max() else { return Ok(()) };
    writeln!(out, "\nlatency histogram")?;
    for row in rows {
        // Round up, so that a row with a single request among thousands is visible.
        let width = (row.count * BAR_WIDTH).div_ceil(most.max(1));
        let bar = "■".repeat(width as usize);
        writeln!(out, "  {:>9} to {:>9}  {:>8}  {bar}", ms(row.from_ms), ms(row.to_ms), row.count)?;
    }
    Ok(())
}

fn write_thresholds(out: &mut String, thresholds: &[ThresholdResult]) -> fmt::Result {
    if thresholds.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nthresholds")?;
    for checked in thresholds {
        let verdict = if checked.passed { "pass" } else { "MISS" };
        writeln!(out, "  {verdict}  {:<20} measured {}", checked.threshold, measured(checked))?;
    }
    Ok(())
}

/// The points of each line, what was measured, and the sum.
fn write_grade(out: &mut String, grade: &Grade) -> fmt::Result {
    writeln!(out, "\ngrade")?;
    for item in &grade.items {
        let points = format!("{} of {}", points(item.points), points(item.of));
        let what = if item.what.is_empty() { String::new() } else { format!("  {}", item.what) };
        writeln!(out, "  {points:>12}  {:<20} measured {}{what}", item.result.threshold, measured(&item.result))?;
    }
    let sum = format!("{} of {}", points(grade.points), points(grade.of));
    writeln!(out, "  {sum:>12}  points")
}

fn points(points: f64) -> f64 {
    (points * 100.0).round() / 100.0
}

fn measured(checked: &ThresholdResult) -> String {
    let Some(value) = checked.measured else { return "nothing".to_owned() };
    match checked.metric {
        Metric::Latency(_) => ms(value),
        Metric::Accuracy | Metric::Top5 => format!("{value:.4}"),
        Metric::Failed | Metric::Ok => format!("{value}"),
        Metric::Rate => format!("{value:.1} images/s"),
    }
}

fn write_wrong(out: &mut String, accuracy: &Accuracy) -> fmt::Result {
    if accuracy.wrong.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nwrong answers")?;
    for wrong in &accuracy.wrong {
        let score = wrong.score.map(|score| format!(" ({score:.3})")).unwrap_or_default();
        writeln!(out, "  {}: expected {}, got {}{score}", wrong.file, wrong.expected, wrong.got)?;
    }
    if accuracy.wrong_images > accuracy.wrong.len() {
        writeln!(out, "  and {} more images", accuracy.wrong_images - accuracy.wrong.len())?;
    }
    Ok(())
}

/// Formats with three significant digits, the precision of the histogram.
fn ms(value: f64) -> String {
    match value {
        _ if value >= 10_000.0 => format!("{:.1} s", value / 1e3),
        _ if value >= 1_000.0 => format!("{:.2} s", value / 1e3),
        _ if value >= 100.0 => format!("{value:.0} ms"),
        _ if value >= 10.0 => format!("{value:.1} ms"),
        _ if value >= 1.0 => format!("{value:.2} ms"),
        _ => format!("{value:.3} ms"),
    }
}

fn seconds(value: f64) -> String {
    if value >= 1.0 { format!("{value:.2} s") } else { ms(value * 1e3) }
}
