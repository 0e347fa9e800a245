//! The bodies of objects, one after the other in files `<data_dir>/objects/<name>`: an image costs neither an inode nor a
//! name, and many share one sync. Each segment is written by one process and read by all. The rows of `super::store` have
//! the place of each body, and a checksum to verify it.
//!
//! Bytes that no row names any more become a hole, which takes no space on the disk. Each body begins at a block of the
//! file system, so that the hole of a deleted body leaves none of its blocks allocated.
//!
//! The writer of a segment holds a lock (`flock`) on it as long as a put into it may still be committed; the kernel
//! releases the lock however the process ends. So a process that gets the lock knows that no row will be added any more:
//! bytes that no row names are those of failed or killed puts, and their space can be freed ([`Unwritten`]).

mod pieces;
mod shared_sync;
mod unwritten;

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::shared_sync::SharedSync;
pub(super) use self::unwritten::Unwritten;
use crate::sqlite::{self, Database, Fault};

const DIRECTORY: &str = "objects";
/// Once a segment is as long as this, a new one follows (256 MiB).
const SEGMENT_BYTES: u64 = 256 << 20;
/// Concurrent operations outside of the thread of the database. Each holds a thread of tokio's blocking pool.
const MAX_CONCURRENT: usize = 32;
/// Segments that stay open for reading: the current ones of a few web tiers.
const KEPT_OPEN: usize = 8;
/// So many bytes in front of a body that is read stay in the page cache: images that other workers read a little later, or that
/// clients look at.
const CACHED_BYTES: u64 = 32 << 20;
/// Smaller bodies cost less than the call.
const LARGE_BODY: u64 = 256 << 10;
/// Bodies begin at multiples of this, the block size of most file systems. When blocks are larger, a hole leaves the
/// blocks at its edges allocated until the segment is removed.
pub(super) const BLOCK_BYTES: u64 = 4 << 10;
/// The suffix of segments whose bodies begin at blocks and whose writer holds a lock. Releases before 0.2 wrote segments
/// without it.
const SUFFIX: &str = ".seg";
/// Names that are tried for a new segment when each is deleted by a concurrent garbage collection of empty segments.
const MAX_BEGINNINGS: usize = 16;
/// Places of failed puts that are remembered until it is known whether a row names them. The space of more than these is
/// freed when this process has ended.
const MAX_DOUBTFUL: usize = 4_096;

pub(super) struct Segments {
    directory: PathBuf,
    database: Arc<Database>,
    current: Mutex<Option<Current>>,
    open: Mutex<HashMap<String, Arc<File>>>,
    permits: Semaphore,
    /// Bodies whose put did not report success. A row may name them or not.
    doubtful: Mutex<Vec<Place>>,
    /// True once the file system has refused to punch a hole.
    cannot_punch: AtomicBool,
}

/// The segment that this process writes.
struct Current {
    name: String,
    file: Arc<File>,
    sync: Arc<SharedSync>,
    end: u64,
}

/// Space in the current segment.
struct Reserved {
    segment: String,
    file: Arc<File>,
    sync: Arc<SharedSync>,
    offset: u64,
}

/// The position of a body in a segment, and its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: String,
    pub offset: u64,
    pub size_bytes: u64,
    pub checksum: u32,
}

/// A body that was appended and that no committed row names yet. It keeps the segment's lock. Dropped without
/// [`Appended::commit`], its place is in doubt: the row may have been committed although the put failed afterwards.
pub(super) struct Appended {
    place: Place,
    file: Arc<File>,
    sync: Arc<SharedSync>,
    segments: Arc<Segments>,
    is_committed: bool,
}

/// The sync of a body that was appended. It has to succeed before anybody is told that the object exists.
pub(super) struct PendingSync {
    shared: Arc<SharedSync>,
    segments: Arc<Segments>,
}

impl PendingSync {
    /// Returns once the body is on disk. Bodies that were appended at about the same time share a sync.
    pub(crate) async fn run(self) -> Result<(), Fault> {
        self.segments.sync(self.shared).await
    }
}

impl Appended {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The file. It has to be synced before anybody is told that the object exists.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The sync that is left to do if the body was not appended with [`Segments::append_synced`].
    pub(crate) fn pending_sync(&self) -> PendingSync {
        PendingSync { shared: Arc::clone(&self.sync), segments: Arc::clone(&self.segments) }
    }

    /// The place is not in doubt any more: a committed row names it, or the caller releases it.
    pub(crate) fn commit(mut self) {
        self.is_committed = true;
    }
}

impl Drop for Appended {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        let mut doubtful = self.segments.doubtful.lock().unwrap_or_else(PoisonError::into_inner);
        if doubtful.len() < MAX_DOUBTFUL {
            doubtful.push(self.place.clone());
        }
    }
}

