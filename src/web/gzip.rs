//! Bodies with `Content-Encoding: gzip`, unpacked as they arrive and never beyond a limit.

use std::io::{self, Write};

use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;

use super::error::Problem;

/// Unpacked at once. Deflate makes at most 1,032 bytes of one, so this becomes half a mebibyte.
const STEP_BYTES: usize = 512;

pub struct Gunzip {
    decoder: MultiGzDecoder<Limited>,
    packed: Bytes,
    has_ended: bool,
}

pub enum Unpacked {
    /// Never empty.
    Bytes(Bytes),
    NeedsMore,
    End,
}

impl Gunzip {
    /// `max_bytes`: of what is unpacked.
    pub fn new(max_bytes: u64) -> Gunzip {
        let decoder = MultiGzDecoder::new(Limited { bytes: Vec::new(), left: max_bytes, max_bytes });
        Gunzip { decoder, packed: Bytes::new(), has_ended: false }
    }

    /// The next packed bytes, once those before were asked for; None at the end of the body.
    pub fn push(&mut self, packed: Option<Bytes>) {
        self.has_ended = packed.is_none();
        self.packed = packed.unwrap_or_default();
    }

    /// # Errors
    /// 413 where there is more than the limit, 400 where it is not gzip or ends too early.
    pub fn next(&mut self) -> Result<Unpacked, Problem> {
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
                // The decoder takes nothing more: what follows is no further member.
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
        Problem::malformed(format!("the Content-Encoding says gzip, but the body is not, or is damaged: {error}"))
    }
}

/// Takes what is unpacked, up to a limit.
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
    fn what_was_packed_is_unpacked_within_the_limit() {
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
    fn a_bomb_is_unpacked_step_by_step_and_not_beyond_the_limit() {
        let bomb = pack(&vec![0; 50 << 20]);
        assert_eq!(unpack(&bomb, bomb.len(), 1 << 20).unwrap_err().kind, "too-large");
        assert_eq!(unpack(&bomb, bomb.len(), 64 << 20).map(|bytes| bytes.len()), Ok(50 << 20));
    }

    #[test]
    fn what_is_not_whole_gzip_is_malformed() {
        let packed = pack(b"some text that is long enough to be cut");
        let mut damaged = packed.clone();
        damaged[20] ^= 0xff;
        for body in [&b""[..], b"no gzip at all", &packed[..packed.len() - 1], &packed[..5], &damaged] {
            assert_eq!(unpack(body, 3, 1_000).map_err(|problem| problem.kind), Err("malformed"), "{body:?}");
        }
    }
}
