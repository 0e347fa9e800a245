//! The limits of uploads.

use std::sync::Arc;
use std::time::Duration;

use crate::outbound::Caller;
use crate::transport::Transport;
use crate::web::budget::Budget;

/// The limits of uploads.
#[derive(Clone)]
pub(crate) struct UploadRules {
    pub(crate) max_upload_bytes: u64,
    /// The longest pause between two pieces of a body.
    pub(crate) body_timeout: Duration,
    pub(crate) budget: Budget,
    /// The client that fetches images by URL. `None` if they are not fetched.
    pub(crate) caller: Option<Arc<Caller>>,
    /// The buckets that images are read from.
    pub(crate) buckets: ReadBuckets,
}

/// The buckets of others that a client may name.
#[derive(Clone)]
pub(crate) struct ReadBuckets {
    pub(crate) names: Vec<String>,
    pub(crate) transport: Arc<dyn Transport>,
}
