//! JPEG → pixels: what its markers tell, the guards, and which of two decoders it goes to.
//!
//! - libjpeg-turbo (`turbo`, feature `turbojpeg`): twice as fast, and it decodes large pictures at a fraction of their
//!   size, and of them only what is looked at. It gets what is common; where it has the least complaint, its work is dropped.
//! - zune-jpeg has the last word on everything else, so that a damaged file ends the same way in every build: one that
//!   says where it ends is decoded as far as its data make sense, as browsers do; one that was cut off must still hold
//!   every pixel, which only the strict decoder tells.
//!
//! A JPEG may hold any number of scans over the whole image, each as long as a decode, so scans × pixels is bounded,
//! counted by walking the markers before either decoder sees the file.

use std::cell::Cell;

use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::PrepareError;
use super::budget::Budget;
use super::decode::{Orientation, Origin, Pixels, check_pixels, room, undecodable};
use super::package::Geometry;
#[cfg(feature = "turbojpeg")]
use super::turbo;
use crate::config::Limits;

/// Most scans of one JPEG. Encoders write about ten (libjpeg's and mozjpeg's scripts), tools that search for the
/// smallest file below twenty.
const MAX_SCANS: usize = 64;

/// Most scans × pixels, in units of the largest allowed picture: a picture of `max_pixels` may have this many scans.
const MAX_SCANS_AT_MAX_PIXELS: u64 = 16;

/// The same for a picture that the first decoder has worked on already: a damaged one costs both.
const MAX_SCANS_AT_MAX_PIXELS_AGAIN: u64 = 6;

/// What decodes most JPEGs in this build, for a person.
pub const DECODER: &str = if cfg!(feature = "turbojpeg") {
    "libjpeg-turbo"
} else {
    "zune-jpeg (slower; built without the feature turbojpeg)"
};

pub fn decode(bytes: &[u8], limits: &Limits, geometry: Geometry, budget: &Budget) -> Result<Pixels, PrepareError> {
    let markers = Markers::walk(bytes);
    if markers.scans > MAX_SCANS {
        return Err(undecodable(format!("the JPEG has more than {MAX_SCANS} scans")));
    }
    // Asked once by each decoder that takes the picture up.
    let most_scans = Cell::new(MAX_SCANS_AT_MAX_PIXELS);
    let guard = |width, height| {
        let most_scans = most_scans.replace(MAX_SCANS_AT_MAX_PIXELS_AGAIN);
        check_cost(bytes, &markers, limits, (width, height), most_scans)
    };
    let coefficients = coefficient_bytes(bytes, markers.scans);
    let reserve = |pixel_bytes: usize| budget.reserve(coefficients.saturating_add(pixel_bytes as u64));
    #[cfg(feature = "turbojpeg")]
    if markers.ended
        && let Some(pixels) = turbo::decode(bytes, geometry, markers.orientation, guard, reserve)?
    {
        return Ok(pixels);
    }
    #[cfg(not(feature = "turbojpeg"))]
    let _ = geometry;
    budget.check()?;
    decode_whole(bytes, &markers, guard, reserve)
}

/// At full size, by zune-jpeg.
fn decode_whole(
    bytes: &[u8],
    markers: &Markers,
    guard: impl Fn(usize, usize) -> Result<(), PrepareError>,
    reserve: impl Fn(usize) -> Result<(), PrepareError>,
) -> Result<Pixels, PrepareError> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .set_strict_mode(!markers.ended);
    let damaged =
        |_| undecodable(if markers.ended { "the JPEG is damaged" } else { "the JPEG ends before its picture does" });
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| undecodable("the JPEG has no size"))?;
    guard(width, height)?;
    let channels = if decoder.input_colorspace() == Some(ColorSpace::Luma) { 1 } else { 3 };
    let colours = if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let (orientation, origin) = (markers.orientation, Origin::whole(width, height));
    reserve(width * height * channels)?;
    let data = room(width * height * channels);
    let mut pixels = Pixels { data, width, height, channels, orientation, origin };
    decoder.decode_into(&mut pixels.data).map_err(damaged)?;
    Ok(pixels)
}

/// What may be asked of a decoder, by the header alone.
fn check_cost(
    bytes: &[u8],
    markers: &Markers,
    limits: &Limits,
    (width, height): (usize, usize),
    most_scans: u64,
) -> Result<(), PrepareError> {
    check_pixels(width as u64, height as u64, limits)?;
    let pixels = (width * height) as u64;
    if pixels.saturating_mul(markers.scans as u64) > limits.max_pixels.saturating_mul(most_scans) {
        return Err(undecodable(format!("the JPEG has {} scans, too many for its size", markers.scans)));
    }
    // A block of 64 pixels takes a bit at the very least; halved for components that are subsampled.
    if (bytes.len() as u64) < pixels / (64 * 8 * 2) {
        return Err(undecodable("the JPEG ends before its picture does"));
    }
    Ok(())
}

/// What a decoder holds beside pixels: the coefficients of the whole picture, in two bytes each, where they come in more
/// than one scan.
fn coefficient_bytes(bytes: &[u8], scans: usize) -> u64 {
    let Some((_, frame)) = frame(bytes).filter(|(is_progressive, _)| *is_progressive || scans > 1) else {
        return 0;
    };
    let [high, low, wide, narrow] = [frame[1], frame[2], frame[3], frame[4]].map(u64::from);
    let (height, width) = (high << 8 | low, wide << 8 | narrow);
    let factors =
        || frame[6..].chunks_exact(3).map(|component| (u64::from(component[1] >> 4), u64::from(component[1] & 15)));
    let (most_across, most_down) =
        factors().fold((1, 1), |most, factors| (most.0.max(factors.0), most.1.max(factors.1)));
    let blocks = |(across, down): (u64, u64)| {
        let units = width.div_ceil(8 * most_across) * height.div_ceil(8 * most_down);
        units * across * down
    };
    2 * 64 * factors().map(blocks).sum::<u64>()
}

