//! EXIF and XMP of a PNG: in their own chunks, and in the text chunks that older tools write.
//!
//! Every walk ends with the file, and at most [`MAX_INFLATED_BYTES`] are inflated for a text.

use std::borrow::Cow;
use std::io::Read as _;

use super::SIGNATURE;
use crate::exif::Metadata;

/// Maximum size of a compressed text once inflated; Pillow's limit for one.
const MAX_INFLATED_BYTES: u64 = 1 << 20;

/// Reads the metadata. The last chunk of each kind counts, and EXIF in its own chunk takes precedence over EXIF in
/// text.
pub(super) fn read(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut raw_profile, mut xmp) = (None, None, None);
    let mut position = SIGNATURE.len();
    while let Some((length, kind)) = chunk_header(bytes, position) {
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
    // Texts are inflated after the walk: a file may contain any number of them, and each may inflate to the limit.
    let exif = exif.map(Cow::Borrowed).or_else(|| {
        let (kind, data) = raw_profile?;
        Some(Cow::Owned(read_raw_profile(&text_of(*kind, data)?)?))
    });
    Metadata::new(exif, xmp.and_then(|(kind, data)| text_of(*kind, data)))
}

fn chunk_header(bytes: &[u8], position: usize) -> Option<(usize, &[u8; 4])> {
    let (length, rest) = bytes.get(position..)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*length) as usize, rest.first_chunk::<4>()?))
}

fn keyword_of(text_chunk: &[u8]) -> &[u8] {
    text_chunk.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The text of a tEXt, zTXt or iTXt chunk. Returns `None` when it is truncated, damaged or too large.
fn text_of(kind: [u8; 4], data: &[u8]) -> Option<Cow<'_, [u8]>> {
    let text = data.get(keyword_of(data).len() + 1..)?;
    match &kind {
        b"zTXt" => inflate(text.get(1..)?).map(Cow::Owned),
        b"iTXt" => {
            let (flags, text) = text.split_first_chunk::<2>()?;
            // A language and a translated keyword precede the text.
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

/// Reads a profile in ImageMagick's text form: an empty line, its name, its length, then hexadecimal digits.
fn read_raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |&byte| byte == b'\n').nth(3)?;
    let digits: Vec<u8> = digits.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16);
    pairs.iter().map(|&[high, low]| Some((value(high)? * 16 + value(low)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_inflates_beyond_the_limit_is_ignored() {
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
