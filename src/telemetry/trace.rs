//! Traces. A W3C trace context arrives with an HTTP request and continues in the message to the worker, and every tier
//! adds its spans to that trace. When `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector, spans and metrics are exported by OTLP.
//! Otherwise a span only passes the context on.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::exemplars::SpanIds;
use super::otlp::{ENDPOINT, RuntimeClient, first_of, protocol, resource};
use super::otlp_metrics::MetricsExport;

/// The name of the HTTP header and of the message field that contain a trace context.
pub const TRACEPARENT: &str = "traceparent";
/// The endpoint of traces alone. Setting it or that of all signals enables their export.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// How long the last spans and metrics may take. A drain has ten seconds in total.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Set once if spans are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The export of this process. End it with [`Export::finish`].
pub struct Export {
    traces: Option<SdkTracerProvider>,
    metrics: Option<MetricsExport>,
}

/// Starts the export of spans and metrics if the environment asks for it. OpenTelemetry's variables set the sampling, the
/// headers, the batches and the interval (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_…`,
/// `OTEL_METRIC_EXPORT_INTERVAL`). `service` is the name of this tier unless `OTEL_SERVICE_NAME` gives another. Call it in the
/// runtime that is to run the export.
///
/// # Errors
/// When the variables ask for something that is not built in.
pub fn start(service: &'static str) -> anyhow::Result<Export> {
    let resource = resource(service);
    let metrics = MetricsExport::start(&resource)?;
    Ok(Export { traces: start_traces(service, resource)?, metrics })
}

fn start_traces(service: &'static str, resource: Resource) -> anyhow::Result<Option<SdkTracerProvider>> {
    let Some(endpoint) = first_of(&[ENDPOINT, TRACES_ENDPOINT]) else { return Ok(None) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(protocol("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")?)
        .with_http_client(RuntimeClient::new().context("cannot load the root certificates of this system")?)
        .build()
        .with_context(|| format!("cannot export traces to {endpoint}: check the OTEL_EXPORTER_OTLP_… variables"))?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    tracing::info!(endpoint, service, "exporting traces");
    let _ = TRACER.set(provider.tracer("imgcls"));
    Ok(Some(provider))
}

impl Export {
    /// Sends the remaining spans and the last metrics, for at most two seconds.
    pub async fn finish(self) {
        let metrics = async {
            if let Some(metrics) = self.metrics {
                let _ = tokio::time::timeout(FINISH_TIMEOUT, metrics.finish()).await;
            }
        };
        let traces = async {
            let Some(provider) = self.traces else { return };
            // The call blocks, and meanwhile the runtime has to send the last batch.
            let finished = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FINISH_TIMEOUT)).await;
            if let Ok(Err(error)) = finished {
                tracing::warn!(%error, "cannot export the last spans");
            }
        };
        tokio::join!(metrics, traces);
    }
}

/// A piece of work in a trace. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    /// The context of this span, or of its parent when nothing is exported.
    context: Option<SpanContext>,
    exported: Option<Box<opentelemetry_sdk::trace::Span>>,
}

/// The side of a call that a span describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The span answers an HTTP request.
    Server,
    /// The span processes a message.
    Consumer,
}

impl Span {
    /// Begins a span below `traceparent`, or a new trace if that is not a trace context. `name` is called only if spans
    /// are exported.
    pub fn begin(side: Side, traceparent: Option<&str>, name: impl FnOnce() -> Cow<'static, str>) -> Span {
        let parent = traceparent.and_then(parse);
        let Some(tracer) = TRACER.get() else { return Span { context: parent, exported: None } };
        let kind = match side {
            Side::Server => SpanKind::Server,
            Side::Consumer => SpanKind::Consumer,
        };
        let above = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let span = tracer.build_with_context(SpanBuilder::from_name(name()).with_kind(kind), &above);
        Span { context: Some(span.span_context().clone()), exported: Some(Box::new(span)) }
    }

    /// Returns the trace context for the tier that continues this work, or `None` when there is no trace.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.context.as_ref()?;
        let flags = context.trace_flags().to_u8();
        Some(format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
    }

    /// Returns the id of the trace, for log lines.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.context.as_ref().map(|context| TraceId(context.trace_id()))
    }

    /// Returns the ids for exemplars, or `None` when there is no trace or it is not sampled.
    pub fn ids(&self) -> Option<SpanIds> {
        let context = self.context.as_ref().filter(|context| context.trace_flags().is_sampled())?;
        Some(SpanIds { trace: context.trace_id().to_bytes(), span: context.span_id().to_bytes() })
    }

    /// Returns whether this span is exported, so that its attributes are worth making.
    pub fn is_exported(&self) -> bool {
        self.exported.is_some()
    }

    /// Sets an attribute, if the span is exported.
    pub fn set(&mut self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.exported {
            span.set_attribute(KeyValue::new(attribute, value));
        }
    }

    /// Records a stage of this work that lasted for `duration` and ends now.
    pub fn stage(&self, name: &'static str, duration: Duration) {
        let (Some(tracer), Some(span)) = (TRACER.get(), &self.exported) else { return };
        let now = SystemTime::now();
        let above = Context::new().with_remote_span_context(span.span_context().clone());
        let started = now.checked_sub(duration).unwrap_or(now);
        let mut stage = tracer.build_with_context(SpanBuilder::from_name(name).with_start_time(started), &above);
        stage.end_with_timestamp(now);
    }

    /// Marks the work as failed.
    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.exported {
            span.set_status(Status::error(reason));
        }
    }
}

/// The id of a trace, displayed in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(opentelemetry::trace::TraceId);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Parses a W3C trace context. Returns `None` when it is malformed. A later version may have more fields at its end.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut fields = traceparent.split('-');
    let mut field = |digits| fields.next().filter(|field: &&str| field.len() == digits);
    let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let version = u8::from_str_radix(version, 16).ok()?;
    if version == u8::MAX || (version == 0 && fields.next().is_some()) {
        return None;
    }
    let trace_id = opentelemetry::trace::TraceId::from_hex(trace_id).ok()?;
    let span_id = SpanId::from_hex(span_id).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default())).filter(SpanContext::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn without_an_export_a_span_passes_its_parent_on() {
        let span = Span::begin(Side::Server, Some(PARENT), || unreachable!("the name is not needed"));
        assert_eq!(span.traceparent().as_deref(), Some(PARENT));
        assert_eq!(span.trace_id().map(|id| id.to_string()).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(Span::begin(Side::Server, None, || "".into()).traceparent(), None);
    }

    #[test]
    fn malformed_trace_contexts_are_dropped() {
        for text in
            ["", "00-1-2-3", &PARENT.replace('0', "g"), "00-00000000000000000000000000000000-b7ad6b7169203331-01"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
