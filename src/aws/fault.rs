//! Classifies errors of the SDK: what the caller should do, and one line for a person.

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

/// The class of a failed call, by what the caller should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The queue, bucket or object does not exist.
    Missing,
    /// The call may succeed later. Contains the reason.
    Unavailable(String),
    /// A retry will not help. Contains the reason and what to do.
    Fatal(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("it does not exist"),
            Fault::Unavailable(reason) | Fault::Fatal(reason) => f.write_str(reason),
        }
    }
}

impl Error for Fault {}

/// The destination of calls, for messages.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub region: String,
    pub endpoint_url: Option<String>,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint_url {
            Some(url) => write!(f, "{url}"),
            None => write!(f, "AWS region {}", self.region),
        }
    }
}

/// A failed call, independent of the error type of its operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallFailure {
    Refused {
        status: u16,
        code: String,
        message: String,
        bucket_region: Option<String>,
    },
    NoAnswer(String),
    NoCredentials {
        /// The reason, unless no source of credentials is configured at all.
        reason: Option<String>,
        /// True if credentials may become available without intervention.
        is_transient: bool,
    },
    /// The request was not sent, because of an invalid address or name.
    NotSent(String),
}

impl CallFailure {
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> CallFailure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(missing) = missing_credentials(error) {
            return missing;
        }
        match error {
            SdkError::ServiceError(refused) => {
                let response = refused.raw();
                CallFailure::Refused {
                    status: response.status().as_u16(),
                    code: error.code().unwrap_or_default().to_owned(),
                    message: one_line(error.message().unwrap_or_default()),
                    bucket_region: response.headers().get("x-amz-bucket-region").map(str::to_owned),
                }
            }
            SdkError::ConstructionFailure(_) => CallFailure::NotSent(chain(error)),
            SdkError::TimeoutError(_) => CallFailure::NoAnswer("it took too long".to_owned()),
            SdkError::DispatchFailure(failure) if failure.is_user() => CallFailure::NotSent(chain(error)),
            _ => CallFailure::NoAnswer(chain(error)),
        }
    }
}

impl CallFailure {
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(self, CallFailure::NoCredentials { .. })
    }

    /// AWS answered that it does not know the credentials. A region that the account has not enabled answers so too.
    pub(super) fn is_unknown_credentials(&self) -> bool {
        let CallFailure::Refused { code, .. } = self else { return false };
        ["InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "AuthFailure"]
            .contains(&code.as_str())
    }
}

/// Finds missing credentials among the causes of an error.
fn missing_credentials(error: &(dyn Error + 'static)) -> Option<CallFailure> {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_)) => {
                return Some(CallFailure::NoCredentials { reason: None, is_transient: false });
            }
            Some(CredentialsError::InvalidConfiguration(_)) => {
                return Some(CallFailure::NoCredentials { reason: Some(chain(error)), is_transient: false });
            }
            // A source of credentials exists, but does not answer.
            Some(_) => return Some(CallFailure::NoCredentials { reason: Some(chain(error)), is_transient: true }),
            None => source = error.source(),
        }
    }
    None
}

/// Classifies a failed call of `action` on `resource`.
pub(super) fn classify(failure: &CallFailure, action: &str, resource: &str, destination: &Destination) -> Fault {
    match failure {
        CallFailure::NoAnswer(reason) => Fault::Unavailable(format!(
            "{action}: no answer from {destination} ({reason}); check the network, the region and the endpoint"
        )),
        CallFailure::NoCredentials { reason, is_transient } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let text = format!(
                "no AWS credentials{reason}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role; `--backend local` needs none"
            );
            if *is_transient { Fault::Unavailable(text) } else { Fault::Fatal(text) }
        }
        CallFailure::NotSent(reason) => Fault::Fatal(format!(
            "{action} on {resource} cannot be sent to {destination}: {reason}; check --region and --endpoint-url"
        )),
        CallFailure::Refused { status, bucket_region: Some(other), .. }
            if matches!(status, 301 | 307 | 400 | 403) && *other != destination.region =>
        {
            Fault::Fatal(format!(
                "{resource} is in region {other}, not {}: give --region {other}, or another bucket",
                destination.region
            ))
        }
        CallFailure::Refused { status, code, message, .. } => {
            classify_refusal(*status, code, message, action, resource, destination)
        }
    }
}

