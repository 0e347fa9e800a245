//! Verifies the ONNX Runtime library: compares its sha256 with that of the one that `scripts/setup` installs.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::choice::ModelChoice;
use super::file::{hex, sha256_hex};
use super::find::{self, RuntimeLibrary};
use super::seal::Key;

/// The digests of the libraries that `scripts/setup` installs, by machine.
const PINS: &str = include_str!("../../scripts/onnxruntime.pins");

/// A file that changed less than this long ago may change again with the same timestamp.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// The result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checked {
    /// The library that `scripts/setup` installs.
    Pinned,
    /// Another library, which the operator named or installed.
    Other { sha256: String },
}

/// Checks the library before its code runs. A library that was found under the name of the pinned one must have the
/// pinned digest. Any other library is the operator's choice.
///
/// # Errors
/// If the library cannot be read, or has the name of the pinned one and another digest.
pub(super) fn check(library: &RuntimeLibrary, cache: Option<&Path>) -> anyhow::Result<Checked> {
    let RuntimeLibrary { path, is_named } = library;
    let sha256 = digest(path, cache).with_context(|| format!("cannot read {}", path.display()))?;
    let pinned = pinned_sha256(PINS, std::env::consts::ARCH);
    if pinned == Some(sha256.as_str()) {
        return Ok(Checked::Pinned);
    }
    let has_pinned_name = path.file_name().is_some_and(|name| name == find::PINNED_LIBRARY);
    ensure!(
        *is_named || !has_pinned_name || pinned.is_none(),
        "{} is not the library that scripts/setup installs: its sha256 is {sha256}, not {}; run scripts/setup, or name \
         the library with --ort-dylib to use it anyway",
        path.display(),
        pinned.unwrap_or_default()
    );
    Ok(Checked::Other { sha256 })
}

/// The library to load, and the file name under which another machine finds and accepts it without a flag.
///
/// # Errors
/// If there is no library, and those of [`check`].
pub fn portable_runtime(choice: &ModelChoice) -> anyhow::Result<(PathBuf, String)> {
    let library = find::runtime(choice)?;
    let name = match check(&library, choice.cache_dir.as_deref())? {
        Checked::Pinned => find::PINNED_LIBRARY,
        Checked::Other { .. } => find::UNPINNED_LIBRARY,
    };
    Ok((library.path, name.to_owned()))
}

/// The runtime library, as a report of a fault names it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RuntimeFacts {
    /// The file that would be loaded.
    pub path: PathBuf,
    /// The release that the program expects.
    pub version: &'static str,
    /// The digest of the file, as hexadecimal.
    pub sha256: String,
    /// True if it is the library that `scripts/setup` installs.
    pub is_pinned: bool,
}

/// Describes the library that would be loaded, without loading it.
///
/// # Errors
/// If there is no library, or it cannot be read.
pub fn runtime_facts(choice: &ModelChoice) -> anyhow::Result<RuntimeFacts> {
    let path = find::runtime_library(choice)?;
    let sha256 = file_sha256(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_pinned = pinned_sha256(PINS, std::env::consts::ARCH) == Some(sha256.as_str());
    Ok(RuntimeFacts { path, version: find::RUNTIME_VERSION, sha256, is_pinned })
}

/// The pinned digest for a Linux machine of this architecture, if there is one.
fn pinned_sha256<'a>(pins: &'a str, machine: &str) -> Option<&'a str> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    pins.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(machine)).then(|| words.nth(2)).flatten()
    })
}

