//! The wire to AWS: every try of every call passes here, is counted, and waits its turn while the other side is out.
//!
//! When a try finds nobody, or a server at fault, the next ones to that host go one at a time, ever more slowly, until
//! one is answered; then all go. So an outage costs a process at most one try in [`LONGEST_PAUSE`] and a handle,
//! however many of its tasks try again, and work goes on within that time after it.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_sqs::config::http::{HttpRequest, HttpResponse};
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::{RuntimeComponents, RuntimeComponentsBuilder};
use aws_smithy_types::config_bag::ConfigBag;
use prometheus::{HistogramVec, exponential_buckets, register_histogram_vec};
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two tries after the first that failed; then doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A process has three handles: the queues and two buckets. Two tries a second together.
const LONGEST_PAUSE: Duration = Duration::from_millis(1_500);
/// A try that was given up after less time was not given up for want of an answer, but since nobody wanted it.
const NO_ANSWER_AFTER: Duration = Duration::from_secs(10);

static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let registered = "the name is given once, here; this is a bug";
    let buckets = exponential_buckets(0.001, 2.0, 16).expect(registered);
    let labels = ["service", "operation", "outcome"];
    register_histogram_vec!("imgcls_aws_call_seconds", "Seconds of one try of a call to AWS", &labels, buckets)
        .expect(registered)
});

/// HTTPS on hyper and ring, with all that this module adds.
pub fn http_client() -> SharedHttpClient {
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    SharedHttpClient::new(Wire { client, brakes: Arc::default() })
}

#[derive(Debug)]
struct Wire {
    client: SharedHttpClient,
    brakes: Arc<Brakes>,
}

#[derive(Debug)]
struct Connector {
    connector: SharedHttpConnector,
    brakes: Arc<Brakes>,
}

impl HttpClient for Wire {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let connector = self.client.http_connector(settings, components);
        SharedHttpConnector::new(Connector { connector, brakes: Arc::clone(&self.brakes) })
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
        let brake = self.brakes.of(request.uri());
        let connector = self.connector.clone();
        HttpConnectorFuture::new(async move {
            brake.pass().await;
            let mut trial = Trial { label, brake, started: Instant::now(), outcome: None };
            let answer = connector.call(request).await;
            trial.outcome = Some(Outcome::of(&answer));
            answer
        })
    }
}

/// One try under way. It counts however it ends, dropped by a deadline too.
struct Trial {
    label: Label,
    brake: Arc<Brake>,
    started: Instant,
    outcome: Option<Outcome>,
}

impl Drop for Trial {
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
            Outcome::Answered | Outcome::Refused => self.brake.release(),
            Outcome::ServerFault | Outcome::NoAnswer => self.brake.pull(self.started),
            Outcome::GivenUp => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    /// 4xx: the other side works.
    Refused,
    /// 5xx, or too many calls.
    ServerFault,
    NoAnswer,
    GivenUp,
}

