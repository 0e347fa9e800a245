//! Files of the cache directory that are believed only where this user wrote them: each ends with an HMAC-SHA256 of its
//! name and content, under a random key that lies beside them and that only this user can read.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::package;

const KEY_FILE: &str = "cache.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// The key of a cache directory.
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// Reads the key, or makes one where there is none that only this user can read. A new key makes every file worthless
    /// that was sealed with another.
    ///
    /// # Errors
    /// The directory cannot be written, or keeps no file private.
    pub fn of(folder: &Path) -> io::Result<Key> {
        let path = folder.join(KEY_FILE);
        if let Some(key) = read_key(&path) {
            return Ok(Key(key));
        }
        create_folder(folder)?;
        let fresh = folder.join(unique("key"));
        write_private(&fresh, &rand::random::<[u8; KEY_BYTES]>())?;
        // Where several processes start at once, the key of the first counts. One that is not private is replaced.
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

    /// The content of a sealed file. None: there is no such file, or this key did not seal it under this name.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        package::read_untaught(std::fs::File::open(path).ok()?, &mut content).ok()?;
        let tag = content.split_off(content.len().checked_sub(TAG_BYTES)?);
        let is_right = is_equal(&tag, &self.tag(path, &content));
        if !is_right && is_first_complaint(path) {
            tracing::warn!(path = %path.display(), "this cached file was not written with this cache's key, or is damaged; it is made again");
        }
        is_right.then_some(content)
    }

    /// Writes a sealed file. Another process sees the whole of it or nothing.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, path: &Path, mut content: Vec<u8>) -> io::Result<()> {
        let tag = self.tag(path, &content);
        content.extend_from_slice(&tag);
        let fresh = path.with_file_name(unique("sealed"));
        let written = write_private(&fresh, &content).and_then(|()| std::fs::rename(&fresh, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written
    }

    /// Of name and content, so that no sealed file can take the place of another.
    fn tag(&self, path: &Path, content: &[u8]) -> [u8; TAG_BYTES] {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hmac_sha256(&self.0, &[&(name.len() as u64).to_le_bytes(), name, content])
    }
}

/// HMAC (RFC 2104) of the parts, one after the other. The key is no longer than a block of SHA-256.
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        Sha256::new_with_prefix(block)
    };
    let inner = parts.iter().fold(padded(0x36), Sha256::chain_update);
    padded(0x5c).chain_update(inner.finalize()).finalize().into()
}

/// Takes as long whichever byte differs.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

/// Sessions are opened side by side and read the same files; one line of the log says what is wrong with one.
fn is_first_complaint(path: &Path) -> bool {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned())
}

/// None: no file of this user that nobody else can read.
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

/// A directory that is made here is this user's alone; one that existed keeps its mode.
fn create_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a new file that only this user can read.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// A name of this process and this call: the sessions of a worker are opened side by side.
pub fn unique(purpose: &str) -> String {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    format!("{purpose}-{}-{}.tmp", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let tag = hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(package::hex(&tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let tag = hmac_sha256(&[0x0b; 20], &[b"Hi There"]);
        assert_eq!(package::hex(&tag), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn a_sealed_file_is_read_only_under_its_key_and_name() {
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
            assert_eq!(key.read(&path), None, "cut to {at} bytes");
        }
        // Who has no key can only make the digest that this cache once trusted.
        let forged = [b"a graph".as_slice(), &Sha256::digest(b"a graph")].concat();
        std::fs::write(&path, forged).unwrap();
        assert_eq!(key.read(&path), None);
    }

    #[test]
    fn a_key_is_private_or_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let first = Key::of(&cache).unwrap();
        let path = cache.join(KEY_FILE);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(cache.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(Key::of(&cache).unwrap().0, first.0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let second = Key::of(&cache).unwrap();
        assert_ne!(second.0, first.0, "others may have read the first");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let known = folder.path().join("known");
        write_private(&known, &[1; KEY_BYTES]).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&known, &path).unwrap();
        assert_ne!(Key::of(&cache).unwrap().0, [1; KEY_BYTES], "a link is no key");
        let names: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [KEY_FILE], "nothing is left behind");
    }
}
