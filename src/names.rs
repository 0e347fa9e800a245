//! The names of a service's queues and buckets. Default bucket names on AWS contain the account, which only AWS knows.

use crate::aws::Aws;
use crate::config::{Backend, NameChoice, Names};

/// Completes the names that were given. AWS is asked for the account only if a default name contains it.
///
/// # Errors
/// If AWS does not answer, or refuses the credentials.
pub async fn resolve(choice: NameChoice, backend: &Backend) -> anyhow::Result<Names> {
    match backend.aws() {
        Some(location) if choice.has_default_bucket() => {
            let aws = Box::pin(Aws::connect(location.region, location.endpoint_url)).await?;
            let account = Box::pin(aws.account()).await?;
            let defaults = Names::aws(&choice.stack, &account, aws.region());
            Ok(choice.with_defaults(defaults))
        }
        _ => Ok(choice.with_local_defaults()),
    }
}
