//! The local store: objects are files, `<data_dir>/<bucket>/<key>`, for any number of processes on this machine.
//!
//! A put writes a file without a name (`O_TMPFILE`; where the file system has none, one in `<data_dir>/.tmp`), syncs
//! it, gives it its name in one step and syncs the directory that holds the name. So a name always leads to a whole
//! object, also after a power loss, and a put that returned stays.
//!
//! A directory knows limits that S3 does not: a segment of a key has at most 255 bytes, and `a` and `a/b` cannot both
//! be objects. Times and sizes are the file's; the media type is not kept.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::{ObjectInfo, ObjectStore, Put, PutOptions, StoreError, check_key_length};
use crate::config;

/// File operations at the same time; each holds a thread of tokio's blocking pool.
const MAX_CONCURRENT: usize = 32;
/// The file system's limit on a name.
const MAX_SEGMENT_BYTES: usize = 255;
/// Temporary files older than this belong to no living put.
const STALE_AFTER: Duration = Duration::from_secs(3_600);

/// One bucket: a directory under the data directory.
pub struct DirStore {
    disk: Arc<Disk>,
    room: Semaphore,
}

impl DirStore {
    /// Opens, or makes, the bucket under `data_dir`.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] where the directory cannot be used; it says what to do.
    pub fn open(data_dir: &Path, bucket: &str) -> Result<DirStore, StoreError> {
        let fatal = |reason| StoreError::Fatal { bucket: bucket.to_owned(), reason };
        let bucket = config::bucket_name(bucket).map_err(fatal)?;
        let mut disk = Disk {
            root: data_dir.join(&bucket),
            temporary: data_dir.join(".tmp"),
            bucket,
            has_unnamed_files: false,
            syncs: Mutex::default(),
        };
        for directory in [&disk.root, &disk.temporary] {
            make_directories(directory).map_err(|error| disk.error(directory, &error))?;
        }
        remove_stale(&disk.temporary);
        disk.has_unnamed_files = has_unnamed_files(&disk.temporary);
        Ok(DirStore { disk: Arc::new(disk), room: Semaphore::new(MAX_CONCURRENT) })
    }

    /// Runs file operations where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = self.room.acquire().await.expect("never closed; this is a bug");
        let disk = Arc::clone(&self.disk);
        let task = tokio::task::spawn_blocking(move || work(&disk));
        task.await.unwrap_or_else(|error| Err(self.disk.unavailable(format!("the operation ended early: {error}"))))
    }
}

#[async_trait]
impl ObjectStore for DirStore {
    fn bucket(&self) -> &str {
        &self.disk.bucket
    }

    async fn put(&self, key: &str, body: Bytes, options: PutOptions) -> Result<Put, StoreError> {
        let path = self.disk.path(key)?;
        self.blocking(move |disk| disk.put(&path, &body, options.if_none_match)).await
    }

    async fn get(&self, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let (path, key) = (self.disk.path(key)?, key.to_owned());
        self.blocking(move |disk| disk.get(&path, &key, max_bytes)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.disk.path(key)?;
        self.blocking(move |disk| disk.head(&path)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.disk.path(key)?;
        self.blocking(move |disk| disk.delete(&path)).await
    }
}

/// The blocking side.
struct Disk {
    bucket: String,
    root: PathBuf,
    temporary: PathBuf,
    /// Whether a file can be written before it has any name: half the directory changes of a put, and nothing to
    /// clean up after a crash.
    has_unnamed_files: bool,
    /// One a directory that was written to; keys have few distinct prefixes.
    syncs: Mutex<HashMap<PathBuf, Arc<SharedSync>>>,
}

impl Disk {
    /// Where the object of a key lies.
    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key).map_err(|why| self.fatal(format!("the key {key:?} {why}")))?;
        Ok(self.root.join(key))
    }

    fn put(&self, path: &Path, body: &[u8], if_none_match: bool) -> Result<Put, StoreError> {
        self.try_put(path, body, if_none_match).map_err(|error| self.error(path, &error))
    }

