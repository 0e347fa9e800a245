//! The values that the stages of a worker send to each other.

use std::time::Instant;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::cached::ModelClaim;
use super::job::{Outcome, Work};
use super::lease::Lease;
use super::shadow::ShadowImage;
use crate::protocol::ServiceClass;
use crate::telemetry::trace::Span;

/// An image that waits for a session.
pub(crate) struct Fetched {
    pub class: ServiceClass,
    pub work: Work,
    pub lease: Lease,
    pub span: Span,
    /// The place of the image's model in the list of models.
    pub model: usize,
    /// The message, for a dead letter.
    pub body: String,
    pub image: Bytes,
    /// A permit to wait. It is released when a session begins with the image, so that the next one can be fetched.
    pub permit: OwnedSemaphorePermit,
    /// Others may wait for the answer.
    pub claim: Option<ModelClaim>,
    /// When the image began to wait.
    pub since: Instant,
}

/// A delivery that has its outcome.
pub(crate) struct Finished {
    pub lease: Lease,
    pub span: Span,
    pub outcome: Outcome,
    /// The image for the shadow model, which gets it after the outcome was published.
    pub shadow: Option<ShadowImage>,
}

impl Finished {
    /// A delivery whose image the shadow model does not get.
    pub(crate) fn new(lease: Lease, span: Span, outcome: Outcome) -> Finished {
        Finished { lease, span, outcome, shadow: None }
    }
}
