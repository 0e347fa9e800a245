//! Reads the markers of a JPEG without decoding it.

use crate::exif::Metadata;
use crate::orientation::Orientation;

/// Maximum number of scans in one JPEG. Encoders write about ten (the scripts of libjpeg and mozjpeg); tools that
/// search for the smallest file write fewer than twenty.
pub(super) const MAX_SCANS: usize = 64;

const START_OF_IMAGE: u8 = 0xd8;
pub(super) const END_OF_IMAGE: u8 = 0xd9;
pub(super) const START_OF_SCAN: u8 = 0xda;
pub(super) const HUFFMAN_TABLES: u8 = 0xc4;
const ARITHMETIC_CONDITIONING: u8 = 0xcc;
const QUANTISATION_TABLES: u8 = 0xdb;
const RESERVED_EXTENSION: u8 = 0xc8;
const JPEG_LS: u8 = 0xf7;
const APPLICATION_1: u8 = 0xe1;
pub(super) const APPLICATION_14: u8 = 0xee;

/// The information in the markers of a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Markers {
    /// Number of scans; counting stops beyond [`MAX_SCANS`].
    pub scans: usize,
    /// Number of components in the first scan.
    first_scan_components: u8,
    /// An end marker follows the scans.
    pub is_complete: bool,
    pub frame: Frame,
    /// The tables precede the first scan.
    has_quantisation_tables: bool,
    has_huffman_tables: bool,
    /// The orientation in the metadata before the first scan. Thumbnails lie inside the metadata and are not read.
    pub orientation: Orientation,
}

/// How the samples are coded, by the first frame header. All fields are zero if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Frame {
    pub marker: u8,
    /// Bits per sample.
    pub bits: u8,
    /// Offset in the file at which the content of the header begins.
    pub content_at: usize,
}

impl Frame {
    fn is_header(marker: u8) -> bool {
        matches!(marker, 0xc0..=0xcf | JPEG_LS)
            && !matches!(marker, HUFFMAN_TABLES | RESERVED_EXTENSION | ARITHMETIC_CONDITIONING)
    }

    /// Returns `None` for Huffman-coded samples of 8 bits, which nearly every JPEG has.
    pub(super) fn rare_coding(self) -> Option<RareCoding> {
        let (name, is_supported) = match self.marker {
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
        Some(RareCoding { name, is_supported_by_libjpeg_turbo: is_supported })
    }
}

impl Markers {
    /// Reports whether required tables are missing. A sequential image without Huffman tables uses the standard ones;
    /// there are no standard quantisation tables, and the tables of another image must not be used.
    pub(super) fn lacks_tables(&self) -> bool {
        self.scans > 0
            && match self.frame.marker {
                0xc0 | 0xc1 | 0xc9 | 0xca => !self.has_quantisation_tables,
                0xc2 => !(self.has_quantisation_tables && self.has_huffman_tables),
                _ => false,
            }
    }

    /// Walks the markers without decoding.
    pub(super) fn walk(bytes: &[u8]) -> Markers {
        let mut markers = Markers::default();
        let mut metadata = Metadata::default();
        let mut position = 2;
        while let Some(offset) = memchr::memchr(0xff, bytes.get(position..).unwrap_or_default()) {
            position += offset + 1;
            match bytes.get(position).copied() {
                // A stuffed byte of a scan, a restart marker, padding, or another marker without content.
                Some(0x00 | 0x01 | 0xd0..=START_OF_IMAGE) => position += 1,
                Some(0xff) => {}
                Some(END_OF_IMAGE) => {
                    markers.is_complete = true;
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

/// A coding that zune-jpeg does not support, so that the decision of libjpeg-turbo is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RareCoding {
    /// The name in messages.
    pub name: String,
    pub is_supported_by_libjpeg_turbo: bool,
}

/// Memory that a decoder holds in addition to the pixels: two bytes for each coefficient of the image, unless all of
/// them are in one scan.
pub(super) fn coefficient_bytes(bytes: &[u8], markers: &Markers) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_counted_without_decoding() {
        // Markers of a thumbnail inside a segment do not count; stuffed bytes and restart markers belong to the scan.
        let mut jpeg = b"\xff\xd8\xff\xe1\x00\x08\xff\xda\xff\xd9\x00\x00".to_vec();
        jpeg.extend_from_slice(b"\xff\xda\x00\x03\x01\x11\xff\x00\x22\xff\xd0\x33");
        jpeg.extend_from_slice(b"\xff\xc4\x00\x02\xff\xda\x00\x03\x01\x44");
        assert_eq!(Markers::walk(&jpeg), Markers { scans: 2, first_scan_components: 1, ..Markers::default() });
        jpeg.extend_from_slice(b"\xff\xff\xd9trailing\xff\xda");
        assert_eq!(
            Markers::walk(&jpeg),
            Markers { scans: 2, first_scan_components: 1, is_complete: true, ..Markers::default() }
        );
        let endless: Vec<u8> = b"\xff\xda\x00\x02".repeat(100_000);
        assert_eq!(Markers::walk(&endless).scans, MAX_SCANS + 1);
        assert_eq!(Markers::walk(b"\xff\xd8"), Markers::default());
    }

    #[test]
    fn coefficients_are_counted_if_the_decoder_keeps_them() {
        let jpeg = |frame: u8| {
            let mut jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff".to_vec();
            jpeg.extend_from_slice(&[0xff, frame]);
            // 17 × 16 pixels, the first of three components with twice the resolution on both axes: 2 × 1 units of 6
            // blocks.
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
        assert_eq!(bytes_of(&[&jpeg(0xc0), &scan(1)]), 12 * 128, "a scan without some components");
        assert_eq!(
            bytes_of(&[b"\xff\xd8\xff\x01 \xff\xd0", &jpeg(0xc2)[2..], &scan(3)]),
            12 * 128,
            "markers without content are skipped"
        );
        assert_eq!(bytes_of(&[&jpeg(0xc0), &scan(3)]), 0, "one scan");
        assert_eq!(bytes_of(&[&jpeg(0xc2)[..16]]), 0, "truncated");
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
    fn rare_codings_have_a_name() {
        let name = |marker, bits| Frame { marker, bits, content_at: 4 }.rare_coding().map(|coding| coding.name);
        assert_eq!(name(0xc0, 8), None);
        assert_eq!(name(0xc2, 8), None);
        assert_eq!(name(0xc1, 12).as_deref(), Some("of 12 bits a sample"));
        assert_eq!(name(0xc3, 8).as_deref(), Some("lossless"));
        assert_eq!(name(0xc9, 8).as_deref(), Some("arithmetic-coded"));
        assert_eq!(name(0xca, 12).as_deref(), Some("arithmetic-coded and of 12 bits a sample"));
        assert_eq!(name(0xf7, 8).as_deref(), Some("a JPEG-LS"));
        assert_eq!(name(0, 0), None, "a file without a frame header is damaged");
    }
}
