//! Errors of a transport, classified by what the caller must do.

/// The reason why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// A queue was never created, or it was removed. [`super::Transport::prepare`] creates it again.
    #[error("queue {0:?} does not exist; a web process or worker creates it at its start")]
    Missing(String),
    /// The caller must refuse the job: its message must carry the image, and the queue does not accept a message of this
    /// size.
    #[error("the message has {size} bytes, queue {queue:?} takes {limit}")]
    MessageTooLarge {
        /// The queue that refused it.
        queue: String,
        /// The size of the message in bytes.
        size: usize,
        /// The largest message that the queue accepts, in bytes.
        limit: usize,
    },
    /// The object is larger than the caller is willing to read.
    #[error("object {key:?} has {size} bytes, at most {limit} are read")]
    ObjectTooLarge {
        /// The object.
        key: String,
        /// Its size in bytes.
        size: u64,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// The backend cannot be reached at the moment. The caller retries later.
    #[error("{0}")]
    Unavailable(String),
    /// The stored bytes differ from the bytes that were written. A retry does not help, and other objects are not affected.
    #[error("{reason}")]
    Damaged {
        /// The object.
        key: String,
        /// The damage that was found.
        reason: String,
    },
    /// A retry does not help, for example because of a bad name, a missing permission or a broken file.
    #[error("{0}")]
    Fatal(String),
}

impl TransportError {
    /// Returns true if the error is caused by the object itself, so that reading it again fails in the same way.
    pub fn is_of_object(&self) -> bool {
        matches!(self, TransportError::ObjectTooLarge { .. } | TransportError::Damaged { .. })
    }
}

/// The error of a completion that is not done. The caller passes the completion to `complete` again; the steps that are
/// already done are not repeated.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{step}: {error}")]
pub struct CompletionError {
    /// The step that failed, as a label of the worker's fault counter.
    pub step: &'static str,
    /// The reason why it failed.
    pub error: TransportError,
}