/// The digest of the file, from the cache if the file has not changed since. Hashing would take 20 to 120 ms at every
/// start.
fn digest(path: &Path, cache: Option<&Path>) -> std::io::Result<String> {
    let canonical = std::fs::canonicalize(path)?;
    let state = state(&canonical)?;
    let record_file = cache.and_then(|folder| {
        let name = format!("runtime-{}.digest", &sha256_hex(canonical.as_os_str().as_encoded_bytes())[..32]);
        Some((folder.join(name), Key::of(folder).ok()?))
    });
    if let Some((path, key)) = &record_file
        && let Some(record) = key.read(path).and_then(|record| String::from_utf8(record).ok())
        && let Some((recorded_state, sha256)) = record.split_once('\n')
        && recorded_state == state.text
    {
        return Ok(sha256.to_owned());
    }
    let sha256 = file_sha256(&canonical)?;
    // A cache that cannot be written only costs time at the next start.
    if let Some((path, key)) = record_file
        && state.is_stable
    {
        let _ = key.write(&path, format!("{}\n{sha256}", state.text).into_bytes());
    }
    Ok(sha256)
}

/// The attributes that change when the file changes. The ctime of an inode cannot be set back without setting the
/// clock.
struct State {
    text: String,
    is_stable: bool,
}

fn state(path: &Path) -> std::io::Result<State> {
    let file = std::fs::metadata(path)?;
    let text = format!(
        "{} {} {} {}.{:09} {}.{:09}",
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    );
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(file.ctime()).unwrap_or_default());
    let is_stable = SystemTime::now().duration_since(changed).is_ok_and(|age| age > STABLE_AFTER);
    Ok(State { text, is_stable })
}

/// The SHA-256 of a file of any size, as hexadecimal.
pub fn file_sha256(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&block[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_those_of_the_expected_release() {
        assert!(PINS.lines().any(|line| line == format!("version {}", find::RUNTIME_VERSION)));
        for machine in ["x86_64", "aarch64"] {
            let sha256 = pinned_sha256(PINS, machine).unwrap();
            assert!(sha256.len() == 64 && sha256.bytes().all(|digit| digit.is_ascii_hexdigit()), "{machine}");
        }
        assert_eq!(pinned_sha256(PINS, "riscv64"), None);
        assert_eq!(pinned_sha256(PINS, "version"), None);
    }

    #[test]
    fn library_under_the_pinned_name_must_have_the_pinned_digest() {
        let folder = tempfile::tempdir().unwrap();
        let library = |name: &str, is_named| {
            let path = folder.path().join(name);
            std::fs::write(&path, "something else").unwrap();
            RuntimeLibrary { path, is_named }
        };
        let other = Checked::Other { sha256: sha256_hex(b"something else") };
        assert_eq!(check(&library(find::PINNED_LIBRARY, true), None).unwrap(), other);
        assert_eq!(check(&library("libonnxruntime.so", false), None).unwrap(), other);
        let error = check(&library(find::PINNED_LIBRARY, false), None).unwrap_err().to_string();
        assert!(error.contains(find::PINNED_LIBRARY) && error.contains("scripts/setup"), "{error}");
        assert!(error.contains(&sha256_hex(b"something else")) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn cached_digest_is_used_only_for_an_unchanged_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, cache) = (folder.path().join("library.so"), folder.path().join("cache"));
        std::fs::write(&path, "one").unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), sha256_hex(b"one"));
        // The file changed just now, so nothing is cached yet. A record in the cache is trusted.
        let records = || {
            let files = std::fs::read_dir(&cache).unwrap().map(|file| file.unwrap().path());
            files.filter(|file| file.extension().is_some_and(|extension| extension == "digest")).collect::<Vec<_>>()
        };
        assert!(records().is_empty());
        let name = format!(
            "runtime-{}.digest",
            &sha256_hex(std::fs::canonicalize(&path).unwrap().as_os_str().as_encoded_bytes())[..32]
        );
        let write_record =
            |text: String| Key::of(&cache).unwrap().write(&cache.join(&name), text.into_bytes()).unwrap();
        write_record(format!("{}\ncached", state(&path).unwrap().text));
        assert_eq!(digest(&path, Some(&cache)).unwrap(), "cached");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), sha256_hex(b"two"));
        // A record that was not written with the key is not trusted.
        let state = state(&path).unwrap().text;
        std::fs::write(cache.join(&name), format!("{state}\nforged").into_bytes()).unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), sha256_hex(b"two"));
    }
}
