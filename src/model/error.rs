//! Why an image could not become a tensor.

use crate::protocol::ErrorCode;

/// The reason why bytes did not become a tensor. It is always the client's fault, so a retry cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PrepareError {
    /// The code that results and HTTP problem details report.
    pub code: ErrorCode,
    /// A sentence for a person. It quotes no byte of the image.
    pub message: String,
}

impl PrepareError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        PrepareError { code, message: message.into() }
    }
}

/// An error for a file of a known format that is damaged or uses what no decoder supports.
pub(super) fn undecodable(message: impl Into<String>) -> PrepareError {
    PrepareError::new(ErrorCode::Undecodable, message)
}

/// The error for an image whose decoder panicked.
pub(super) fn stopped_decoder() -> PrepareError {
    undecodable("the image is damaged in a way that stopped the decoder")
}
