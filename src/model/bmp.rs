//! BMP, decoded by the crate `image` after a repair of files that viewers show and the crate refuses: headers of OS/2,
//! a wrong number of planes, a wrong offset of the pixels, too many palette colours, masks at uncommon offsets, and an
//! alpha channel of zeros.

use std::borrow::Cow;

use image::{ColorType, ImageFormat};

use super::format::Format;
use super::image_crate::ImageCrate;

pub(super) const FORMAT: Format = Format {
    name: "BMP",
    media_type: "image/bmp",
    extensions: &["bmp", "dib"],
    has_signature,
    decode: |bytes, limits, _, budget| DECODER.decode(&repair(bytes), limits, budget),
};

const DECODER: ImageCrate =
    ImageCrate { name: "BMP", format: ImageFormat::Bmp, scratch_bytes_per_pixel: 0, correct: ignore_empty_alpha };

const FILE_HEADER_BYTES: usize = 14;
const CORE_HEADER_BYTES: usize = 12;
const INFO_HEADER_BYTES: usize = 40;
const V3_HEADER_BYTES: usize = 56;

const UNCOMPRESSED: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

/// The masks if the file has none: blue in the lowest byte, alpha in the highest.
const BGRA_MASKS: [u32; 4] = [0x00ff_0000, 0x0000_ff00, 0x0000_00ff, 0xff00_0000];

/// Two letters are too short a signature: any text may begin with BM. So the size of the header is checked too.
fn has_signature(bytes: &[u8]) -> bool {
    let header_size = bytes.get(FILE_HEADER_BYTES..).and_then(|header| header.first_chunk()).copied();
    bytes.starts_with(b"BM") && header_size.is_some_and(|size| is_header_size(u32::from_le_bytes(size)))
}

/// Reports whether a header may have this size. Headers of OS/2 version 2 may end after any field from byte 16 on.
fn is_header_size(bytes: u32) -> bool {
    matches!(bytes, 12 | 108 | 124 | 42 | 46) || ((16..=64).contains(&bytes) && bytes.is_multiple_of(4))
}

/// Replaces the header by one that the decoder supports. Returns the file unchanged if it has one or cannot be
/// repaired.
fn repair(bytes: &[u8]) -> Cow<'_, [u8]> {
    match Header::parse(bytes) {
        Some(header) if !header.is_common(bytes.len()) => Cow::Owned(header.rewrite(bytes)),
        _ => Cow::Borrowed(bytes),
    }
}

