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

use std::borrow::Cow;
use std::cell::Cell;

use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::PrepareError;
use super::budget::Budget;
use super::decode::{Orientation, Origin, Pixels, check_pixels, room, undecodable};
use super::exif::Metadata;
use super::package::Geometry;
#[cfg(feature = "turbojpeg")]
use super::turbo;
use crate::config::Limits;
use crate::protocol::ErrorCode;

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
    if markers.lacks_tables() {
        return Err(undecodable("the JPEG lacks the tables that its picture was coded with"));
    }
    // Asked once by each decoder that takes the picture up.
    let most_scans = Cell::new(MAX_SCANS_AT_MAX_PIXELS);
    let guard = |width, height| {
        let most_scans = most_scans.replace(MAX_SCANS_AT_MAX_PIXELS_AGAIN);
        check_cost(bytes, &markers, limits, (width, height), most_scans)
    };
    let coefficients = coefficient_bytes(bytes, &markers);
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
    match markers.frame.rare_coding() {
        Some(coding) => Err(coding.refusal(markers.ended)),
        None => decode_whole(&repair(bytes, markers.frame), &markers, guard, reserve),
    }
}

/// A coding that zune-jpeg does not take, so that libjpeg-turbo has the last word on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RareCoding {
    name: String,
    is_taken_by_libjpeg_turbo: bool,
}

impl RareCoding {
    /// Why an image of this coding was not decoded.
    fn refusal(&self, ended: bool) -> PrepareError {
        let name = &self.name;
        if !(self.is_taken_by_libjpeg_turbo && cfg!(feature = "turbojpeg")) {
            let message = format!("the JPEG is {name}, which this build does not decode; save it as a baseline JPEG");
            return PrepareError::new(ErrorCode::UnsupportedType, message);
        }
        undecodable(if ended {
            format!("the JPEG, which is {name}, is damaged or stores its colours in a way that is not supported")
        } else {
            format!("the JPEG, which is {name}, ends before its picture does")
        })
    }
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
    // A block of 64 pixels takes a bit at the very least; halved for components that are subsampled. Arithmetic coding
    // takes a fraction of a bit where nothing changes.
    let blocks_a_bit = if matches!(markers.frame.marker, 0xc9 | 0xca) { 16 } else { 1 };
    if (bytes.len() as u64) < pixels / (64 * 8 * 2 * blocks_a_bit) {
        return Err(undecodable("the JPEG ends before its picture does"));
    }
    Ok(())
}

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
const HUFFMAN_TABLES: u8 = 0xc4;
const ARITHMETIC_CONDITIONING: u8 = 0xcc;
const QUANTISATION_TABLES: u8 = 0xdb;
const RESERVED_EXTENSION: u8 = 0xc8;
const JPEG_LS: u8 = 0xf7;
const APPLICATION_1: u8 = 0xe1;
const APPLICATION_14: u8 = 0xee;

/// What a decoder holds beside pixels: the coefficients of the whole picture, in two bytes each, where they do not come in
/// one scan.
fn coefficient_bytes(bytes: &[u8], markers: &Markers) -> u64 {
    let Frame { marker, content_at, .. } = markers.frame;
    let Some(header) = bytes.get(content_at..).filter(|header| content_at > 0 && header.len() >= 6) else { return 0 };
    let components = usize::from(header[5]);
    let is_progressive = matches!(marker, 0xc2 | 0xca);
    if !is_progressive && markers.scans <= 1 && usize::from(markers.first_scan_components) >= components {
        return 0;
    }
    let [height, width] = [1, 3].map(|at| u64::from(u16::from_be_bytes([header[at], header[at + 1]])));
    let factors = || {
        let components = header[6..].chunks_exact(3).take(components);
        components.map(|component| (u64::from(component[1] >> 4).max(1), u64::from(component[1] & 15).max(1)))
    };
    let (most_across, most_down) =
        factors().fold((1, 1), |most, factors| (most.0.max(factors.0), most.1.max(factors.1)));
    let blocks = |(across, down): (u64, u64)| {
        let units = width.div_ceil(8 * most_across) * height.div_ceil(8 * most_down);
        units * across * down
    };
    2 * 64 * factors().map(blocks).sum::<u64>()
}

/// What the markers of a JPEG tell without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Markers {
    /// Scans seen; stops counting beyond [`MAX_SCANS`].
    scans: usize,
    /// Components of the picture that the first scan holds.
    first_scan_components: u8,
    /// An end marker follows the scans.
    ended: bool,
    frame: Frame,
    /// Tables precede the first scan.
    has_quantisation_tables: bool,
    has_huffman_tables: bool,
    /// Of the metadata before the first scan. Thumbnails lie inside of it and are never looked at.
    orientation: Orientation,
}

