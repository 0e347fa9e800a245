//! The export of metrics by OTLP: what `/metrics` shows of this process, with its exemplars, once a minute.
//!
//! The metrics are those of Prometheus' registry, so that both ways out have the same names and values. A process that started
//! others exports only its own: the others export theirs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_http::{Bytes, HttpClient as _, Request};
use opentelemetry_otlp::Protocol;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_sdk::Resource;
use percent_encoding::percent_decode_str;
use prometheus::proto::{LabelPair, Metric as Registered, MetricFamily, MetricType};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::exemplars::{self, Exemplar as Traced};
use super::metrics;
use super::otlp::{ENDPOINT, RuntimeClient, first_of, protocol};

const METRICS_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
const INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";
const DEFAULT_INTERVAL: Duration = Duration::from_mins(1);

/// The export of this process. End it with [`MetricsExport::finish`].
pub(super) struct MetricsExport {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl MetricsExport {
    /// Starts the export if the environment asks for it. Call it in the runtime that is to run it.
    ///
    /// # Errors
    /// When the variables ask for something that is not built in.
    pub(super) fn start(resource: &Resource) -> anyhow::Result<Option<MetricsExport>> {
        let Some(url) = endpoint() else { return Ok(None) };
        let url: http::Uri = url.parse().with_context(|| format!("cannot export metrics to {url}: it is no URL"))?;
        let protocol = protocol("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")?;
        let headers = headers(&first_of(&HEADERS).unwrap_or_default())?;
        let client = RuntimeClient::new().context("cannot load the root certificates of this system")?;
        let attributes = resource.iter().map(|(key, value)| attribute(key.as_str(), &value.to_string()));
        let resource = ProtoResource { attributes: attributes.collect(), ..ProtoResource::default() };
        let started = SystemTime::now();
        let sender = Sender { url, protocol, headers, client, resource, started };
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(run(sender, interval()?, ended));
        Ok(Some(MetricsExport { end, task }))
    }

    /// Exports the last values, and ends.
    pub(super) async fn finish(self) {
        let _ = self.end.send(());
        // A panic was logged where it happened.
        let _ = self.task.await;
    }
}

/// The address for metrics, unless they are switched off.
fn endpoint() -> Option<String> {
    if first_of(&["OTEL_METRICS_EXPORTER"]).is_some_and(|exporter| exporter == "none") {
        return None;
    }
    let of_all = || first_of(&[ENDPOINT]).map(|base| format!("{}/v1/metrics", base.trim_end_matches('/')));
    first_of(&[METRICS_ENDPOINT]).or_else(of_all)
}

fn interval() -> anyhow::Result<Duration> {
    let Some(text) = first_of(&[INTERVAL]) else { return Ok(DEFAULT_INTERVAL) };
    let milliseconds = text.parse().ok().filter(|milliseconds| *milliseconds > 0);
    milliseconds
        .map(Duration::from_millis)
        .with_context(|| format!("{INTERVAL}={text:?}: give a number of milliseconds"))
}

/// Reads `name=value,name=value`, whose values are percent-encoded.
fn headers(text: &str) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        // The value may be a secret, so no message has it.
        let wrong = "OTEL_EXPORTER_OTLP_HEADERS: give NAME=VALUE, several with commas between them";
        let (name, value) = pair.split_once('=').context(wrong)?;
        let value = percent_decode_str(value.trim()).decode_utf8().context(wrong)?;
        let name = HeaderName::try_from(name.trim()).context(wrong)?;
        headers.insert(name, HeaderValue::try_from(&*value).context(wrong)?);
    }
    Ok(headers)
}

async fn run(sender: Sender, interval: Duration, mut ended: oneshot::Receiver<()>) {
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    let mut is_failing = false;
    loop {
        let is_last = tokio::select! {
            _ = ticks.tick() => false,
            _ = &mut ended => true,
        };
        match sender.export().await {
            Ok(()) => is_failing = false,
            Err(error) if is_failing => tracing::debug!(%error, "cannot export metrics"),
            Err(error) => {
                tracing::warn!(%error, url = %sender.url, "cannot export metrics; the next export is tried");
                is_failing = true;
            }
        }
        if is_last {
            return;
        }
    }
}

struct Sender {
    url: http::Uri,
    protocol: Protocol,
    headers: HeaderMap,
    client: RuntimeClient,
    resource: ProtoResource,
    started: SystemTime,
}

impl Sender {
    async fn export(&self) -> anyhow::Result<()> {
        let message = self.message();
        let (kind, body) = match self.protocol {
            Protocol::HttpJson => ("application/json", serde_json::to_vec(&message)?),
            _ => ("application/x-protobuf", message.encode_to_vec()),
        };
        let mut request = Request::post(self.url.clone()).header(CONTENT_TYPE, kind).body(Bytes::from(body))?;
        request.headers_mut().extend(self.headers.clone());
        let sent = self.client.send_bytes(request).await;
        let status = sent.map_err(|error| anyhow::anyhow!("no answer: {error}"))?.status();
        anyhow::ensure!(status.is_success(), "the collector answered with status {status}");
        Ok(())
    }

