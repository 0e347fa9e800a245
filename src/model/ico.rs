//! ICO: the largest image of an icon, which is a PNG, or a BMP without its file header and with a mask.

use super::budget::Budget;
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::input::Geometry;
use super::pixels::Pixels;
use super::{bmp, png};
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "ICO",
    media_type: "image/vnd.microsoft.icon",
    extensions: &["ico"],
    has_signature: |bytes| {
        // The first four bytes alone are too short a signature, so the first entry is checked too.
        bytes.starts_with(b"\0\0\x01\0") && entries(bytes).next().is_some_and(|entry| entry.is_plausible())
    },
    decode,
};

const HEADER_BYTES: usize = 6;
const ENTRY_BYTES: usize = 16;
const INFO_HEADER_BYTES: usize = 40;

/// An entry of the directory at the beginning of the file.
#[derive(Clone, Copy)]
struct Entry {
    pixels: u32,
    reserved: u8,
    bits: u16,
    length: usize,
    offset: usize,
}

impl Entry {
    fn is_plausible(&self) -> bool {
        self.reserved == 0 && self.length >= INFO_HEADER_BYTES && self.offset >= HEADER_BYTES + ENTRY_BYTES
    }
}

/// The entries of the directory, as far as they lie in `bytes`.
fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    let count = bytes.get(4..HEADER_BYTES).map_or(0, |count| usize::from(u16::from_le_bytes([count[0], count[1]])));
    let entries = bytes.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<ENTRY_BYTES>().0;
    entries.iter().take(count).map(|entry| {
        let number = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize;
        // A side of 0 means 256.
        let side = |at: usize| if entry[at] == 0 { 256 } else { u32::from(entry[at]) };
        Entry {
            pixels: side(0) * side(1),
            reserved: entry[3],
            bits: u16::from_le_bytes([entry[6], entry[7]]),
            length: number(8),
            offset: number(12),
        }
    })
}

fn decode(bytes: &[u8], limits: &Limits, geometry: Geometry, budget: &Budget) -> Result<Pixels, PrepareError> {
    let damaged = || undecodable("the ICO is damaged or truncated");
    let largest = entries(bytes).max_by_key(|entry| (entry.pixels, entry.bits)).ok_or_else(damaged)?;
    let end = largest.offset.checked_add(largest.length);
    let image = end.and_then(|end| bytes.get(largest.offset..end)).ok_or_else(damaged)?;
    if (png::FORMAT.has_signature)(image) {
        return (png::FORMAT.decode)(image, limits, geometry, budget);
    }
    let bitmap = Bitmap::read(image).ok_or_else(damaged)?;
    let mut pixels = (bmp::FORMAT.decode)(&bitmap.file(), limits, geometry, budget)?;
    bitmap.whiten_transparent(&mut pixels);
    Ok(pixels)
}

/// A BMP without its file header. Its height counts the mask that follows the pixels too.
struct Bitmap<'a> {
    bytes: &'a [u8],
    width: usize,
    height: usize,
    bits: usize,
    pixels_begin: usize,
}

