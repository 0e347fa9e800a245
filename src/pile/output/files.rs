//! Files that appear whole or not at all.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::config::appended;
use super::record::FileIdentity;

/// A file that is written under another name beside its own, which it gets when it is complete.
pub(super) struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    /// # Errors
    /// If it cannot be created.
    pub(super) fn create(path: &Path) -> anyhow::Result<NewFile> {
        let temporary = appended(path, ".part.tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary);
        let file = file.with_context(|| format!("cannot create {}", temporary.display()))?;
        Ok(NewFile { path: path.to_owned(), temporary, file })
    }

    /// The file, to write to.
    pub(super) fn writer(&self) -> anyhow::Result<File> {
        self.file.try_clone().with_context(|| format!("cannot write {}", self.temporary.display()))
    }

    /// Makes the content durable, and tells how to recognise the file later.
    pub(super) fn sync(&self) -> anyhow::Result<FileIdentity> {
        let cannot_write = || format!("cannot write {}", self.temporary.display());
        self.file.sync_all().with_context(cannot_write)?;
        Ok(identity(&self.file.metadata().with_context(cannot_write)?))
    }

    /// Gives the file its name. It replaces a file of that name.
    pub(super) fn publish(self) -> anyhow::Result<()> {
        std::fs::rename(&self.temporary, &self.path)
            .with_context(|| format!("cannot rename {} to {}", self.temporary.display(), self.path.display()))?;
        sync_folder_of(&self.path)
    }

    /// Removes what was written.
    pub(super) fn discard(self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Recognises a file that was renamed since, but not written.
pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    FileIdentity {
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified_seconds: metadata.mtime(),
        modified_nanos: metadata.mtime_nsec(),
    }
}

/// The file at a path, `None` if there is none. A link that leads nowhere is a file.
pub(super) fn existing(path: &Path) -> anyhow::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Makes the names in the folder of a file durable.
pub(super) fn sync_folder_of(path: &Path) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some network file systems cannot sync a folder, and some folders may be written but not read.
        Err(error) if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::PermissionDenied) => {
            Err(error).with_context(|| format!("cannot sync {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Returns true if this error is of the disk or the folder, so that every later file fails too.
pub(super) fn is_disk_fault(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem)
}

/// The hidden name under which a file is written beside its own.
pub(super) fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".imgcls-tmp");
    path.with_file_name(name)
}

/// Gives a new file its name, unless there is a file of that name.
///
/// # Errors
/// `AlreadyExists` if there is one.
pub(super) fn publish_new(temporary: &Path, path: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
            // The file system does not know the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            renamed => return Ok(renamed?),
        }
    }
    if path.symlink_metadata().is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(temporary, path)
}

/// Makes every file durable that was written to the file system of this file or folder.
pub(super) fn sync_file_system(file: &File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        Ok(rustix::fs::syncfs(file)?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        file.sync_all()
    }
}
