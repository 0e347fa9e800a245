//! The images in a folder and the folders below it.
//!
//! The names of one folder at a time are held in memory, together with those of the folders above it.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, FileType};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::found::{Content, Found, Visitor, unreadable};
use super::rules::Rules;
use crate::pile::output::SORTED_MARKER;

/// Visits the images below `root`, in the order of their names within each folder if `is_ordered`. `prefix` is what the
/// paths of the images are reported below.
///
/// Folders that `--sort-into` made have links to the same images and are left out, unless one of them is the root. A link
/// to a file counts as a file, and a link to a folder is followed unless it leads to a folder above it.
pub(in crate::pile) fn walk(
    root: &Path,
    prefix: &Path,
    rules: &Rules,
    is_ordered: bool,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    let mut walk = Walk { prefix, rules, is_ordered, visitor, above: Vec::new() };
    walk.folder(root, Path::new(""))
}

struct Walk<'a> {
    prefix: &'a Path,
    rules: &'a Rules,
    is_ordered: bool,
    visitor: &'a mut dyn Visitor,
    /// Device and inode of the folder that is read and of those above it.
    above: Vec<(u64, u64)>,
}

#[derive(Clone, Copy)]
enum Kind {
    File,
    Folder,
    Link,
    /// A pipe, a socket or a device. Reading one may block forever.
    Other,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, relative: &Path) -> ControlFlow<()> {
        let id = match fs::metadata(folder) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) => return self.unreadable(folder, relative, &error),
        };
        if self.above.contains(&id) {
            if self.is_ordered {
                tracing::warn!(link = %folder.display(), "a link leads to a folder above it and is not followed");
            }
            return self.visitor.skip();
        }
        let is_root = self.above.is_empty();
        if !is_root && folder.join(SORTED_MARKER).exists() {
            return self.visitor.skip();
        }
        self.above.push(id);
        let walked = if self.is_ordered { self.sorted(folder, relative) } else { self.unsorted(folder, relative) };
        self.above.pop();
        walked
    }

    fn sorted(&mut self, folder: &Path, relative: &Path) -> ControlFlow<()> {
        let (names, error) = Names::read(folder);
        for entry in &names.entries {
            self.entry(folder, relative, names.name(entry), entry.kind)?;
        }
        error.map_or(ControlFlow::Continue(()), |error| self.unreadable(folder, relative, &error))
    }

    fn unsorted(&mut self, folder: &Path, relative: &Path) -> ControlFlow<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(folder, relative, &error),
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.entry(folder, relative, &entry.file_name(), Kind::of(&entry))?,
                Err(error) => return self.unreadable(folder, relative, &error),
            }
        }
        ControlFlow::Continue(())
    }

    fn entry(&mut self, folder: &Path, relative: &Path, name: &OsStr, kind: Kind) -> ControlFlow<()> {
        let (path, relative) = (folder.join(name), relative.join(name));
        let kind = match kind {
            // A link to nothing counts as a file: it is reported when it cannot be read.
            Kind::Link => fs::metadata(&path).map_or(Kind::File, |metadata| Kind::of_type(metadata.file_type())),
            other => other,
        };
        match kind {
            Kind::Folder if self.rules.enters(&relative) => self.folder(&path, &relative),
            Kind::File if self.rules.takes(&relative) => {
                let shown = self.prefix.join(relative);
                if self.visitor.wants(&shown)? {
                    self.visitor.image(Found { path: shown, content: Content::File(path) })?;
                }
                ControlFlow::Continue(())
            }
            _ => self.visitor.skip(),
        }
    }

    fn unreadable(&mut self, folder: &Path, relative: &Path, error: &io::Error) -> ControlFlow<()> {
        let shown = self.prefix.join(relative);
        // The folder that was named has no path below itself.
        let shown = if shown.as_os_str().is_empty() { folder.to_owned() } else { shown };
        self.visitor.failed(shown, unreadable("folder", error))
    }
}

impl Kind {
    fn of(entry: &DirEntry) -> Kind {
        entry.file_type().map_or(Kind::File, Kind::of_type)
    }

    fn of_type(kind: FileType) -> Kind {
        if kind.is_file() {
            Kind::File
        } else if kind.is_dir() {
            Kind::Folder
        } else if kind.is_symlink() {
            Kind::Link
        } else {
            Kind::Other
        }
    }
}

/// The names in a folder, sorted by their bytes. They share one buffer, since a folder may have millions.
struct Names {
    bytes: Vec<u8>,
    entries: Vec<Name>,
}

struct Name {
    begin: usize,
    length: u16,
    kind: Kind,
}

impl Names {
    /// Reads a folder. If that fails in the middle, returns the names before it and the error.
    fn read(folder: &Path) -> (Names, Option<io::Error>) {
        let mut names = Names { bytes: Vec::new(), entries: Vec::new() };
        let error = names.fill(folder).err();
        let Names { bytes, entries } = &mut names;
        entries.sort_unstable_by(|a, b| bytes[a.range()].cmp(&bytes[b.range()]));
        (names, error)
    }

    fn fill(&mut self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            // No file system has names of more than 255 characters.
            let length = u16::try_from(name.len()).map_err(io::Error::other)?;
            self.entries.push(Name { begin: self.bytes.len(), length, kind: Kind::of(&entry) });
            self.bytes.extend_from_slice(name.as_bytes());
        }
        Ok(())
    }

    fn name(&self, name: &Name) -> &OsStr {
        OsStr::from_bytes(&self.bytes[name.range()])
    }
}

impl Name {
    fn range(&self) -> Range<usize> {
        self.begin..self.begin + usize::from(self.length)
    }
}
