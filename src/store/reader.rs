//! An object that is read in pieces.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::StoreError;

/// An open object. It holds one piece at a time, of at most [`MAX_PIECE_BYTES`] or what the transport reads at once.
pub struct ObjectReader {
    pub size_bytes: u64,
    pieces: BoxStream<'static, Result<Bytes, StoreError>>,
}

pub(super) const MAX_PIECE_BYTES: u64 = 128 << 10;

impl ObjectReader {
    pub(super) fn new(size_bytes: u64, pieces: BoxStream<'static, Result<Bytes, StoreError>>) -> Self {
        ObjectReader { size_bytes, pieces }
    }

    /// Of a small object that is in memory already.
    pub(super) fn whole(body: Bytes) -> Self {
        let size_bytes = body.len() as u64;
        let pieces = if body.is_empty() { Vec::new() } else { vec![Ok(body)] };
        ObjectReader::new(size_bytes, stream::iter(pieces).boxed())
    }

    /// The next piece; None once all `size_bytes` were read.
    ///
    /// # Errors
    /// Where reading fails, or the bytes of all pieces are not those that were put. After one, nothing more can be read.
    pub async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        self.pieces.next().await
    }
}
