//! Images in `.tar` archives, compressed with gzip or not, which are read from beginning to end.
//!
//! The archive may be hostile. An image is read up to the limit on image files; the reader gets only as many bytes as
//! its current step may need, so that a long name cannot fill the memory; and an archive that expands too much is not
//! read further.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::archive::{Archive, relative_path};
use super::found::{Content, Found, Visitor, damaged, too_large, unreadable};

/// Bytes of headers, long names and attributes that one entry may have.
const HEADER_BYTES: u64 = 1 << 20;
/// An archive may always expand to so many bytes.
const FREE_BYTES: u64 = 256 << 20;
/// Beyond that it may have this many times its size. Images hardly shrink when they are compressed again.
const MAX_RATIO: u64 = 100;

/// Visits the images of an archive that is not compressed.
pub(super) fn walk(archive: &Archive<'_>, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let file = match File::open(archive.file) {
        Ok(file) => file,
        Err(error) => return archive.failed(visitor, unreadable("archive", &error)),
    };
    let meter = Meter::new();
    let mut tar = tar::Archive::new(Metered { inner: BufReader::new(file), meter: meter.clone() });
    match tar.entries_with_seek() {
        Ok(entries) => walk_entries(archive, entries, &meter, visitor),
        Err(error) => archive.failed(visitor, unreadable("archive", &error)),
    }
}

/// Visits the images of an archive that is compressed with gzip.
pub(super) fn walk_gzip(archive: &Archive<'_>, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let file = match File::open(archive.file) {
        Ok(file) => file,
        Err(error) => return archive.failed(visitor, unreadable("archive", &error)),
    };
    let meter = Meter::new();
    let compressed = Compressed { inner: file, meter: meter.clone() };
    let expanded = Expanded { inner: MultiGzDecoder::new(BufReader::new(compressed)), meter: meter.clone(), bytes: 0 };
    let mut tar = tar::Archive::new(Metered { inner: expanded, meter: meter.clone() });
    match tar.entries() {
        Ok(entries) => walk_entries(archive, entries, &meter, visitor),
        Err(error) => archive.failed(visitor, unreadable("archive", &error)),
    }
}

fn walk_entries<R: Read>(
    archive: &Archive<'_>,
    mut entries: tar::Entries<'_, R>,
    meter: &Meter,
    visitor: &mut dyn Visitor,
) -> ControlFlow<()> {
    let mut passed_bytes = 0;
    loop {
        // The next step skips what is left of the entry before, and reads a header.
        meter.allow(passed_bytes + HEADER_BYTES);
        let mut entry = match entries.next() {
            None => return ControlFlow::Continue(()),
            Some(Ok(entry)) => entry,
            Some(Err(error)) => {
                return archive.failed(visitor, damaged(format!("the archive cannot be read further: {error}")));
            }
        };
        passed_bytes = entry.header().entry_size().unwrap_or(0).max(entry.size()).saturating_add(512);
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let relative = relative_path(OsStr::from_bytes(&entry.path_bytes()));
        if !(kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse())
            || !archive.rules.takes_in_archive(&relative)
        {
            visitor.skip()?;
            continue;
        }
        let path = archive.prefix.join(relative);
        if !visitor.wants(&path)? {
            continue;
        }
        let size = entry.size();
        if size > archive.max_image_bytes {
            let content = Content::Failed(too_large(size, archive.max_image_bytes));
            visitor.image(Found { path, content })?;
            continue;
        }
        meter.allow(passed_bytes);
        let mut bytes = Vec::with_capacity(size as usize);
        let content = match entry.read_to_end(&mut bytes) {
            Ok(read) if read as u64 == size => Content::Bytes(bytes),
            Ok(_) => Content::Failed(damaged("the archive ends within the image".to_owned())),
            Err(error) => Content::Failed(damaged(format!("cannot read the image from the archive: {error}"))),
        };
        visitor.image(Found { path, content })?;
    }
}

/// The bytes that were read, and those that may still be read.
#[derive(Clone)]
struct Meter {
    allowed: Rc<Cell<u64>>,
    compressed: Rc<Cell<u64>>,
}

impl Meter {
    fn new() -> Meter {
        Meter { allowed: Rc::default(), compressed: Rc::default() }
    }

    fn allow(&self, bytes: u64) {
        self.allowed.set(bytes);
    }
}

/// A reader that ends with an error once it was read further than allowed.
struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.meter.allowed.get();
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!("an entry has more than {HEADER_BYTES} bytes of names")));
        }
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.meter.allowed.set(allowed - read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// The file of a compressed archive, whose bytes are counted.
struct Compressed {
    inner: File,
    meter: Meter,
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.meter.compressed.set(self.meter.compressed.get() + read as u64);
        Ok(read)
    }
}

/// The content of a compressed archive. It ends with an error once it is too large for its file.
struct Expanded<R> {
    inner: R,
    meter: Meter,
    bytes: u64,
}

/// Reads at most so much in one piece, so that the ratio is checked often.
const PIECE_BYTES: usize = 64 << 10;

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(PIECE_BYTES);
        let read = self.inner.read(&mut buffer[..most])?;
        self.bytes += read as u64;
        if self.bytes > FREE_BYTES.max(self.meter.compressed.get().saturating_mul(MAX_RATIO)) {
            let message = format!("it expands to more than {MAX_RATIO} times its size; unpack it if you trust it");
            return Err(io::Error::other(message));
        }
        Ok(read)
    }
}
