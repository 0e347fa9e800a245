//! The boxes of an ISO base media file: a length, a type of four letters, and content. Every length is checked.

/// A reader of big-endian numbers. Every method returns `None` at the end of the content.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A number of 0 to 8 bytes.
    pub(super) fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.number(1).map(|number| number as u8)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.number(2).map(|number| number as u16)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.number(4).map(|number| number as u32)
    }

    pub(super) fn kind(&mut self) -> Option<[u8; 4]> {
        self.bytes(4)?.first_chunk().copied()
    }

    /// Version and flags of a box that has them.
    pub(super) fn version(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some(((word >> 24) as u8, word & 0x00ff_ffff))
    }

    /// Type and content of each box in the content. A truncated box ends the iteration.
    pub(super) fn boxes(self) -> impl Iterator<Item = ([u8; 4], Reader<'a>)> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let available = rest.0.len() as u64;
            let (length, kind) = (u64::from(rest.u32()?), rest.kind()?);
            let (length, header) = match length {
                0 => (available, 8),
                1 => (rest.number(8)?, 16),
                length => (length, 8),
            };
            let content = rest.bytes(usize::try_from(length.checked_sub(header)?).ok()?)?;
            Some((kind, Reader(content)))
        })
    }

    /// The content of the first box of this type.
    pub(super) fn find(self, wanted: [u8; 4]) -> Option<Reader<'a>> {
        self.boxes().find_map(|(kind, content)| (kind == wanted).then_some(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_of_every_length_form_are_read_and_truncated_ones_end() {
        let file = b"\0\0\0\x0aabcdXY\0\0\0\x01efgh\0\0\0\0\0\0\0\x11Z\0\0\0\0ijklrest";
        let kinds: Vec<_> = Reader(file).boxes().map(|(kind, content)| (kind, content.0)).collect();
        assert_eq!(kinds, [(*b"abcd", &b"XY"[..]), (*b"efgh", b"Z"), (*b"ijkl", b"rest")]);
        for length in 0..10 {
            assert_eq!(Reader(&file[..length]).boxes().count(), 0, "{length}");
        }
        assert_eq!(Reader(b"\0\0\0\x07abcd").boxes().count(), 0, "shorter than its header");
        assert_eq!(Reader(b"\0\0\0\x01abcd\xff\xff\xff\xff\xff\xff\xff\xff").boxes().count(), 0);
        assert_eq!(Reader(file).find(*b"efgh").map(|content| content.0), Some(&b"Z"[..]));
    }
}