    fn message(&self) -> ExportMetricsServiceRequest {
        let times = Times { start: nanoseconds(self.started), now: nanoseconds(SystemTime::now()) };
        let traced: BTreeMap<(String, String), Vec<Traced>> =
            exemplars::all().into_iter().map(|(name, labels, found)| ((name.to_owned(), labels), found)).collect();
        let metrics = metrics::gathered().iter().filter_map(|family| metric_of(family, times, &traced)).collect();
        let scope = InstrumentationScope {
            name: "imgcls".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
        let resource = Some(self.resource.clone());
        let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..ResourceMetrics::default() }];
        ExportMetricsServiceRequest { resource_metrics }
    }
}

/// The beginning of the process and the time of the export.
#[derive(Clone, Copy)]
struct Times {
    start: u64,
    now: u64,
}

/// A family as OTLP has it. `None` for kinds that are not registered.
fn metric_of(family: &MetricFamily, times: Times, traced: &BTreeMap<(String, String), Vec<Traced>>) -> Option<Metric> {
    let numbers = |value: fn(&Registered) -> f64| {
        let point = |registered: &Registered| number_point(registered, value(registered), times);
        family.get_metric().iter().map(point).collect::<Vec<_>>()
    };
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let data = match family.get_field_type() {
        MetricType::COUNTER => metric::Data::Sum(Sum {
            data_points: numbers(|registered| registered.get_counter().get_value()),
            aggregation_temporality,
            is_monotonic: true,
        }),
        MetricType::GAUGE => {
            metric::Data::Gauge(Gauge { data_points: numbers(|registered| registered.get_gauge().get_value()) })
        }
        MetricType::HISTOGRAM => {
            let point = |registered: &Registered| {
                let found = traced.get(&(family.name().to_owned(), label_text(registered.get_label())));
                histogram_point(registered, times, found.map_or(&[], Vec::as_slice))
            };
            let data_points = family.get_metric().iter().map(point).collect();
            metric::Data::Histogram(Histogram { data_points, aggregation_temporality })
        }
        _ => return None,
    };
    let unit = family.name().trim_end_matches("_total").rsplit('_').next();
    let unit = match unit {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    };
    Some(Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    })
}

fn number_point(registered: &Registered, value: f64, times: Times) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(registered.get_label()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

/// Prometheus counts what is below each bound, and OTLP what is between two.
fn histogram_point(registered: &Registered, times: Times, traced: &[Traced]) -> HistogramDataPoint {
    let histogram = registered.get_histogram();
    let buckets = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let (mut explicit_bounds, mut bucket_counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in buckets {
        explicit_bounds.push(bucket.upper_bound());
        bucket_counts.push(bucket.cumulative_count().saturating_sub(below));
        below = bucket.cumulative_count();
    }
    bucket_counts.push(histogram.get_sample_count().saturating_sub(below));
    HistogramDataPoint {
        attributes: attributes(registered.get_label()),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count: histogram.get_sample_count(),
        sum: Some(histogram.get_sample_sum()),
        bucket_counts,
        explicit_bounds,
        exemplars: traced.iter().map(exemplar_of).collect(),
        ..HistogramDataPoint::default()
    }
}

fn exemplar_of(traced: &Traced) -> Exemplar {
    Exemplar {
        time_unix_nano: nanoseconds(traced.at),
        span_id: traced.ids.span.to_vec(),
        trace_id: traced.ids.trace.to_vec(),
        value: Some(exemplar::Value::AsDouble(traced.value)),
        ..Exemplar::default()
    }
}

/// The labels as [`exemplars::record`] writes them. Values that need an escape have no exemplars here.
fn label_text(labels: &[LabelPair]) -> String {
    labels.iter().map(|label| format!("{}=\"{}\"", label.name(), label.value())).collect::<Vec<_>>().join(",")
}

fn attributes(labels: &[LabelPair]) -> Vec<KeyValue> {
    labels.iter().map(|label| attribute(label.name(), label.value())).collect()
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pairs_with_encoded_values() {
        let parsed = headers("authorization=Bearer%20a%3Db, x-tenant=7").unwrap();
        assert!(parsed["authorization"] == "Bearer a=b" && parsed["x-tenant"] == "7", "{parsed:?}");
        assert!(headers("").unwrap().is_empty());
        for wrong in ["secret", "a b=c", "a=%ff"] {
            let error = format!("{:#}", headers(wrong).unwrap_err());
            assert!(error.starts_with("OTEL_EXPORTER_OTLP_HEADERS") && !error.contains("secret"), "{error}");
        }
    }
}