/// How the samples are coded, by the first frame header. Zeros: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Frame {
    marker: u8,
    bits: u8,
    /// Where in the file its content begins.
    content_at: usize,
}

impl Frame {
    fn is_header(marker: u8) -> bool {
        matches!(marker, 0xc0..=0xcf | JPEG_LS)
            && !matches!(marker, HUFFMAN_TABLES | RESERVED_EXTENSION | ARITHMETIC_CONDITIONING)
    }

    /// None: Huffman-coded samples of 8 bits, which nearly every JPEG has.
    fn rare_coding(self) -> Option<RareCoding> {
        let (name, is_taken) = match self.marker {
            0xc0..=0xc2 if self.bits == 8 => return None,
            0xc0..=0xc2 => ("", self.bits == 12),
            0xc3 => ("lossless", true),
            0xc5..=0xc7 => ("hierarchical", false),
            0xc9 | 0xca => ("arithmetic-coded", matches!(self.bits, 8 | 12)),
            0xcb => ("lossless and arithmetic-coded", false),
            0xcd..=0xcf => ("hierarchical and arithmetic-coded", false),
            JPEG_LS => ("a JPEG-LS", false),
            _ => return None,
        };
        let name = match (name, self.bits) {
            (name, 8) => name.to_owned(),
            ("", bits) => format!("of {bits} bits a sample"),
            (name, bits) => format!("{name} and of {bits} bits a sample"),
        };
        Some(RareCoding { name, is_taken_by_libjpeg_turbo: is_taken })
    }
}

impl Markers {
    /// Whether tables are missing that cannot be guessed. A sequential image without Huffman tables means the standard
    /// ones; nothing else has a standard, and no table of another image may stand in.
    fn lacks_tables(&self) -> bool {
        self.scans > 0
            && match self.frame.marker {
                0xc0 | 0xc1 | 0xc9 | 0xca => !self.has_quantisation_tables,
                0xc2 => !(self.has_quantisation_tables && self.has_huffman_tables),
                _ => false,
            }
    }

    fn walk(bytes: &[u8]) -> Markers {
        let mut markers = Markers::default();
        let mut metadata = Metadata::default();
        let mut position = 2;
        while let Some(offset) = memchr::memchr(0xff, bytes.get(position..).unwrap_or_default()) {
            position += offset + 1;
            match bytes.get(position).copied() {
                // A stuffed or restarted byte of a scan, padding, or a marker without content.
                Some(0x00 | 0x01 | 0xd0..=START_OF_IMAGE) => position += 1,
                Some(0xff) => {}
                Some(END_OF_IMAGE) => {
                    markers.ended = true;
                    break;
                }
                Some(marker) => {
                    markers.scans += usize::from(marker == START_OF_SCAN);
                    if marker == START_OF_SCAN && markers.scans == 1 {
                        markers.first_scan_components = bytes.get(position + 3).copied().unwrap_or_default();
                    }
                    if markers.scans > MAX_SCANS {
                        break;
                    }
                    let length =
                        bytes.get(position + 1..position + 3).map(|field| u16::from_be_bytes([field[0], field[1]]));
                    let end = position + 1 + usize::from(length.unwrap_or(u16::MAX));
                    if marker == APPLICATION_1 && markers.scans == 0 {
                        metadata.add_jpeg_segment(bytes.get(position + 3..end).unwrap_or_default());
                    } else if markers.scans == 0 && marker == QUANTISATION_TABLES {
                        markers.has_quantisation_tables = true;
                    } else if markers.scans == 0 && marker == HUFFMAN_TABLES {
                        markers.has_huffman_tables = true;
                    } else if Frame::is_header(marker) && markers.frame == Frame::default() {
                        let bits = bytes.get(position + 3).copied().unwrap_or_default();
                        markers.frame = Frame { marker, bits, content_at: position + 3 };
                    }
                    position = end;
                }
                None => break,
            }
        }
        markers.orientation = metadata.orientation();
        markers
    }
}

