//! AWS, as the ports need it: one configuration of the SDK, and what its errors mean.
//!
//! Every call has deadlines and is tried again by the SDK with jitter; what is still an error then is one line that
//! says what was refused, on what, and the way out.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls;
use rand::Rng as _;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// One try of one call, its body included. Of a long poll: beyond what it waits.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// All tries of one call.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(25);
const MAX_ATTEMPTS: u32 = 3;
/// The SDK's own is 1 s: what AWS needs after a throttled call, but a lot for a connection that was closed.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// Where an emulator is spoken to and nobody named a region.
const REGION_OF_EMULATORS: &str = "us-east-1";

/// How this process speaks to AWS.
#[derive(Debug, Clone)]
pub struct Aws {
    sdk: SdkConfig,
    place: Place,
}

/// Where the calls go; for messages.
#[derive(Debug, Clone)]
struct Place {
    region: String,
    endpoint_url: Option<String>,
}

/// What to do about a call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The queue, bucket or object is not there.
    Missing,
    /// Wait and try again. The reason.
    Unavailable(String),
    /// Trying again will not help. What is wrong and the way out.
    Fatal(String),
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
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
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
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(url) = endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let sdk = loader.load().await;
        let endpoint_url = sdk.endpoint_url().map(str::to_owned);
        let region = match (sdk.region(), &endpoint_url) {
            (Some(region), _) => region.to_string(),
            (None, Some(_)) => REGION_OF_EMULATORS.to_owned(),
            (None, None) => {
                return Err(Refusal("no AWS region: give --region or set AWS_REGION".to_owned()));
            }
        };
        let sdk = sdk.into_builder().region(Region::new(region.clone())).build();
        Ok(Aws { sdk, place: Place { region, endpoint_url } })
    }

    pub fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }

    pub fn region(&self) -> &str {
        &self.place.region
    }

    /// Whether something other than AWS's own address of a service (`S3`) was asked for: an emulator, or a private
    /// endpoint.
    pub fn has_endpoint(&self, service: &str) -> bool {
        self.place.endpoint_url.is_some() || std::env::var_os(format!("AWS_ENDPOINT_URL_{service}")).is_some()
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
            match self.fault("sts:GetCallerIdentity", "these credentials", &error) {
                Fault::Missing => Refusal(format!("{} has no STS", self.place)),
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
        judge(&Symptom::of(error), action, resource, &self.place)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint_url {
            Some(url) => write!(f, "{url}"),
            None => write!(f, "AWS region {}", self.region),
        }
    }
}

/// What came back, freed from the types of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Symptom {
    Refused {
        status: u16,
        code: String,
        message: String,
        bucket_region: Option<String>,
    },
    NoAnswer(String),
    NoCredentials(String),
    /// Never sent: an address or a name that makes no request.
    NotSent(String),
}

impl Symptom {
    fn of<E>(error: &SdkError<E, HttpResponse>) -> Symptom
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(found) = missing_credentials(error) {
            return Symptom::NoCredentials(found);
        }
        match error {
            SdkError::ServiceError(refused) => {
                let response = refused.raw();
                Symptom::Refused {
                    status: response.status().as_u16(),
                    code: error.code().unwrap_or_default().to_owned(),
                    message: one_line(error.message().unwrap_or_default()),
                    bucket_region: response.headers().get("x-amz-bucket-region").map(str::to_owned),
                }
            }
            SdkError::ConstructionFailure(_) => Symptom::NotSent(chain(error)),
            SdkError::TimeoutError(_) => Symptom::NoAnswer("it took too long".to_owned()),
            SdkError::DispatchFailure(failure) if failure.is_user() => Symptom::NotSent(chain(error)),
            _ => Symptom::NoAnswer(chain(error)),
        }
    }
}

/// Why there are no credentials, where that is so. A source of credentials that does not answer at the moment is
/// something else: trying again may help.
fn missing_credentials(error: &(dyn Error + 'static)) -> Option<String> {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                return Some(chain(error));
            }
            _ => source = error.source(),
        }
    }
    None
}

fn judge(symptom: &Symptom, action: &str, resource: &str, place: &Place) -> Fault {
    match symptom {
        Symptom::NoAnswer(reason) => Fault::Unavailable(format!(
            "{action}: no answer from {place} ({reason}); check the network, the region and the endpoint"
        )),
        Symptom::NoCredentials(reason) => Fault::Fatal(format!(
            "no AWS credentials ({reason}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
        )),
        Symptom::NotSent(reason) => Fault::Fatal(format!(
            "{action} on {resource} cannot be sent to {place}: {reason}; check --region and --endpoint-url"
        )),
        Symptom::Refused { status, bucket_region: Some(other), .. }
            if matches!(status, 301 | 307 | 400 | 403) && *other != place.region =>
        {
            Fault::Fatal(format!(
                "{resource} is in region {other}, not {}: give --region {other}, or another bucket",
                place.region
            ))
        }
        Symptom::Refused { status, code, message, .. } => {
            judge_refusal(*status, code, message, action, resource, place)
        }
    }
}

