//! Why a job failed.

use serde::{Deserialize, Serialize};

use crate::model::ImageFault;

/// Why a job failed, in a result object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// The kind of failure.
    pub code: ErrorCode,
    /// A sentence for people.
    pub message: String,
}

/// The kind of failure. The names are stable, because clients match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// An image of a known type that is too damaged to decode.
    Undecodable,
    /// An image type, or an encoding of one, that is not supported.
    UnsupportedType,
    /// The header declares more pixels than `--max-pixels`.
    TooManyPixels,
    /// Decoding takes more CPU time than `--decode-timeout`.
    DecodeTimeout,
    /// Decoding takes more memory than `--max-decode-bytes`.
    TooLargeDecoded,
    /// The message refers to an object that does not exist.
    InputMissing,
    /// More bytes than `--max-upload-bytes`.
    InputTooLarge,
    /// The message breaks the wire contract.
    Malformed,
    /// The request names a model that the worker does not have. HTTP answers it with 404.
    UnknownModel,
    /// Every attempt failed through a fault of the service; the message holds the last reason.
    AttemptsExhausted,
    /// No worker started the job before `expires_at`.
    Expired,
    /// A client deleted the job. Its result says only that.
    Cancelled,
    /// A fault of the service that a retry cannot fix.
    Internal,
}

impl From<ImageFault> for ErrorCode {
    fn from(fault: ImageFault) -> Self {
        match fault {
            ImageFault::Undecodable => ErrorCode::Undecodable,
            ImageFault::UnsupportedType => ErrorCode::UnsupportedType,
            ImageFault::TooManyPixels => ErrorCode::TooManyPixels,
            ImageFault::DecodeTimeout => ErrorCode::DecodeTimeout,
            ImageFault::TooLargeDecoded => ErrorCode::TooLargeDecoded,
            ImageFault::InputTooLarge => ErrorCode::InputTooLarge,
        }
    }
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [ErrorCode; 13] = [
        ErrorCode::Undecodable,
        ErrorCode::UnsupportedType,
        ErrorCode::TooManyPixels,
        ErrorCode::DecodeTimeout,
        ErrorCode::TooLargeDecoded,
        ErrorCode::InputMissing,
        ErrorCode::InputTooLarge,
        ErrorCode::Malformed,
        ErrorCode::UnknownModel,
        ErrorCode::AttemptsExhausted,
        ErrorCode::Expired,
        ErrorCode::Cancelled,
        ErrorCode::Internal,
    ];

    /// Returns true if sending the same image again cannot succeed. Such a failure is answered with 422 and never
    /// retried.
    pub fn is_client_fault(self) -> bool {
        matches!(
            self,
            ErrorCode::Undecodable
                | ErrorCode::UnsupportedType
                | ErrorCode::TooManyPixels
                | ErrorCode::DecodeTimeout
                | ErrorCode::TooLargeDecoded
                | ErrorCode::InputTooLarge
        )
    }

    /// Parses the name on the wire.
    pub fn from_wire(text: &str) -> Option<Self> {
        serde_json::from_value(text.into()).ok()
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::Undecodable => "undecodable",
            ErrorCode::UnsupportedType => "unsupported_type",
            ErrorCode::TooManyPixels => "too_many_pixels",
            ErrorCode::DecodeTimeout => "decode_timeout",
            ErrorCode::TooLargeDecoded => "too_large_decoded",
            ErrorCode::InputMissing => "input_missing",
            ErrorCode::InputTooLarge => "input_too_large",
            ErrorCode::Malformed => "malformed",
            ErrorCode::UnknownModel => "unknown_model",
            ErrorCode::AttemptsExhausted => "attempts_exhausted",
            ErrorCode::Expired => "expired",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::Internal => "internal",
        }
    }
}
