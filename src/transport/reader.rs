//! An object that is read in pieces.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::error::TransportError;

/// An open object. It holds one piece at a time, of at most 128 KiB or what the connection delivers at once.
pub struct ObjectReader {
    /// The bytes of all pieces.
    pub size_bytes: u64,
    pieces: BoxStream<'static, Result<Bytes, TransportError>>,
}

pub(super) const MAX_PIECE_BYTES: u64 = 128 << 10;

impl ObjectReader {
    /// A reader of the given pieces.
    pub fn new(size_bytes: u64, pieces: BoxStream<'static, Result<Bytes, TransportError>>) -> Self {
        ObjectReader { size_bytes, pieces }
    }

    /// A reader of a small object that is in memory already.
    pub fn whole(body: Bytes) -> Self {
        let size_bytes = body.len() as u64;
        let pieces = if body.is_empty() { Vec::new() } else { vec![Ok(body)] };
        ObjectReader::new(size_bytes, stream::iter(pieces).boxed())
    }

    /// The next piece. `None` once all `size_bytes` were read.
    ///
    /// # Errors
    /// When reading fails, or the bytes are not those that were written. Nothing more can be read after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, TransportError>> {
        self.pieces.next().await
    }
}
