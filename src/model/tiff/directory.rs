//! A directory of a TIFF: its tags and their values. Every offset is checked against the file.

use super::error::{damaged, truncated};
use crate::error::PrepareError;

/// Maximum number of entries in a directory. Cameras write about fifty.
const MAX_ENTRIES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            ByteOrder::Little => u16::from_le_bytes(bytes),
            ByteOrder::Big => u16::from_be_bytes(bytes),
        }
    }

    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            ByteOrder::Little => u32::from_le_bytes(bytes),
            ByteOrder::Big => u32::from_be_bytes(bytes),
        }
    }

    pub(super) fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        }
    }
}

pub(super) struct Directory<'a> {
    file: &'a [u8],
    pub(super) order: ByteOrder,
    entries: Vec<Entry<'a>>,
    /// The offset of the directory that follows.
    pub(super) next: Option<u64>,
}

struct Entry<'a> {
    tag: u16,
    size: usize,
    /// The offset of the values in the file.
    offset: u64,
    /// Complete values of `size` bytes each.
    values: &'a [u8],
}

impl<'a> Directory<'a> {
    /// Reads the first directory of a TIFF or BigTIFF.
    pub(super) fn read(file: &'a [u8]) -> Result<Directory<'a>, PrepareError> {
        let order = if file.starts_with(b"II") { ByteOrder::Little } else { ByteOrder::Big };
        let directory = Directory { file, order, entries: Vec::new(), next: None };
        let is_big = directory.u16_at(2)? == 43;
        if is_big && directory.u16_at(4)? != 8 {
            return Err(damaged());
        }
        directory.other(if is_big { directory.u64_at(8)? } else { u64::from(directory.u32_at(4)?) })
    }

    /// Reads a directory of other data than a whole file, at `start`. Offsets in it count from the beginning of `data`.
    pub(super) fn within(data: &'a [u8], order: ByteOrder, start: u64) -> Result<Directory<'a>, PrepareError> {
        Directory { file: data, order, entries: Vec::new(), next: None }.other(start)
    }

    /// Reads another directory of the same file.
    pub(super) fn other(&self, start: u64) -> Result<Directory<'a>, PrepareError> {
        let mut directory = Directory { file: self.file, order: self.order, entries: Vec::new(), next: None };
        let is_big = directory.u16_at(2)? == 43;
        let (count, first) = if is_big {
            (directory.u64_at(start)?, start.saturating_add(8))
        } else {
            (u64::from(directory.u16_at(start)?), start.saturating_add(2))
        };
        if count > MAX_ENTRIES {
            return Err(damaged());
        }
        let step = if is_big { 20 } else { 12 };
        for index in 0..count {
            let at = first.saturating_add(index * step);
            let entry = if is_big { directory.big_entry(at)? } else { directory.entry(at)? };
            directory.entries.extend(entry);
        }
        let end = first.saturating_add(count * step);
        let next = if is_big { directory.u64_at(end).ok() } else { directory.u32_at(end).ok().map(u64::from) };
        directory.next = next.filter(|offset| *offset > 0);
        Ok(directory)
    }

    /// The bytes of the file from `offset` on, at most `length`; fewer at the end of the file.
    pub(super) fn bytes(&self, offset: u64, length: u64) -> &'a [u8] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.file.len());
        let rest = &self.file[start..];
        &rest[..usize::try_from(length).unwrap_or(usize::MAX).min(rest.len())]
    }

    /// The size of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The number of values of a tag; 0 if the tag is absent.
    pub(super) fn count(&self, tag: u16) -> usize {
        self.find(tag).map_or(0, |entry| entry.values.len() / entry.size)
    }

    /// The first value of a tag.
    pub(super) fn number(&self, tag: u16) -> Option<u64> {
        self.numbers(tag).next()
    }

    /// The values of a tag; none if the tag is absent.
    pub(super) fn numbers(&self, tag: u16) -> impl Iterator<Item = u64> {
        let (size, values) = self.find(tag).map_or((1, &[][..]), |entry| (entry.size, entry.values));
        values.chunks_exact(size).map(|value| self.value(value))
    }

    /// The values of a tag as bytes.
    pub(super) fn raw(&self, tag: u16) -> Option<&'a [u8]> {
        self.find(tag).map(|entry| entry.values)
    }

    /// The offset of the values of a tag in the file.
    pub(super) fn offset(&self, tag: u16) -> Option<u64> {
        self.find(tag).map(|entry| entry.offset)
    }

    fn value(&self, value: &[u8]) -> u64 {
        let bytes = value.iter();
        let next = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.order == ByteOrder::Big { bytes.fold(0, next) } else { bytes.rev().fold(0, next) }
    }

    fn find(&self, tag: u16) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }

    fn entry(&self, at: u64) -> Result<Option<Entry<'a>>, PrepareError> {
        let count = u64::from(self.u32_at(at.saturating_add(4))?);
        self.entry_of(at, count, at.saturating_add(8), 4)
    }

    fn big_entry(&self, at: u64) -> Result<Option<Entry<'a>>, PrepareError> {
        let count = self.u64_at(at.saturating_add(4))?;
        self.entry_of(at, count, at.saturating_add(12), 8)
    }

    /// Reads an entry. Its values lie in the entry if they fit, otherwise at the offset in it. Returns `None` when its
    /// type is not an integer or its values lie outside the file; such a tag counts as absent.
    fn entry_of(&self, at: u64, count: u64, field: u64, field_bytes: u64) -> Result<Option<Entry<'a>>, PrepareError> {
        let tag = self.u16_at(at)?;
        let size = match self.u16_at(at.saturating_add(2))? {
            1 | 7 => 1,
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => return Ok(None),
        };
        let length = count.saturating_mul(size);
        let offset = if length <= field_bytes {
            field
        } else if field_bytes == 4 {
            u64::from(self.u32_at(field)?)
        } else {
            self.u64_at(field)?
        };
        let values = self.bytes(offset, length);
        Ok((values.len() as u64 == length).then_some(Entry { tag, size: size as usize, offset, values }))
    }

    fn u16_at(&self, at: u64) -> Result<u16, PrepareError> {
        self.array_at(at).map(|bytes| self.order.u16(bytes))
    }

    fn u32_at(&self, at: u64) -> Result<u32, PrepareError> {
        self.array_at(at).map(|bytes| self.order.u32(bytes))
    }

    fn u64_at(&self, at: u64) -> Result<u64, PrepareError> {
        self.array_at(at).map(|bytes| self.order.u64(bytes))
    }

    fn array_at<const N: usize>(&self, at: u64) -> Result<[u8; N], PrepareError> {
        self.bytes(at, N as u64).first_chunk().copied().ok_or_else(truncated)
    }
}