/// The JPEG without two oddities that zune-jpeg stops at and everything else reads over: an Adobe segment that is too
/// short to say anything is left out, and where Huffman tables are missing the standard ones are added, which frames of
/// a video (MJPEG) mean by that.
fn repair(bytes: &[u8], frame: Frame) -> Cow<'_, [u8]> {
    // Progressive images always bring their tables, often only before a later scan.
    let is_sequential = matches!(frame.marker, 0xc0 | 0xc1);
    let (mut is_odd, mut tables) = (false, if is_sequential { 0 } else { ALL_STANDARD_TABLES });
    let mut header = bytes.get(..2).unwrap_or_default().to_vec();
    if is_sequential {
        header.extend_from_slice(&standard_huffman_tables());
    }
    let mut position = 2;
    while let Some((marker, end)) = segment(bytes, position) {
        let content = bytes.get(position + 4..end).unwrap_or_default();
        match marker {
            START_OF_SCAN => break,
            HUFFMAN_TABLES => tables |= defined_tables(content),
            _ => {}
        }
        // "Adobe", a version of two bytes, four bytes of flags, and how colours are stored.
        if marker == APPLICATION_14 && content.starts_with(b"Adobe") && content.len() < 12 {
            is_odd = true;
        } else {
            header.extend_from_slice(&bytes[position..end]);
        }
        position = end;
    }
    if !is_odd && tables == ALL_STANDARD_TABLES {
        return Cow::Borrowed(bytes);
    }
    header.extend_from_slice(bytes.get(position..).unwrap_or_default());
    Cow::Owned(header)
}

/// The marker of the segment at `position` and where it ends. None: no segment lies there whole.
fn segment(bytes: &[u8], position: usize) -> Option<(u8, usize)> {
    let &[0xff, marker @ 0xc0..=0xfe, high, low] = bytes.get(position..)?.first_chunk::<4>()? else { return None };
    let end = position + 2 + usize::from(u16::from_be_bytes([high, low]));
    (!matches!(marker, 0xd0..=END_OF_IMAGE) && (position + 4..=bytes.len()).contains(&end)).then_some((marker, end))
}

/// A bit for each of the four tables that the standard has: DC and AC, for luminance and chrominance.
const ALL_STANDARD_TABLES: u8 = 0b1111;

fn defined_tables(content: &[u8]) -> u8 {
    let (mut tables, mut rest) = (0, content);
    while let Some((&[class_and_id, ref counts @ ..], after)) = rest.split_first_chunk::<17>() {
        tables |= match class_and_id {
            0x00 => 0b0001,
            0x01 => 0b0010,
            0x10 => 0b0100,
            0x11 => 0b1000,
            _ => 0,
        };
        let values: usize = counts.iter().map(|&count| usize::from(count)).sum();
        rest = after.get(values..).unwrap_or_default();
    }
    tables
}

/// The tables of ITU-T T.81, K.3, as a segment.
fn standard_huffman_tables() -> Vec<u8> {
    const DC_VALUES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const DC_LUMINANCE: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
    const DC_CHROMINANCE: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
    const AC_LUMINANCE: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125];
    const AC_CHROMINANCE: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119];
    let tables: [(u8, [u8; 16], &[u8]); 4] = [
        (0x00, DC_LUMINANCE, &DC_VALUES),
        (0x10, AC_LUMINANCE, &AC_LUMINANCE_VALUES),
        (0x01, DC_CHROMINANCE, &DC_VALUES),
        (0x11, AC_CHROMINANCE, &AC_CHROMINANCE_VALUES),
    ];
    let content: Vec<u8> =
        tables.iter().flat_map(|(id, counts, values)| [&[*id], counts.as_slice(), values].concat()).collect();
    let length = u16::try_from(content.len() + 2).expect("418 bytes; this is a bug");
    [&[0xff, HUFFMAN_TABLES], length.to_be_bytes().as_slice(), &content].concat()
}

#[rustfmt::skip]
const AC_LUMINANCE_VALUES: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
    0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

