//! The HTTP client of all calls to AWS. It measures every attempt of every call, and passes it through the circuit
//! breaker of its host.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::{DateTime, Format};
use prometheus::{HistogramVec, exponential_buckets, register_histogram_vec};
use tokio::time::Instant;

use super::circuit_breaker::{self, CircuitBreaker};
use crate::clock;

/// An attempt that is dropped before this time was cancelled by its caller, and says nothing about the host. An attempt
/// that is dropped later has received no answer. The deadline of an attempt is longer, but includes the wait for
/// admission.
const NO_ANSWER_AFTER: Duration = Duration::from_secs(5);

static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let registered = "the name is given once, here; this is a bug";
    let buckets = exponential_buckets(0.001, 2.0, 16).expect(registered);
    let labels = ["service", "operation", "outcome"];
    register_histogram_vec!("imgcls_aws_call_seconds", "Seconds of one try of a call to AWS", &labels, buckets)
        .expect(registered)
});

/// An HTTPS client on hyper and ring, with metrics and circuit breakers. It uses the proxy that the environment names.
pub(super) fn http_client() -> SharedHttpClient {
    let client = aws_smithy_http_client::Builder::new().build_with_connector_fn(|settings, components| {
        let mut connector = aws_smithy_http_client::Connector::builder().proxy_config(proxy());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build()
    });
    SharedHttpClient::new(Client { client })
}

/// The proxy of `HTTPS_PROXY`, except for the hosts of `NO_PROXY`. Plain HTTP needs none: it goes to the instance metadata,
/// and to emulators and stores on this machine or nearby.
fn proxy() -> ProxyConfig {
    let variable = |names: [&str; 2]| {
        names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    };
    let Some(url) = variable(["HTTPS_PROXY", "https_proxy"]) else { return ProxyConfig::disabled() };
    // The variable may name a host without a scheme.
    let url = if url.contains("://") { url } else { format!("http://{url}") };
    match ProxyConfig::https(url.as_str()) {
        Ok(proxy) => proxy.no_proxy(variable(["NO_PROXY", "no_proxy"]).unwrap_or_default()),
        Err(error) => {
            tracing::warn!(%error, "HTTPS_PROXY is not the URL of a proxy, and is ignored");
            ProxyConfig::disabled()
        }
    }
}

#[derive(Debug)]
struct Client {
    client: SharedHttpClient,
}

#[derive(Debug)]
struct Connector {
    connector: SharedHttpConnector,
}

impl HttpClient for Client {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let connector = self.client.http_connector(settings, components);
        SharedHttpConnector::new(Connector { connector })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        self.client.validate_base_client_config(components, config)
    }

    fn validate_final_config(&self, components: &RuntimeComponents, config: &ConfigBag) -> Result<(), BoxError> {
        self.client.validate_final_config(components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.client.connector_metadata()
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let label = Label::of(&request);
        let breaker = circuit_breaker::of_host(request.uri());
        let connector = self.connector.clone();
        HttpConnectorFuture::new(async move {
            breaker.admit().await;
            let mut attempt = Attempt { label, breaker, started: Instant::now(), outcome: None };
            let answer = connector.call(request).await;
            attempt.outcome = Some(Outcome::of(&answer));
            if let Ok(response) = &answer {
                correct_clock(response);
            }
            answer
        })
    }
}

/// Takes the time of AWS, whose clocks are right, from an answer.
fn correct_clock(response: &HttpResponse) {
    let date = response.headers().get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    if let Some(date) = date {
        clock::correct(date.secs());
    }
}

/// An attempt in flight. Its outcome is recorded when it is dropped, so that cancelled attempts count too.
struct Attempt {
    label: Label,
    breaker: Arc<CircuitBreaker>,
    started: Instant,
    outcome: Option<Outcome>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let outcome = match self.outcome {
            Some(outcome) => outcome,
            None if elapsed >= NO_ANSWER_AFTER => Outcome::NoAnswer,
            None => Outcome::GivenUp,
        };
        let labels = [self.label.service.as_str(), self.label.operation.as_str(), outcome.name()];
        SECONDS.with_label_values(&labels).observe(elapsed.as_secs_f64());
        match outcome {
            Outcome::Answered | Outcome::Refused => self.breaker.close(),
            Outcome::ServerFault | Outcome::NoAnswer => self.breaker.trip(self.started),
            Outcome::GivenUp => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    /// A client error, 4xx. The host works.
    Refused,
    /// A server error, 5xx, or throttling.
    ServerFault,
    NoAnswer,
    GivenUp,
}

impl Outcome {
    fn of(answer: &Result<HttpResponse, ConnectorError>) -> Outcome {
        match answer.as_ref().map(|response| response.status().as_u16()) {
            Ok(429 | 500 | 502..) => Outcome::ServerFault,
            // 501 is not a fault of the server: some emulators answer it for operations that they do not implement.
            Ok(400..) => Outcome::Refused,
            Ok(_) => Outcome::Answered,
            Err(_) => Outcome::NoAnswer,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Refused => "refused",
            Outcome::ServerFault => "server_fault",
            Outcome::NoAnswer => "no_answer",
            Outcome::GivenUp => "given_up",
        }
    }
}

/// Metric labels of an attempt.
struct Label {
    service: String,
    operation: String,
}

impl Label {
    /// Reads the service from the signature and the operation from a header of the JSON protocols. S3 has no such
    /// header, so its operation is the HTTP method.
    fn of(request: &HttpRequest) -> Label {
        let headers = request.headers();
        let service = headers.get("authorization").and_then(signed_service).unwrap_or("none");
        let target = headers.get("x-amz-target").and_then(|target| target.split('.').nth(1));
        Label { service: service.to_owned(), operation: target.unwrap_or(request.method()).to_owned() }
    }
}

/// The service in `AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/sqs/aws4_request, …`.
fn signed_service(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    credential.split(',').next()?.split('/').nth(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_is_read_from_the_signature() {
        let signed = "AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host";
        assert_eq!(signed_service(signed), Some("sqs"));
        assert_eq!(signed_service("Bearer x"), None);
    }
}
