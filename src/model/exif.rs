//! The orientation that an image's metadata asks for, found where Pillow's `ImageOps.exif_transpose` finds it: in EXIF
//! (JPEG, PNG, WebP, TIFF), in the text chunks that older tools write into a PNG, and in XMP where EXIF names none.
//!
//! All of it is read from bytes that anybody may have sent: every offset is checked, every walk ends with the file, and
//! no more than [`MAX_INFLATED_BYTES`] are inflated for one image. Metadata that cannot be read means upright.

use std::borrow::Cow;
use std::io::Read as _;

use super::decode::Orientation;

/// Most bytes that a compressed text chunk of a PNG may become; Pillow's limit for one.
const MAX_INFLATED_BYTES: u64 = 1 << 20;

const EXIF_PREFIX: &[u8] = b"Exif\0\0";
const ORIENTATION_TAG: u16 = 0x0112;
const XMP_TAG: u16 = 0x02bc;

/// The orientation of a PNG, WebP or TIFF. Other bytes are upright; a JPEG is read with [`Metadata`] while its markers
/// are walked.
pub fn orientation_of(bytes: &[u8]) -> Orientation {
    let metadata = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png_metadata(bytes)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        webp_metadata(bytes)
    } else {
        tiff_metadata(bytes)
    };
    metadata.orientation()
}

/// What an image says about itself.
#[derive(Debug, Clone, Default)]
pub struct Metadata<'a> {
    exif: Option<Cow<'a, [u8]>>,
    xmp: Option<Cow<'a, [u8]>>,
}

impl<'a> Metadata<'a> {
    /// Adds the content of an APP1 segment of a JPEG. A second EXIF block continues the first, as in Pillow.
    pub fn add_jpeg_segment(&mut self, content: &'a [u8]) {
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

    /// XMP only counts where EXIF has no orientation at all.
    pub fn orientation(&self) -> Orientation {
        let in_exif = self.exif.as_deref().and_then(|block| Tiff::parse(block)?.orientation());
        let value = in_exif.or_else(|| self.xmp.as_deref().and_then(orientation_in_xmp));
        Orientation::from_exif(value.unwrap_or_default())
    }
}

/// Of several chunks of one kind the last counts. EXIF of its own chunk precedes EXIF in text.
fn png_metadata(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut raw_profile, mut xmp) = (None, None, None);
    let mut position = 8;
    while let Some((length, kind)) = png_chunk_header(bytes, position) {
        let begin = position + 8;
        let Some(data) = begin.checked_add(length).and_then(|end| bytes.get(begin..end)) else { break };
        match kind {
            b"eXIf" => exif = Some(data),
            b"tEXt" if keyword_of(data) == b"exif" => exif = data.get(5..),
            b"tEXt" | b"zTXt" | b"iTXt" => match keyword_of(data) {
                b"Raw profile type exif" => raw_profile = Some((kind, data)),
                b"XML:com.adobe.xmp" => xmp = Some((kind, data)),
                _ => {}
            },
            b"IEND" => break,
            _ => {}
        }
        position = begin + length + 4;
    }
    // Texts are read only now: a file may hold any number of them, and each may inflate to the limit.
    let exif = exif.map(Cow::Borrowed).or_else(|| {
        let (kind, data) = raw_profile?;
        Some(Cow::Owned(read_raw_profile(&png_text(*kind, data)?)?))
    });
    Metadata { exif, xmp: xmp.and_then(|(kind, data)| png_text(*kind, data)) }
}

fn png_chunk_header(bytes: &[u8], position: usize) -> Option<(usize, &[u8; 4])> {
    let (length, rest) = bytes.get(position..)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*length) as usize, rest.first_chunk::<4>()?))
}

fn keyword_of(text_chunk: &[u8]) -> &[u8] {
    text_chunk.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The text of a tEXt, zTXt or iTXt chunk. None: it is cut off, damaged or too large.
fn png_text(kind: [u8; 4], data: &[u8]) -> Option<Cow<'_, [u8]>> {
    let text = data.get(keyword_of(data).len() + 1..)?;
    match &kind {
        b"zTXt" => inflate(text.get(1..)?).map(Cow::Owned),
        b"iTXt" => {
            let (flags, text) = text.split_first_chunk::<2>()?;
            // A language and a translated keyword come before the text.
            let text = text.splitn(3, |&byte| byte == 0).nth(2)?;
            if flags[0] == 0 { Some(Cow::Borrowed(text)) } else { inflate(text).map(Cow::Owned) }
        }
        _ => Some(Cow::Borrowed(text)),
    }
}

fn inflate(compressed: &[u8]) -> Option<Vec<u8>> {
    let mut inflated = Vec::new();
    let decoder = flate2::read::ZlibDecoder::new(compressed);
    decoder.take(MAX_INFLATED_BYTES + 1).read_to_end(&mut inflated).ok()?;
    (inflated.len() as u64 <= MAX_INFLATED_BYTES).then_some(inflated)
}

/// ImageMagick's form of a profile in text: an empty line, its name, its length, then hexadecimal digits.
fn read_raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?;
    let digits: Vec<u8> = digits.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16);
    pairs.iter().map(|&[high, low]| Some((value(high)? * 16 + value(low)?) as u8)).collect()
}

