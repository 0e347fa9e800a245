//! The configuration of the AWS SDK, and the classification of its errors.
//!
//! Credentials come from where the AWS command line has them; `signed_in` asks it for those of people who sign in.
//! Every call has deadlines, and the SDK retries it with jitter. Each attempt goes through `http`, which measures it,
//! and through the `circuit_breaker` of its host. `fault` turns the remaining errors into one line: the action, the
//! resource, the reason and what to do.

mod circuit_breaker;
mod fault;
mod http;
mod signed_in;

use std::error::Error;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds};
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use rand::Rng as _;

pub use fault::Fault;
use fault::{CallFailure, Destination};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit of one attempt, including its body. A long poll may take longer by its wait time.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of all attempts of one call.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(25);
/// The SDK's default is 3. When 15 of 100 attempts fail, one client in a hundred would then see an error.
const MAX_ATTEMPTS: u32 = 5;
/// The SDK's default is 1 s, which suits throttled calls, but is long after a closed connection.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// The region for a custom endpoint if none is configured.
const EMULATOR_REGION: &str = "us-east-1";
/// The endpoint of all services. With a suffix such as `_S3`, that of one service.
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL";

const NAME_THE_BUCKETS: &str =
    "give --input-bucket and --output-bucket: only their default names need the account number, which STS provides";

/// The SDK's configuration in this process.
#[derive(Debug, Clone)]
pub struct Aws {
    sdk: SdkConfig,
    destination: Destination,
}

/// The reason why AWS cannot be used: one line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Aws {
    /// Reads region, endpoint and credentials from the same sources as the AWS command line: environment, profile,
    /// container, instance. The arguments take precedence.
    ///
    /// # Errors
    /// No region is configured.
    pub async fn connect(region: Option<&str>, endpoint_url: Option<&str>) -> Result<Aws, Refusal> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http::http_client())
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(MAX_ATTEMPTS)
                    .with_initial_backoff(FIRST_BACKOFF)
                    .with_max_backoff(LONGEST_BACKOFF),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .operation_timeout(OPERATION_TIMEOUT)
                    .build(),
            );
        if let Some(url) = endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        } else if endpoint_url.is_some() || std::env::var_os(ENDPOINT_VARIABLE).is_some() {
            // The default chain ends with the instance metadata, which mostly does not exist where emulators run.
            let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::from_static(EMULATOR_REGION));
            loader = loader.region(chain);
        }
        let sdk = signed_in::with_signed_in_profile(loader).await.load().await;
        let Some(region) = sdk.region().map(ToString::to_string) else {
            return Err(Refusal("no AWS region: give --region or set AWS_REGION".to_owned()));
        };
        let endpoint_url = sdk.endpoint_url().map(str::to_owned);
        Ok(Aws { sdk, destination: Destination { region, endpoint_url } })
    }

    /// The configuration to make clients from.
    pub fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }

    /// The region of all calls.
    pub fn region(&self) -> &str {
        &self.destination.region
    }

    /// A client of the instance metadata service (IMDSv2), at its usual address or at
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`. It does not retry: callers poll, and outside of EC2 nothing answers.
    pub fn metadata(&self, connect_timeout: Duration, read_timeout: Duration) -> imds::Client {
        let provider = ProviderConfig::without_region();
        let provider = match self.sdk.http_client() {
            Some(client) => provider.with_http_client(client),
            None => provider,
        };
        imds::Client::builder()
            .configure(&provider)
            .max_attempts(1)
            .connect_timeout(connect_timeout)
            .read_timeout(read_timeout)
            .build()
    }

    /// The endpoint of all services, if it is not AWS's own.
    pub fn endpoint_url(&self) -> Option<&str> {
        self.destination.endpoint_url.as_deref()
    }

    /// Returns whether a service (`S3`) has an endpoint that is not AWS's own: an emulator or a private endpoint.
    pub fn has_endpoint(&self, service: &str) -> bool {
        self.destination.endpoint_url.is_some() || std::env::var_os(format!("{ENDPOINT_VARIABLE}_{service}")).is_some()
    }

    /// Deadlines of a call that takes longer than others, by `longer`.
    pub fn timeouts_with(longer: Duration) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(longer + ATTEMPT_TIMEOUT)
            .operation_timeout(longer + OPERATION_TIMEOUT)
            .build()
    }

    /// The number of the account that the credentials belong to. Default bucket names contain it.
    ///
    /// `sts:GetCallerIdentity` needs no permission.
    ///
    /// # Errors
    /// STS does not answer, or does not know the credentials.
    pub async fn account(&self) -> Result<String, Refusal> {
        let client = aws_sdk_sts::Client::new(&self.sdk);
        let identity = client.get_caller_identity().send().await.map_err(|error| {
            let failure = CallFailure::of(&error);
            match fault::classify(&failure, "sts:GetCallerIdentity", "these credentials", &self.destination) {
                Fault::Missing => Refusal(format!("{} has no STS; {NAME_THE_BUCKETS}", self.destination)),
                Fault::Unavailable(reason) if !failure.is_about_credentials() => {
                    Refusal(format!("{reason}; or {NAME_THE_BUCKETS}"))
                }
                Fault::Unavailable(reason) | Fault::Fatal(reason) => Refusal(reason),
            }
        })?;
        identity.account.ok_or_else(|| Refusal(format!("{} returned no account number", self.destination)))
    }

    /// Classifies an error of the SDK. `action` is named as in a policy (`sqs:ReceiveMessage`), `resource` as in a
    /// sentence (`queue "requests"`).
    pub fn fault<E>(&self, action: &str, resource: &str, error: &SdkError<E, HttpResponse>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        fault::classify(&CallFailure::of(error), action, resource, &self.destination)
    }
}

/// A delay, shortened at random by up to half, so that many processes do not retry at the same instant.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..=1.0))
}
