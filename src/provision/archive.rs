//! Reproducible archives: they hold names, modes and contents of files, but no times and no owners.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// A file that goes into an archive.
pub(super) struct Entry {
    /// Path in the archive.
    pub name: String,
    pub mode: u32,
    content: Content,
}

enum Content {
    File(PathBuf),
    Text(String),
}

impl Entry {
    pub(super) fn new(name: impl Into<String>, mode: u32, file: PathBuf) -> Entry {
        Entry { name: name.into(), mode, content: Content::File(file) }
    }

    /// A file that exists only in the archive.
    pub(super) fn of_text(name: impl Into<String>, text: String) -> Entry {
        Entry { name: name.into(), mode: 0o644, content: Content::Text(text) }
    }
}

/// Writes an archive of the files.
pub(super) fn write(entries: &[Entry], to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    for Entry { name, mode, content } in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_mtime(0);
        match content {
            Content::File(path) => {
                let file = File::open(path)?;
                header.set_size(file.metadata()?.len());
                archive.append_data(&mut header, name, BufReader::new(file))?;
            }
            Content::Text(text) => {
                header.set_size(text.len() as u64);
                archive.append_data(&mut header, name, text.as_bytes())?;
            }
        }
    }
    archive.finish()
}

/// Digest and size of an archive of the files, without holding it in memory.
pub(super) fn measure(entries: &[Entry]) -> io::Result<Measured> {
    let mut measuring = Measuring { hasher: Sha256::new(), bytes: 0 };
    write(entries, &mut measuring)?;
    Ok(Measured { digest: format!("{:x}", measuring.hasher.finalize()), bytes: measuring.bytes })
}

/// An archive that was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    /// SHA-256 in hexadecimal.
    pub digest: String,
    pub bytes: u64,
}

struct Measuring {
    hasher: Sha256,
    bytes: u64,
}

impl Write for Measuring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All files of a folder and of those in it, sorted, without hidden ones. Links to folders are not followed, because they
/// can lead in a circle. Names in the archive begin with `prefix`.
///
/// # Errors
/// A folder cannot be read.
pub(super) fn files_of(folder: &Path, prefix: &str) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let found = found.with_context(|| folder.display().to_string())?;
        let path = found.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{name}");
        if found.file_type().with_context(|| path.display().to_string())?.is_dir() {
            entries.extend(files_of(&path, &format!("{name}/"))?);
        } else if path.is_file() {
            entries.push(Entry::new(name, 0o644, path));
        }
    }
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_are_files_and_links_to_folders_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("onnx")).unwrap();
        std::fs::write(folder.path().join("onnx/model.onnx"), "x").unwrap();
        std::fs::write(folder.path().join(".hidden"), "x").unwrap();
        std::os::unix::fs::symlink("onnx/model.onnx", folder.path().join("link.onnx")).unwrap();
        std::os::unix::fs::symlink(".", folder.path().join("circle")).unwrap();
        let names: Vec<String> = files_of(folder.path(), "m/").unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["m/link.onnx", "m/onnx/model.onnx"]);
    }
}
