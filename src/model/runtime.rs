//! Which ONNX Runtime library this is: its sha256 against the one that `scripts/setup` installs.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::find::{self, RuntimeLibrary};
use super::seal::Key;
use super::{ModelChoice, package};

/// What `scripts/setup` installs, by machine.
const PINS: &str = include_str!("../../scripts/onnxruntime.pins");

/// A file that changed so recently may change again without looking changed.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// How the library that was checked is named in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// The one that `scripts/setup` installs.
    Pinned,
    /// Another one, which somebody named or put there.
    Other { sha256: String },
}

/// Checks the library before its code runs. A library in the place and under the name of the pinned one must be it; any
/// other is the choice of whoever named it.
///
/// # Errors
/// It cannot be read, or pretends to be the pinned one.
pub fn check(library: &RuntimeLibrary, cache: Option<&Path>) -> anyhow::Result<Checked> {
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
         the library with --ort-dylib to run it all the same",
        path.display(),
        pinned.unwrap_or_default()
    );
    Ok(Checked::Other { sha256 })
}

/// The library to load, and the file name under which another machine finds and takes it without being told.
///
/// # Errors
/// There is none, it cannot be read, or it pretends to be the pinned one.
pub fn portable_runtime(choice: &ModelChoice) -> anyhow::Result<(PathBuf, String)> {
    let library = find::runtime(choice)?;
    let name = match check(&library, choice.cache_dir.as_deref())? {
        Checked::Pinned => find::PINNED_LIBRARY,
        Checked::Other { .. } => find::UNPINNED_LIBRARY,
    };
    Ok((library.path, name.to_owned()))
}

/// The digest of a library for Linux on this machine. None: none is pinned.
fn pinned_sha256<'a>(pins: &'a str, machine: &str) -> Option<&'a str> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    pins.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(machine)).then(|| words.nth(2)).flatten()
    })
}

/// The digest, from the cache where the file has not changed since: hashing takes 20 to 120 ms of every start.
fn digest(path: &Path, cache: Option<&Path>) -> std::io::Result<String> {
    let canonical = std::fs::canonicalize(path)?;
    let state = state(&canonical)?;
    let known = cache.and_then(|folder| {
        let name = format!("runtime-{}.digest", &package::sha256_hex(canonical.as_os_str().as_encoded_bytes())[..32]);
        Some((folder.join(name), Key::of(folder).ok()?))
    });
    if let Some((known, key)) = &known
        && let Some(record) = key.read(known).and_then(|record| String::from_utf8(record).ok())
        && let Some((of_state, sha256)) = record.split_once('\n')
        && of_state == state.text
    {
        return Ok(sha256.to_owned());
    }
    let sha256 = hash(&canonical)?;
    // A cache that cannot be written costs time, not the start.
    if let Some((known, key)) = known
        && state.is_settled
    {
        let _ = key.write(&known, format!("{}\n{sha256}", state.text).into_bytes());
    }
    Ok(sha256)
}

/// What changes when a file does. The time of the change of an inode cannot be set back without setting the clock.
struct State {
    text: String,
    is_settled: bool,
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
    let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED_AFTER);
    Ok(State { text, is_settled })
}

fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(package::hex(&hash.finalize()));
        }
        hash.update(&block[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_pins_the_release_that_is_looked_for() {
        assert!(PINS.lines().any(|line| line == format!("version {}", find::RUNTIME_VERSION)));
        for machine in ["x86_64", "aarch64"] {
            let sha256 = pinned_sha256(PINS, machine).unwrap();
            assert!(sha256.len() == 64 && sha256.bytes().all(|digit| digit.is_ascii_hexdigit()), "{machine}");
        }
        assert_eq!(pinned_sha256(PINS, "riscv64"), None);
        assert_eq!(pinned_sha256(PINS, "version"), None);
    }

    #[test]
    fn a_library_under_the_pinned_name_must_be_the_pinned_one() {
        let folder = tempfile::tempdir().unwrap();
        let library = |name: &str, is_named| {
            let path = folder.path().join(name);
            std::fs::write(&path, "something else").unwrap();
            RuntimeLibrary { path, is_named }
        };
        let other = Checked::Other { sha256: package::sha256_hex(b"something else") };
        assert_eq!(check(&library(find::PINNED_LIBRARY, true), None).unwrap(), other);
        assert_eq!(check(&library("libonnxruntime.so", false), None).unwrap(), other);
        let error = check(&library(find::PINNED_LIBRARY, false), None).unwrap_err().to_string();
        assert!(error.contains(find::PINNED_LIBRARY) && error.contains("scripts/setup"), "{error}");
        assert!(error.contains(&package::sha256_hex(b"something else")) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_remembered_digest_holds_for_the_unchanged_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let (path, cache) = (folder.path().join("library.so"), folder.path().join("cache"));
        std::fs::write(&path, "one").unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), package::sha256_hex(b"one"));
        // Changed just now, so nothing is remembered yet; what is remembered is believed.
        let records = || {
            let files = std::fs::read_dir(&cache).unwrap().map(|file| file.unwrap().path());
            files.filter(|file| file.extension().is_some_and(|extension| extension == "digest")).collect::<Vec<_>>()
        };
        assert!(records().is_empty());
        let name = format!(
            "runtime-{}.digest",
            &package::sha256_hex(std::fs::canonicalize(&path).unwrap().as_os_str().as_encoded_bytes())[..32]
        );
        let remember = |text: String| Key::of(&cache).unwrap().write(&cache.join(&name), text.into_bytes()).unwrap();
        remember(format!("{}\nremembered", state(&path).unwrap().text));
        assert_eq!(digest(&path, Some(&cache)).unwrap(), "remembered");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), package::sha256_hex(b"two"));
        // A record that somebody else wrote is not believed.
        let state = state(&path).unwrap().text;
        std::fs::write(cache.join(&name), format!("{state}\nforged").into_bytes()).unwrap();
        assert_eq!(digest(&path, Some(&cache)).unwrap(), package::sha256_hex(b"two"));
    }
}
