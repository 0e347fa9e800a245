//! The common parts of the exports of spans and of metrics by OTLP: OpenTelemetry's variables, the resource, and the client.

use std::env;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use async_trait::async_trait;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::Protocol;
use opentelemetry_sdk::Resource;
use tokio::runtime::Handle;

use crate::clock;

/// The endpoint of all signals, to which the path of each is added.
pub(super) const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The protocol of one signal, whose own variable takes precedence.
///
/// # Errors
/// When the variables ask for something that is not built in.
pub(super) fn protocol(of_signal: &str) -> anyhow::Result<Protocol> {
    match first_of(&[of_signal, PROTOCOL]).as_deref() {
        None | Some("http/protobuf") => Ok(Protocol::HttpBinary),
        Some("http/json") => Ok(Protocol::HttpJson),
        Some(other) => {
            bail!("the OTLP protocol {other:?} is not supported: set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf")
        }
    }
}

/// The value of the first of these variables that is set and not empty.
pub(super) fn first_of(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

/// The description of this process. `service` is the name of this tier unless `OTEL_SERVICE_NAME` gives another. The id keeps the metrics
/// of several workers apart.
pub(super) fn resource(service: &'static str) -> Resource {
    let resource = match env::var_os("OTEL_SERVICE_NAME") {
        Some(_) => Resource::builder(),
        None => Resource::builder().with_service_name(service),
    };
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let instance = KeyValue::new("service.instance.id", clock::new_id().to_string());
    resource.with_attribute(version).with_attribute(instance).build()
}

/// An HTTP client that sends on the runtime. An exporter may have a thread of its own, which cannot wait for sockets.
#[derive(Clone)]
pub(super) struct RuntimeClient {
    runtime: Handle,
    client: Arc<dyn HttpClient>,
}

impl RuntimeClient {
    /// Call it in the runtime that is to run the export.
    ///
    /// # Errors
    /// If the root certificates of this system cannot be loaded.
    pub(super) fn new() -> std::io::Result<RuntimeClient> {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
        let client = Arc::new(HyperClient::new(connector, EXPORT_TIMEOUT, None));
        Ok(RuntimeClient { runtime: Handle::current(), client })
    }
}

impl fmt::Debug for RuntimeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeClient").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for RuntimeClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = Arc::clone(&self.client);
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
