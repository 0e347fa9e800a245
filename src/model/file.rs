//! Reading files, and their sha256 digests.

use std::fmt::Write as _;
use std::io::Read;

use sha2::{Digest as _, Sha256};

/// Reads a large file whose buffer is freed soon.
///
/// The buffer is allocated larger than 32 MiB, because of glibc: freeing a block of up to that size raises the
/// threshold below which glibc keeps freed memory, so it would keep what building a session frees, a third more than
/// the session itself. The unused part of the buffer takes no memory.
pub(super) fn read_large(mut file: impl Read, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    bytes.reserve_exact((32 << 20) + 4096);
    file.read_to_end(bytes).map(drop)
}

/// The sha256 of some bytes in hexadecimal.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
