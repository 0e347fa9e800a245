//! The transport on AWS: SQS and S3, or services that speak like them.
//!
//! A submission stores the image and then sends the message that refers to it; a completion writes the result, replies, and
//! deletes the message. Sends and acknowledgements of many callers share calls (`coalesce`).

mod coalesce;
mod compatible;
mod objects;
mod s3;
mod sqs;

use std::sync::Arc;

use futures::FutureExt as _;

pub use self::compatible::{keeps_conditions, takes_checksums};
pub use self::objects::{ObjectError, ObjectPage, Objects};
pub use self::s3::S3Store;
pub use self::sqs::SqsQueues;
use super::error::TransportError;
use super::port::Transport;
use super::queued::QueuedTransport;
use super::queued::object::{ObjectStore, StoreError};
use super::queued::parts::Parts;
use super::queued::stepwise::Stepwise;
use crate::clock;
use crate::config::Names;

/// Opens the transport of a service on SQS and S3. `None` leaves a setting to the environment and the profile.
///
/// # Errors
/// [`TransportError::Fatal`] if there is no region, or AWS cannot be used.
pub(super) async fn open(
    region: Option<&str>,
    endpoint_url: Option<&str>,
    names: &Names,
) -> Result<Arc<dyn Transport>, TransportError> {
    // From here on the clock of this process follows no step of the wall clock.
    clock::now();
    let queues = Box::pin(SqsQueues::connect(region, endpoint_url)).await?;
    let (region, endpoint_url) = (region.map(str::to_owned), endpoint_url.map(str::to_owned));
    let location = (region.clone(), endpoint_url.clone());
    let open_foreign = move |name: String| {
        let (region, endpoint_url) = location.clone();
        async move {
            let store = S3Store::of_others(region.as_deref(), endpoint_url.as_deref(), &name).await?;
            Ok::<_, StoreError>(Arc::new(store) as Arc<dyn ObjectStore>)
        }
        .boxed()
    };
    let open_bucket = move |name: String| {
        let (region, endpoint_url) = (region.clone(), endpoint_url.clone());
        async move {
            let store = S3Store::open(region.as_deref(), endpoint_url.as_deref(), &name).await?;
            Ok::<_, StoreError>(Arc::new(store) as Arc<dyn ObjectStore>)
        }
        .boxed()
    };
    let parts = Parts::new(names.clone(), Arc::new(queues), Box::new(open_bucket), Box::new(open_foreign));
    let parts = Arc::new(parts);
    Ok(Arc::new(QueuedTransport::new(Arc::clone(&parts), Arc::new(Stepwise::new(parts)))))
}
