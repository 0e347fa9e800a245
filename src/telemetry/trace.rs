//! Traces: a W3C trace context comes with an HTTP request, goes through the message to the worker, and every tier puts
//! its spans into that trace. They are exported by OTLP where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; where
//! none is named a span is only the context that it passes on.

use std::borrow::Cow;
use std::env;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

/// Header and field that carry a trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Any of them asks for the export; as OpenTelemetry names them.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// A drain has ten seconds in all.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Set once, where spans are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The export of this process; ends with [`Export::finish`].
pub struct Export(Option<SdkTracerProvider>);

/// Starts the export of spans, where the environment asks for it. Sampling, headers and batches are as OpenTelemetry's
/// variables say (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_…`). `service`: the name of this tier
/// where `OTEL_SERVICE_NAME` gives none. Called in the runtime that carries the export.
///
/// # Errors
/// Where the variables ask for something that is not built in.
pub fn start(service: &'static str) -> anyhow::Result<Export> {
    let Some(endpoint) = first_of(&ENDPOINTS) else { return Ok(Export(None)) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(protocol()?)
        .with_http_client(OnRuntime::new().context("cannot load the certificates of this system")?)
        .build()
        .with_context(|| format!("cannot export traces to {endpoint}: check the OTEL_EXPORTER_OTLP_… variables"))?;
    let resource = match env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => Resource::builder(),
        None => Resource::builder().with_service_name(service),
    };
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.with_attribute(version).build())
        .build();
    tracing::info!(endpoint, service, "traces are exported");
    let _ = TRACER.set(provider.tracer("imgcls"));
    Ok(Export(Some(provider)))
}

fn protocol() -> anyhow::Result<Protocol> {
    match first_of(&PROTOCOLS).as_deref() {
        None | Some("http/protobuf") => Ok(Protocol::HttpBinary),
        Some("http/json") => Ok(Protocol::HttpJson),
        Some(other) => bail!("traces are not exported by {other:?}: set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"),
    }
}

fn first_of(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

impl Export {
    /// Sends what is left, for at most two seconds.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        // It blocks, and the runtime has to carry the last batch meanwhile.
        let finished = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FINISH_TIMEOUT)).await;
        if let Ok(Err(error)) = finished {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// A piece of work in a trace. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    /// Its own, or, where nothing is exported, the one that it was given.
    context: Option<SpanContext>,
    exported: Option<Box<opentelemetry_sdk::trace::Span>>,
}

/// On which side of a call a span stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Answers an HTTP request.
    Server,
    /// Takes a message.
    Consumer,
}

impl Span {
    /// Begins a span below `traceparent`, or a new trace where that is none. `name` is asked for only where spans are
    /// exported.
    pub fn begin(side: Side, traceparent: Option<&str>, name: impl FnOnce() -> Cow<'static, str>) -> Span {
        let parent = traceparent.and_then(read);
        let Some(tracer) = TRACER.get() else { return Span { context: parent, exported: None } };
        let kind = match side {
            Side::Server => SpanKind::Server,
            Side::Consumer => SpanKind::Consumer,
        };
        let above = parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let span = tracer.build_with_context(SpanBuilder::from_name(name()).with_kind(kind), &above);
        Span { context: Some(span.span_context().clone()), exported: Some(Box::new(span)) }
    }

    /// What whoever continues this work is told.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.context.as_ref()?;
        let flags = context.trace_flags().to_u8();
        Some(format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
    }

    /// For log lines.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.context.as_ref().map(|context| TraceId(context.trace_id()))
    }

    pub fn set(&mut self, attribute: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.exported {
            span.set_attribute(KeyValue::new(attribute, value));
        }
    }

    /// A stage of this work that took so long and ends now.
    pub fn stage(&self, name: &'static str, took: Duration) {
        let (Some(tracer), Some(span)) = (TRACER.get(), &self.exported) else { return };
        let now = SystemTime::now();
        let above = Context::new().with_remote_span_context(span.span_context().clone());
        let started = now.checked_sub(took).unwrap_or(now);
        let mut stage = tracer.build_with_context(SpanBuilder::from_name(name).with_start_time(started), &above);
        stage.end_with_timestamp(now);
    }

    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.exported {
            span.set_status(Status::error(reason));
        }
    }
}

/// A trace's id, in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(opentelemetry::trace::TraceId);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// None where it is not a trace context of W3C's form. A later version may have more fields at its end.
fn read(traceparent: &str) -> Option<SpanContext> {
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

/// Sends from the runtime: the exporter has a thread of its own, where no socket could be waited for.
struct OnRuntime {
    runtime: Handle,
    client: std::sync::Arc<dyn HttpClient>,
}

impl OnRuntime {
    fn new() -> std::io::Result<OnRuntime> {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
        let client = std::sync::Arc::new(HyperClient::new(connector, EXPORT_TIMEOUT, None));
        Ok(OnRuntime { runtime: Handle::current(), client })
    }
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnRuntime").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = std::sync::Arc::clone(&self.client);
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn without_an_export_a_span_passes_on_what_it_was_given() {
        let span = Span::begin(Side::Server, Some(PARENT), || unreachable!("nobody asks for the name"));
        assert_eq!(span.traceparent().as_deref(), Some(PARENT));
        assert_eq!(span.trace_id().map(|id| id.to_string()).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(Span::begin(Side::Server, None, || "".into()).traceparent(), None);
    }

    #[test]
    fn what_is_no_trace_context_is_dropped() {
        for text in
            ["", "00-1-2-3", &PARENT.replace('0', "g"), "00-00000000000000000000000000000000-b7ad6b7169203331-01"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
