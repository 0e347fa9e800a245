//! Checks that the files that this process has open are still those of the data directory, and that they can be synced.
//!
//! A deleted file accepts writes and syncs as before; they are lost with the last process that has it open. And after a
//! failed sync the system may have dropped the pages, so that the next sync succeeds without them.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::fault::Fault;
use super::file;
use super::thread::lock;

/// Decides if this process may serve calls.
pub(super) struct Health {
    files: Mutex<Vec<OpenFile>>,
    /// True if there is a `fault`. Every call reads this.
    has_fault: AtomicBool,
    fault: Mutex<Option<Fault>>,
    /// The reason why this process cannot go on.
    failure: watch::Sender<Option<String>>,
}

/// The identity of an open file, which distinguishes it from another file at its path.
struct OpenFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Health {
    /// Watches the files that were just opened.
    pub(super) fn of(data_dir: &Path) -> Result<Health, Fault> {
        let identify = |end: &str| {
            let path = data_dir.join(format!("{}{end}", file::FILE_NAME));
            let found = path.metadata().map_err(|error| Fault::Unavailable(format!("{}: {error}", path.display())))?;
            Ok(OpenFile { device: found.dev(), inode: found.ino(), path })
        };
        Ok(Health {
            files: Mutex::new(vec![identify("")?, identify("-wal")?]),
            has_fault: AtomicBool::new(false),
            fault: Mutex::default(),
            failure: watch::Sender::new(None),
        })
    }

    /// Also watches a directory, as it is now.
    pub(super) fn watch(&self, directory: &Path) {
        let Ok(found) = directory.metadata() else { return };
        let mut files = lock(&self.files);
        if files.iter().all(|file| file.path != directory) {
            files.push(OpenFile { device: found.dev(), inode: found.ino(), path: directory.to_owned() });
        }
    }

    /// Returns why calls are refused, as the last check found out.
    pub(super) fn fault(&self) -> Option<Fault> {
        if self.has_fault.load(Ordering::Acquire) { lock(&self.fault).clone() } else { None }
    }

    /// Checks whether the files are in place, and logs once when they are gone and once when they are back.
    pub(super) fn check_files(&self) -> Option<Fault> {
        let missing = lock(&self.files).iter().find_map(OpenFile::why_missing).map(Fault::Unavailable);
        let mut fault = lock(&self.fault);
        match (&*fault, &missing) {
            (Some(Fault::Fatal(_)), _) | (None, None) | (Some(_), Some(_)) => return fault.clone(),
            (None, Some(missing)) => tracing::error!("{missing}"),
            (Some(_), None) => tracing::info!("the files of the data directory are in place again"),
        }
        self.has_fault.store(missing.is_some(), Ordering::Release);
        fault.clone_from(&missing);
        missing
    }

    /// Refuses all calls from now on, since it is not certain which writes of this process are on disk.
    pub(super) fn fail(&self, reason: &str) -> Fault {
        let reason =
            format!("{reason}; recent writes may be lost, so this process ends: check the disk, and start it again");
        let failed = Fault::Fatal(reason.clone());
        *lock(&self.fault) = Some(failed.clone());
        self.has_fault.store(true, Ordering::Release);
        self.failure.send_replace(Some(reason));
        failed
    }

    /// Resolves to the reason once this process cannot go on.
    pub(super) async fn failure(&self) -> String {
        let mut failure = self.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

impl OpenFile {
    /// Returns why the file is not in place. An error other than that it is missing says nothing about the open file.
    fn why_missing(&self) -> Option<String> {
        let change = match self.path.metadata() {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => return None,
            Ok(_) => "was replaced",
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => "was removed",
            Err(_) => return None,
        };
        let path = self.path.display();
        Some(format!("{path} {change} while it was in use: put it back, or restart imgcls to use what is there now"))
    }
}

/// Returns true if an open file was deleted, so that its content is lost when the last process closes it.
pub fn is_deleted(file: &File) -> bool {
    file.metadata().is_ok_and(|found| found.nlink() == 0)
}
