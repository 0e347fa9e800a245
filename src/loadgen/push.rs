//! The figures of a run as Prometheus metrics, pushed to a Pushgateway.

use std::fmt::Write as _;

use bytes::Bytes;
use http::Method;

use super::fetch::{Call, fetch};
use super::report::Report;
use super::target::BaseUrl;

/// The path at which a gateway takes metrics, unless the URL has one.
const PATH: &str = "/metrics/job/imgcls_loadgen";
const TEXT_FORMAT: &str = "text/plain; version=0.0.4";

/// Pushes the figures. They replace those of the run before.
///
/// # Errors
/// One line if the gateway does not take them.
pub(super) async fn push(gateway: &BaseUrl, report: &Report) -> anyhow::Result<()> {
    let path = if gateway.is_server() { PATH } else { gateway.path_and_query.as_str() };
    let body = Bytes::from(exposition(report));
    let call = Call { method: Method::PUT, path, content_type: Some(TEXT_FORMAT), key: None, body };
    let refused = |reason: &str| anyhow::anyhow!("cannot push to {gateway}: {reason}; see --push-gateway");
    let (status, text) = fetch(gateway, call).await.map_err(|reason| refused(&reason))?;
    if status.is_success() {
        return Ok(());
    }
    Err(refused(&format!("it answers {status} {}", super::failure::printable(text.trim()))))
}

fn exposition(report: &Report) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, samples: &[(String, f64)]| {
        if samples.is_empty() {
            return;
        }
        let _ = writeln!(text, "# HELP imgcls_loadgen_{name} {help}\n# TYPE imgcls_loadgen_{name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(text, "imgcls_loadgen_{name}{labels} {value}");
        }
    };
    let one = |value: f64| vec![(String::new(), value)];
    let requests = &report.requests;
    let outcomes = [("ok", requests.ok), ("failed", requests.failed), ("abandoned", requests.abandoned)];
    let outcomes = outcomes.map(|(outcome, count)| (format!("{{outcome=\"{outcome}\"}}"), count as f64));
    gauge("requests", "Requests of the run by outcome.", &outcomes);
    gauge("images_per_second", "Successful answers divided by the length of the run.", &one(report.images_per_second));
    gauge("run_seconds", "Length of the run.", &one(report.wall_seconds));
    let latencies: Vec<_> = report
        .latency_percentiles
        .iter()
        .map(|it| (format!("{{quantile=\"{}\"}}", (it.percentile * 1e4).round() / 1e6), it.ms / 1e3))
        .collect();
    gauge("latency_seconds", "Latency of successful answers by quantile.", &latencies);
    let mean = report.latency_ms.as_ref().map_or_else(Vec::new, |latency| one(latency.mean / 1e3));
    gauge("latency_mean_seconds", "Mean latency of successful answers.", &mean);
    let accuracy = report.accuracy.as_ref();
    let shares = [("1", accuracy.and_then(|it| it.top1)), ("5", accuracy.and_then(|it| it.top5))];
    let shares = shares.into_iter().filter_map(|(top, share)| Some((format!("{{top=\"{top}\"}}"), share?)));
    gauge("accuracy", "Share of the judged answers that are right.", &shares.collect::<Vec<_>>());
    let missed = report.thresholds.iter().filter(|threshold| !threshold.passed).count();
    gauge("thresholds_missed", "Thresholds that the run missed.", &one(missed as f64));
    text
}
