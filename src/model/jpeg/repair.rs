//! Repair of JPEGs that other decoders accept and zune-jpeg does not.

use std::borrow::Cow;

use super::markers::{APPLICATION_14, END_OF_IMAGE, Frame, HUFFMAN_TABLES, START_OF_SCAN};

/// Removes an Adobe segment that is too short to contain its fields, and adds the standard Huffman tables if tables are
/// missing, as in frames of Motion JPEG.
pub(super) fn repair(bytes: &[u8], frame: Frame) -> Cow<'_, [u8]> {
    // Progressive images always contain their tables, often only before a later scan.
    let is_sequential = matches!(frame.marker, 0xc0 | 0xc1);
    let (mut has_short_adobe_segment, mut tables) = (false, if is_sequential { 0 } else { ALL_STANDARD_TABLES });
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
        // A complete segment is "Adobe", a version of two bytes, four bytes of flags, and the colour transform.
        if marker == APPLICATION_14 && content.starts_with(b"Adobe") && content.len() < 12 {
            has_short_adobe_segment = true;
        } else {
            header.extend_from_slice(&bytes[position..end]);
        }
        position = end;
    }
    if !has_short_adobe_segment && tables == ALL_STANDARD_TABLES {
        return Cow::Borrowed(bytes);
    }
    header.extend_from_slice(bytes.get(position..).unwrap_or_default());
    Cow::Owned(header)
}

/// The marker and the end of the segment at `position`. Returns `None` when there is no complete segment.
fn segment(bytes: &[u8], position: usize) -> Option<(u8, usize)> {
    let &[0xff, marker @ 0xc0..=0xfe, high, low] = bytes.get(position..)?.first_chunk::<4>()? else { return None };
    let end = position + 2 + usize::from(u16::from_be_bytes([high, low]));
    (!matches!(marker, 0xd0..=END_OF_IMAGE) && (position + 4..=bytes.len()).contains(&end)).then_some((marker, end))
}

/// One bit for each of the four standard tables: DC and AC, for luminance and chrominance.
const ALL_STANDARD_TABLES: u8 = 0b1111;

/// The tables that a segment defines, as bits of [`ALL_STANDARD_TABLES`].
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

/// The tables of ITU-T T.81, section K.3, as a segment.
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
    fn missing_tables_are_added_and_a_short_adobe_segment_is_removed() {
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
