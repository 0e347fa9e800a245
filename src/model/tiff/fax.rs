//! CCITT compression of bilevel images: runs of white and black pixels, as fax machines send them.

use std::borrow::Cow;
use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use fax::decoder::{DecodeStatus, Group4Decoder, pels};
use fax::maps::{Mode, black, mode, white};
use fax::{BitReader as _, ByteReader, Color};

use super::error::{damaged, truncated, unsupported};
use crate::error::PrepareError;

/// How rows are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaxCoding {
    /// Each row begins at a byte and is coded by itself.
    RunLength,
    /// An end-of-line code separates rows. With two dimensions, a row may be coded relative to the one above.
    Group3 { is_two_dimensional: bool },
    /// Each row is coded relative to the one above.
    Group4,
}

/// A decoder of one strip or tile.
pub(super) struct Fax {
    rows: Rows,
    /// Number of bytes that the decoder may still read for this row.
    allowance: Rc<Cell<usize>>,
    width: u16,
    /// The data declared its end; the remaining rows are white.
    has_ended: bool,
}

enum Rows {
    Group4(Group4Decoder<FaxBytes>),
    Other { reader: ByteReader<FaxBytes>, coding: FaxCoding, current: Vec<u16>, above: Vec<u16> },
}

/// The input of the decoder. It ends when one row reads more bytes than any valid row has, because decoders keep what
/// they read in memory.
struct FaxBytes {
    bytes: Vec<u8>,
    at: usize,
    allowance: Rc<Cell<usize>>,
}

impl Iterator for FaxBytes {
    type Item = Result<u8, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.allowance.get().checked_sub(1)?;
        self.allowance.set(left);
        self.at += 1;
        self.bytes.get(self.at - 1).copied().map(Ok)
    }
}

/// Codes are searched by as many bits as the longest has, also at the end of the data.
const PADDING: &[u8] = &[0; 4];

impl Fax {
    pub(super) fn new(coding: FaxCoding, bytes: Cow<[u8]>, width: usize) -> Result<Fax, PrepareError> {
        let width = u16::try_from(width).map_err(|_| unsupported("CCITT rows of more than 65535 pixels"))?;
        let allowance = Rc::new(Cell::new(Fax::row_bytes(width)));
        let mut bytes = bytes.into_owned();
        if coding != FaxCoding::Group4 {
            bytes.extend_from_slice(PADDING);
        }
        let bytes = FaxBytes { bytes, at: 0, allowance: Rc::clone(&allowance) };
        let rows = if coding == FaxCoding::Group4 {
            let Ok(decoder) = Group4Decoder::new(bytes, width);
            Rows::Group4(decoder)
        } else {
            let Ok(reader) = ByteReader::new(bytes);
            Rows::Other { reader, coding, current: Vec::new(), above: Vec::new() }
        };
        Ok(Fax { rows, allowance, width, has_ended: false })
    }

    /// An upper bound on the size of a coded row: more than the longest code for each pixel.
    fn row_bytes(width: u16) -> usize {
        2 * usize::from(width) + 64
    }

    /// Fills complete rows. A set bit is black.
    pub(super) fn read(&mut self, rows: &mut [u8]) -> Result<(), PrepareError> {
        for row in rows.chunks_exact_mut(usize::from(self.width).div_ceil(8)) {
            row.fill(0);
            self.allowance.set(Fax::row_bytes(self.width));
            if self.has_ended {
                continue;
            }
            self.has_ended = match &mut self.rows {
                Rows::Group4(decoder) => decoder.advance().map_err(|_| damaged())? == DecodeStatus::End,
                Rows::Other { reader, coding, current, above } => {
                    std::mem::swap(current, above);
                    !read_row(reader, *coding, self.width, above, current)?
                }
            };
            if self.has_ended {
                continue;
            }
            let transitions = match &self.rows {
                Rows::Group4(decoder) => decoder.transition(),
                Rows::Other { current, .. } => current,
            };
            for (x, color) in pels(transitions, self.width).enumerate() {
                row[x / 8] |= u8::from(color == Color::Black) << (7 - x % 8);
            }
        }
        Ok(())
    }
}

/// Reads the positions at which the colour of a row changes, beginning with white. Returns false at the end of the
/// data that the data themselves declare.
fn read_row(
    reader: &mut ByteReader<FaxBytes>,
    coding: FaxCoding,
    width: u16,
    above: &[u16],
    current: &mut Vec<u16>,
) -> Result<bool, PrepareError> {
    current.clear();
    match coding {
        FaxCoding::Group3 { is_two_dimensional } => {
            let mut is_coded_by_itself = true;
            if skip_end_of_line(reader)? {
                if is_two_dimensional {
                    is_coded_by_itself = reader.peek(1) == Some(1);
                    let Ok(()) = reader.consume(1);
                }
                // A second end of line without a row before it begins the end of the data.
                if skip_end_of_line(reader)? {
                    return Ok(false);
                }
            }
            if is_coded_by_itself { runs(reader, width, current) } else { relative(reader, width, above, current) }
        }
        _ => {
            let bits = reader.bits_to_byte_boundary();
            let Ok(()) = reader.consume(bits);
            runs(reader, width, current)
        }
    }
    .map(|()| true)
}

