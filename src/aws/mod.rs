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
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
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

/// The ends of the host names of AWS, in all its partitions. Source: `partitions.json` of botocore.
const AWS_SUFFIXES: [&str; 9] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "api.aws",
    "api.amazonwebservices.com.cn",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
];

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
#[error("{reason}")]
pub struct Refusal {
    reason: String,
    /// AWS does not know the credentials, or the account has not enabled the region.
    pub is_unknown_credentials: bool,
}

impl Refusal {
    fn new(reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), is_unknown_credentials: false }
    }
}

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
            return Err(Refusal::new("no AWS region: give --region or set AWS_REGION"));
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

    /// The endpoint of S3, if it is a store that is not AWS's own: a compatible one, or an emulator.
    pub fn compatible_store(&self) -> Option<String> {
        let of_service = std::env::var(format!("{ENDPOINT_VARIABLE}_S3")).ok().filter(|url| !url.is_empty());
        let url = of_service.or_else(|| self.destination.endpoint_url.clone());
        url.filter(|url| !is_of_aws(url))
    }

    /// The configuration of clients of S3.
    ///
    /// A store that is not AWS's own has one host name for all buckets. It may refuse the checksums that clients of AWS add
    /// to every request, so it gets only those that S3 requires, unless the environment says otherwise
    /// (`AWS_REQUEST_CHECKSUM_CALCULATION`, `AWS_RESPONSE_CHECKSUM_VALIDATION`).
    pub fn s3_config(&self) -> aws_sdk_s3::config::Builder {
        let mut config = aws_sdk_s3::config::Builder::from(&self.sdk).force_path_style(self.has_endpoint("S3"));
        if self.compatible_store().is_none() {
            return config;
        }
        // The SDK has a default, which does not show whether somebody chose it.
        let is_chosen = |variable| std::env::var_os(variable).is_some_and(|choice| !choice.is_empty());
        if !is_chosen("AWS_REQUEST_CHECKSUM_CALCULATION") {
            config = config.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        }
        if !is_chosen("AWS_RESPONSE_CHECKSUM_VALIDATION") {
            config = config.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        config
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
                Fault::Missing => Refusal::new(format!("{} has no STS; {NAME_THE_BUCKETS}", self.destination)),
                Fault::Unavailable(reason) if !failure.is_about_credentials() => {
                    Refusal::new(format!("{reason}; or {NAME_THE_BUCKETS}"))
                }
                Fault::Unavailable(reason) | Fault::Fatal(reason) => {
                    Refusal { reason, is_unknown_credentials: failure.is_unknown_credentials() }
                }
            }
        })?;
        identity.account.ok_or_else(|| Refusal::new(format!("{} returned no account number", self.destination)))
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

/// Returns whether a URL is an endpoint of AWS: a public one, or one inside a VPC.
fn is_of_aws(url: &str) -> bool {
    let host = url.split("://").last().unwrap_or_default().split(['/', ':']).next().unwrap_or_default();
    AWS_SUFFIXES.iter().any(|suffix| host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')))
}

/// A delay, shortened at random by up to half, so that many processes do not retry at the same instant.
pub fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_of_aws_are_told_from_those_of_other_stores() {
        for url in [
            "https://s3.eu-west-1.amazonaws.com",
            "https://bucket.vpce-0a1b2c3d-4e5f.s3.us-east-1.vpce.amazonaws.com/",
            "https://s3.cn-north-1.amazonaws.com.cn:443",
            "https://s3.dualstack.us-east-1.api.aws",
        ] {
            assert!(is_of_aws(url), "{url}");
        }
        for url in
            ["http://127.0.0.1:8333", "https://x.r2.cloudflarestorage.com", "https://notamazonaws.com", "http://minio"]
        {
            assert!(!is_of_aws(url), "{url}");
        }
    }
}
