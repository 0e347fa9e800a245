//! The state of a web tier, as its health check and its metrics show it.

use std::time::Instant;

use http::StatusCode;

use super::exposition::Samples;
use super::report::{Service, Throughput, Workers};
use crate::loadgen::{self, BaseUrl, Call};

/// The answers of a web tier.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    at: Instant,
    /// The status and body of `/readyz`, or why there is none.
    health: Result<(StatusCode, String), String>,
    /// The metrics, or why there are none.
    metrics: Result<Samples, String>,
}

/// Asks a web tier. `key` is sent with both requests.
pub(super) async fn read(url: &BaseUrl, key: Option<&str>) -> Reading {
    let (health, metrics) = tokio::join!(get(url, "/readyz", key), get(url, "/metrics", key));
    let metrics = match metrics {
        Ok((StatusCode::OK, text)) => Ok(Samples::parse(&text)),
        Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)) => {
            Err("/metrics needs a key with the scope admin: give --key, or the URL of --admin-listen".to_owned())
        }
        Ok((status, _)) => Err(format!("/metrics answers {status}")),
        Err(reason) => Err(reason),
    };
    Reading { at: Instant::now(), health, metrics }
}

/// The rates between two readings of one process, or `None` if a reading has no metrics.
pub(super) fn throughput(earlier: &Reading, now: &Reading) -> Option<Throughput> {
    let (before, after) = (earlier.metrics.as_ref().ok()?, now.metrics.as_ref().ok()?);
    let seconds = now.at.saturating_duration_since(earlier.at).as_secs_f64();
    // A counter that fell belongs to another process.
    let grown = |name: &str, label: &str| {
        (after.sum(name, label).unwrap_or(0.0) - before.sum(name, label).unwrap_or(0.0)).max(0.0)
    };
    let rate = |grown: f64| if seconds > 0.0 { grown / seconds } else { 0.0 };
    // `up` knows what its workers completed. Another web tier knows the replies to its own jobs.
    let images = match after.sum("imgcls_worker_endings_total", "") {
        Some(_) => grown("imgcls_worker_endings_total", "ending=\"succeeded\""),
        None => grown("imgcls_web_replies_total", ""),
    };
    let (time, count) =
        (grown("imgcls_web_request_seconds_sum", "\"POST\""), grown("imgcls_web_request_seconds_count", "\"POST\""));
    Some(Throughput {
        seconds,
        images_per_second: rate(images),
        requests_per_second: rate(grown("imgcls_web_requests_total", "")),
        server_errors_per_second: rate(grown("imgcls_web_requests_total", "status=\"5")),
        refused_per_second: rate(grown("imgcls_web_shed_total", "") + grown("imgcls_web_denied_total", "")),
        mean_post_ms: (count > 0.0).then(|| time / count * 1e3),
        images_total: after.sum("imgcls_worker_endings_total", "ending=\"succeeded\""),
    })
}

impl Reading {
    pub(super) fn has_metrics(&self) -> bool {
        self.metrics.is_ok()
    }

    pub(super) fn service(&self, url: String) -> Service {
        let mut warnings = Vec::new();
        let (is_ready, state) = match &self.health {
            Ok((StatusCode::OK, text)) => {
                warnings.extend(text.lines().filter_map(|line| line.strip_prefix("warning: ")).map(str::to_owned));
                (true, "ready".to_owned())
            }
            Ok((status, text)) => (false, format!("not ready ({status}): {}", detail(text))),
            Err(reason) => (false, format!("does not answer: {reason}")),
        };
        if let (Ok(_), Err(reason)) = (&self.health, &self.metrics) {
            warnings.push(reason.clone());
        }
        let version = self.metrics.as_ref().ok().and_then(|samples| samples.label("imgcls_build_info", "version"));
        Service { url, is_ready, state, warnings, version: version.map(str::to_owned) }
    }

    /// `None` if the service does not start its workers itself.
    pub(super) fn workers(&self) -> Option<Workers> {
        let samples = self.metrics.as_ref().ok()?;
        let whole = |value: f64| value.max(0.0) as u64;
        Some(Workers {
            wanted: whole(samples.sum("imgcls_workers_wanted", "")?),
            ready: whole(samples.sum("imgcls_workers_ready", "").unwrap_or(0.0)),
            restarts: whole(samples.sum("imgcls_workers_restarts_total", "").unwrap_or(0.0)),
            resident_bytes: samples.sum("imgcls_worker_resident_memory_bytes", "").map(whole),
        })
    }
}

/// The reason in an error of the web tier, which is `application/problem+json`, or the first line of another answer.
fn detail(text: &str) -> String {
    let problem = serde_json::from_str::<serde_json::Value>(text).ok();
    let detail = problem.as_ref().and_then(|problem| problem.get("detail")?.as_str());
    detail.or_else(|| text.lines().next()).unwrap_or_default().to_owned()
}

async fn get(url: &BaseUrl, path: &str, key: Option<&str>) -> Result<(StatusCode, String), String> {
    loadgen::fetch(url, Call { path, key, ..Call::default() }).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reading(at: Instant, metrics: &str) -> Reading {
        Reading { at, health: Ok((StatusCode::OK, "ready\n".to_owned())), metrics: Ok(Samples::parse(metrics)) }
    }

    #[test]
    fn rates_are_those_between_two_readings() {
        let start = Instant::now();
        let earlier = reading(start, "imgcls_worker_endings_total{ending=\"succeeded\"} 10\n");
        let metrics = "imgcls_worker_endings_total{ending=\"succeeded\"} 30\nimgcls_worker_endings_total{ending=\"dead_letter\"} 4\n\
            imgcls_web_requests_total{method=\"POST\",route=\"/\",status=\"503\"} 2\n";
        let now = reading(start + Duration::from_secs(2), metrics);
        let rates = throughput(&earlier, &now).unwrap();
        assert_eq!((rates.images_per_second, rates.server_errors_per_second), (10.0, 1.0));
        assert_eq!((rates.mean_post_ms, rates.images_total), (None, Some(30.0)));
        assert!(throughput(&now, &earlier).unwrap().images_per_second < 1e-9, "another process");
    }

    #[test]
    fn problem_of_the_health_check_is_its_detail() {
        assert_eq!(detail(r#"{"title":"x","detail":"no worker is ready yet"}"#), "no worker is ready yet");
        assert_eq!(detail("plain\nmore"), "plain");
    }
}