/// Skips an end-of-line code, with the zeros that may precede it. No other code begins with nine zeros.
fn skip_end_of_line(reader: &mut ByteReader<FaxBytes>) -> Result<bool, PrepareError> {
    if reader.peek(9) != Some(0) {
        return Ok(false);
    }
    loop {
        let bit = reader.peek(1).ok_or_else(truncated)?;
        let Ok(()) = reader.consume(1);
        if bit == 1 {
            return Ok(true);
        }
    }
}

/// Reads a row that is coded by itself.
fn runs(reader: &mut ByteReader<FaxBytes>, width: u16, current: &mut Vec<u16>) -> Result<(), PrepareError> {
    let (mut x, mut color) = (0, Color::White);
    while x < width {
        x = run(reader, color)?.saturating_add(x).min(width);
        current.push(x);
        color = !color;
    }
    Ok(())
}

/// Reads the length of a run: multiples of 64, then the rest.
fn run(reader: &mut ByteReader<FaxBytes>, color: Color) -> Result<u16, PrepareError> {
    let mut length: u16 = 0;
    loop {
        let part = match color {
            Color::White => white::decode(reader),
            Color::Black => black::decode(reader),
        };
        let part = part.ok_or_else(damaged)?;
        length = length.saturating_add(part);
        if part < 64 {
            return Ok(length);
        }
    }
}

/// Reads a row that is coded relative to the one above.
fn relative(
    reader: &mut ByteReader<FaxBytes>,
    width: u16,
    above: &[u16],
    current: &mut Vec<u16>,
) -> Result<(), PrepareError> {
    // The position is -1 before the first pixel, so that a change at 0 lies after it.
    let (mut x, mut color) = (-1, Color::White);
    let end = i32::from(width);
    while x < end {
        // Changes to black have even indices.
        let parity = usize::from(color == Color::Black);
        let later = |index: &usize| above.get(*index).is_some_and(|change| i32::from(*change) > x);
        let index = (parity..above.len()).step_by(2).find(later).unwrap_or(above.len());
        let change = |index: usize| above.get(index).map_or(end, |change| i32::from(*change));
        match mode::decode(reader).ok_or_else(damaged)? {
            Mode::Pass => x = change(index + 1),
            Mode::Vertical(offset) => {
                let next = change(index) + i32::from(offset);
                if next < x.max(0) {
                    return Err(damaged());
                }
                x = next.min(end);
                current.push(x as u16);
                color = !color;
            }
            Mode::Horizontal => {
                for color in [color, !color] {
                    x = (x.max(0) + i32::from(run(reader, color)?)).min(end);
                    current.push(x as u16);
                }
            }
            Mode::Extension | Mode::EOF => return Err(damaged()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs codes that are written as digits.
    fn pack(codes: &str) -> Vec<u8> {
        let bits: Vec<u8> = codes.bytes().filter(|digit| *digit != b' ').map(|digit| digit - b'0').collect();
        bits.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | bit << (7 - at))).collect()
    }

    fn rows(coding: FaxCoding, codes: &str, width: usize, count: usize) -> Result<Vec<u8>, PrepareError> {
        let mut rows = vec![0xff; count * width.div_ceil(8)];
        Fax::new(coding, Cow::Owned(pack(codes)), width)?.read(&mut rows)?;
        Ok(rows)
    }

    const END_OF_LINE: &str = "000000000001";

    #[test]
    fn rows_are_read_in_every_coding() {
        // White 4, black 4, white 8; then white 16.
        let (first, second) = ("1011 011 10011", "101010");
        let expected = [0b0000_1111, 0, 0, 0];
        let lines = format!("{first} 0000 {second}");
        assert_eq!(rows(FaxCoding::RunLength, &lines, 16, 2).unwrap(), expected);
        let group3 = FaxCoding::Group3 { is_two_dimensional: false };
        let lines = [END_OF_LINE, first, "0000", END_OF_LINE, second, END_OF_LINE].concat();
        assert_eq!(rows(group3, &lines, 16, 2).unwrap(), expected);
        // The second row equals the first except that its black run ends one pixel later.
        let group3 = FaxCoding::Group3 { is_two_dimensional: true };
        let lines = [END_OF_LINE, "1", first, END_OF_LINE, "0", "1", "011", "1"].concat();
        assert_eq!(rows(group3, &lines, 16, 2).unwrap(), [0b0000_1111, 0, 0b0000_1111, 0b1000_0000]);
    }

    #[test]
    fn rows_after_the_declared_end_are_white_and_missing_rows_are_an_error() {
        let group3 = FaxCoding::Group3 { is_two_dimensional: false };
        let end = END_OF_LINE.repeat(6);
        let lines = [END_OF_LINE, "1011 011 10011", &end].concat();
        assert_eq!(rows(group3, &lines, 16, 3).unwrap(), [0b0000_1111, 0, 0, 0, 0, 0]);
        assert!(rows(group3, &[END_OF_LINE, "1011 011 10011"].concat(), 16, 3).is_err());
        assert!(rows(FaxCoding::RunLength, "1011 011 10011", 16, 3).is_err());
    }

    #[test]
    fn random_bytes_do_not_panic() {
        let mut state = 1_u32;
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            for is_two_dimensional in [false, true] {
                for coding in [FaxCoding::RunLength, FaxCoding::Group3 { is_two_dimensional }, FaxCoding::Group4] {
                    let mut rows = vec![0; 5 * 13];
                    let mut fax = Fax::new(coding, Cow::Borrowed(&bytes), 100).unwrap();
                    let _ = fax.read(&mut rows);
                }
            }
        }
    }
}
