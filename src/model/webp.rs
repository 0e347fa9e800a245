//! WebP, decoded by the crate `image` after a repair. Its chunks are read here for the repair and the metadata.

use std::borrow::Cow;

use image::ImageFormat;

use super::budget::Budget;
use super::error::PrepareError;
use super::exif::Metadata;
use super::format::Format;
use super::image_crate::ImageCrate;
use super::pixels::Pixels;
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "WebP",
    media_type: "image/webp",
    extensions: &["webp"],
    has_signature: |bytes| bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
    decode: |bytes, limits, _, budget| decode(bytes, limits, budget),
};

/// Offset of the flags of a VP8X chunk that is the first chunk.
const FLAGS_AT: usize = 20;
const ANIMATION: u8 = 0x02;
const XMP: u8 = 0x04;
const EXIF: u8 = 0x08;
const ALPHA: u8 = 0x10;

fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let is_animated =
        bytes.get(12..16) == Some(b"VP8X") && bytes.get(FLAGS_AT).is_some_and(|flags| flags & ANIMATION != 0);
    let decoder = ImageCrate {
        name: FORMAT.name,
        format: ImageFormat::WebP,
        // A frame in four bytes per pixel is decoded beside the image; an animation has a canvas too.
        scratch_bytes_per_pixel: if is_animated { 8 } else { 4 },
        correct: |_, _| {},
    };
    let mut pixels = decoder.decode(&repair(bytes), limits, budget)?;
    pixels.orientation = metadata(bytes).orientation();
    Ok(pixels)
}

/// Clears the flags of an alpha channel and metadata that the file does not contain: browsers ignore such flags, the
/// decoder refuses them.
fn repair(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut chunks = chunks(bytes);
    let Some((b"VP8X", &[flags, ..])) = chunks.next() else { return Cow::Borrowed(bytes) };
    let mut present = ANIMATION;
    let mut is_lossy = false;
    for (kind, _) in chunks {
        match kind {
            b"ALPH" => present |= ALPHA,
            b"EXIF" => present |= EXIF,
            b"XMP " => present |= XMP,
            b"VP8 " => is_lossy = true,
            _ => {}
        }
    }
    // Animation frames and lossless images declare their alpha themselves.
    if flags & ANIMATION != 0 || !is_lossy {
        present |= ALPHA;
    }
    let correct = flags & (present | !(ALPHA | EXIF | XMP));
    if correct == flags {
        return Cow::Borrowed(bytes);
    }
    let mut repaired = bytes.to_vec();
    repaired[FLAGS_AT] = correct;
    Cow::Owned(repaired)
}

/// Reads the first chunk of each kind, if the header announces it: libwebp, and so Pillow and browsers, ignore others.
fn metadata(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut chunks = chunks(bytes);
    let Some((b"VP8X", &[flags, ..])) = chunks.next() else { return Metadata::default() };
    for (kind, data) in chunks {
        match kind {
            b"EXIF" if flags & EXIF != 0 && exif.is_none() => exif = Some(Cow::Borrowed(data)),
            b"XMP " if flags & XMP != 0 && xmp.is_none() => xmp = Some(Cow::Borrowed(data)),
            _ => {}
        }
    }
    Metadata::new(exif, xmp)
}

/// Kind and content of each complete chunk, in order.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(flags: u8, kinds: &[&[u8; 4]]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0".to_vec();
        file.extend_from_slice(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for kind in kinds {
            file.extend_from_slice(*kind);
            file.extend_from_slice(&[1, 0, 0, 0, 7, 0]);
        }
        file
    }

    #[test]
    fn flags_of_missing_chunks_are_cleared() {
        let flags = |flags, kinds: &[&[u8; 4]]| repair(&file(flags, kinds))[FLAGS_AT];
        assert_eq!(flags(0x10, &[b"VP8 "]), 0);
        assert_eq!(flags(0x10, &[b"ALPH", b"VP8 "]), 0x10);
        assert_eq!(flags(0x10, &[b"VP8L"]), 0x10);
        assert_eq!(flags(0x12, &[b"ANMF"]), 0x12);
        assert_eq!(flags(0x2c, &[b"VP8 ", b"EXIF"]), 0x28);
    }
}
