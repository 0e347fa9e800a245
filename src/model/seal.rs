//! Sealed files of the cache directory, which are trusted only if this user wrote them: each ends with an HMAC-SHA256
//! of its name and content. The random key is in the same directory, and only this user can read it.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::file::read_large;

const KEY_FILE: &str = "cache.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// The key of a cache directory.
pub(super) struct Key([u8; KEY_BYTES]);

impl Key {
    /// Reads the key, or creates one if there is none that only this user can read. A new key invalidates all files
    /// that were sealed with the old one.
    ///
    /// # Errors
    /// If the directory cannot be written, or its file system does not support private files.
    pub(super) fn of(folder: &Path) -> io::Result<Key> {
        let path = folder.join(KEY_FILE);
        if let Some(key) = read_key(&path) {
            return Ok(Key(key));
        }
        create_folder(folder)?;
        let fresh = folder.join(unique("key"));
        write_private(&fresh, &rand::random::<[u8; KEY_BYTES]>())?;
        // If several processes start at once, the first key counts. A key that is not private is replaced.
        let placed = if path.symlink_metadata().is_ok() && read_key(&path).is_none() {
            std::fs::rename(&fresh, &path)
        } else {
            std::fs::hard_link(&fresh, &path)
        };
        let _ = std::fs::remove_file(&fresh);
        match (read_key(&path), placed) {
            (Some(key), _) => Ok(Key(key)),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(io::Error::other(format!("{} can be read by other users", path.display()))),
        }
    }

    /// The content of a sealed file. Returns `None` when there is no such file, or it was not sealed with this key and
    /// under this name.
    pub(super) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        read_large(std::fs::File::open(path).ok()?, &mut content).ok()?;
        let tag = content.split_off(content.len().checked_sub(TAG_BYTES)?);
        let is_valid = is_equal(&tag, &self.tag(path, &content));
        if !is_valid && is_first_warning(path) {
            tracing::warn!(
                path = %path.display(),
                "a cached file was not sealed with the key of this cache, or is damaged; it is recreated"
            );
        }
        is_valid.then_some(content)
    }

    /// Writes a sealed file atomically.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub(super) fn write(&self, path: &Path, mut content: Vec<u8>) -> io::Result<()> {
        let tag = self.tag(path, &content);
        content.extend_from_slice(&tag);
        let fresh = path.with_file_name(unique("sealed"));
        let written = write_private(&fresh, &content).and_then(|()| std::fs::rename(&fresh, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written
    }

    /// The tag covers the name too, so that one sealed file cannot replace another.
    fn tag(&self, path: &Path, content: &[u8]) -> [u8; TAG_BYTES] {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hmac_sha256(&self.0, &[&(name.len() as u64).to_le_bytes(), name, content])
    }
}

/// HMAC (RFC 2104) of the concatenated parts. The key must not be longer than a block of SHA-256.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        Sha256::new_with_prefix(block)
    };
    let inner = parts.iter().fold(padded(0x36), Sha256::chain_update);
    padded(0x5c).chain_update(inner.finalize()).finalize().into()
}

/// Compares in constant time.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

/// Sessions are opened in parallel and read the same files, so a problem with a file is logged only once.
fn is_first_warning(path: &Path) -> bool {
    static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned())
}

/// Reads the key. Returns `None` unless it is a file that belongs to this user and that nobody else can read.
fn read_key(path: &Path) -> Option<[u8; KEY_BYTES]> {
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(no_links).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let is_private = metadata.is_file()
        && metadata.mode().trailing_zeros() >= 6
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.len() == KEY_BYTES as u64;
    let mut key = [0; KEY_BYTES];
    (is_private && file.read_exact(&mut key).is_ok()).then_some(key)
}

/// Creates a directory that only this user can read. An existing directory keeps its mode.
fn create_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a new file that only this user can read.
pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// A file name that is unique to this process and call, because sessions are opened in parallel.
pub(super) fn unique(purpose: &str) -> String {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    format!("{purpose}-{}-{}.tmp", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn hmac_equals_the_test_vectors_of_rfc_4231() {
        let tag = hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(crate::file::hex(&tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let tag = hmac_sha256(&[0x0b; 20], &[b"Hi There"]);
        assert_eq!(crate::file::hex(&tag), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn sealed_file_is_valid_only_under_its_key_and_name() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("graph"), folder.path().join("other"));
        let key = Key::of(folder.path()).unwrap();
        key.write(&path, b"a graph".to_vec()).unwrap();
        assert_eq!(key.read(&path).as_deref(), Some(b"a graph".as_slice()));
        assert_eq!(Key::of(folder.path()).unwrap().read(&path).as_deref(), Some(b"a graph".as_slice()));
        std::fs::copy(&path, &other).unwrap();
        assert_eq!(key.read(&other), None, "sealed under another name");
        assert_eq!(Key([7; KEY_BYTES]).read(&path), None, "sealed with another key");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert_eq!(key.read(&path), None, "byte {at} changed");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(key.read(&path), None, "truncated to {at} bytes");
        }
        // Without the key, an attacker can only append a plain digest.
        let forged = [b"a graph".as_slice(), &Sha256::digest(b"a graph")].concat();
        std::fs::write(&path, forged).unwrap();
        assert_eq!(key.read(&path), None);
    }

    #[test]
    fn key_that_is_not_private_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let first = Key::of(&cache).unwrap();
        let path = cache.join(KEY_FILE);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(cache.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(Key::of(&cache).unwrap().0, first.0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let second = Key::of(&cache).unwrap();
        assert_ne!(second.0, first.0, "others may have read the first key");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let known = folder.path().join("known");
        write_private(&known, &[1; KEY_BYTES]).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&known, &path).unwrap();
        assert_ne!(Key::of(&cache).unwrap().0, [1; KEY_BYTES], "a symbolic link is not accepted as a key");
        let names: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [KEY_FILE], "nothing is left behind");
    }
}