impl Outcome {
    fn of(answer: &Result<HttpResponse, ConnectorError>) -> Outcome {
        match answer.as_ref().map(|response| response.status().as_u16()) {
            Ok(429 | 500 | 502..) => Outcome::ServerFault,
            // 501: not implemented, by some emulators.
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

/// What a try is counted as.
struct Label {
    service: String,
    operation: String,
}

impl Label {
    /// The service is in what was signed, the operation in a header of the JSON protocols; of S3 it is the method.
    fn of(request: &HttpRequest) -> Label {
        let headers = request.headers();
        let service = headers.get("authorization").and_then(signed_service).unwrap_or("none");
        let target = headers.get("x-amz-target").and_then(|target| target.split('.').nth(1));
        Label { service: service.to_owned(), operation: target.unwrap_or(request.method()).to_owned() }
    }
}

/// `AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/sqs/aws4_request, …`
fn signed_service(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    credential.split(',').next()?.split('/').nth(3)
}

/// One brake a host: queues, buckets and the source of the credentials fail by themselves.
#[derive(Debug, Default)]
struct Brakes(Mutex<HashMap<String, Arc<Brake>>>);

impl Brakes {
    fn of(&self, url: &str) -> Arc<Brake> {
        let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
        let mut brakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(brakes.entry(host.unwrap_or_default()).or_default())
    }
}

#[derive(Debug, Default)]
struct Brake {
    state: Mutex<BrakeState>,
    released: Notify,
}

#[derive(Debug, Default)]
struct BrakeState {
    /// Tries in a row that failed, each begun after the one before had.
    failures: u32,
    failed_at: Option<Instant>,
    /// When the next may go; none: all go.
    next: Option<Instant>,
}

impl Brake {
    async fn pass(&self) {
        loop {
            // Made before looking: a release in between is not missed.
            let released = self.released.notified();
            let Some(at) = self.lock().turn(Instant::now(), jitter()) else { return };
            tokio::select! {
                () = released => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    fn pull(&self, started: Instant) {
        self.lock().failed(started, Instant::now(), jitter());
    }

    fn release(&self) {
        let mut state = self.lock();
        if state.next.is_some() {
            *state = BrakeState::default();
            self.released.notify_waiters();
        }
    }

    /// Each change of the state is whole when a panic could come.
    fn lock(&self) -> MutexGuard<'_, BrakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BrakeState {
    /// None: go. Else when to ask again, unless released before.
    fn turn(&mut self, now: Instant, jitter: f64) -> Option<Instant> {
        match self.next {
            Some(next) if now < next => Some(next),
            Some(_) => {
                self.next = Some(now + self.pause(jitter));
                None
            }
            None => None,
        }
    }

    /// Many that were under way together and failed together are one failure.
    fn failed(&mut self, started: Instant, now: Instant, jitter: f64) {
        if self.failed_at.is_none_or(|failed_at| started >= failed_at) {
            self.failures += 1;
            self.failed_at = Some(now);
            self.next = Some(now + self.pause(jitter));
        }
    }

    fn pause(&self, jitter: f64) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE).mul_f64(jitter)
    }
}

/// So that many processes do not come back at the same instant; never sooner than they may.
fn jitter() -> f64 {
    rand::rng().random_range(1.0..=1.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_what_was_signed_for() {
        let signed = "AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host";
        assert_eq!(signed_service(signed), Some("sqs"));
        assert_eq!(signed_service("Bearer x"), None);
    }

    #[test]
    fn an_outage_slows_down_to_the_longest_pause_and_one_answer_ends_it() {
        let mut state = BrakeState::default();
        let start = Instant::now();
        assert_eq!(state.turn(start, 1.0), None, "all go");
        // Five that were under way fail: one failure.
        for ms in [1, 2, 3, 4, 5] {
            state.failed(start, start + Duration::from_millis(ms), 1.0);
        }
        assert_eq!(state.failures, 1);
        let next = start + Duration::from_millis(101);
        assert_eq!(state.turn(start + Duration::from_millis(50), 1.0), Some(next));
        let mut now = start;
        let mut tries = 0;
        while now < start + Duration::from_secs(30) {
            now = state.turn(now, 1.0).unwrap_or_else(|| {
                tries += 1;
                let failed = now + Duration::from_millis(1);
                state.failed(now, failed, 1.0);
                failed
            });
        }
        assert!((20..=24).contains(&tries), "{tries} tries in 30 s");
        state = BrakeState::default();
        assert_eq!(state.turn(now, 1.0), None);
    }

    #[tokio::test]
    async fn who_waits_goes_when_one_is_answered() {
        let brake = Brake::default();
        for _ in 0..20 {
            brake.pull(Instant::now());
        }
        let waiting = Instant::now();
        let release = async {
            tokio::task::yield_now().await;
            brake.release();
        };
        let ((), (), ()) = tokio::join!(brake.pass(), brake.pass(), release);
        assert!(waiting.elapsed() < LONGEST_PAUSE, "{:?}", waiting.elapsed());
    }
}
