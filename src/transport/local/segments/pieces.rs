//! Reads a body in pieces, so that a large one is never in memory as a whole.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::{Place, Segments, fault, read_at};
use crate::sqlite::Fault;
use crate::transport::error::TransportError;
use crate::transport::reader::MAX_PIECE_BYTES;

impl Segments {
    /// As [`Segments::read_aside`], in pieces. The last one is withheld unless the checksum of all of them is right.
    pub(crate) fn pieces(
        self: &Arc<Self>,
        place: Place,
        error: impl Fn(Fault) -> TransportError + Send + 'static,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        let pieces = Pieces { segments: Arc::clone(self), place, read_bytes: 0, checksum: crc32fast::Hasher::new() };
        let next = |mut pieces: Pieces| async {
            let next = pieces.next().await.transpose()?;
            Some((next, pieces))
        };
        stream::unfold(pieces, next).map(move |piece| piece.map_err(&error)).boxed()
    }
}

/// A body that is being read from its beginning.
struct Pieces {
    segments: Arc<Segments>,
    place: Place,
    read_bytes: u64,
    checksum: crc32fast::Hasher,
}

impl Pieces {
    /// Reads the next piece. Returns `None` at the end and after an error.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let left = self.place.size_bytes - self.read_bytes;
        if left == 0 {
            return Ok(None);
        }
        let offset = self.place.offset + self.read_bytes;
        let piece = Place { offset, size_bytes: left.min(MAX_PIECE_BYTES), ..self.place.clone() };
        // Nothing follows an error: the place is set again only after a successful read.
        self.read_bytes = self.place.size_bytes;
        let bytes = self.segments.blocking(move |segments| {
            let read = segments.reader(&piece.segment).and_then(|file| read_at(&file, &piece));
            read.map(Bytes::from).map_err(|error| fault(&segments.directory.join(&piece.segment), &error))
        });
        let bytes = bytes.await?;
        self.checksum.update(&bytes);
        self.read_bytes = self.place.size_bytes - left + bytes.len() as u64;
        if self.read_bytes == self.place.size_bytes && self.checksum.clone().finalize() != self.place.checksum {
            let Place { segment, offset, size_bytes, .. } = &self.place;
            return Err(Fault::Unavailable(format!(
                "the {size_bytes} bytes at {offset} of {segment} are not those of the object that is read: it was \
                 replaced or deleted meanwhile, or the disk is damaged"
            )));
        }
        Ok(Some(bytes))
    }
}
