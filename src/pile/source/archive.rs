//! Archives: which there are, and what all of them share.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};

use super::found::Visitor;
use super::rules::Rules;
use crate::protocol::ErrorInfo;

/// An archive that is read.
pub(super) struct Archive<'a> {
    pub file: &'a Path,
    /// The paths of the images are reported below it.
    pub prefix: &'a Path,
    pub rules: &'a Rules,
    /// The most bytes that an image may have.
    pub max_image_bytes: u64,
}

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveKind {
    Tar,
    TarGzip,
    Zip,
}

impl ArchiveKind {
    /// The form that the name of a file says. `None` if the file is no archive.
    pub(super) fn of(path: &Path) -> Option<ArchiveKind> {
        const ENDS: [(&str, ArchiveKind); 4] = [
            (".tar", ArchiveKind::Tar),
            (".tar.gz", ArchiveKind::TarGzip),
            (".tgz", ArchiveKind::TarGzip),
            (".zip", ArchiveKind::Zip),
        ];
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        ENDS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, kind)| *kind)
    }
}

impl Archive<'_> {
    /// Reports that the archive itself cannot be read.
    pub(super) fn failed(&self, visitor: &mut dyn Visitor, error: ErrorInfo) -> ControlFlow<()> {
        visitor.failed(self.file.to_owned(), error)
    }
}

/// The path of an entry, without what would lead out of the archive. It is only a name: nothing is opened by it.
pub(super) fn relative_path(name: &OsStr) -> PathBuf {
    Path::new(name).components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_recognised_by_their_names() {
        let kind = |name: &str| ArchiveKind::of(Path::new(name));
        assert_eq!(kind("x/Photos.TAR.GZ"), Some(ArchiveKind::TarGzip));
        assert_eq!(kind("a.zip"), Some(ArchiveKind::Zip));
        assert_eq!((kind("a.jpg"), kind("zip")), (None, None));
    }

    #[test]
    fn path_of_an_entry_stays_in_the_archive() {
        assert_eq!(relative_path(OsStr::new("/../a/./b.jpg")), Path::new("a/b.jpg"));
    }
}
