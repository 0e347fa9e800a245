//! Limits on images.

use std::time::Duration;

/// Limits on input, checked before anything is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest image file that is accepted.
    pub max_upload_bytes: u64,
    /// Width × height, as the header of the image says.
    pub max_pixels: u64,
    /// CPU time that decoding one image may take.
    pub decode_timeout: Duration,
    /// Memory that all sessions of a process together may use for decoding.
    pub max_decode_bytes: u64,
}

/// The smallest default of `--max-decode-bytes`: enough for the pixels of the largest allowed image.
pub const MIN_DECODE_BYTES: u64 = 192 << 20;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_upload_bytes: 20 << 20,
            max_pixels: 64_000_000,
            decode_timeout: Duration::from_secs(10),
            max_decode_bytes: MIN_DECODE_BYTES,
        }
    }
}
