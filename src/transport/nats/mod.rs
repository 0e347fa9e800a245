//! The transport on NATS JetStream: queues are streams with work-queue retention and a pull consumer, and buckets are
//! key-value streams.
//!
//! A submission stores the image and then publishes the message that refers to it; a completion writes the result, replies
//! and acknowledges the message, one step after the other, as on AWS. Every write waits until JetStream has confirmed it.
//! Decision 44 says why queues and buckets are made this way.

mod bucket;
mod connection;
mod held;
mod key;
mod object;
mod pull;
mod queue;
mod record;
mod shape;
mod stream;
mod version;

use std::sync::Arc;

use futures::FutureExt as _;

pub use self::bucket::NatsBucket;
pub use self::queue::NatsQueues;
use super::error::TransportError;
use super::port::Transport;
use super::queued::QueuedTransport;
use super::queued::object::{ObjectStore, StoreError};
use super::queued::parts::Parts;
use super::queued::stepwise::Stepwise;
use crate::config::{Names, NatsLocation};

/// Opens the transport of a service on NATS.
///
/// # Errors
/// [`TransportError::Fatal`] if NATS cannot be reached, refuses the login, is too old, or runs without JetStream.
/// It says what to do.
pub(super) async fn open(location: &NatsLocation, names: &Names) -> Result<Arc<dyn Transport>, TransportError> {
    let connection = connection::connect(location).await.map_err(TransportError::Fatal)?;
    let queues = NatsQueues::on(Arc::clone(&connection));
    let own = Arc::clone(&connection);
    let open_bucket = move |name: String| {
        let bucket = NatsBucket::on(Arc::clone(&own), &name);
        async move { Ok::<_, StoreError>(Arc::new(bucket) as Arc<dyn ObjectStore>) }.boxed()
    };
    let open_foreign = move |name: String| {
        let bucket = NatsBucket::on(Arc::clone(&connection), &name);
        async move { Ok::<_, StoreError>(Arc::new(bucket) as Arc<dyn ObjectStore>) }.boxed()
    };
    let parts = Parts::new(names.clone(), Arc::new(queues), Box::new(open_bucket), Box::new(open_foreign));
    let parts = Arc::new(parts);
    Ok(Arc::new(QueuedTransport::new(Arc::clone(&parts), Arc::new(Stepwise::new(parts)))))
}
