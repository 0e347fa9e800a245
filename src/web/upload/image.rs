//! The image of a request while it arrives, and after that.

use bytes::Bytes;

use super::body::BodyReader;
use crate::web::error::Problem;

/// Enough of a file to recognise its type, also of most files that are refused by their name.
pub(super) const SIGNATURE_BYTES: usize = 512;

/// An image that has arrived completely.
pub(super) struct ReceivedImage {
    pub(super) bytes: Bytes,
    /// The media type by signature.
    pub(super) content_type: &'static str,
    /// The client's name for it; may be empty.
    pub(super) filename: String,
    /// The name of the form's field; empty outside of a form.
    pub(super) field: String,
}

/// The bytes of an image as they arrive. An image that arrives in one piece is not copied.
pub(super) struct ImageBuffer {
    expected_bytes: usize,
    /// Memory that the request has reserved for other images.
    other_bytes: usize,
    first: Bytes,
    bytes: Vec<u8>,
}

impl ImageBuffer {
    /// The buffer does not grow beyond `expected_bytes` unless more bytes arrive.
    pub(super) fn new(expected_bytes: u64) -> ImageBuffer {
        ImageBuffer::after(0, expected_bytes)
    }

    /// The same for a further image of a request that has reserved `other_bytes`.
    pub(super) fn after(other_bytes: u64, expected_bytes: u64) -> ImageBuffer {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        ImageBuffer {
            expected_bytes: size(expected_bytes),
            other_bytes: size(other_bytes),
            first: Bytes::new(),
            bytes: Vec::new(),
        }
    }

    /// Appends a chunk, after reserving the memory for it.
    ///
    /// # Errors
    /// 503 when the memory is not available.
    pub(super) async fn push(&mut self, reader: &mut BodyReader<'_>, chunk: Bytes) -> Result<(), Problem> {
        if self.first.is_empty() && self.bytes.is_empty() {
            reader.reserve(self.other_bytes + chunk.len()).await?;
            self.first = chunk;
            return Ok(());
        }
        let needed = self.first.len() + self.bytes.len() + chunk.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.max(self.expected_bytes.min(2 * needed));
            reader.reserve(self.other_bytes + capacity).await?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(&std::mem::take(&mut self.first));
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.bytes.is_empty() { self.first } else { self.bytes.into() }
    }
}