fn judge_refusal(status: u16, code: &str, message: &str, action: &str, resource: &str, place: &Place) -> Fault {
    let said = if message.is_empty() { format!("{status} {code}") } else { format!("{code}: {message}") };
    match code {
        "QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" | "NoSuchBucket" | "NoSuchKey" | "NotFound" => {
            Fault::Missing
        }
        "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "AuthFailure"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => Fault::Fatal(format!(
            "{place} does not know these AWS credentials ({said}): check the access key, its secret and the session token"
        )),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            Fault::Fatal(format!("the AWS credentials have expired ({said}): renew them"))
        }
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" | "SignatureExpired" => clock(&said),
        // SQS says both a wrong secret and a wrong clock so.
        "InvalidSignatureException" | "InvalidSignature"
            if message.contains("expired") || message.contains("current") =>
        {
            clock(&said)
        }
        "InvalidSignatureException" | "InvalidSignature" => Fault::Fatal(format!(
            "{place} does not accept the signature of these AWS credentials ({said}): check the secret access key"
        )),
        "OptInRequired" | "SubscriptionRequiredException" => Fault::Fatal(format!(
            "this account may not use {place} ({said}): enable the region, or give another --region"
        )),
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
            Fault::Fatal(format!("{resource} is in another region than {} ({said}): give its --region", place.region))
        }
        _ if is_throttle_or_outage(status, code) => Fault::Unavailable(format!("{action} on {resource}: {said}")),
        _ if status == 404 => Fault::Missing,
        _ if status == 403 || code.starts_with("AccessDenied") => Fault::Fatal(denied(action, resource, &said)),
        _ => Fault::Fatal(format!("{action} on {resource} was refused: {said}")),
    }
}

fn is_throttle_or_outage(status: u16, code: &str) -> bool {
    matches!(status, 408 | 429 | 500..=599) && code != "NotImplemented"
        || matches!(
            code,
            "Throttling"
                | "ThrottlingException"
                | "ThrottledException"
                | "RequestThrottled"
                | "RequestThrottledException"
                | "TooManyRequestsException"
                | "RequestLimitExceeded"
                | "SlowDown"
                | "OverLimit"
                | "KmsThrottled"
                | "RequestTimeout"
                | "InternalError"
                | "InternalFailure"
                | "ServiceUnavailable"
        )
}

fn clock(said: &str) -> Fault {
    Fault::Fatal(format!("the clock of this machine differs too much from AWS's ({said}): set it"))
}

fn denied(action: &str, resource: &str, said: &str) -> String {
    // S3 tells who may not list a bucket that a missing object is forbidden.
    let hint = match action {
        "s3:GetObject" => " (and s3:ListBucket, without which S3 says so of every object that is missing)",
        _ => "",
    };
    format!("no permission for {action} on {resource}: allow {action}{hint} to these credentials [{said}]")
}

/// A rest, shortened at random by up to half, so that many processes do not come back at the same instant.
pub fn jittered(rest: Duration) -> Duration {
    rest.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// An error and what it came from, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut source = Some(error);
    while let Some(error) = source {
        let said = one_line(&error.to_string());
        if !text.contains(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        source = error.source();
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { region: "us-east-1".to_owned(), endpoint_url: None }
    }

    fn refused(status: u16, code: &str, message: &str) -> Fault {
        judge_refusal(status, code, message, "s3:GetObject", "bucket \"photos\"", &place())
    }

    fn fatal(fault: Fault) -> String {
        match fault {
            Fault::Fatal(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn throttling_and_outages_are_waited_out() {
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (400, "ThrottlingException"),
            (403, "RequestThrottled"),
            (429, ""),
            (502, ""),
            (408, "RequestTimeout"),
        ] {
            assert!(matches!(refused(status, code, ""), Fault::Unavailable(_)), "{status} {code}");
        }
    }

    #[test]
    fn what_is_missing_is_missing() {
        for (status, code) in [(400, "QueueDoesNotExist"), (400, "AWS.SimpleQueueService.NonExistentQueue"), (404, "")]
        {
            assert_eq!(refused(status, code, ""), Fault::Missing, "{status} {code}");
        }
    }

    #[test]
    fn a_refusal_names_action_resource_and_the_way_out() {
        let denied = fatal(refused(403, "AccessDenied", "Access\nDenied"));
        assert!(denied.contains("allow s3:GetObject (and s3:ListBucket"), "{denied}");
        assert!(denied.contains("bucket \"photos\""), "{denied}");
        let clock = fatal(refused(403, "RequestTimeTooSkewed", "too large"));
        assert!(clock.contains("clock"), "{clock}");
        let clock =
            fatal(refused(400, "InvalidSignatureException", "Signature expired: 2026 is now earlier than 2027"));
        assert!(clock.contains("clock"), "{clock}");
        let token = fatal(refused(403, "InvalidClientTokenId", "The security token is invalid."));
        assert!(token.contains("does not know these AWS credentials"), "{token}");
    }

    #[test]
    fn a_bucket_elsewhere_is_named_with_its_region() {
        let symptom = |status, region: &str| Symptom::Refused {
            status,
            code: String::new(),
            message: String::new(),
            bucket_region: Some(region.to_owned()),
        };
        let elsewhere = fatal(judge(&symptom(301, "eu-west-1"), "s3:ListBucket", "bucket \"photos\"", &place()));
        assert!(elsewhere.contains("in region eu-west-1, not us-east-1: give --region eu-west-1"), "{elsewhere}");
        let here = fatal(judge(&symptom(403, "us-east-1"), "s3:ListBucket", "bucket \"photos\"", &place()));
        assert!(here.contains("no permission for s3:ListBucket"), "{here}");
    }
}
