//! The bodies of objects, one after the other in files `<data_dir>/objects/<name>`: an image costs neither an inode nor
//! a name, and many share a sync. Each segment is written by one process and read by all. What lies where, the rows of
//! [`super::sqlite`] say; a checksum tells whether it still does.
//!
//! What nothing names any more becomes a hole, which takes no room on the disk. A process that is killed in the middle
//! of a put leaves what it had written of it: nothing finds it, and its room stays taken.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use rustix::buffer::spare_capacity;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::StoreError;
use super::reader::MAX_PIECE_BYTES;
use crate::sqlite::{self, Fault};

const DIRECTORY: &str = "objects";
/// A segment that has become as long as this is followed by a new one (256 MiB).
const SEGMENT_BYTES: u64 = 256 << 20;
/// Operations beside the thread of the file at the same time; each holds a thread of tokio's blocking pool.
const MAX_CONCURRENT: usize = 32;
/// Segments that stay open for reading: the current ones of a few web tiers.
const KEPT_OPEN: usize = 8;

pub(super) struct Segments {
    directory: PathBuf,
    current: Mutex<Option<Current>>,
    open: Mutex<HashMap<String, Arc<File>>>,
    room: Semaphore,
}

/// The segment that this process writes.
struct Current {
    name: String,
    file: Arc<File>,
    end: u64,
}

/// Where a body lies, and how to tell that it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: String,
    pub offset: u64,
    pub size_bytes: u64,
    pub checksum: u32,
}

impl Segments {
    pub fn open(data_dir: &Path) -> Result<Segments, Fault> {
        let directory = data_dir.join(DIRECTORY);
        make_directory(data_dir, &directory)?;
        Ok(Segments {
            directory,
            current: Mutex::default(),
            open: Mutex::default(),
            room: Semaphore::new(MAX_CONCURRENT),
        })
    }

    /// Appends a body; the file has to be synced before anybody is told that it stands.
    pub fn append(&self, body: &[u8]) -> Result<(Place, Arc<File>), Fault> {
        let appended = || {
            let (segment, file, offset) = self.reserve(body.len() as u64)?;
            file.write_all_at(body, offset)?;
            let place = Place { segment, offset, size_bytes: body.len() as u64, checksum: crc32fast::hash(body) };
            Ok((place, file))
        };
        appended().map_err(|error| fault(&self.directory, &error))
    }

    /// None where something else lies there (any more).
    pub fn read(&self, place: &Place) -> Result<Option<Bytes>, Fault> {
        match self.reader(&place.segment).and_then(|file| read_at(&file, place)) {
            Ok(body) => Ok((crc32fast::hash(&body) == place.checksum).then(|| body.into())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
            Err(error) => Err(fault(&self.directory.join(&place.segment), &error)),
        }
    }

    /// As [`Segments::append`], synced, and beside the thread of the file: for a body that takes a while.
    pub async fn append_synced(self: &Arc<Self>, body: Bytes) -> Result<Place, Fault> {
        self.blocking(move |segments| {
            let (place, file) = segments.append(&body)?;
            file.sync_data().map_err(|error| fault(&segments.directory, &error))?;
            Ok(place)
        })
        .await
    }

    /// As [`Segments::read`], beside the thread of the file.
    pub async fn read_aside(self: &Arc<Self>, place: Place) -> Result<Option<Bytes>, Fault> {
        self.blocking(move |segments| segments.read(&place)).await
    }

    /// As [`Segments::read_aside`], in pieces. The last one is withheld unless the checksum of all of them is right.
    pub fn pieces(
        self: &Arc<Self>,
        place: Place,
        error: impl Fn(Fault) -> StoreError + Send + 'static,
    ) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let pieces = Pieces { segments: Arc::clone(self), place, read_bytes: 0, checksum: crc32fast::Hasher::new() };
        let next = |mut pieces: Pieces| async {
            let next = pieces.next().await.transpose()?;
            Some((next, pieces))
        };
        stream::unfold(pieces, next).map(move |piece| piece.map_err(&error)).boxed()
    }

