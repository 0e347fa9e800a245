//! The orientation in an image's metadata, read as Pillow's `ImageOps.exif_transpose` reads it: from EXIF, and from XMP
//! if EXIF contains no orientation.
//!
//! The bytes are untrusted: every offset is checked. Metadata that cannot be read means upright.

use std::borrow::Cow;

use super::orientation::Orientation;

const EXIF_PREFIX: &[u8] = b"Exif\0\0";
const ORIENTATION_TAG: u16 = 0x0112;
const XMP_TAG: u16 = 0x02bc;

/// The metadata blocks of an image.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata<'a> {
    exif: Option<Cow<'a, [u8]>>,
    xmp: Option<Cow<'a, [u8]>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(exif: Option<Cow<'a, [u8]>>, xmp: Option<Cow<'a, [u8]>>) -> Metadata<'a> {
        Metadata { exif, xmp }
    }

    /// The metadata of a TIFF file, which is laid out like a block of EXIF.
    pub(super) fn of_tiff(file: &'a [u8]) -> Metadata<'a> {
        let Some(tiff) = Tiff::parse(file) else { return Metadata::default() };
        let xmp = tiff.field(XMP_TAG).and_then(|field| file.get(field.begin..field.end)).map(Cow::Borrowed);
        Metadata { exif: Some(Cow::Borrowed(file)), xmp }
    }

    /// Adds the content of an APP1 segment of a JPEG. A second EXIF block continues the first, as in Pillow.
    pub(super) fn add_jpeg_segment(&mut self, content: &'a [u8]) {
        const XMP_PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        if let Some(block) = content.strip_prefix(EXIF_PREFIX) {
            match &mut self.exif {
                Some(first) => first.to_mut().extend_from_slice(block),
                None => self.exif = Some(Cow::Borrowed(block)),
            }
        } else if let Some(xmp) = content.strip_prefix(XMP_PREFIX) {
            self.xmp = Some(Cow::Borrowed(xmp));
        }
    }

    /// The orientation in EXIF. XMP counts only if EXIF contains no orientation at all.
    pub(super) fn orientation(&self) -> Orientation {
        let in_exif = self.exif.as_deref().and_then(|block| Tiff::parse(block)?.orientation());
        let value = in_exif.or_else(|| self.xmp.as_deref().and_then(orientation_in_xmp));
        Orientation::from_exif(value.unwrap_or_default())
    }
}

/// A block of EXIF or a TIFF file. Both are a header and a directory of fields.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
    has_wide_offsets: bool,
}

/// The type of a field, and the range of its content, which lies inside the file.
#[derive(Clone, Copy)]
struct Field {
    kind: u16,
    begin: usize,
    end: usize,
}

impl<'a> Tiff<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Tiff<'a>> {
        let mut bytes = bytes;
        while let Some(rest) = bytes.strip_prefix(EXIF_PREFIX) {
            bytes = rest;
        }
        let (is_big_endian, has_wide_offsets) = match bytes.first_chunk::<4>()? {
            b"II*\0" | b"II\0*" => (false, false),
            b"MM\0*" | b"MM*\0" => (true, false),
            b"II+\0" => (false, true),
            b"MM\0+" => (true, true),
            _ => return None,
        };
        Some(Tiff { bytes, is_big_endian, has_wide_offsets })
    }

    /// The value of the orientation field of the first directory, 0 if it has no meaning. Returns `None` when there is
    /// no such field.
    fn orientation(&self) -> Option<u8> {
        let Field { kind, begin, .. } = self.field(ORIENTATION_TAG)?;
        let value = match kind {
            6 => self.number(begin, 1),
            3 | 8 => self.number(begin, 2),
            4 | 9 | 13 => self.number(begin, 4),
            16 => self.number(begin, 8),
            5 | 10 => self.quotient(begin),
            11 => self.number(begin, 4).map(|bits| integral(f64::from(f32::from_bits(bits as u32)))),
            12 => self.number(begin, 8).map(|bits| integral(f64::from_bits(bits))),
            _ => None, // bytes and text are not numbers
        };
        Some(value.and_then(|value| u8::try_from(value).ok()).unwrap_or_default())
    }

    /// The first field with this tag in the first directory that has a known type and complete content.
    fn field(&self, tag: u16) -> Option<Field> {
        let (first, count_bytes, entry_bytes) =
            if self.has_wide_offsets { (self.number(8, 8)?, 8, 20) } else { (self.number(4, 4)?, 2, 12) };
        let first = usize::try_from(first).ok()?;
        let count = self.number(first, count_bytes)?;
        let entries = self.bytes.get(first + count_bytes..)?.chunks_exact(entry_bytes);
        let begins = (first + count_bytes..).step_by(entry_bytes);
        let wanted = |entry: &[u8]| self.number_in(&entry[..2]) == u64::from(tag);
        begins
            .zip(entries)
            .take(usize::try_from(count).unwrap_or(usize::MAX))
            .filter(|(_, entry)| wanted(entry))
            .find_map(|(begin, _)| self.content(begin))
    }

    /// The field of the entry at `begin`. Its content lies in the entry if it fits, otherwise at the offset in the
    /// entry.
    fn content(&self, begin: usize) -> Option<Field> {
        let kind = self.number(begin + 2, 2)? as u16;
        let unit_bytes = match kind {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            _ => return None,
        };
        let word = if self.has_wide_offsets { 8 } else { 4 };
        let bytes = self.number(begin + 4, word)?.checked_mul(unit_bytes)?;
        let value = begin + 4 + word;
        let begin = if bytes > word as u64 { usize::try_from(self.number(value, word)?).ok()? } else { value };
        let end = begin.checked_add(usize::try_from(bytes).ok()?)?;
        (bytes > 0 && end <= self.bytes.len()).then_some(Field { kind, begin, end })
    }

    fn quotient(&self, begin: usize) -> Option<u64> {
        let (dividend, divisor) = (self.number(begin, 4)?, self.number(begin + 4, 4)?);
        (divisor != 0 && dividend.is_multiple_of(divisor)).then(|| dividend / divisor)
    }

    fn number(&self, begin: usize, bytes: usize) -> Option<u64> {
        Some(self.number_in(self.bytes.get(begin..begin.checked_add(bytes)?)?))
    }

    fn number_in(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.is_big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
    }
}