/// The space of all segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentsUsage {
    pub files: u64,
    pub allocated_bytes: u64,
}

impl Segments {
    /// Opens the segments of a data directory. `database` is that of the same directory, and refuses all calls after a segment
    /// cannot be synced.
    pub(crate) fn open(data_dir: &Path, database: Arc<Database>) -> Result<Segments, Fault> {
        let directory = data_dir.join(DIRECTORY);
        make_directory(data_dir, &directory)?;
        database.watch(&directory);
        Ok(Segments {
            directory,
            database,
            current: Mutex::default(),
            open: Mutex::default(),
            permits: Semaphore::new(MAX_CONCURRENT),
            doubtful: Mutex::default(),
            cannot_punch: AtomicBool::new(false),
        })
    }

    /// Appends a body.
    pub(crate) fn append(self: &Arc<Self>, body: &[u8]) -> Result<Appended, Fault> {
        let size_bytes = body.len() as u64;
        let Reserved { segment, file, sync, offset } =
            self.reserve(size_bytes).map_err(|error| fault(&self.directory, &error))?;
        let place = Place { segment, offset, size_bytes, checksum: crc32fast::hash(body) };
        if let Err(error) = file.write_all_at(body, offset) {
            // No row will ever name the part that was written.
            if let Err(error) = self.punch(&file, &[extent(&place)]) {
                tracing::debug!(%error, segment = place.segment, "cannot free the space of a failed put");
            }
            return Err(fault(&self.directory.join(&place.segment), &error));
        }
        Ok(Appended { place, file, sync, segments: Arc::clone(self), is_committed: false })
    }

    /// Reads a body. Returns `None` when the place holds other bytes by now.
    pub(crate) fn read(&self, place: &Place) -> Result<Option<Bytes>, Fault> {
        let read = |file: Arc<File>| {
            let body = read_at(&file, place)?;
            uncache_before(&file, place);
            Ok(body)
        };
        match self.reader(&place.segment).and_then(read) {
            Ok(body) => Ok((crc32fast::hash(&body) == place.checksum).then(|| body.into())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
            Err(error) => Err(fault(&self.directory.join(&place.segment), &error)),
        }
    }

    /// As [`Segments::append`], outside of the thread of the database.
    pub(crate) async fn append_aside(self: &Arc<Self>, body: Bytes) -> Result<Appended, Fault> {
        self.blocking(move |segments| segments.append(&body)).await
    }

    /// As [`Segments::append`], synced, and outside of the thread of the database: for a body that takes a while.
    pub(crate) async fn append_synced(self: &Arc<Self>, body: Bytes) -> Result<Appended, Fault> {
        let appended = self.append_aside(body).await?;
        appended.pending_sync().run().await?;
        Ok(appended)
    }

    /// As [`Segments::read`], outside of the thread of the database.
    pub(crate) async fn read_aside(self: &Arc<Self>, place: Place) -> Result<Option<Bytes>, Fault> {
        self.blocking(move |segments| segments.read(&place)).await
    }

    /// Frees the space of bodies that no row names any more, if the file system can.
    pub(crate) async fn release(self: &Arc<Self>, places: Vec<Place>) {
        if places.is_empty() {
            return;
        }
        let released = self.blocking(move |segments| {
            let mut by_segment: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
            for place in &places {
                by_segment.entry(&place.segment).or_default().push(extent(place));
            }
            for (segment, extents) in by_segment {
                let path = segments.directory.join(segment);
                match OpenOptions::new().write(true).open(&path) {
                    Ok(file) => segments.punch(&file, &joined(extents)).map_err(|error| fault(&path, &error))?,
                    // It was removed with everything in it.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(fault(&path, &error)),
                }
            }
            Ok(())
        });
        if let Err(error) = released.await {
            tracing::debug!(%error, "cannot free the space of deleted objects yet");
        }
    }

    /// Takes the places of failed puts. The caller finds out whether rows name them.
    pub(crate) fn take_doubtful(&self) -> Vec<Place> {
        std::mem::take(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns places that are still in doubt.
    pub(crate) fn return_doubtful(&self, places: Vec<Place>) {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner).extend(places);
    }

    /// Returns true if deleted bodies keep their blocks until their segment is removed.
    pub(crate) fn cannot_punch(&self) -> bool {
        self.cannot_punch.load(Ordering::Relaxed)
    }

    pub(crate) fn usage(&self) -> io::Result<SegmentsUsage> {
        let mut usage = SegmentsUsage::default();
        for entry in std::fs::read_dir(&self.directory)? {
            match entry?.metadata() {
                Ok(metadata) => {
                    usage.files += 1;
                    usage.allocated_bytes += allocated_bytes(&metadata);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(usage)
    }

    /// Punches holes, given by their begin and end.
    fn punch(&self, file: &File, extents: &[(u64, u64)]) -> io::Result<()> {
        for (begin, end) in extents {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(file, hole, *begin, end - begin) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.cannot_punch.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reserves space at the end of the current segment, or of a new one when there is none or it is long enough.
    fn reserve(&self, size_bytes: u64) -> io::Result<Reserved> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.end >= SEGMENT_BYTES || sqlite::is_deleted(&current.file)) {
            *current = Some(self.begin()?);
        }
        let Current { name, file, sync, end } = current.as_mut().expect("it was made; this is a bug");
        let offset = *end;
        *end = (offset + size_bytes).next_multiple_of(BLOCK_BYTES);
        Ok(Reserved { segment: name.clone(), file: Arc::clone(file), sync: Arc::clone(sync), offset })
    }

    /// Stops writing to the current segment because it was deleted. The next bodies go into a new one.
    fn abandon(&self, file: &Arc<File>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.file, file)) {
            *current = None;
        }
    }

    /// Creates a segment and locks it. Its name is on disk before any body in it. Garbage collection may delete the file
    /// before it is locked; then another one is created.
    fn begin(&self) -> io::Result<Current> {
        for _ in 0..MAX_BEGINNINGS {
            let name = format!("{}{SUFFIX}", Uuid::now_v7());
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.directory.join(&name))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => continue,
                Err(error) => {
                    tracing::debug!(%error, "no locks on this file system: the space of killed puts is not freed");
                }
                Ok(()) if file.metadata()?.nlink() == 0 => continue,
                Ok(()) => {}
            }
            File::open(&self.directory)?.sync_all()?;
            let file = Arc::new(file);
            let sync = Arc::new(SharedSync::new(name.clone(), Arc::clone(&file)));
            return Ok(Current { name, file, sync, end: 0 });
        }
        Err(io::Error::other("each new segment was removed at once; this is a bug"))
    }

    fn reader(&self, segment: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.directory.join(segment))?);
        // An open file keeps its blocks on the disk after it is deleted.
        open.retain(|_, file| !sqlite::is_deleted(file));
        if open.len() >= KEPT_OPEN {
            open.clear();
        }
        open.insert(segment.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Segments>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let _permit = self.permits.acquire().await.expect("never closed; this is a bug");
        let segments = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || work(&segments));
        task.await.unwrap_or_else(|error| Err(Fault::Unavailable(format!("the operation ended early: {error}"))))
    }
}

fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// Returns the begin and end of the space of a body, which includes its last block when the next body begins at a block.
fn extent(place: &Place) -> (u64, u64) {
    let end = place.offset + place.size_bytes;
    (place.offset, if place.segment.ends_with(SUFFIX) { end.next_multiple_of(BLOCK_BYTES) } else { end })
}

/// Joins neighbours to one hole, which includes the blocks that bodies share that do not begin at blocks.
fn joined(mut extents: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    extents.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(extents.len());
    for (begin, end) in extents {
        match joined.last_mut() {
            Some(last) if last.1 >= begin => last.1 = last.1.max(end),
            _ => joined.push((begin, end)),
        }
    }
    joined
}

/// Reads into memory that is not cleared first, since clearing takes as long as reading.
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
    // There may have been more capacity than requested.
    body.truncate(size);
    Ok(body)
}

/// Takes out of the page cache what is far in front of a large body that was read. Workers have read that too, and the next
/// bodies get its memory. Otherwise each would get memory that was never used, which a virtual machine first requests from its
/// host: that takes longer than writing the body. Pages that are not on disk yet stay in the cache.
fn uncache_before(file: &File, place: &Place) {
    let end = place.offset.saturating_sub(CACHED_BYTES);
    if place.size_bytes >= LARGE_BODY
        && let Some(length) = NonZeroU64::new(end)
    {
        // Without it the kernel decides itself what to keep.
        let _ = rustix::fs::fadvise(file, 0, Some(length), Advice::DontNeed);
    }
}

/// Creates the directory of the segments. Its name is on disk when this returns.
fn make_directory(data_dir: &Path, directory: &Path) -> Result<(), Fault> {
    if directory.is_dir() {
        return Ok(());
    }
    sqlite::make_directory(directory)?;
    File::open(data_dir).and_then(|data_dir| data_dir.sync_all()).map_err(|error| fault(data_dir, &error))
}

pub(super) fn fault(path: &Path, error: &io::Error) -> Fault {
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
