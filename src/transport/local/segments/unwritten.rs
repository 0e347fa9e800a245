//! Segments that no process writes any more, whose dead space can be freed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::{BLOCK_BYTES, Place, SUFFIX, Segments, allocated_bytes};

/// A segment of an earlier release has no lock. It counts as unwritten when it was not modified for so long.
const UNLOCKED_IS_UNWRITTEN_AFTER: Duration = Duration::from_secs(3600);

/// A segment that no process writes any more. It holds the lock, so that one process at a time works on it.
pub(in crate::transport::local) struct Unwritten {
    pub name: String,
    path: PathBuf,
    file: File,
    pub length_bytes: u64,
    /// Bytes that the file system has allocated.
    pub allocated_bytes: u64,
}

impl Segments {
    /// Returns the names of all segments, oldest first.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| is_segment(name)));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Claims the segment, if no process writes it or works on it.
    pub(crate) fn claim(&self, name: &str) -> io::Result<Option<Unwritten>> {
        let path = self.directory.join(name);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A process writes the segment, or the file system has no locks, so that this cannot be known.
            Err(Errno::WOULDBLOCK | Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let metadata = file.metadata()?;
        let was_modified_lately =
            || metadata.modified().map_or(true, |at| at.elapsed().unwrap_or_default() < UNLOCKED_IS_UNWRITTEN_AFTER);
        if metadata.nlink() == 0 || (!name.ends_with(SUFFIX) && was_modified_lately()) {
            return Ok(None);
        }
        let (length_bytes, allocated_bytes) = (metadata.len(), allocated_bytes(&metadata));
        Ok(Some(Unwritten { name: name.to_owned(), path, file, length_bytes, allocated_bytes }))
    }

    /// Frees all space of a segment except that of `live`, which are all bodies that rows name, by ascending offset.
    pub(crate) fn punch_outside(&self, segment: &Unwritten, live: &[Place]) -> io::Result<()> {
        let mut gaps = Vec::new();
        let mut end = 0;
        for place in live {
            gaps.push((end, place.offset / BLOCK_BYTES * BLOCK_BYTES));
            end = end.max((place.offset + place.size_bytes).next_multiple_of(BLOCK_BYTES));
        }
        gaps.push((end, segment.length_bytes.next_multiple_of(BLOCK_BYTES)));
        gaps.retain(|(begin, end)| begin < end);
        self.punch(&segment.file, &gaps)
    }
}

impl Unwritten {
    /// Removes the segment, whose bodies are all deleted or moved. Its blocks are freed first: a reader of another process
    /// may keep the file open.
    pub(crate) fn remove(self) -> io::Result<()> {
        self.file.set_len(0)?;
        std::fs::remove_file(&self.path)
    }
}

fn is_segment(name: &str) -> bool {
    name.strip_suffix(SUFFIX).unwrap_or(name).parse::<Uuid>().is_ok()
}