/// The number if it has no fraction, otherwise 0.
fn integral(number: f64) -> u64 {
    if number.fract() == 0.0 { number as u64 } else { 0 }
}

/// The first `tiff:Orientation`, written as an attribute or as an element.
fn orientation_in_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| {
        let after = &xmp[at + NAME.len()..];
        let value = after.strip_prefix(b"=\"").or_else(|| after.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of little-endian EXIF with one field; `behind` follows the directory at offset 26.
    fn block(tag: u16, kind: u16, count: u32, value: [u8; 4], behind: &[u8]) -> Vec<u8> {
        let mut block = b"II*\0\x08\0\0\0\x01\0".to_vec();
        block.extend_from_slice(&tag.to_le_bytes());
        block.extend_from_slice(&kind.to_le_bytes());
        block.extend_from_slice(&count.to_le_bytes());
        block.extend_from_slice(&value);
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(behind);
        block
    }

    fn value_of(block: &[u8]) -> Option<u8> {
        Tiff::parse(block).and_then(|tiff| tiff.orientation())
    }

    #[test]
    fn orientation_may_have_any_number_type() {
        for kind in [3, 4, 6, 8, 9, 13] {
            assert_eq!(value_of(&block(0x112, kind, 1, [6, 0, 0, 0], b"")), Some(6), "type {kind}");
        }
        let behind = |kind, count, content: &[u8]| value_of(&block(0x112, kind, count, [26, 0, 0, 0], content));
        assert_eq!(behind(5, 1, &[6, 0, 0, 0, 1, 0, 0, 0]), Some(6));
        assert_eq!(behind(5, 1, &[6, 0, 0, 0, 0, 0, 0, 0]), Some(0));
        assert_eq!(behind(12, 1, &6.0_f64.to_le_bytes()), Some(6));
        assert_eq!(behind(12, 1, &6.5_f64.to_le_bytes()), Some(0));
        assert_eq!(behind(16, 1, &6_u64.to_le_bytes()), Some(6));
        assert_eq!(value_of(&block(0x112, 11, 1, 6.0_f32.to_le_bytes(), b"")), Some(6));
        assert_eq!(behind(4, 2, &[8, 0, 0, 0, 1, 0, 0, 0]), Some(8), "the first of several values counts");
        assert_eq!(value_of(&block(0x112, 3, 2, [3, 0, 1, 0], b"")), Some(3));
    }

    #[test]
    fn orientation_that_is_not_a_number_means_upright() {
        for kind in [1, 2, 7] {
            assert_eq!(value_of(&block(0x112, kind, 1, [6, 0, 0, 0], b"")), Some(0), "type {kind}");
        }
        assert_eq!(value_of(&block(0x112, 99, 1, [6, 0, 0, 0], b"")), None, "a field of an unknown type is ignored");
        assert_eq!(value_of(&block(0x112, 3, 0, [6, 0, 0, 0], b"")), None, "a field without a value is ignored");
        assert_eq!(value_of(&block(0x113, 3, 1, [6, 0, 0, 0], b"")), None);
    }

    #[test]
    fn truncated_or_absurd_blocks_are_read_without_a_panic() {
        let whole = block(0x112, 4, 2, [26, 0, 0, 0], &[6, 0, 0, 0, 1, 0, 0, 0]);
        for length in 0..whole.len() {
            assert_eq!(value_of(&whole[..length]), None, "{length} bytes");
        }
        for field in [4, 14, 18] {
            for absurd in [u32::MAX, u32::MAX - 3, 0x7fff_ffff] {
                let mut changed = whole.clone();
                changed[field..field + 4].copy_from_slice(&absurd.to_le_bytes());
                assert_eq!(value_of(&changed), None, "{absurd} at {field}");
            }
        }
        let mut big = b"II+\0\x08\0\0\0".to_vec();
        big.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(value_of(&big), None);
    }

    #[test]
    fn first_exif_block_of_a_jpeg_counts() {
        let segment = |orientation: u8| [EXIF_PREFIX, &block(0x112, 3, 1, [orientation, 0, 0, 0], b"")].concat();
        let plain = [EXIF_PREFIX, &block(0x113, 3, 1, [1, 0, 0, 0], b"")].concat();
        let of = |segments: &[&[u8]]| {
            let mut metadata = Metadata::default();
            for segment in segments {
                metadata.add_jpeg_segment(segment);
            }
            metadata.orientation()
        };
        assert_eq!(of(&[&segment(6), &segment(3)]), Orientation::from_exif(6));
        assert_eq!(of(&[&segment(6), &plain]), Orientation::from_exif(6));
        assert_eq!(of(&[&plain, &segment(6)]), Orientation::default());
        let in_one = segment(8);
        let (begin, rest) = in_one.split_at(20);
        let continued = [EXIF_PREFIX, rest].concat();
        assert_eq!(of(&[begin, &continued]), Orientation::from_exif(8), "a block in two segments");
        let xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>";
        assert_eq!(of(&[xmp]), Orientation::from_exif(6));
        assert_eq!(of(&[xmp, &segment(1)]), Orientation::default(), "EXIF takes precedence over XMP");
        assert_eq!(of(&[xmp, &plain]), Orientation::from_exif(6));
    }
}
