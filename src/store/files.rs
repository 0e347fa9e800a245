//! The bodies of large objects: files `<data_dir>/objects/<name>`, under names that are made here. What they are, and
//! whether they are anything, the rows of [`super::sqlite`] say.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::sqlite::Fault;

const DIRECTORY: &str = "objects";
/// File operations at the same time; each holds a thread of tokio's blocking pool.
const MAX_CONCURRENT: usize = 32;

pub(super) struct Files {
    directory: Arc<PathBuf>,
    room: Semaphore,
}

impl Files {
    pub fn open(data_dir: &Path) -> Result<Files, Fault> {
        let directory = data_dir.join(DIRECTORY);
        make_directory(data_dir, &directory).map_err(|error| fault(&directory, &error))?;
        Ok(Files { directory: Arc::new(directory), room: Semaphore::new(MAX_CONCURRENT) })
    }

    /// A name that no file has.
    pub fn new_name() -> String {
        Uuid::now_v7().to_string()
    }

    /// Once this returns, the file is on disk.
    pub async fn write(&self, name: &str, body: Bytes) -> Result<(), Fault> {
        self.blocking(name, move |path| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&body)?;
            file.sync_data()?;
            sync_parent(path)
        })
        .await
    }

    /// None where there is no such file (any more).
    pub async fn read(&self, name: &str, size_bytes: u64) -> Result<Option<Bytes>, Fault> {
        self.blocking(name, move |path| {
            let mut file = match File::open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened?,
            };
            let mut body = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(usize::MAX));
            file.read_to_end(&mut body)?;
            Ok(Some(body.into()))
        })
        .await
    }

    /// One that is not there is removed already.
    pub async fn remove(&self, name: &str) -> Result<(), Fault> {
        self.blocking(name, |path| match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let _permit = self.room.acquire().await.expect("never closed; this is a bug");
        let path = self.directory.join(name);
        let task = tokio::task::spawn_blocking(move || work(&path).map_err(|error| fault(&path, &error)));
        task.await.unwrap_or_else(|error| Err(Fault::Unavailable(format!("the operation ended early: {error}"))))
    }
}

/// Private to the user, its name on disk.
fn make_directory(data_dir: &Path, directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    File::open(data_dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let directory = path.parent().expect("a name was joined to a directory; this is a bug");
    File::open(directory)?.sync_all()
}

fn fault(path: &Path, error: &io::Error) -> Fault {
    let path = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::AlreadyExists => Fault::Fatal(format!(
            "{path} is not writable or readable ({error}): allow it for this user, or give another directory with --data-dir"
        )),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Fault::Unavailable(format!("{path}: {error}: free some space there"))
        }
        _ => Fault::Unavailable(format!("{path}: {error}")),
    }
}
