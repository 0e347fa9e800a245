//! The clients of all services, and the helpers that every service's file uses.

use std::error::Error;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};
use serde_json::Value;

use super::signed::Signed;
use crate::aws::{Aws, Fault};
use crate::provision::inventory::Owner;
use crate::provision::resource::Resource;
use crate::provision::stack::Stack;
use crate::retry::Schedule;

/// Largest number of concurrent calls when each of many resources is queried.
pub(super) const CONCURRENT_CALLS: usize = 8;
/// Delays between polls of a change that AWS takes time for.
pub(in crate::provision) const POLL_DELAYS: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(5));
/// Longest time to wait for such a change, for example until a group has terminated its machines.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The attributes of a resource that a change returned, as name and value.
pub(super) type Attributes = Vec<(String, String)>;

/// Error code of a change to a bucket while another one is in progress.
pub(super) const CONFLICT: &str = "OperationAborted";

/// Makes the SDK repeat a change to a bucket that S3 refuses because another one is in progress.
#[derive(Debug)]
struct ConflictClassifier;

impl ClassifyRetry for ConflictClassifier {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let is_conflict = context.response().is_some_and(|response| {
            let body = response.body().bytes().unwrap_or_default();
            response.status().as_u16() == 409
                && body.windows(CONFLICT.len()).any(|window| window == CONFLICT.as_bytes())
        });
        if is_conflict { RetryAction::transient_error() } else { RetryAction::NoActionIndicated }
    }

    fn name(&self) -> &'static str {
        "conflicting change of a bucket"
    }
}

/// All services of one account and region.
pub(in crate::provision) struct Cloud {
    pub(super) aws: Aws,
    pub(super) sqs: aws_sdk_sqs::Client,
    pub(super) s3: aws_sdk_s3::Client,
    pub(super) cloudwatch: aws_sdk_cloudwatch::Client,
    pub(super) autoscaling: aws_sdk_autoscaling::Client,
    pub(super) signed: Signed,
}

impl Cloud {
    pub(in crate::provision) fn new(aws: Aws) -> Cloud {
        let s3 = aws.s3_config().retry_classifier(ConflictClassifier).build();
        Cloud {
            sqs: aws_sdk_sqs::Client::new(aws.sdk()),
            s3: aws_sdk_s3::Client::from_conf(s3),
            cloudwatch: aws_sdk_cloudwatch::Client::new(aws.sdk()),
            autoscaling: aws_sdk_autoscaling::Client::new(aws.sdk()),
            signed: Signed::new(aws.sdk().clone()),
            aws,
        }
    }

    pub(in crate::provision) fn aws(&self) -> &Aws {
        &self.aws
    }

    pub(super) fn fault<E>(&self, action: &str, resource: &str, error: &SdkError<E, HttpResponse>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        self.aws.fault(action, resource, error)
    }

    /// Returns the answer of a call. A missing resource is an error.
    pub(super) fn done<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<T>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        answer.map_err(|error| match self.fault(action, resource, &error) {
            Fault::Missing => anyhow!("{action}: {resource} does not exist; run this again"),
            Fault::Unavailable(reason) | Fault::Fatal(reason) => anyhow!(reason),
        })
    }

    /// Returns the answer of a call, or `None` if the resource does not exist.
    pub(super) fn if_there<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<Option<T>>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if self.fault(action, resource, &error) == Fault::Missing => Ok(None),
            Err(error) => self.done(action, resource, Err(error)).map(Some),
        }
    }

    /// As [`Cloud::if_there`]. If these credentials may not look, or the endpoint does not know the service, a resource that
    /// is not wanted counts as absent.
    pub(super) fn if_visible<T, E>(
        &self,
        action: &str,
        resource: &str,
        is_wanted: bool,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<Option<T>>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match answer {
            Err(error) if !is_wanted && matches!(self.fault(action, resource, &error), Fault::Fatal(_)) => Ok(None),
            answer => self.if_there(action, resource, answer),
        }
    }

    /// Checks the answer of a deletion. A resource that does not exist counts as deleted.
    pub(super) fn gone<T, E>(
        &self,
        action: &str,
        resource: &str,
        answer: Result<T, SdkError<E, HttpResponse>>,
    ) -> anyhow::Result<()>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        self.if_there(action, resource, answer).map(drop)
    }
}

/// Repeats an attempt while it fails with an error that `is_transient`, for at most [`LONGEST_WAIT`].
pub(super) async fn retry_while<T, E>(
    is_transient: impl Fn(&E) -> bool,
    attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    retry_while_within(LONGEST_WAIT, is_transient, attempt).await
}

/// The same for at most another time.
pub(super) async fn retry_while_within<T, E>(
    longest: Duration,
    is_transient: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = tokio::time::Instant::now() + longest;
    let mut backoff = POLL_DELAYS.start();
    loop {
        match attempt().await {
            Err(error) if is_transient(&error) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            answer => return answer,
        }
    }
}

pub(super) fn owner_by_tags<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, stack: &Stack) -> Owner {
    Owner::of(tags, &stack.name, &stack.region)
}

/// A member of a property, by path. This program wrote all properties, so a missing one means that a saved plan was
/// edited.
pub(super) fn member<'a>(resource: &'a Resource, path: &[&str]) -> anyhow::Result<&'a Value> {
    let find = || {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(resource.properties.get(*first)?, |value, member| value.get(member))
    };
    find().with_context(|| format!("{} has no {}; the plan was changed by hand", resource.label(), path.join(".")))
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn integer(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).or_else(|| value.as_str()?.parse().ok())
}
