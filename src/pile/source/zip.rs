//! Images in `.zip` archives.
//!
//! The directory at the end of an archive is read entry by entry, so that an archive with a million images takes no
//! memory; the crates for this format hold all of it. Sizes, offsets and checksums are those of the directory, as in
//! other readers. The archive may be hostile: every length is checked, and an image is expanded up to the limit on
//! image files.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;

use flate2::bufread::DeflateDecoder;

use super::archive::{Archive, relative_path};
use super::found::{Content, Found, Visitor, damaged, too_large, unreadable};
use crate::protocol::{ErrorCode, ErrorInfo};

/// Visits the images of an archive, in the order of its directory.
pub(super) fn walk(archive: &Archive<'_>, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let file = match File::open(archive.file) {
        Ok(file) => file,
        Err(error) => return archive.failed(visitor, unreadable("archive", &error)),
    };
    let directory = match Directory::find(&file) {
        Ok(directory) => directory,
        Err(error) => return archive.failed(visitor, damaged(format!("the file is no complete ZIP archive: {error}"))),
    };
    let mut entries = BufReader::new(Part { file: &file, position: directory.begin, end: directory.end });
    for _ in 0..directory.entries {
        match Entry::read(&mut entries, directory.shift) {
            Ok(entry) => visit(archive, &file, &entry, visitor)?,
            Err(error) => {
                let message = format!("the directory of the archive cannot be read further: {error}");
                return archive.failed(visitor, damaged(message));
            }
        }
    }
    ControlFlow::Continue(())
}

fn visit(archive: &Archive<'_>, file: &File, entry: &Entry, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    if entry.name.ends_with(b"/") {
        return ControlFlow::Continue(());
    }
    let relative = relative_path(&OsString::from_vec(entry.name.clone()));
    if entry.is_link || !archive.rules.takes_in_archive(&relative) {
        return visitor.skip();
    }
    let path = archive.prefix.join(relative);
    if visitor.wants(&path)? {
        let content = entry.content(file, archive.max_image_bytes).map_or_else(Content::Failed, Content::Bytes);
        visitor.image(Found { path, content })?;
    }
    ControlFlow::Continue(())
}

/// The directory of an archive, by its offset in the file.
struct Directory {
    begin: u64,
    end: u64,
    entries: u64,
    /// Bytes before the archive, as in an archive that unpacks itself. Offsets do not count them.
    shift: u64,
}

const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END_BYTES: u64 = 22;
const MAX_COMMENT_BYTES: u64 = 0xffff;
const WIDE_LOCATOR_SIGNATURE: &[u8] = b"PK\x06\x07";
const WIDE_LOCATOR_BYTES: u64 = 20;
const WIDE_END_SIGNATURE: &[u8] = b"PK\x06\x06";
const WIDE_END_BYTES: usize = 56;
const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const LOCAL_SIGNATURE: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: usize = 30;
/// The identifier of the extra field with sizes and offsets of 64 bits.
const WIDE_FIELD: u16 = 1;
/// A size or offset of 32 bits that is in that field instead.
const IN_WIDE_FIELD: u64 = 0xffff_ffff;

impl Directory {
    fn find(file: &File) -> io::Result<Directory> {
        let length = file.metadata()?.len();
        let tail_begin = length.saturating_sub(END_BYTES + MAX_COMMENT_BYTES);
        let mut tail = vec![0; (length - tail_begin) as usize];
        file.read_exact_at(&mut tail, tail_begin)?;
        let is_end = |at: &usize| tail[*at..].starts_with(END_SIGNATURE);
        let at = (0..tail.len().saturating_sub(END_BYTES as usize - 1)).rev().find(is_end);
        let at = at.ok_or_else(|| invalid("it has no directory"))?;
        let end_record = tail_begin + at as u64;
        let mut fields = &tail[at + 10..at + END_BYTES as usize];
        let narrow = (number(&mut fields, 2)?, number(&mut fields, 4)?, number(&mut fields, 4)?);
        let (end, (entries, bytes, offset)) = match Directory::wide(file, end_record)? {
            Some(wide) => wide,
            None => (end_record, narrow),
        };
        let begin = end.checked_sub(bytes).ok_or_else(|| invalid("its directory is longer than the file"))?;
        let shift = begin.checked_sub(offset).ok_or_else(|| invalid("its directory is not where it should be"))?;
        Ok(Directory { begin, end, entries, shift })
    }

    /// The end of the directory with its number of entries, length and offset, if they are numbers of 64 bits.
    #[allow(clippy::type_complexity, reason = "the same three numbers in both forms")]
    fn wide(file: &File, end_record: u64) -> io::Result<Option<(u64, (u64, u64, u64))>> {
        let Some(locator_at) = end_record.checked_sub(WIDE_LOCATOR_BYTES) else { return Ok(None) };
        let mut locator = [0; WIDE_LOCATOR_BYTES as usize];
        file.read_exact_at(&mut locator, locator_at)?;
        if !locator.starts_with(WIDE_LOCATOR_SIGNATURE) {
            return Ok(None);
        }
        let stated = number(&mut &locator[8..], 8)?;
        // The record lies before its locator, also if there are bytes before the archive.
        let mut record = [0; WIDE_END_BYTES];
        for at in [stated, locator_at.saturating_sub(WIDE_END_BYTES as u64)] {
            if file.read_exact_at(&mut record, at).is_ok() && record.starts_with(WIDE_END_SIGNATURE) {
                let mut fields = &record[32..];
                let numbers = (number(&mut fields, 8)?, number(&mut fields, 8)?, number(&mut fields, 8)?);
                return Ok(Some((at, numbers)));
            }
        }
        Err(invalid("the end of its directory is missing"))
    }
}