/// Makes RGBA pixels opaque if all have an alpha of zero: some writers do not fill that channel.
fn ignore_empty_alpha(pixels: &mut [u8], color_type: ColorType) {
    if color_type != ColorType::Rgba8 {
        return;
    }
    let (pixels, _) = pixels.as_chunks_mut::<4>();
    if pixels.iter().all(|pixel| pixel[3] == 0) {
        for pixel in pixels {
            pixel[3] = u8::MAX;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    size_bytes: usize,
    width: i32,
    /// Negative if rows are stored from top to bottom.
    height: i32,
    planes: u16,
    bits: u16,
    compression: u32,
    /// Red, green, blue, alpha.
    masks: Option<[u32; 4]>,
    /// Offset after the header and the masks that follow it.
    palette_begin: usize,
    /// Number of colours in the file, which may exceed what pixels can address.
    palette_colours: usize,
    bytes_per_colour: usize,
    /// The offset of the pixels that the file states.
    pixels_begin: usize,
}

impl Header {
    /// Returns `None` when the file is too short or has an unknown compression, which is left to the decoder to refuse.
    fn parse(bytes: &[u8]) -> Option<Header> {
        let field = |at: usize| Some(u32::from_le_bytes(*bytes.get(FILE_HEADER_BYTES + at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_le_bytes(*bytes.get(FILE_HEADER_BYTES + at..)?.first_chunk()?));
        let size = field(0)?;
        let size_bytes = usize::try_from(size).ok().filter(|_| is_header_size(size))?;
        let header_end = FILE_HEADER_BYTES + size_bytes;
        let pixels_begin = u32::from_le_bytes(*bytes.get(10..)?.first_chunk()?) as usize;
        if size_bytes == CORE_HEADER_BYTES {
            let bits = half(10)?;
            return Some(Header {
                size_bytes,
                width: i32::from(half(4)?),
                height: i32::from(half(6)?),
                planes: half(8)?,
                bits,
                compression: UNCOMPRESSED,
                masks: None,
                palette_begin: header_end,
                palette_colours: default_colours(bits),
                bytes_per_colour: 3,
                pixels_begin,
            });
        }
        // The fields after the end of a short OS/2 header are zero.
        let optional = |at: usize| if size_bytes >= at + 4 { field(at) } else { Some(0) };
        let (bits, compression, colours) = (half(14)?, optional(16)?, optional(32)? as usize);
        let is_windows = is_windows_header(size_bytes);
        let (masks, palette_begin) = match compression {
            UNCOMPRESSED | RLE8 | RLE4 => (None, header_end),
            BIT_FIELDS | ALPHA_BIT_FIELDS if is_windows => {
                let has_alpha = size_bytes >= V3_HEADER_BYTES || compression == ALPHA_BIT_FIELDS;
                let masks = [field(40)?, field(44)?, field(48)?, if has_alpha { field(52)? } else { 0 }];
                let behind = if size_bytes > INFO_HEADER_BYTES { 0 } else { 12 + 4 * usize::from(has_alpha) };
                (Some(masks), header_end + behind)
            }
            _ => return None,
        };
        Some(Header {
            size_bytes,
            width: field(4)?.cast_signed(),
            height: field(8)?.cast_signed(),
            planes: half(12)?,
            bits,
            compression,
            masks,
            palette_begin,
            palette_colours: if bits <= 8 && colours > 0 { colours } else { default_colours(bits) },
            bytes_per_colour: 4,
            pixels_begin,
        })
    }

    /// Reports whether the decoder supports the header as it is.
    fn is_common(&self, file_bytes: usize) -> bool {
        let has_usable_masks = self.masks.is_none_or(|masks| masks[..3] != [0; 3]);
        is_windows_header(self.size_bytes)
            && self.planes == 1
            && self.pixels_begin == self.real_pixels_begin(file_bytes)
            && self.palette_colours <= default_colours(self.bits)
            && self.compression != ALPHA_BIT_FIELDS
            && has_usable_masks
            && (self.masks.is_none() || self.bits != 24)
    }

    /// The offset of the pixels: the stated one, unless it is impossible.
    fn real_pixels_begin(&self, file_bytes: usize) -> usize {
        let stated = self.pixels_begin;
        let palette_end = self.palette_colours.saturating_mul(self.bytes_per_colour).saturating_add(self.palette_begin);
        let end_from = |begin: usize| begin.saturating_add(self.pixel_bytes());
        let is_stated_wrong = if stated < self.palette_begin {
            true
        } else if stated < palette_end {
            // A palette may be shorter than the stated number of colours, but not empty.
            stated == self.palette_begin || end_from(palette_end) == file_bytes
        } else {
            end_from(stated) > file_bytes && end_from(palette_end) <= file_bytes
        };
        if is_stated_wrong { palette_end } else { stated }
    }

    /// Size of the pixels; 0 if it depends on the compressed data.
    fn pixel_bytes(&self) -> usize {
        if matches!(self.compression, RLE8 | RLE4) {
            return 0;
        }
        let row = (u64::from(self.width.unsigned_abs()) * u64::from(self.bits)).div_ceil(32) * 4;
        usize::try_from(row.saturating_mul(u64::from(self.height.unsigned_abs()))).unwrap_or(usize::MAX)
    }

    fn rewrite(&self, bytes: &[u8]) -> Vec<u8> {
        let masks = self.masks.filter(|_| self.bits != 24);
        let masks = masks.map(|masks| if masks[..3] == [0; 3] { BGRA_MASKS } else { masks });
        let size_bytes = if masks.is_some() { V3_HEADER_BYTES } else { INFO_HEADER_BYTES };
        let compression = match self.compression {
            RLE8 | RLE4 => self.compression,
            _ if masks.is_some() => BIT_FIELDS,
            _ => UNCOMPRESSED,
        };
        let pixels_begin = self.real_pixels_begin(bytes.len());
        let palette = self.palette(bytes, pixels_begin);
        let pixels = bytes.get(pixels_begin..).unwrap_or_default();
        let new_begin = FILE_HEADER_BYTES + size_bytes + 4 * palette.len();
        let mut file = Vec::with_capacity(new_begin + pixels.len());
        file.extend_from_slice(b"BM");
        let file_header = [new_begin + pixels.len(), 0, new_begin, size_bytes].map(|number| number as u32);
        file.extend(file_header.into_iter().flat_map(u32::to_le_bytes));
        file.extend([self.width, self.height].into_iter().flat_map(i32::to_le_bytes));
        file.extend([1, self.bits].into_iter().flat_map(u16::to_le_bytes));
        file.extend([compression, 0, 0, 0, palette.len() as u32, 0].into_iter().flat_map(u32::to_le_bytes));
        file.extend(masks.into_iter().flatten().flat_map(u32::to_le_bytes));
        file.extend(palette.iter().flatten());
        file.extend_from_slice(pixels);
        file
    }

    /// The colours that pixels can address. Those that the file does not contain are black.
    fn palette(&self, bytes: &[u8], pixels_begin: usize) -> Vec<[u8; 4]> {
        let colours = self.palette_colours.min(default_colours(self.bits));
        let stored = bytes.get(self.palette_begin..pixels_begin.min(bytes.len())).unwrap_or_default();
        let mut palette: Vec<[u8; 4]> =
            stored.chunks_exact(self.bytes_per_colour).map(|colour| [colour[0], colour[1], colour[2], 0]).collect();
        palette.resize(colours, [0; 4]);
        palette
    }
}

fn is_windows_header(bytes: usize) -> bool {
    matches!(bytes, 12 | 40 | 52 | 56 | 108 | 124)
}

fn default_colours(bits: u16) -> usize {
    if bits <= 8 { 1 << bits } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two by two palette pixels with a header of this size.
    fn palette_file(size_bytes: usize, pixels_begin: u32) -> Vec<u8> {
        let mut file = b"BM\0\0\0\0\0\0\0\0".to_vec();
        file.extend_from_slice(&pixels_begin.to_le_bytes());
        let mut header = vec![0; size_bytes];
        header[..4].copy_from_slice(&(size_bytes as u32).to_le_bytes());
        (header[4], header[8], header[12], header[14]) = (2, 2, 1, 4);
        if size_bytes >= 36 {
            header[32] = 2;
        }
        file.extend_from_slice(&header);
        let colours = if size_bytes >= 36 { 2 } else { 16 };
        file.extend((0..colours).flat_map(|colour| [colour, 1, 2, 0]));
        file.extend_from_slice(&[0x01, 0, 0, 0, 0x10, 0, 0, 0]);
        file
    }

    #[test]
    fn common_files_are_unchanged() {
        let file = palette_file(40, 62);
        assert!(matches!(repair(&file), Cow::Borrowed(_)));
        for length in 0..file.len() {
            repair(&file[..length]);
        }
    }

    #[test]
    fn wrong_offset_of_the_pixels_is_corrected() {
        let right = palette_file(40, 62);
        for wrong in [0, 14, 54, 1000, u32::MAX] {
            let repaired = repair(&palette_file(40, wrong)).into_owned();
            assert_eq!(repaired[10..14], right[10..14], "{wrong}");
            assert_eq!(repaired[54..], right[54..], "{wrong}");
        }
    }

    #[test]
    fn os2_headers_are_replaced_by_common_ones() {
        for size_bytes in [16, 20, 32, 36, 44, 64] {
            let colours = if size_bytes >= 36 { 2 } else { 16 };
            let begin = (FILE_HEADER_BYTES + size_bytes + 4 * colours) as u32;
            let repaired = repair(&palette_file(size_bytes, begin)).into_owned();
            assert_eq!(repaired[14..18], [40, 0, 0, 0], "{size_bytes}");
            assert_eq!(repaired[46], colours as u8, "{size_bytes}");
            assert_eq!(repaired[repaired.len() - 8..], [0x01, 0, 0, 0, 0x10, 0, 0, 0]);
        }
    }

    #[test]
    fn absurd_header_fields_do_not_panic_or_allocate_much() {
        let file = palette_file(40, 62);
        for at in (10..file.len() - 4).step_by(2) {
            for number in [u32::MAX, i32::MIN.cast_unsigned(), 0, 0x0001_0000] {
                let mut changed = file.clone();
                changed[at..at + 4].copy_from_slice(&number.to_le_bytes());
                assert!(repair(&changed).len() < 10_000);
            }
        }
    }

    #[test]
    fn alpha_channel_is_ignored_only_if_all_zero() {
        let mut empty = [1, 2, 3, 0, 4, 5, 6, 0];
        ignore_empty_alpha(&mut empty, ColorType::Rgba8);
        assert_eq!(empty, [1, 2, 3, 255, 4, 5, 6, 255]);
        let mut used = [1, 2, 3, 0, 4, 5, 6, 1];
        ignore_empty_alpha(&mut used, ColorType::Rgba8);
        assert_eq!(used, [1, 2, 3, 0, 4, 5, 6, 1]);
    }
}
