//! What an error of the SDK means: what to do, and one line for a person.

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("it is not there"),
            Fault::Unavailable(reason) | Fault::Fatal(reason) => f.write_str(reason),
        }
    }
}

impl Error for Fault {}

/// Where the calls go; for messages.
#[derive(Debug, Clone)]
pub struct Place {
    pub region: String,
    pub endpoint_url: Option<String>,
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
pub enum Symptom {
    Refused {
        status: u16,
        code: String,
        message: String,
        bucket_region: Option<String>,
    },
    NoAnswer(String),
    /// Why, where that says more than that there are none; whether they may come by themselves.
    NoCredentials {
        reason: Option<String>,
        may_come: bool,
    },
    /// Never sent: an address or a name that makes no request.
    NotSent(String),
}

impl Symptom {
    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Symptom
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(missing) = missing_credentials(error) {
            return missing;
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

impl Symptom {
    pub fn is_of_credentials(&self) -> bool {
        matches!(self, Symptom::NoCredentials { .. })
    }
}

/// Of an error that comes from there being no credentials.
fn missing_credentials(error: &(dyn Error + 'static)) -> Option<Symptom> {
    let mut source = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_)) => {
                return Some(Symptom::NoCredentials { reason: None, may_come: false });
            }
            Some(CredentialsError::InvalidConfiguration(_)) => {
                return Some(Symptom::NoCredentials { reason: Some(chain(error)), may_come: false });
            }
            // A source of credentials that is there and does not answer.
            Some(_) => return Some(Symptom::NoCredentials { reason: Some(chain(error)), may_come: true }),
            None => source = error.source(),
        }
    }
    None
}

pub fn judge(symptom: &Symptom, action: &str, resource: &str, place: &Place) -> Fault {
    match symptom {
        Symptom::NoAnswer(reason) => Fault::Unavailable(format!(
            "{action}: no answer from {place} ({reason}); check the network, the region and the endpoint"
        )),
        Symptom::NoCredentials { reason, may_come } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let text = format!(
                "no AWS credentials{reason}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role; `--backend local` needs none"
            );
            if *may_come { Fault::Unavailable(text) } else { Fault::Fatal(text) }
        }
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
        _ if is_quota(code) => Fault::Fatal(format!(
            "{action} on {resource}: a quota of this account is reached ({said}): remove what nobody uses, or ask for more under Service Quotas"
        )),
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

/// Of how many there may be, not of how many calls.
fn is_quota(code: &str) -> bool {
    code.contains("LimitExceeded") || code.contains("QuotaExceeded") || code == "TooManyBuckets"
}

fn clock(said: &str) -> Fault {
    Fault::Fatal(format!("the clock of this machine differs too much from AWS's ({said}): set it"))
}

fn denied(action: &str, resource: &str, said: &str) -> String {
    let hint = match action {
        "s3:ListBucket" => " (if the bucket is not another account's)",
        "s3:GetObject" => " (and s3:ListBucket, without which S3 says so of every object that is missing)",
        _ => "",
    };
    format!("no permission for {action} on {resource}: allow {action}{hint} to these credentials [{said}]")
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