/// The first chunk of each kind, where the header announces it: libwebp, and so Pillow and browsers, ignore others.
fn webp_metadata(bytes: &[u8]) -> Metadata<'_> {
    const XMP_FLAG: u8 = 0x04;
    const EXIF_FLAG: u8 = 0x08;
    let mut metadata = Metadata::default();
    let mut chunks = webp_chunks(bytes);
    let Some((b"VP8X", &[flags, ..])) = chunks.next() else { return metadata };
    for (kind, data) in chunks {
        match kind {
            b"EXIF" if flags & EXIF_FLAG != 0 && metadata.exif.is_none() => metadata.exif = Some(Cow::Borrowed(data)),
            b"XMP " if flags & XMP_FLAG != 0 && metadata.xmp.is_none() => metadata.xmp = Some(Cow::Borrowed(data)),
            _ => {}
        }
    }
    metadata
}

/// Kind and content of each whole chunk of a WebP file, in order.
pub fn webp_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(12..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = after.get(..length)?;
        rest = after.get(length.checked_add(length % 2)?..).unwrap_or_default();
        Some((kind, data))
    })
}

fn tiff_metadata(bytes: &[u8]) -> Metadata<'_> {
    let Some(tiff) = Tiff::parse(bytes) else { return Metadata::default() };
    let xmp = tiff.field(XMP_TAG).and_then(|field| bytes.get(field.begin..field.end)).map(Cow::Borrowed);
    Metadata { exif: Some(Cow::Borrowed(bytes)), xmp }
}

/// A block of EXIF, or a TIFF file: both are a header and a directory of fields.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
    has_wide_offsets: bool,
}

/// Type and content of a field, which lies inside the file.
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

    /// None: the first directory names no orientation. 0: it names one that means nothing.
    fn orientation(&self) -> Option<u8> {
        let Field { kind, begin, .. } = self.field(ORIENTATION_TAG)?;
        let value = match kind {
            6 => self.number(begin, 1),
            3 | 8 => self.number(begin, 2),
            4 | 9 | 13 => self.number(begin, 4),
            16 => self.number(begin, 8),
            5 | 10 => self.quotient(begin),
            11 => self.number(begin, 4).map(|bits| whole(f64::from(f32::from_bits(bits as u32)))),
            12 => self.number(begin, 8).map(|bits| whole(f64::from_bits(bits))),
            _ => None, // bytes and text are no numbers
        };
        Some(value.and_then(|value| u8::try_from(value).ok()).unwrap_or_default())
    }

    /// The first field of the first directory with this tag, of a known type and with all of its content.
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

    /// What the field of the entry at `begin` holds: in the entry where it fits, else where that says.
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

/// A number without a fraction, else 0.
fn whole(number: f64) -> u64 {
    if number.fract() == 0.0 { number as u64 } else { 0 }
}

/// The first `tiff:Orientation`, as an attribute or an element.
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

    /// A block of little-endian EXIF with one field and, behind the directory, its content.
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
    fn an_orientation_of_any_number_type_counts() {
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
        assert_eq!(behind(4, 2, &[8, 0, 0, 0, 1, 0, 0, 0]), Some(8), "of several values the first counts");
        assert_eq!(value_of(&block(0x112, 3, 2, [3, 0, 1, 0], b"")), Some(3));
    }

    #[test]
    fn an_orientation_that_is_no_number_means_upright() {
        for kind in [1, 2, 7] {
            assert_eq!(value_of(&block(0x112, kind, 1, [6, 0, 0, 0], b"")), Some(0), "type {kind}");
        }
        assert_eq!(value_of(&block(0x112, 99, 1, [6, 0, 0, 0], b"")), None, "an unknown type is no field");
        assert_eq!(value_of(&block(0x112, 3, 0, [6, 0, 0, 0], b"")), None, "no value is no field");
        assert_eq!(value_of(&block(0x113, 3, 1, [6, 0, 0, 0], b"")), None);
    }

    #[test]
    fn cut_or_absurd_blocks_are_read_without_a_panic() {
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
    fn of_two_blocks_in_a_jpeg_the_first_counts() {
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
        assert_eq!(of(&[begin, &continued]), Orientation::from_exif(8), "a block in two parts");
        let xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"6\"/>";
        assert_eq!(of(&[xmp]), Orientation::from_exif(6));
        assert_eq!(of(&[xmp, &segment(1)]), Orientation::default(), "EXIF precedes XMP");
        assert_eq!(of(&[xmp, &plain]), Orientation::from_exif(6));
    }

    #[test]
    fn a_text_that_inflates_beyond_the_limit_is_not_read() {
        let compressed = |bytes: usize| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            std::io::Write::write_all(&mut encoder, &vec![b'0'; bytes]).unwrap();
            encoder.finish().unwrap()
        };
        let limit = MAX_INFLATED_BYTES as usize;
        assert_eq!(inflate(&compressed(limit)).map(|text| text.len()), Some(limit));
        assert_eq!(inflate(&compressed(limit + 1)), None);
        assert_eq!(inflate(b"no zlib stream"), None);
    }
}