    fn try_put(&self, path: &Path, body: &[u8], if_none_match: bool) -> io::Result<Put> {
        let directory = path.parent().expect("a key lies in the bucket; this is a bug");
        self.make_parents(directory)?;
        // Who saw the object of another process may rely on it, so its name must be on disk as well.
        if if_none_match && path.symlink_metadata().is_ok() {
            self.sync_directory(directory)?;
            return Ok(Put::AlreadyExists);
        }
        let put = self.place(directory, path, body, if_none_match)?;
        self.sync_directory(directory)?;
        Ok(put)
    }

    fn place(&self, directory: &Path, path: &Path, body: &[u8], if_none_match: bool) -> io::Result<Put> {
        if self.has_unnamed_files {
            // A link replaces nothing; that an object is written over is rare.
            let put = link_unnamed(&write_unnamed(directory, body)?, path)?;
            if put == Put::Created || if_none_match {
                return Ok(put);
            }
        }
        let temporary = Temporary::write(&self.temporary, body)?;
        if if_none_match { link(&temporary.path, path) } else { temporary.rename(path) }
    }

    fn get(&self, path: &Path, key: &str, max_bytes: u64) -> Result<Option<Bytes>, StoreError> {
        let Some((mut file, info)) = self.open_object(path).map_err(|error| self.error(path, &error))? else {
            return Ok(None);
        };
        let size = info.size_bytes;
        if size > max_bytes {
            return Err(StoreError::TooLarge { key: key.to_owned(), size, limit: max_bytes });
        }
        let mut body = Vec::with_capacity(usize::try_from(size).unwrap_or(usize::MAX));
        file.read_to_end(&mut body).map_err(|error| self.error(path, &error))?;
        Ok(Some(body.into()))
    }

    fn head(&self, path: &Path) -> Result<Option<ObjectInfo>, StoreError> {
        let found = self.open_object(path).map_err(|error| self.error(path, &error))?;
        Ok(found.map(|(_, info)| info))
    }

    fn delete(&self, path: &Path) -> Result<(), StoreError> {
        let Some(directory) = path.parent() else { return Ok(()) };
        let deleted = self.check_no_links(directory).and_then(|()| fs::remove_file(path));
        match deleted.and_then(|()| self.sync_directory(directory)) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) || error.kind() == ErrorKind::IsADirectory => Ok(()),
            Err(error) => Err(self.error(path, &error)),
        }
    }

    /// None where there is no regular file of that name.
    fn open_object(&self, path: &Path) -> io::Result<Option<(File, ObjectInfo)>> {
        let directory = path.parent().expect("a key lies in the bucket; this is a bug");
        let opened = self
            .check_no_links(directory)
            .and_then(|()| OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path));
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let info = ObjectInfo { size_bytes: metadata.len(), modified: metadata.modified()? };
        Ok(metadata.is_file().then_some((file, info)))
    }

    /// The directories of a key that has slashes.
    fn make_parents(&self, directory: &Path) -> io::Result<()> {
        match self.check_no_links(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => make_directories(directory),
            other => other,
        }
    }

    /// No key leads out of the bucket through a link that lies in it.
    fn check_no_links(&self, directory: &Path) -> io::Result<()> {
        let inside = directory.ancestors().take_while(|ancestor| *ancestor != self.root);
        for ancestor in inside {
            if !ancestor.symlink_metadata()?.is_dir() {
                return Err(ErrorKind::NotADirectory.into());
            }
        }
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let sync = {
            let mut syncs = lock(&self.syncs);
            match syncs.get(directory) {
                Some(sync) => Arc::clone(sync),
                None => Arc::clone(syncs.entry(directory.to_owned()).or_default()),
            }
        };
        sync.run(|| File::open(directory)?.sync_all())
    }

    fn error(&self, path: &Path, error: &io::Error) -> StoreError {
        let path = path.display();
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => self.fatal(format!(
                "{path} is not writable or readable ({error}): allow it for this user, or give another directory with --data-dir"
            )),
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::DirectoryNotEmpty => self.fatal(format!(
                "{path}: {error}: in a directory, the key of an object cannot be the prefix of another object's"
            )),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                self.unavailable(format!("{path}: {error}: free some space there"))
            }
            _ => self.unavailable(format!("{path}: {error}")),
        }
    }

    fn fatal(&self, reason: String) -> StoreError {
        StoreError::Fatal { bucket: self.bucket.clone(), reason }
    }

    fn unavailable(&self, reason: String) -> StoreError {
        StoreError::Unavailable { bucket: self.bucket.clone(), reason }
    }
}

