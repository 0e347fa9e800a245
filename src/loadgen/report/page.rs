//! The report as one page of HTML, which needs no other file and no script.

use std::fmt::Write as _;

use super::chart::{self, Axis, Line, escaped, number};
use super::figures::{Report, TimelineRow};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#222;--grid:#ddd;--s0:#1f6fb4;--s1:#d9822b;--s2:#b03060}\
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--grid:#444;--s0:#6cb1ee;--s1:#f0a35b;--s2:#e87b9e}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;color:var(--ink)}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .3rem}\
table{border-collapse:collapse}th,td{padding:.15rem 1rem .15rem 0;text-align:left;vertical-align:top}\
svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--ink)}\
.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:var(--grid)}.line{fill:none;stroke-width:1.6}\
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.s2{fill:var(--s2)}\
.line.s0{fill:none;stroke:var(--s0)}.line.s1{fill:none;stroke:var(--s1)}.line.s2{fill:none;stroke:var(--s2)}\
.missed{font-weight:bold;color:var(--s2)}";

/// Makes the page.
pub(crate) fn page(report: &Report) -> String {
    let title = format!("Load test of {}", escaped(&report.url));
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\
         <h1>{title}</h1>"
    );
    summary(&mut html, report);
    if !report.failures.is_empty() {
        html.push_str("<h2>Failures</h2>");
        let rows = report
            .failures
            .iter()
            .map(|group| [group.count.to_string(), group.reason.clone(), group.example.clone().unwrap_or_default()]);
        table(&mut html, ["Requests", "Reason", "Example"], rows);
    }
    if let Some(grade) = &report.grade {
        let _ = write!(html, "<h2>Grade: {} of {} points</h2>", number(grade.points), number(grade.of));
        let rows = grade.items.iter().map(|item| {
            let measured = item.result.measured.map_or("nothing".to_owned(), number);
            let points = format!("{} of {}", number(item.points), number(item.of));
            [points, item.result.threshold.clone(), measured, item.what.clone()]
        });
        table(&mut html, ["Points", "Condition", "Measured", ""], rows);
    }
    charts(&mut html, report);
    for hint in &report.hints {
        let _ = write!(html, "<p>Hint: {}</p>", escaped(hint));
    }
    html + "</body></html>\n"
}

fn summary(html: &mut String, report: &Report) {
    let requests = &report.requests;
    let mut rows = vec![
        ["Requests".to_owned(), format!("{} ok, {} failed, of {}", requests.ok, requests.failed, requests.planned)],
        [
            "Time".to_owned(),
            format!("{:.2} s{}", report.wall_seconds, if report.interrupted { ", interrupted" } else { "" }),
        ],
        ["Throughput".to_owned(), format!("{:.1} images/s", report.images_per_second)],
        ["Load".to_owned(), load(report)],
    ];
    if let Some(latency) = &report.latency_ms {
        let [p50, p90, p99, max] = [latency.p50, latency.p90, latency.p99, latency.max].map(number);
        rows.push(["Latency".to_owned(), format!("p50 {p50} ms, p90 {p90} ms, p99 {p99} ms, max {max} ms")]);
    }
    if let Some(timings) = &report.server_timings_ms {
        let [queued, fetched, decoded, inferred, total] =
            [timings.queued, timings.fetched, timings.decoded, timings.inferred, timings.total].map(number);
        let text = format!(
            "queued {queued} ms, fetched {fetched} ms, decoded {decoded} ms, inferred {inferred} ms, total {total} ms (means)"
        );
        rows.push(["In the server".to_owned(), text]);
    }
    if let Some(top1) = report.accuracy.as_ref().and_then(|accuracy| accuracy.top1) {
        rows.push(["Accuracy".to_owned(), format!("top-1 {top1:.4}")]);
    }
    html.push_str("<table>");
    for [name, value] in rows {
        let _ = write!(html, "<tr><th>{name}</th><td>{}</td></tr>", escaped(&value));
    }
    for threshold in &report.thresholds {
        let (class, verdict) = if threshold.passed { ("", "holds") } else { ("missed", "missed") };
        let measured = threshold.measured.map_or("nothing".to_owned(), number);
        let condition = escaped(&threshold.threshold);
        let _ = write!(
            html,
            "<tr><th>Threshold</th><td class=\"{class}\">{condition}: {verdict}, measured {measured}</td></tr>"
        );
    }
    html.push_str("</table>");
}

