//! The middleware around every handler: the id of the request, its span in a trace, measurements, and the access log.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

use super::answer::SERVER_TIMING;
use super::http::client_address;
use super::metrics::METRICS;
use crate::clock;
use crate::telemetry::exemplars;
use crate::telemetry::trace::{Side, Span, TRACEPARENT};

/// The header with the id of a request.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_ID_BYTES: usize = 128;

/// Counts a request and begins its span, which becomes the trace context that the handler sees in [`TRACEPARENT`]. Every log
/// line of the request has its id. The answer has both, and how long it took.
pub(super) async fn observe(State(access_log): State<AccessLog>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let entry = access_log.0.then(|| Entry::of(&request));
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("other", MatchedPath::as_str);
    let mut span = begin_span(&request, route);
    let traceparent = span.traceparent().and_then(|own| HeaderValue::try_from(own).ok());
    match &traceparent {
        Some(own) => request.headers_mut().insert(TRACEPARENT, own.clone()),
        None => request.headers_mut().remove(TRACEPARENT),
    };
    let (request_id, header) = request_id(request.headers());
    let method = method_name(request.method());
    let log_span = tracing::error_span!("request", request_id);
    let mut response = next.run(request).instrument(log_span.clone()).await;
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail("");
    }
    let took = started.elapsed();
    METRICS.requests.with_label_values(&[method, route, status.as_str()]).inc();
    METRICS.request_seconds.with_label_values(&[method, route]).observe(took.as_secs_f64());
    let labels = [("method", method), ("route", route)];
    exemplars::record("imgcls_web_request_seconds", &labels, took.as_secs_f64(), span.ids());
    log_span.in_scope(|| match entry {
        Some(entry) => entry.log(route, &response, took),
        None => tracing::debug!(method, route, status = status.as_u16(), seconds = took.as_secs_f64(), "answered"),
    });
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, header);
    headers.extend(traceparent.map(|own| (HeaderName::from_static(TRACEPARENT), own)));
    if let Ok(total) = HeaderValue::try_from(format!("total;dur={:.2}", took.as_secs_f64() * 1e3)) {
        headers.append(SERVER_TIMING, total);
    }
    response
}

/// True if each request is a line of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccessLog(pub(super) bool);

/// The request of a line of the access log.
struct Entry {
    method: String,
    /// Without the query, which clients may put anything into, and with control characters escaped.
    path: String,
    client: Option<IpAddr>,
    bytes: Option<u64>,
}

impl Entry {
    fn of(request: &Request) -> Entry {
        let is_plain = |c: &char| !c.is_control();
        let escaped = |c: char| if is_plain(&c) { c.to_string() } else { c.escape_unicode().to_string() };
        Entry {
            method: request.method().to_string(),
            path: request.uri().path().chars().map(escaped).collect(),
            client: client_address(request),
            bytes: request.body().size_hint().exact(),
        }
    }

    /// Logs the answer. Its size is absent if it is not known before it is sent.
    fn log(self, route: &str, response: &Response, took: Duration) {
        tracing::info!(
            target: "imgcls::access",
            client = self.client.map(tracing::field::display),
            method = self.method,
            path = self.path,
            route,
            status = response.status().as_u16(),
            seconds = took.as_secs_f64(),
            request_bytes = self.bytes,
            response_bytes = response.body().size_hint().exact(),
            "request"
        );
    }
}

/// The method as a label. Clients may invent any number of methods.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] =
        [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS, Method::PATCH];
    const NAMES: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
    KNOWN.iter().zip(NAMES).find_map(|(known, name)| (known == method).then_some(name)).unwrap_or("other")
}

/// Returns the id that the client gave, if it can be logged and sent back, and otherwise a new one.
fn request_id(headers: &HeaderMap) -> (String, HeaderValue) {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    let given = headers.get(X_REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=MAX_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(is_part)
    });
    if let Some(value) = given
        && let Ok(text) = value.to_str()
    {
        return (text.to_owned(), value.clone());
    }
    let id = clock::new_id().to_string();
    let header = HeaderValue::try_from(&id).unwrap_or_else(|_| HeaderValue::from_static("none"));
    (id, header)
}

/// Begins a span for requests about images. Health checks and metrics would only fill the traces.
fn begin_span(request: &Request, route: &str) -> Span {
    if request.method() != Method::POST && !route.starts_with("/v1/") {
        return Span::default();
    }
    let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let mut span = Span::begin(Side::Server, traceparent, || format!("{} {route}", request.method()).into());
    if span.is_exported() {
        span.set("http.request.method", request.method().to_string());
        span.set("http.route", route.to_owned());
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_the_client_is_kept_if_it_can_be_logged() {
        let kept = |id: &[u8]| {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_bytes(id).unwrap())]);
            request_id(&headers).0.as_bytes() == id
        };
        for id in [&b"a"[..], b"8e03978e-40d5-43dd-bc93-6894a57f9324", b"Root=1-67891233-abcdef012345678912345678"] {
            assert!(kept(id), "{id:?}");
        }
        for id in [&b""[..], b"a b", b"a\tb", b"\xff", b"x\"y", &[b'x'; 129]] {
            assert!(!kept(id), "{id:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()).0, request_id(&HeaderMap::new()).0);
    }
}