/// A synced file that has no key yet; removed when it does not get one.
struct Temporary {
    path: PathBuf,
    is_named: bool,
}

impl Temporary {
    fn write(directory: &Path, body: &[u8]) -> io::Result<Temporary> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // Process ids come again, and in containers several processes may have the same: the time tells them apart.
        static STARTED: std::sync::LazyLock<u128> = std::sync::LazyLock::new(|| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
        });
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{}-{:x}-{count}", std::process::id(), *STARTED));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
        let temporary = Temporary { path, is_named: false };
        write_synced(&mut file, body)?;
        Ok(temporary)
    }

    /// Replaces what has the name.
    fn rename(mut self, path: &Path) -> io::Result<Put> {
        fs::rename(&self.path, path)?;
        self.is_named = true;
        Ok(Put::Created)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_named {
            // A left one is removed as stale when a store is opened.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A synced file without a name; gone when it is closed before it gets one.
fn write_unnamed(directory: &Path, body: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o644).open(directory)?;
    write_synced(&mut file, body)?;
    Ok(file)
}

fn write_synced(file: &mut File, body: &[u8]) -> io::Result<()> {
    file.write_all(body)?;
    file.sync_data()
}

/// By its place in `/proc`: to link a descriptor itself takes a privilege.
fn link_unnamed(file: &File, path: &Path) -> io::Result<Put> {
    link(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), path)
}

/// Succeeds for one of those who want the name at the same time, in whatever process.
fn link(from: &Path, path: &Path) -> io::Result<Put> {
    match rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(Put::Created),
        Err(Errno::EXIST) => Ok(Put::AlreadyExists),
        Err(error) => Err(error.into()),
    }
}

/// Tried once: network and overlay file systems may refuse, and `/proc` may be missing.
fn has_unnamed_files(directory: &Path) -> bool {
    let probe = directory.join(format!("probe-{}-{:x}", std::process::id(), rand::random::<u64>()));
    let linked = write_unnamed(directory, &[]).and_then(|file| link_unnamed(&file, &probe));
    // One that is left is removed as stale.
    let _ = fs::remove_file(&probe);
    linked.is_ok()
}

/// One sync for all who wait for the same directory: who comes while one runs is covered by the next.
/// Measured with sixteen puts at a time: no difference while syncs were quick, mostly 1.5 to 3 times the puts while they
/// were slow.
#[derive(Default)]
struct SharedSync {
    state: Mutex<SyncState>,
    finished: Condvar,
}

#[derive(Default)]
struct SyncState {
    started: u64,
    finished: u64,
    /// The last sync that failed, and why. Those it covered hear of it; the next is tried anew.
    failed: Option<(u64, ErrorKind)>,
}

impl SharedSync {
    fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        let mine = state.started + 1;
        while state.finished < mine && state.started > state.finished {
            state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.finished < mine {
            state.started = mine;
            drop(state);
            let outcome = sync();
            state = lock(&self.state);
            state.finished = mine;
            if let Err(error) = &outcome {
                state.failed = Some((mine, error.kind()));
            }
            self.finished.notify_all();
            return outcome;
        }
        match state.failed {
            Some((failed, kind)) if failed >= mine => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks can leave them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_key(key: &str) -> Result<(), String> {
    check_key_length(key)?;
    if key.contains('\0') {
        return Err("must not contain NUL".to_owned());
    }
    for segment in key.split('/') {
        if matches!(segment, "" | "." | "..") {
            return Err("must not be absolute or have empty, `.` or `..` segments".to_owned());
        }
        if segment.len() > MAX_SEGMENT_BYTES {
            return Err(format!("has a segment of more than {MAX_SEGMENT_BYTES} bytes"));
        }
    }
    Ok(())
}

/// Makes a directory and what is missing above it, private to the user, and syncs each new name.
fn make_directories(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_directories(parent)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

/// Whether the error means that nothing of that name is there. `ELOOP`: a link, which no key may lead through.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || error.raw_os_error() == Some(libc::ELOOP)
}

/// What killed processes left. Failures are no harm: the files are tried again at the next start.
fn remove_stale(temporary: &Path) {
    let Ok(entries) = fs::read_dir(temporary) else { return };
    for entry in entries.flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > STALE_AFTER) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
