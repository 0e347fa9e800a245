//! Reading files, and their sha256 digests.

use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

/// An ONNX file is one Protocol Buffers message, which cannot be larger.
const MAX_MODEL_BYTES: u64 = (1 << 31) - 1;

/// Reads a small file.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Reads a file and verifies its digest.
///
/// # Errors
/// If it cannot be read, or is not the file that `model.toml` describes.
pub(super) fn read_checked(path: &Path, expected_sha256: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = std::fs::File::open(path).and_then(|file| read_large(file, &mut bytes));
    result.with_context(|| format!("cannot read {}", path.display()))?;
    expect(path, &sha256_hex(&bytes), expected_sha256)?;
    Ok(bytes)
}

/// Verifies a file without keeping it in memory. Returns its length in bytes.
///
/// # Errors
/// The errors of [`read_checked`].
pub(super) fn check(path: &Path, expected_sha256: &str) -> anyhow::Result<u64> {
    let mut hash = Sha256::new();
    let length = std::fs::File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    expect(path, &hex(&hash.finalize()), expected_sha256)?;
    Ok(length)
}

/// Refuses a model file that is too large to be one, before it is read.
///
/// # Errors
/// If it does not exist or is too large.
pub(super) fn check_model_size(path: &Path) -> anyhow::Result<()> {
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(
        length <= MAX_MODEL_BYTES,
        "{} has {length} bytes, but an ONNX file has less than 2 GiB; export the model with external data",
        path.display()
    );
    Ok(())
}

fn expect(path: &Path, actual: &str, expected_sha256: &str) -> anyhow::Result<()> {
    ensure!(
        actual == expected_sha256,
        "{} is not the file that model.toml describes: its sha256 is {actual}, not {expected_sha256}; restore it",
        path.display()
    );
    Ok(())
}

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
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