/// Whether the frame is progressive, and its header from the bits of a sample on: those, height, width, and three bytes
/// a component. None: there is none that is whole.
fn frame(bytes: &[u8]) -> Option<(bool, &[u8])> {
    let mut position = 2;
    loop {
        let marker = *bytes.get(position + 1).filter(|_| bytes[position] == 0xff)?;
        if marker == 0xff {
            position += 1;
            continue;
        }
        let length = usize::from(u16::from_be_bytes(*bytes.get(position + 2..)?.first_chunk()?));
        if let 0xc0..=0xc2 = marker {
            let header = bytes.get(position + 4..position + 2 + length)?;
            let components = usize::from(*header.get(5)?);
            return header.get(..6 + 3 * components).map(|header| (marker == 0xc2, header));
        }
        if marker == 0xda {
            return None;
        }
        position += 2 + length;
    }
}

/// What the markers of a JPEG tell without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Markers {
    /// Scans seen; stops counting beyond [`MAX_SCANS`].
    scans: usize,
    /// An end marker follows the scans.
    ended: bool,
    /// Of the last EXIF block before the first scan. Its thumbnail lies inside it and is never looked at.
    orientation: Orientation,
}

impl Markers {
    fn walk(bytes: &[u8]) -> Markers {
        const START_OF_SCAN: u8 = 0xda;
        const END_OF_IMAGE: u8 = 0xd9;
        const APPLICATION_1: u8 = 0xe1;
        let mut markers = Markers::default();
        let mut position = 2;
        while let Some(offset) = memchr::memchr(0xff, bytes.get(position..).unwrap_or_default()) {
            position += offset + 1;
            match bytes.get(position).copied() {
                // A stuffed or restarted byte of a scan, padding, or a marker without content.
                Some(0x00 | 0x01 | 0xd0..=0xd8) => position += 1,
                Some(0xff) => {}
                Some(END_OF_IMAGE) => return Markers { ended: true, ..markers },
                Some(marker) => {
                    markers.scans += usize::from(marker == START_OF_SCAN);
                    if markers.scans > MAX_SCANS {
                        break;
                    }
                    let length =
                        bytes.get(position + 1..position + 3).map(|field| u16::from_be_bytes([field[0], field[1]]));
                    let end = position + 1 + usize::from(length.unwrap_or(u16::MAX));
                    if marker == APPLICATION_1
                        && markers.scans == 0
                        && let Some(exif) = bytes.get(position + 3..end).filter(|block| block.starts_with(b"Exif\0\0"))
                    {
                        markers.orientation = Orientation::from_exif_block(exif).unwrap_or_default();
                    }
                    position = end;
                }
                None => break,
            }
        }
        markers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_counted_without_decoding() {
        // A thumbnail's own markers inside a segment do not count; stuffed bytes and restarts belong to the scan.
        let mut jpeg = b"\xff\xd8\xff\xe1\x00\x08\xff\xda\xff\xd9\x00\x00".to_vec();
        jpeg.extend_from_slice(b"\xff\xda\x00\x03\x01\x11\xff\x00\x22\xff\xd0\x33");
        jpeg.extend_from_slice(b"\xff\xc4\x00\x02\xff\xda\x00\x03\x01\x44");
        assert_eq!(Markers::walk(&jpeg), Markers { scans: 2, ended: false, ..Markers::default() });
        jpeg.extend_from_slice(b"\xff\xff\xd9trailing\xff\xda");
        assert_eq!(Markers::walk(&jpeg), Markers { scans: 2, ended: true, ..Markers::default() });
        let endless: Vec<u8> = b"\xff\xda\x00\x02".repeat(100_000);
        assert_eq!(Markers::walk(&endless).scans, MAX_SCANS + 1);
        assert_eq!(Markers::walk(b"\xff\xd8"), Markers::default());
    }

    #[test]
    fn coefficients_are_counted_where_they_are_kept() {
        let jpeg = |frame: u8| {
            let mut jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff".to_vec();
            jpeg.extend_from_slice(&[0xff, frame]);
            // 17 × 16 pixels, the first of three components twice as fine along both sides: 2 × 1 units of 6 blocks.
            jpeg.extend_from_slice(b"\x00\x11\x08\x00\x10\x00\x11\x03\x01\x22\x00\x02\x11\x00\x03\x11\x00");
            jpeg
        };
        assert_eq!(coefficient_bytes(&jpeg(0xc2), 1), 12 * 128);
        assert_eq!(coefficient_bytes(&jpeg(0xc0), 3), 12 * 128);
        assert_eq!(coefficient_bytes(&jpeg(0xc0), 1), 0);
        assert_eq!(coefficient_bytes(&jpeg(0xc2)[..20], 9), 0);
        assert_eq!(coefficient_bytes(b"\xff\xd8", 9), 0);
    }

    #[test]
    fn the_orientation_is_the_last_one_before_the_first_scan() {
        let exif = |orientation: u8| {
            let mut segment = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
            segment.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0]);
            segment
        };
        let walked = |parts: &[&[u8]]| Markers::walk(&[b"\xff\xd8", parts.concat().as_slice()].concat()).orientation;
        assert_eq!(walked(&[&exif(6)]), Orientation::from_exif(6));
        assert_eq!(walked(&[&exif(6), &exif(3)]), Orientation::from_exif(3));
        assert_eq!(walked(&[&exif(6), b"\xff\xda\x00\x02", &exif(3)]), Orientation::from_exif(6));
        assert_eq!(walked(&[&exif(6)[..20]]), Orientation::default());
    }
}
