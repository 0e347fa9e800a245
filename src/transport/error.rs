//! Errors of a transport, by what the caller must do.

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// A queue was never made, or somebody removed it. [`super::Transport::prepare`] makes it again.
    #[error("queue {0:?} does not exist")]
    Missing(String),
    /// Refuse the job: its message must carry the image, and the queue does not take a message of that size.
    #[error("the message has {size} bytes, queue {queue:?} takes {limit}")]
    MessageTooLarge {
        /// The queue that refused it.
        queue: String,
        /// Bytes of the message.
        size: usize,
        /// Bytes that the queue takes.
        limit: usize,
    },
    /// Refuse the object: it is larger than the caller reads.
    #[error("object {key:?} has {size} bytes, at most {limit} are read")]
    ObjectTooLarge {
        /// The object.
        key: String,
        /// Its bytes.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// Retry later.
    #[error("{0}")]
    Unavailable(String),
    /// The stored bytes are not those that were written. A retry does not help, and other objects are not affected.
    #[error("{reason}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A retry does not help: a bad name, no permission, a broken file.
    #[error("{0}")]
    Fatal(String),
}

impl TransportError {
    /// Whether the error is one of the object that was read, so that reading it again gives the same.
    pub fn is_of_object(&self) -> bool {
        matches!(self, TransportError::ObjectTooLarge { .. } | TransportError::Damaged { .. })
    }
}

/// A completion that is not done. The caller calls `complete` with it again; steps that are done are not repeated.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{step}: {error}")]
pub struct CompletionError {
    /// The step that failed, as the worker's counter of faults names it.
    pub step: &'static str,
    /// Why it failed.
    pub error: TransportError,
}
