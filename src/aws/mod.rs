//! AWS, as the ports need it: one configuration of the SDK, and what its errors mean.
//!
//! Every call has deadlines and is tried again by the SDK with jitter. Each try passes [`wire`], where it is counted and
//! waits while the other side is out. What is still an error then is one line of [`fault`]: what was refused, on what,
//! and the way out.

mod fault;
mod wire;

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
use fault::{Place, Symptom};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One try of one call, its body included. Of a long poll: beyond what it waits.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// All tries of one call.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(25);
/// With the SDK's own three, a bad day (15 calls in 100 fail) is heard of by one client in a hundred.
const MAX_ATTEMPTS: u32 = 5;
/// The SDK's own is 1 s: what AWS needs after a throttled call, but a lot for a connection that was closed.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// Where an emulator is spoken to and nobody named a region.
const REGION_OF_EMULATORS: &str = "us-east-1";
/// Of every service; with `_S3` and the like of one.
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL";

const NAME_THE_BUCKETS: &str =
    "give --input-bucket and --output-bucket: only their default names contain the account, which STS is asked for";

/// How this process speaks to AWS.
#[derive(Debug, Clone)]
pub struct Aws {
    sdk: SdkConfig,
    place: Place,
}

/// A refusal at start: one line.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Aws {
    /// Reads region, endpoint and credentials from where the AWS command line has them: environment, profile,
    /// container, instance. What is given here beats them.
    ///
    /// # Errors
    /// Where no region is to be found.
    pub async fn connect(region: Option<&str>, endpoint_url: Option<&str>) -> Result<Aws, Refusal> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(wire::http_client())
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
            // Without the last of the usual places, the instance: where emulators run there mostly is none to ask.
            let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::from_static(REGION_OF_EMULATORS));
            loader = loader.region(chain);
        }
        let sdk = loader.load().await;
        let Some(region) = sdk.region().map(ToString::to_string) else {
            return Err(Refusal("no AWS region: give --region or set AWS_REGION".to_owned()));
        };
        let endpoint_url = sdk.endpoint_url().map(str::to_owned);
        Ok(Aws { sdk, place: Place { region, endpoint_url } })
    }

    pub fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }

    pub fn region(&self) -> &str {
        &self.place.region
    }

    /// The instance metadata service (IMDSv2), at its usual address or at `AWS_EC2_METADATA_SERVICE_ENDPOINT`. One try of
    /// each question: who asks again and again needs no more, and elsewhere nobody answers.
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

    /// The address that all services are spoken to at, where it is not AWS's own.
    pub fn endpoint_url(&self) -> Option<&str> {
        self.place.endpoint_url.as_deref()
    }

    /// Whether something other than AWS's own address of a service (`S3`) was asked for: an emulator, or a private
    /// endpoint.
    pub fn has_endpoint(&self, service: &str) -> bool {
        self.place.endpoint_url.is_some() || std::env::var_os(format!("{ENDPOINT_VARIABLE}_{service}")).is_some()
    }

    /// Deadlines of a call that by its nature takes `longer` than others.
    pub fn timeouts_with(longer: Duration) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(longer + ATTEMPT_TIMEOUT)
            .operation_timeout(longer + OPERATION_TIMEOUT)
            .build()
    }

    /// The number of the account whose credentials these are; default bucket names contain it.
    ///
    /// `sts:GetCallerIdentity` is the one call that needs no permission and no resource.
    ///
    /// # Errors
    /// Where STS does not answer or does not know the credentials.
    pub async fn account(&self) -> Result<String, Refusal> {
        let client = aws_sdk_sts::Client::new(&self.sdk);
        let identity = client.get_caller_identity().send().await.map_err(|error| {
            let symptom = Symptom::of(&error);
            match fault::judge(&symptom, "sts:GetCallerIdentity", "these credentials", &self.place) {
                Fault::Missing => Refusal(format!("{} has no STS; {NAME_THE_BUCKETS}", self.place)),
                Fault::Unavailable(reason) if !symptom.is_of_credentials() => {
                    Refusal(format!("{reason}; or {NAME_THE_BUCKETS}"))
                }
                Fault::Unavailable(reason) | Fault::Fatal(reason) => Refusal(reason),
            }
        })?;
        identity.account.ok_or_else(|| Refusal(format!("{} names no account", self.place)))
    }

    /// What an error of the SDK means. `action` is named as in a policy (`sqs:ReceiveMessage`), `resource` as in a
    /// sentence (`queue "requests"`).
    pub fn fault<E>(&self, action: &str, resource: &str, error: &SdkError<E, HttpResponse>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        fault::judge(&Symptom::of(error), action, resource, &self.place)
    }
}

/// A rest, shortened at random by up to half, so that many processes do not come back at the same instant.
pub fn jittered(rest: Duration) -> Duration {
    rest.mul_f64(rand::rng().random_range(0.5..=1.0))
}