fn classify_refusal(
    status: u16,
    code: &str,
    message: &str,
    action: &str,
    resource: &str,
    destination: &Destination,
) -> Fault {
    let error = if message.is_empty() { format!("{status} {code}") } else { format!("{code}: {message}") };
    match code {
        "QueueDoesNotExist"
        | "AWS.SimpleQueueService.NonExistentQueue"
        | "NoSuchBucket"
        | "NoSuchKey"
        | "NotFound"
        | "NotFoundException"
        | "ResourceNotFoundException" => Fault::Missing,
        "InvalidAccessKeyId"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "AuthFailure"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => Fault::Fatal(format!(
            "{destination} does not know these AWS credentials ({error}): check the access key, its secret and the session token, and that the account has enabled the region"
        )),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => {
            Fault::Fatal(format!("the AWS credentials have expired ({error}): renew them"))
        }
        "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" | "SignatureExpired" => clock(&error),
        // SQS reports both a wrong secret and a wrong clock with these codes.
        "InvalidSignatureException" | "InvalidSignature"
            if message.contains("expired") || message.contains("current") =>
        {
            clock(&error)
        }
        "InvalidSignatureException" | "InvalidSignature" => Fault::Fatal(format!(
            "{destination} does not accept the signature of these AWS credentials ({error}): check the secret access key"
        )),
        "OptInRequired" | "SubscriptionRequiredException" => Fault::Fatal(format!(
            "this account may not use {destination} ({error}): enable the region, or give another --region"
        )),
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => Fault::Fatal(
            format!("{resource} is in another region than {} ({error}): give its --region", destination.region),
        ),
        _ if is_throttle_or_outage(status, code) => Fault::Unavailable(format!("{action} on {resource}: {error}")),
        _ if is_quota(code) => Fault::Fatal(format!(
            "{action} on {resource}: a quota of this account is reached ({error}): remove unused resources, or request an increase under Service Quotas"
        )),
        _ if status == 404 => Fault::Missing,
        _ if status == 403 || code.starts_with("AccessDenied") => Fault::Fatal(denied(action, resource, &error)),
        _ => Fault::Fatal(format!("{action} on {resource} was refused: {error}")),
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

/// Returns whether the code is about a quota for a number of resources, not about a rate of calls.
fn is_quota(code: &str) -> bool {
    let is_too_many =
        ["TooManyBuckets", "TooManyListeners", "TooManyLoadBalancers", "TooManyTargetGroups"].contains(&code);
    code.contains("LimitExceeded") || code.contains("QuotaExceeded") || is_too_many
}

fn clock(error: &str) -> Fault {
    Fault::Fatal(format!("the clock of this machine differs too much from that of AWS ({error}): set it"))
}

fn denied(action: &str, resource: &str, error: &str) -> String {
    let hint = match action {
        "s3:ListBucket" => " (if the bucket is not another account's)",
        "s3:GetObject" => " (and s3:ListBucket, without which S3 reports every missing object as forbidden)",
        _ => "",
    };
    format!("no permission for {action} on {resource}: allow {action}{hint} to these credentials [{error}]")
}

/// An error and its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut source = Some(error);
    while let Some(error) = source {
        let part = one_line(&error.to_string());
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
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

    fn destination() -> Destination {
        Destination { region: "us-east-1".to_owned(), endpoint_url: None }
    }

    fn refused(status: u16, code: &str, message: &str) -> Fault {
        classify_refusal(status, code, message, "s3:GetObject", "bucket \"photos\"", &destination())
    }

    fn fatal(fault: Fault) -> String {
        match fault {
            Fault::Fatal(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn throttling_and_outages_are_retried() {
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
    fn missing_resources_are_classified_as_missing() {
        for (status, code) in [(400, "QueueDoesNotExist"), (400, "AWS.SimpleQueueService.NonExistentQueue"), (404, "")]
        {
            assert_eq!(refused(status, code, ""), Fault::Missing, "{status} {code}");
        }
    }

    #[test]
    fn refusal_names_action_resource_and_remedy() {
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
    fn bucket_in_another_region_is_named_with_it() {
        let failure = |status, region: &str| CallFailure::Refused {
            status,
            code: String::new(),
            message: String::new(),
            bucket_region: Some(region.to_owned()),
        };
        let elsewhere =
            fatal(classify(&failure(301, "eu-west-1"), "s3:ListBucket", "bucket \"photos\"", &destination()));
        assert!(elsewhere.contains("in region eu-west-1, not us-east-1: give --region eu-west-1"), "{elsewhere}");
        let here = fatal(classify(&failure(403, "us-east-1"), "s3:ListBucket", "bucket \"photos\"", &destination()));
        assert!(here.contains("no permission for s3:ListBucket"), "{here}");
    }
}
