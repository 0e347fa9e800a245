//! The stream of xz in which a TIFF has chunks that are compressed by LZMA: one block, coded by LZMA2, of which libtiff stores
//! the differences of bytes.
//!
//! Only this form is read. The dictionary is never larger than what the chunk unpacks to, whatever the stream asks for.

use std::io::{self, Cursor, Read};

use lzma_rust2::Lzma2Reader;

const MAGIC: &[u8] = b"\xfd7zXZ\0";
const STREAM_HEADER_BYTES: usize = 12;
/// Numbers of filters.
const DELTA: u64 = 0x03;
const LZMA2: u64 = 0x21;
/// The smallest dictionary that xz knows.
const MIN_DICTIONARY_BYTES: usize = 4_096;

/// Reads what a chunk unpacks to.
pub(super) struct Xz {
    reader: Lzma2Reader<Cursor<Vec<u8>>>,
    differences: Option<Differences>,
}

impl Xz {
    /// Reads the headers of a stream that unpacks to at most `most_bytes`. `None` if they are damaged or of another form.
    pub(super) fn new(stream: Vec<u8>, most_bytes: usize) -> Option<Xz> {
        let (start, filters) = Filters::read(&stream)?;
        let dictionary = filters.dictionary_bytes.min(most_bytes.max(MIN_DICTIONARY_BYTES) as u64) as u32;
        let mut stream = Cursor::new(stream);
        stream.set_position(start as u64);
        let differences = filters.distance.map(|distance| Differences { last: vec![0; distance], at: 0 });
        Some(Xz { reader: Lzma2Reader::new(stream, dictionary, None), differences })
    }
}

impl Read for Xz {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes)?;
        if let Some(differences) = &mut self.differences {
            differences.add_up(&mut bytes[..read]);
        }
        Ok(read)
    }
}

/// Each byte is stored as its difference to the one that is so many bytes before it.
struct Differences {
    last: Vec<u8>,
    at: usize,
}

impl Differences {
    fn add_up(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = byte.wrapping_add(self.last[self.at]);
            self.last[self.at] = *byte;
            self.at = (self.at + 1) % self.last.len();
        }
    }
}

/// The filters of the first block.
#[derive(Debug, PartialEq, Eq)]
struct Filters {
    distance: Option<usize>,
    dictionary_bytes: u64,
}

impl Filters {
    /// Returns where the data begin, and the filters.
    fn read(stream: &[u8]) -> Option<(usize, Filters)> {
        if !stream.starts_with(MAGIC) {
            return None;
        }
        let block = stream.get(STREAM_HEADER_BYTES..)?;
        // 0 would be the index of a stream without blocks.
        let length = usize::from(*block.first().filter(|length| **length > 0)?) * 4 + 4;
        let (header, checksum) = block.get(..length)?.split_at(length - 4);
        if checksum != crc32fast::hash(header).to_le_bytes() {
            return None;
        }
        let flags = header[1];
        let mut rest = Numbers(&header[2..]);
        // The sizes of the block, which are optional.
        for bit in [0x40, 0x80] {
            if flags & bit != 0 {
                rest.number()?;
            }
        }
        let mut distance = None;
        for left in (0..=flags & 0x03).rev() {
            let (kind, bytes) = (rest.number()?, rest.number()?);
            let property = (bytes == 1).then(|| rest.byte()).flatten()?;
            match kind {
                DELTA if left > 0 && distance.is_none() => distance = Some(usize::from(property) + 1),
                LZMA2 if left == 0 => {
                    let dictionary_bytes = dictionary_bytes(property)?;
                    return Some((STREAM_HEADER_BYTES + length, Filters { distance, dictionary_bytes }));
                }
                _ => return None,
            }
        }
        None
    }
}

/// The size that the property of LZMA2 stands for.
fn dictionary_bytes(property: u8) -> Option<u64> {
    match property {
        0..40 => Some((2 | u64::from(property & 1)) << (property / 2 + 11)),
        40 => Some(u64::from(u32::MAX)),
        _ => None,
    }
}

struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number in groups of seven bits, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for group in 0..9 {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream up to its data, with these bytes as the header of its block.
    fn stream(header: &[u8]) -> Vec<u8> {
        let mut block = vec![((header.len() + 1).div_ceil(4)) as u8];
        block.extend_from_slice(header);
        block.resize(usize::from(block[0]) * 4, 0);
        let checksum = crc32fast::hash(&block).to_le_bytes();
        [MAGIC, &[0, 1, 0, 0, 0, 0], &block, &checksum].concat()
    }

    #[test]
    fn filters_of_libtiff_are_read_and_others_are_not() {
        let filters = |header: &[u8]| Filters::read(&stream(header)).map(|(_, filters)| filters);
        let of = |distance, dictionary_bytes| Some(Filters { distance, dictionary_bytes });
        assert_eq!(filters(&[0x01, 3, 1, 0, 0x21, 1, 22]), of(Some(1), 8 << 20));
        assert_eq!(filters(&[0x01, 3, 1, 2, 0x21, 1, 0]), of(Some(3), 4_096));
        assert_eq!(filters(&[0x00, 0x21, 1, 40]), of(None, u32::MAX.into()));
        assert_eq!(filters(&[0xc0, 0x80, 1, 0x05, 0x21, 1, 1]), of(None, 6_144));
        for wrong in
            [&[0x00, 0x21, 1, 41][..], &[0x00, 3, 1, 0], &[0x01, 4, 0, 0x21, 1, 22], &[0x00, 0x21, 2, 0, 0], &[0]]
        {
            assert_eq!(filters(wrong), None, "{wrong:?}");
        }
        let whole = stream(&[0x00, 0x21, 1, 22]);
        for length in 0..whole.len() {
            assert_eq!(Filters::read(&whole[..length]), None, "{length}");
        }
        let mut damaged = whole.clone();
        damaged[15] ^= 1;
        assert_eq!(Filters::read(&damaged), None);
    }

    #[test]
    fn differences_are_added_up_across_reads() {
        let mut differences = Differences { last: vec![0; 2], at: 0 };
        let (mut first, mut second) = ([1, 10, 1], [250, 255]);
        differences.add_up(&mut first);
        differences.add_up(&mut second);
        assert_eq!((first, second), ([1, 10, 2], [4, 1]));
    }
}