#[rustfmt::skip]
const AC_CHROMINANCE_VALUES: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
    0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
    0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
    0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_counted_without_decoding() {
        // A thumbnail's own markers inside a segment do not count; stuffed bytes and restarts belong to the scan.
        let mut jpeg = b"\xff\xd8\xff\xe1\x00\x08\xff\xda\xff\xd9\x00\x00".to_vec();
        jpeg.extend_from_slice(b"\xff\xda\x00\x03\x01\x11\xff\x00\x22\xff\xd0\x33");
        jpeg.extend_from_slice(b"\xff\xc4\x00\x02\xff\xda\x00\x03\x01\x44");
        assert_eq!(Markers::walk(&jpeg), Markers { scans: 2, first_scan_components: 1, ..Markers::default() });
        jpeg.extend_from_slice(b"\xff\xff\xd9trailing\xff\xda");
        assert_eq!(
            Markers::walk(&jpeg),
            Markers { scans: 2, first_scan_components: 1, ended: true, ..Markers::default() }
        );
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
        let scan = |components: u8| [b"\xff\xda\x00\x03".as_slice(), &[components]].concat();
        let bytes_of = |parts: &[&[u8]]| {
            let jpeg = parts.concat();
            coefficient_bytes(&jpeg, &Markers::walk(&jpeg))
        };
        assert_eq!(bytes_of(&[&jpeg(0xc2), &scan(3)]), 12 * 128, "progressive");
        assert_eq!(bytes_of(&[&jpeg(0xc0), &scan(3), &scan(3)]), 12 * 128, "several scans");
        assert_eq!(bytes_of(&[&jpeg(0xc0), &scan(1)]), 12 * 128, "a scan that leaves components out");
        assert_eq!(bytes_of(&[b"\xff\xd8\xff\x01 \xff\xd0", &jpeg(0xc2)[2..], &scan(3)]), 12 * 128, "passed over");
        assert_eq!(bytes_of(&[&jpeg(0xc0), &scan(3)]), 0, "one scan");
        assert_eq!(bytes_of(&[&jpeg(0xc2)[..16]]), 0, "cut off");
        assert_eq!(bytes_of(&[b"\xff\xd8"]), 0);
    }

    #[test]
    fn orientation_is_read_before_the_first_scan_only() {
        let exif = |orientation: u8| {
            let mut segment = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
            segment.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0]);
            segment
        };
        let walked = |parts: &[&[u8]]| Markers::walk(&[b"\xff\xd8", parts.concat().as_slice()].concat()).orientation;
        assert_eq!(walked(&[&exif(6)]), Orientation::from_exif(6));
        assert_eq!(walked(&[&exif(6), b"\xff\xda\x00\x02", &exif(3)]), Orientation::from_exif(6));
        assert_eq!(walked(&[b"\xff\xda\x00\x02", &exif(3)]), Orientation::default());
        assert_eq!(walked(&[&exif(6)[..20]]), Orientation::default());
    }

    #[test]
    fn rare_codings_are_named() {
        let name = |marker, bits| Frame { marker, bits, content_at: 4 }.rare_coding().map(|coding| coding.name);
        assert_eq!(name(0xc0, 8), None);
        assert_eq!(name(0xc2, 8), None);
        assert_eq!(name(0xc1, 12).as_deref(), Some("of 12 bits a sample"));
        assert_eq!(name(0xc3, 8).as_deref(), Some("lossless"));
        assert_eq!(name(0xc9, 8).as_deref(), Some("arithmetic-coded"));
        assert_eq!(name(0xca, 12).as_deref(), Some("arithmetic-coded and of 12 bits a sample"));
        assert_eq!(name(0xf7, 8).as_deref(), Some("a JPEG-LS"));
        assert_eq!(name(0, 0), None, "without a frame header it is damaged");
    }

    #[test]
    fn missing_tables_are_added_and_a_short_adobe_segment_is_left_out() {
        let tables = standard_huffman_tables();
        assert_eq!(tables.len(), 2 + 2 + 4 * 17 + 2 * 12 + 2 * 162);
        assert_eq!(defined_tables(&tables[4..]), ALL_STANDARD_TABLES);
        let (start, scan) = (b"\xff\xd8".as_slice(), b"\xff\xda\x00\x03\x01\x11\x22\xff\xd9".as_slice());
        let complete = [start, &tables, scan].concat();
        let repaired = |bytes: &[u8]| repair(bytes, Frame { marker: 0xc0, bits: 8, content_at: 4 }).into_owned();
        assert_eq!(repaired(&complete), complete);
        assert_eq!(repaired(&[start, scan].concat()), complete);
        let progressive = Frame { marker: 0xc2, bits: 8, content_at: 4 };
        assert_eq!(*repair(&[start, scan].concat(), progressive), [start, scan].concat());
        let short = b"\xff\xee\x00\x08Adobe\x00".as_slice();
        assert_eq!(repaired(&[start, short, scan].concat()), complete);
        assert_eq!(*repair(&[start, short, scan].concat(), progressive), [start, scan].concat());
        let adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01".as_slice();
        let with_adobe = [start, adobe, &tables, scan].concat();
        assert_eq!(repaired(&with_adobe), with_adobe);
        assert_eq!(*repair(b"", progressive), *b"");
    }
}