/// An entry of the directory.
struct Entry {
    name: Vec<u8>,
    is_encrypted: bool,
    is_link: bool,
    method: u64,
    checksum: u64,
    stored_bytes: u64,
    bytes: u64,
    /// The position of its local header in the file.
    header: u64,
}

impl Entry {
    fn read(reader: &mut impl Read, shift: u64) -> io::Result<Entry> {
        let mut head = [0; ENTRY_BYTES];
        reader.read_exact(&mut head)?;
        if !head.starts_with(ENTRY_SIGNATURE) {
            return Err(invalid("an entry does not begin as it should"));
        }
        let field = |at: usize, bytes: usize| number(&mut &head[at..], bytes);
        let mut sizes = [field(24, 4)?, field(20, 4)?, field(42, 4)?];
        let [name_bytes, extra_bytes, comment_bytes] = [field(28, 2)?, field(30, 2)?, field(32, 2)?];
        let mut name = vec![0; name_bytes as usize];
        reader.read_exact(&mut name)?;
        let mut extra = vec![0; extra_bytes as usize];
        reader.read_exact(&mut extra)?;
        io::copy(&mut reader.take(comment_bytes), &mut io::sink())?;
        widen(&mut sizes, &extra)?;
        let [bytes, stored_bytes, offset] = sizes;
        // The upper half of the attributes is the mode, if the entry was made on Unix.
        let (made_by, mode) = (field(5, 1)?, field(40, 2)?);
        Ok(Entry {
            name,
            is_encrypted: field(8, 2)? & 1 != 0,
            is_link: made_by == 3 && mode & 0o170_000 == 0o120_000,
            method: field(10, 2)?,
            checksum: field(16, 4)?,
            stored_bytes,
            bytes,
            header: offset.checked_add(shift).ok_or_else(|| invalid("an offset is out of range"))?,
        })
    }

    /// Expands the image.
    fn content(&self, file: &File, max_bytes: u64) -> Result<Vec<u8>, ErrorInfo> {
        if self.is_encrypted {
            return Err(unsupported("the image is encrypted; unpack the archive with its password"));
        }
        if self.bytes > max_bytes {
            return Err(too_large(self.bytes, max_bytes));
        }
        let part = self.part(file).map_err(|error| broken(&error))?;
        let bytes = match self.method {
            0 => self.expanded(part),
            8 => self.expanded(DeflateDecoder::new(BufReader::new(part))),
            other => {
                let message = format!("the image is compressed with method {other}; pack it with deflate or unpack it");
                return Err(unsupported(&message));
            }
        };
        let bytes = bytes.map_err(|error| broken(&error))?;
        if bytes.len() as u64 != self.bytes || u64::from(crc32fast::hash(&bytes)) != self.checksum {
            return Err(broken(&"its length or checksum is wrong"));
        }
        Ok(bytes)
    }

    /// Reads one byte more than there should be at most.
    fn expanded(&self, reader: impl Read) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.bytes as usize);
        reader.take(self.bytes + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn part<'a>(&self, file: &'a File) -> io::Result<Part<'a>> {
        let mut head = [0; LOCAL_BYTES];
        file.read_exact_at(&mut head, self.header)?;
        if !head.starts_with(LOCAL_SIGNATURE) {
            return Err(invalid("it is not where the directory says"));
        }
        let before = number(&mut &head[26..], 2)? + number(&mut &head[28..], 2)?;
        let position = self.header + LOCAL_BYTES as u64 + before;
        let end = position.checked_add(self.stored_bytes).ok_or_else(|| invalid("its length is out of range"))?;
        Ok(Part { file, position, end })
    }
}

/// Replaces the sizes and the offset that are in the extra field with numbers of 64 bits.
fn widen(sizes: &mut [u64; 3], mut extra: &[u8]) -> io::Result<()> {
    while extra.len() >= 4 {
        let (kind, length) = (number(&mut extra, 2)?, number(&mut extra, 2)? as usize);
        let (mut field, rest) = extra.split_at_checked(length).ok_or_else(|| invalid("an extra field is cut"))?;
        if kind == u64::from(WIDE_FIELD) {
            for size in sizes.iter_mut().filter(|size| **size == IN_WIDE_FIELD) {
                *size = number(&mut field, 8)?;
            }
        }
        extra = rest;
    }
    Ok(())
}

/// A range of the file.
struct Part<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// Reads a number of at most 8 bytes, the lowest first.
fn number(fields: &mut &[u8], bytes: usize) -> io::Result<u64> {
    let (field, rest) = fields.split_at_checked(bytes).ok_or_else(|| invalid("a field is cut"))?;
    *fields = rest;
    Ok(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn broken(reason: &dyn std::fmt::Display) -> ErrorInfo {
    damaged(format!("cannot read the image from the archive: {reason}"))
}

fn unsupported(message: &str) -> ErrorInfo {
    ErrorInfo { code: ErrorCode::UnsupportedType, message: message.to_owned() }
}
