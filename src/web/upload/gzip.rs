//! Decompresses bodies with `Content-Encoding: gzip` as they arrive, and never beyond a limit.

use std::io::{self, Write};

use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;

use crate::web::error::Problem;

/// How many compressed bytes are decompressed at a time. Deflate expands one byte to at most 1,032, so a step makes at
/// most half a mebibyte.
const STEP_BYTES: usize = 512;

/// A decompressor for one body.
pub(super) struct Gunzip {
    decoder: MultiGzDecoder<Limited>,
    packed: Bytes,
    has_ended: bool,
}

/// The outcome of [`Gunzip::next`].
pub(super) enum Unpacked {
    /// Never empty.
    Bytes(Bytes),
    NeedsMore,
    End,
}

impl Gunzip {
    /// `max_bytes` limits the decompressed body.
    pub(super) fn new(max_bytes: u64) -> Gunzip {
        let decoder = MultiGzDecoder::new(Limited { bytes: Vec::new(), left: max_bytes, max_bytes });
        Gunzip { decoder, packed: Bytes::new(), has_ended: false }
    }

    /// Sets the next compressed bytes, or `None` at the end of the body. Call it after [`Unpacked::NeedsMore`].
    pub(super) fn push(&mut self, packed: Option<Bytes>) {
        self.has_ended = packed.is_none();
        self.packed = packed.unwrap_or_default();
    }

    /// Returns the next decompressed bytes.
    ///
    /// # Errors
    /// 413 when the body exceeds the limit, 400 when it is not gzip or is cut off.
    pub(super) fn next(&mut self) -> Result<Unpacked, Problem> {
        while self.decoder.get_ref().bytes.is_empty() {
            if self.packed.is_empty() {
                if !self.has_ended {
                    return Ok(Unpacked::NeedsMore);
                }
                let ended = self.decoder.try_finish();
                ended.map_err(|error| self.problem(&error))?;
                if self.decoder.get_ref().bytes.is_empty() {
                    return Ok(Unpacked::End);
                }
                continue;
            }
            let step = self.packed.len().min(STEP_BYTES);
            match self.decoder.write(&self.packed[..step]) {
                // The decoder is done: the bytes that follow are not another member.
                Ok(0) => self.packed.clear(),
                Ok(taken) => self.packed.advance(taken),
                Err(error) => return Err(self.problem(&error)),
            }
        }
        Ok(Unpacked::Bytes(std::mem::take(&mut self.decoder.get_mut().bytes).into()))
    }

    fn problem(&self, error: &io::Error) -> Problem {
        if error.kind() == io::ErrorKind::FileTooLarge {
            return Problem::too_large(self.decoder.get_ref().max_bytes);
        }
        Problem::malformed(format!("the Content-Encoding says gzip, but the body is not gzip or is damaged: {error}"))
    }
}

/// Collects the decompressed bytes, up to a limit.
struct Limited {
    bytes: Vec<u8>,
    left: u64,
    max_bytes: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packed: &[u8], piece: usize, max_bytes: u64) -> Result<Vec<u8>, Problem> {
        let mut gunzip = Gunzip::new(max_bytes);
        let mut pieces = packed.chunks(piece);
        let mut unpacked = Vec::new();
        loop {
            match gunzip.next()? {
                Unpacked::Bytes(bytes) => {
                    assert!(bytes.len() <= 1 << 20, "{} bytes at once", bytes.len());
                    unpacked.extend_from_slice(&bytes);
                }
                Unpacked::NeedsMore => gunzip.push(pieces.next().map(Bytes::copy_from_slice)),
                Unpacked::End => return Ok(unpacked),
            }
        }
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn body_is_decompressed_within_the_limit() {
        let text: Vec<u8> = (0..100_000_u32).map(|at| (at * at % 251) as u8).collect();
        let packed = pack(&text);
        for piece in [1, 7, 1_000, packed.len()] {
            assert_eq!(unpack(&packed, piece, 100_000), Ok(text.clone()));
            assert_eq!(unpack(&packed, piece, 99_999).unwrap_err().kind, "too-large");
        }
        assert_eq!(
            unpack(&[packed.clone(), packed.clone()].concat(), 100, 200_000).map(|bytes| bytes.len()),
            Ok(200_000)
        );
    }

    #[test]
    fn gzip_bomb_is_decompressed_in_steps_and_only_up_to_the_limit() {
        let bomb = pack(&vec![0; 50 << 20]);
        assert_eq!(unpack(&bomb, bomb.len(), 1 << 20).unwrap_err().kind, "too-large");
        assert_eq!(unpack(&bomb, bomb.len(), 64 << 20).map(|bytes| bytes.len()), Ok(50 << 20));
    }

    #[test]
    fn truncated_or_damaged_gzip_is_malformed() {
        let packed = pack(b"some text that is long enough to be cut");
        let mut damaged = packed.clone();
        damaged[20] ^= 0xff;
        for body in [&b""[..], b"no gzip at all", &packed[..packed.len() - 1], &packed[..5], &damaged] {
            assert_eq!(unpack(body, 3, 1_000).map_err(|problem| problem.kind), Err("malformed"), "{body:?}");
        }
    }
}
