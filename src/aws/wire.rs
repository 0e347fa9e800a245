//! The wire to AWS: every try of every call passes here, is counted, and waits its turn while the other side is out.
//!
//! When a try finds nobody, or a server at fault, the next ones to that host go one at a time, ever more slowly, until
//! one is answered; then all go. So an outage costs a process at most two tries a second, however many of its tasks try
//! again, and work goes on within [`LONGEST_PAUSE`] after it.

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
use aws_smithy_types::date_time::{DateTime, Format};
use prometheus::{HistogramVec, exponential_buckets, register_histogram_vec};
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock;

/// Between two tries after the first that failed; then doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(1_500);
/// Between two tries of this process at hosts that are out: queues and buckets may be at three of them.
const PAUSE_OF_ALL: Duration = Duration::from_millis(500);
/// A try that was given up after less time was not given up for want of an answer, but since nobody wanted it. The
/// deadline of a try is longer, but waiting for its turn is part of it.
const NO_ANSWER_AFTER: Duration = Duration::from_secs(5);

/// Of the whole process: its queues and buckets each have a client, and often a host, in common.
static BRAKES: LazyLock<Brakes> = LazyLock::new(Brakes::default);

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
    SharedHttpClient::new(Wire { client })
}

#[derive(Debug)]
struct Wire {
    client: SharedHttpClient,
}

#[derive(Debug)]
struct Connector {
    connector: SharedHttpConnector,
}

impl HttpClient for Wire {
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
        let brake = BRAKES.of(request.uri());
        let connector = self.connector.clone();
        HttpConnectorFuture::new(async move {
            brake.pass().await;
            let mut trial = Trial { label, brake, started: Instant::now(), outcome: None };
            let answer = connector.call(request).await;
            trial.outcome = Some(Outcome::of(&answer));
            if let Ok(response) = &answer {
                tell_time(response);
            }
            answer
        })
    }
}

/// AWS dates its answers by a clock that is right.
fn tell_time(response: &HttpResponse) {
    let date = response.headers().get("date").and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
    if let Some(date) = date {
        clock::correct(date.secs());
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
struct Brakes {
    hosts: Mutex<HashMap<String, Arc<Brake>>>,
    turns: Arc<Turns>,
}

/// When a try at any host that is out may go.
#[derive(Debug, Default)]
struct Turns(Mutex<Option<Instant>>);

impl Brakes {
    fn of(&self, url: &str) -> Arc<Brake> {
        let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let brake = || Arc::new(Brake { turns: Arc::clone(&self.turns), ..Brake::default() });
        Arc::clone(hosts.entry(host.unwrap_or_default()).or_insert_with(brake))
    }
}

#[derive(Debug, Default)]
struct Brake {
    state: Mutex<BrakeState>,
    released: Notify,
    turns: Arc<Turns>,
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
            let Some(at) = self.turn() else { return };
            tokio::select! {
                () = released => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    fn turn(&self) -> Option<Instant> {
        let mut state = self.lock();
        let mut of_all = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn(&mut of_all, Instant::now(), jitter())
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
    /// None: go. Else when to ask again, unless released before. `of_all`: when any host's next may go.
    fn turn(&mut self, of_all: &mut Option<Instant>, now: Instant, jitter: f64) -> Option<Instant> {
        let next = self.next.max(*of_all).filter(|_| self.next.is_some())?;
        if now < next {
            return Some(next);
        }
        self.next = Some(now + self.pause(jitter));
        *of_all = Some(now + PAUSE_OF_ALL.mul_f64(jitter));
        None
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

    /// Tries in 30 s at as many hosts as there are states, all out, by tasks that do nothing else.
    fn tries_in_an_outage(states: &mut [BrakeState]) -> Vec<Instant> {
        let start = Instant::now();
        let mut of_all = None;
        let mut tries = Vec::new();
        for ms in (1..30_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            for state in &mut *states {
                if state.turn(&mut of_all, now, 1.0).is_none() {
                    tries.push(now);
                    state.failed(now, now, 1.0);
                }
            }
        }
        tries
    }

    #[test]
    fn an_outage_slows_down_to_the_longest_pause_and_one_answer_ends_it() {
        let mut state = BrakeState::default();
        let start = Instant::now();
        assert_eq!(state.turn(&mut None, start, 1.0), None, "all go");
        // Five that were under way fail: one failure.
        for ms in [1, 2, 3, 4, 5] {
            state.failed(start, start + Duration::from_millis(ms), 1.0);
        }
        assert_eq!(state.failures, 1);
        let next = start + Duration::from_millis(101);
        assert_eq!(state.turn(&mut None, start + Duration::from_millis(50), 1.0), Some(next));
        let tries = tries_in_an_outage(&mut [state]).len();
        assert!((20..=24).contains(&tries), "{tries} tries in 30 s");
        let mut state = BrakeState::default();
        let somewhere_else = Some(start + LONGEST_PAUSE);
        assert_eq!(state.turn(&mut { somewhere_else }, start, 1.0), None, "another host's outage");
    }

    #[test]
    fn several_hosts_that_are_out_share_two_tries_a_second() {
        let start = Instant::now();
        let out = || {
            let mut state = BrakeState::default();
            state.failed(start, start, 1.0);
            state
        };
        let tries = tries_in_an_outage(&mut [out(), out(), out()]);
        assert!(tries.len() > 50, "{} tries in 30 s", tries.len());
        assert!(tries.windows(3).all(|three| three[2] - three[0] >= Duration::from_secs(1)), "{tries:?}");
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