impl Bitmap<'_> {
    fn read(bytes: &[u8]) -> Option<Bitmap<'_>> {
        let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
        let half = |at: usize| Some(usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
        let (size, width, height, bits) = (number(0)?, number(4)?, number(8)? / 2, half(14)?);
        let is_plain = size == INFO_HEADER_BYTES && number(16)? == 0 && matches!(bits, 1 | 4 | 8 | 24 | 32);
        // The directory cannot declare more than 256 pixels along a side, and larger images are PNGs.
        if !is_plain || !(1..=4096).contains(&width) || !(1..=4096).contains(&height) {
            return None;
        }
        let stated = number(32)?;
        let colours = match bits {
            ..=8 if stated == 0 => 1 << bits,
            ..=8 => stated.min(1 << bits),
            _ => 0,
        };
        Some(Bitmap { bytes, width, height, bits, pixels_begin: INFO_HEADER_BYTES + 4 * colours })
    }

    fn pixel_bytes(&self) -> usize {
        (self.width * self.bits).div_ceil(32) * 4 * self.height
    }

    /// The bitmap as a file. With 32 bits, masks declare the fourth byte of a pixel as alpha.
    fn file(&self) -> Vec<u8> {
        const FILE_HEADER_BYTES: usize = 14;
        const MASKS: [u32; 4] = [0x00ff_0000, 0x0000_ff00, 0x0000_00ff, 0xff00_0000];
        let has_alpha = self.bits == 32;
        let added = if has_alpha { 4 * MASKS.len() } else { 0 };
        let mut header = self.bytes[..INFO_HEADER_BYTES].to_vec();
        header[8..12].copy_from_slice(&(self.height as u32).to_le_bytes());
        if has_alpha {
            header[0] = (INFO_HEADER_BYTES + added) as u8;
            header[16] = 3;
        }
        let mut file = b"BM".to_vec();
        let rest = &self.bytes[INFO_HEADER_BYTES..];
        let pixels_begin = FILE_HEADER_BYTES + self.pixels_begin + added;
        for number in [FILE_HEADER_BYTES + self.bytes.len() + added, 0, pixels_begin] {
            file.extend_from_slice(&(number as u32).to_le_bytes());
        }
        file.extend_from_slice(&header);
        if has_alpha {
            file.extend(MASKS.into_iter().flat_map(u32::to_le_bytes));
        }
        file.extend_from_slice(rest);
        file
    }

    /// Makes the pixels white that the mask declares as transparent. A used alpha channel takes its place.
    fn whiten_transparent(&self, pixels: &mut Pixels) {
        let mask_begin = self.pixels_begin + self.pixel_bytes();
        let stored = self.bytes.get(self.pixels_begin..mask_begin).unwrap_or_default();
        if self.bits == 32 && stored.chunks_exact(4).any(|pixel| pixel[3] != 0) {
            return;
        }
        let row_bytes = self.width.div_ceil(32) * 4;
        let Some(mask) = self.bytes.get(mask_begin..mask_begin + row_bytes * self.height) else { return };
        let channels = pixels.channels;
        // Rows are stored from bottom to top.
        let rows = pixels.data.chunks_exact_mut(self.width * channels).zip(mask.chunks_exact(row_bytes).rev());
        for (row, mask) in rows {
            for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
                if mask[x / 8] >> (7 - x % 8) & 1 == 1 {
                    pixel.fill(u8::MAX);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An icon of one bitmap of 2 × 2 pixels; `pixels` are the colours and the mask.
    fn icon(bits: u8, pixels: &[u8]) -> Vec<u8> {
        let mut bitmap = vec![40, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 0, bits, 0];
        bitmap.resize(INFO_HEADER_BYTES, 0);
        bitmap.extend_from_slice(pixels);
        let mut file = vec![0, 0, 1, 0, 1, 0, 2, 2, 0, 0, 1, 0, bits, 0];
        file.extend((bitmap.len() as u32).to_le_bytes());
        file.extend(22_u32.to_le_bytes());
        file.extend(bitmap);
        file
    }

    fn pixels(file: &[u8]) -> Result<Vec<u8>, PrepareError> {
        assert!((FORMAT.has_signature)(file));
        let limits = Limits::default();
        decode(file, &limits, Geometry::Native, &Budget::new(&limits)).map(|pixels| pixels.data.clone())
    }

    const MASK: [u8; 8] = [0b0100_0000, 0, 0, 0, 0b1000_0000, 0, 0, 0];

    #[test]
    fn transparent_pixels_are_white() {
        let opaque = [[1, 2, 3], [4, 5, 6], [0, 0, 0], [7, 8, 9], [1, 1, 1], [0, 0, 0]].concat();
        let rows = [&opaque[..6], &[0, 0], &opaque[9..15], &[0, 0], &MASK].concat();
        assert_eq!(pixels(&icon(24, &rows)).unwrap(), [255, 255, 255, 1, 1, 1, 3, 2, 1, 255, 255, 255]);
        let used_alpha = [[1, 2, 3, 255], [4, 5, 6, 0], [7, 8, 9, 255], [1, 1, 1, 255]].concat();
        let shown = pixels(&icon(32, &[&used_alpha[..], &MASK].concat())).unwrap();
        assert_eq!(shown, [9, 8, 7, 1, 1, 1, 3, 2, 1, 255, 255, 255]);
        let empty_alpha: Vec<u8> = used_alpha.chunks(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 0]).collect();
        let shown = pixels(&icon(32, &[&empty_alpha[..], &MASK].concat())).unwrap();
        assert_eq!(shown, [255, 255, 255, 1, 1, 1, 3, 2, 1, 255, 255, 255]);
    }

    #[test]
    fn truncated_icons_are_refused_without_a_panic() {
        let whole = icon(24, &[0; 24]);
        for length in 22..whole.len() {
            assert!(pixels(&whole[..length]).is_err(), "{length}");
        }
        assert!(!(FORMAT.has_signature)(&whole[..20]));
    }
}