    /// Gives back the room of a body that nothing names any more, where the file system can.
    pub async fn release(self: &Arc<Self>, place: Place) {
        let released = self.blocking(move |segments| {
            let path = segments.directory.join(&place.segment);
            let punched = OpenOptions::new().write(true).open(&path).and_then(|file| {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(&file, hole, place.offset, place.size_bytes)?)
            });
            punched.map_err(|error| fault(&path, &error))
        });
        if let Err(error) = released.await {
            tracing::debug!(%error, "the room of an object that is no more stays taken");
        }
    }

    /// Room at the end of the current segment; a new one where there is none or it is long enough.
    fn reserve(&self, size_bytes: u64) -> io::Result<(String, Arc<File>, u64)> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.end >= SEGMENT_BYTES) {
            *current = Some(self.begin()?);
        }
        let Current { name, file, end } = current.as_mut().expect("it was made; this is a bug");
        let offset = *end;
        *end += size_bytes;
        Ok((name.clone(), Arc::clone(file), offset))
    }

    /// Its name is on disk before anything in it is.
    fn begin(&self) -> io::Result<Current> {
        let name = Uuid::now_v7().to_string();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.directory.join(&name))?;
        File::open(&self.directory)?.sync_all()?;
        Ok(Current { name, file: Arc::new(file), end: 0 })
    }

    fn reader(&self, segment: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.directory.join(segment))?);
        if open.len() >= KEPT_OPEN {
            open.clear();
        }
        open.insert(segment.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Segments) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let _permit = self.room.acquire().await.expect("never closed; this is a bug");
        let segments = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || work(&segments));
        task.await.unwrap_or_else(|error| Err(Fault::Unavailable(format!("the operation ended early: {error}"))))
    }
}

/// A body that is being read from its beginning.
struct Pieces {
    segments: Arc<Segments>,
    place: Place,
    read_bytes: u64,
    checksum: crc32fast::Hasher,
}

impl Pieces {
    /// None at the end, which an error is too.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let left = self.place.size_bytes - self.read_bytes;
        if left == 0 {
            return Ok(None);
        }
        let offset = self.place.offset + self.read_bytes;
        let piece = Place { offset, size_bytes: left.min(MAX_PIECE_BYTES), ..self.place.clone() };
        // Whatever happens now, nothing follows it unless it is read.
        self.read_bytes = self.place.size_bytes;
        let bytes = self.segments.blocking(move |segments| {
            let read = segments.reader(&piece.segment).and_then(|file| read_at(&file, &piece));
            read.map(Bytes::from).map_err(|error| fault(&segments.directory.join(&piece.segment), &error))
        });
        let bytes = bytes.await?;
        self.checksum.update(&bytes);
        self.read_bytes = self.place.size_bytes - left + bytes.len() as u64;
        if self.read_bytes == self.place.size_bytes && self.checksum.clone().finalize() != self.place.checksum {
            let Place { segment, offset, size_bytes, .. } = &self.place;
            return Err(Fault::Unavailable(format!(
                "the {size_bytes} bytes at {offset} of {segment} are not those of the object that is read: it was \
                 replaced or deleted meanwhile, or the disk is damaged"
            )));
        }
        Ok(Some(bytes))
    }
}

/// Into memory that nobody has cleared first: that would take as long as the reading.
fn read_at(file: &File, place: &Place) -> io::Result<Vec<u8>> {
    let size = usize::try_from(place.size_bytes).map_err(|_| ErrorKind::OutOfMemory)?;
    let mut body = Vec::new();
    body.try_reserve_exact(size)?;
    while body.len() < size {
        let offset = place.offset + body.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut body), offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There may have been more room than was asked for.
    body.truncate(size);
    Ok(body)
}

/// Its name is on disk before any body in it is.
fn make_directory(data_dir: &Path, directory: &Path) -> Result<(), Fault> {
    if directory.is_dir() {
        return Ok(());
    }
    sqlite::make_directory(directory)?;
    File::open(data_dir).and_then(|data_dir| data_dir.sync_all()).map_err(|error| fault(data_dir, &error))
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
