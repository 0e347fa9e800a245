//! Why an image could not become a tensor.

/// The reason why bytes did not become a tensor. It is always the client's fault, so a retry cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PrepareError {
    /// The kind of fault, which results and HTTP problem details report as a code.
    pub fault: ImageFault,
    /// A sentence for a person. It quotes no byte of the image.
    pub message: String,
}

/// The ways in which an image is at fault. Another try cannot succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFault {
    /// An image of a known type that is too damaged to decode.
    Undecodable,
    /// An image type, or an encoding of one, that is not supported.
    UnsupportedType,
    /// The header declares more pixels than [`Limits::max_pixels`](crate::Limits::max_pixels).
    TooManyPixels,
    /// Decoding takes more CPU time than [`Limits::decode_timeout`](crate::Limits::decode_timeout).
    DecodeTimeout,
    /// Decoding takes more memory than [`Limits::max_decode_bytes`](crate::Limits::max_decode_bytes).
    TooLargeDecoded,
    /// More bytes than [`Limits::max_upload_bytes`](crate::Limits::max_upload_bytes).
    InputTooLarge,
}

impl PrepareError {
    pub(super) fn new(fault: ImageFault, message: impl Into<String>) -> Self {
        PrepareError { fault, message: message.into() }
    }
}

/// An error for a file of a known format that is damaged or uses what no decoder supports.
pub(super) fn undecodable(message: impl Into<String>) -> PrepareError {
    PrepareError::new(ImageFault::Undecodable, message)
}

/// The error for an image whose decoder panicked.
pub(super) fn stopped_decoder() -> PrepareError {
    undecodable("the image is damaged in a way that stopped the decoder")
}