fn load(report: &Report) -> String {
    let connections = report.concurrency;
    match (report.arrivals, report.intended_rate_per_second) {
        (None, _) => format!("closed loop, {connections} requests in flight"),
        (Some(arrivals), Some(rate)) => {
            format!("open loop, {}/s ({arrivals}), at most {connections} connections", number(rate))
        }
        (Some(arrivals), None) => format!("open loop ({arrivals}), at most {connections} connections"),
    }
}

fn charts(html: &mut String, report: &Report) {
    let rows = &report.timeline;
    if rows.is_empty() {
        return;
    }
    let seconds = rows.last().map_or(1.0, |row| row.from_seconds + row.seconds);
    let time = || Axis { name: "seconds", from: 0.0, to: seconds, marks: Vec::new() };
    let line = |name: &'static str, value: &dyn Fn(&TimelineRow) -> Option<f64>| Line {
        name,
        points: rows.iter().map(|row| (row.from_seconds + row.seconds / 2.0, value(row))).collect(),
    };
    let rate = |count: u64, row: &TimelineRow| Some(count as f64 / row.seconds);
    let throughput = [line("answers", &|row| rate(row.ok, row)), line("failures", &|row| rate(row.failed, row))];
    chart_of(html, "Throughput and failures over time", &time(), "per second", &throughput);
    let latency = [line("p50", &|row| row.p50_ms), line("p90", &|row| row.p90_ms), line("p99", &|row| row.p99_ms)];
    chart_of(html, "Latency over time", &time(), "ms", &latency);

    // Each nine takes the same width.
    let place = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-5).log10();
    let last = report.latency_percentiles.last().map_or(1.0, |it| place(it.percentile).max(0.5));
    let shown = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99].into_iter().filter(|it| place(*it) <= last + 1e-9);
    let marks = shown.map(|percentile| (place(percentile), format!("{} %", number(percentile)))).collect();
    let points = report.latency_percentiles.iter().map(|it| (place(it.percentile), Some(it.ms))).collect();
    let axis = Axis { name: "share of the answers that were at least as fast", from: 0.0, to: last, marks };
    chart_of(html, "Latency by percentile", &axis, "ms", &[Line { name: "latency", points }]);

    let bars: Vec<(String, f64)> = report
        .latency_histogram
        .iter()
        .map(|row| (format!("{}–{}", number(row.from_ms), number(row.to_ms)), row.count as f64))
        .collect();
    let most = bars.iter().map(|(_, count)| *count).fold(1.0, f64::max);
    let svg = chart::bars(
        "Latency histogram",
        "ms",
        &Axis { name: "answers", from: 0.0, to: most, marks: Vec::new() },
        &bars,
    );
    let _ = write!(html, "<h2>Latency histogram</h2>{svg}");
}

fn chart_of(html: &mut String, title: &str, x: &Axis<'_>, unit: &str, lines: &[Line<'_>]) {
    let values = lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
    let most = values.fold(0.0, f64::max);
    let y = Axis { name: unit, from: 0.0, to: if most > 0.0 { most * 1.05 } else { 1.0 }, marks: Vec::new() };
    let _ = write!(html, "<h2>{title}</h2>{}", chart::lines(title, x, &y, lines));
}

fn table<const COLUMNS: usize>(
    html: &mut String,
    head: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) {
    html.push_str("<table><tr>");
    html.extend(head.iter().map(|name| format!("<th>{name}</th>")));
    for row in rows {
        html.push_str("</tr><tr>");
        html.extend(row.iter().map(|cell| format!("<td>{}</td>", escaped(cell))));
    }
    html.push_str("</tr></table>");
}
