//! Whether the files that this process has open are still those of the data directory, and whether they can be synced.
//!
//! A file that was deleted takes writes and syncs as before; they are gone with the last process that has it open. And
//! after a failed sync the system may have dropped what was to be written, so that the next sync succeeds without it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::{Fault, file, lock};

pub(super) struct Health {
    files: Mutex<Vec<OpenFile>>,
    /// Whether there is a `fault`: what every call asks.
    has_fault: AtomicBool,
    fault: Mutex<Option<Fault>>,
    /// Why this process cannot go on.
    failure: watch::Sender<Option<String>>,
}

/// A file of the data directory, by which it is told from another one under its path.
struct OpenFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Health {
    /// Of the files that were just opened.
    pub fn of(data_dir: &Path) -> Result<Health, Fault> {
        let open = |end: &str| {
            let path = data_dir.join(format!("{}{end}", file::FILE_NAME));
            let found = path.metadata().map_err(|error| Fault::Unavailable(format!("{}: {error}", path.display())))?;
            Ok(OpenFile { device: found.dev(), inode: found.ino(), path })
        };
        Ok(Health {
            files: Mutex::new(vec![open("")?, open("-wal")?]),
            has_fault: AtomicBool::new(false),
            fault: Mutex::default(),
            failure: watch::Sender::new(None),
        })
    }

    /// Looks after a directory beside them too, as it is now.
    pub fn watch(&self, directory: &Path) {
        let Ok(found) = directory.metadata() else { return };
        let mut files = lock(&self.files);
        if files.iter().all(|file| file.path != directory) {
            files.push(OpenFile { device: found.dev(), inode: found.ino(), path: directory.to_owned() });
        }
    }

    /// Why no call may be served, as it was last found out.
    pub fn fault(&self) -> Option<Fault> {
        if self.has_fault.load(Ordering::Acquire) { lock(&self.fault).clone() } else { None }
    }

    /// Looks whether the files are in their places; says once when they no longer are, and once when they are again.
    pub fn check_files(&self) -> Option<Fault> {
        let missing = lock(&self.files).iter().find_map(OpenFile::why_missing).map(Fault::Unavailable);
        let mut fault = lock(&self.fault);
        match (&*fault, &missing) {
            (Some(Fault::Fatal(_)), _) | (None, None) | (Some(_), Some(_)) => return fault.clone(),
            (None, Some(missing)) => tracing::error!("{missing}"),
            (Some(_), None) => tracing::info!("the files of the data directory are in their places again"),
        }
        self.has_fault.store(missing.is_some(), Ordering::Release);
        fault.clone_from(&missing);
        missing
    }

    /// From here on no call is served, since this process cannot tell what of its files is on the disk.
    pub fn fail(&self, reason: &str) -> Fault {
        let reason =
            format!("{reason}; what was written may be lost, so this process ends: check the disk, and start it again");
        let failed = Fault::Fatal(reason.clone());
        *lock(&self.fault) = Some(failed.clone());
        self.has_fault.store(true, Ordering::Release);
        self.failure.send_replace(Some(reason));
        failed
    }

    /// Resolves when this process cannot go on; says why.
    pub async fn failure(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

impl OpenFile {
    /// An error other than that it is not there says nothing about the file that is open.
    fn why_missing(&self) -> Option<String> {
        let what = match self.path.metadata() {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => return None,
            Ok(_) => "was replaced",
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => "was removed",
            Err(_) => return None,
        };
        let path = self.path.display();
        Some(format!(
            "{path} {what} while it was in use: put it back, or restart imgcls to begin with what is there now"
        ))
    }
}

/// Whether an open file has no name any more, so that nothing in it outlives this process.
pub fn is_deleted(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.nlink() == 0)
}
