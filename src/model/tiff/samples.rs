//! Samples of any size → 8 bits. Integers keep their high byte; floats are scaled from the range 0 to 1. Of signed
//! integers, negative ones become 0 and the others keep the 8 bits after the sign.

use super::directory::{ByteOrder, Directory};
use super::error::{damaged, unsupported};
use super::tag;
use crate::error::PrepareError;

/// The stored form of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Samples {
    bits: u32,
    is_float: bool,
    is_signed: bool,
    order: ByteOrder,
}

impl Samples {
    pub(super) fn read(directory: &Directory) -> Result<Samples, PrepareError> {
        let bits = directory.number(tag::BITS_PER_SAMPLE).unwrap_or(1);
        if directory.numbers(tag::BITS_PER_SAMPLE).take(64).any(|other| other != bits) {
            return Err(unsupported("samples of different sizes"));
        }
        let format = directory.number(tag::SAMPLE_FORMAT).unwrap_or(1);
        if directory.numbers(tag::SAMPLE_FORMAT).take(64).any(|other| other != format) {
            return Err(unsupported("samples of different kinds"));
        }
        let (is_float, is_signed) = match format {
            1 | 4 => (false, false),
            2 if bits.is_multiple_of(8) => (false, true),
            3 => (true, false),
            2 => return Err(unsupported(format_args!("signed samples of {bits} bits"))),
            5 | 6 => return Err(unsupported("complex samples")),
            _ => return Err(damaged()),
        };
        let is_known = if is_float { matches!(bits, 16 | 32 | 64) } else { (1..=32).contains(&bits) || bits == 64 };
        if !is_known {
            let kind = if is_float { "floats" } else { "samples" };
            return Err(unsupported(format_args!("{kind} of {bits} bits")));
        }
        Ok(Samples { bits: bits as u32, is_float, is_signed, order: directory.order })
    }

    pub(super) fn bits(self) -> u32 {
        self.bits
    }

    pub(super) fn are_bytes(self) -> bool {
        self.bits == 8 && !self.is_signed
    }

    /// Reports whether a sample can be an index into a palette.
    pub(super) fn is_index(self) -> bool {
        self.bits <= 8 && !self.is_float && !self.is_signed
    }

    /// Fills `target` from the samples at the beginning of `row`. `is_big_endian` overrides the byte order of the file.
    /// With `is_index`, values are copied without scaling. Returns the number of floats above 1.
    pub(super) fn to_8_bit(self, row: &[u8], is_big_endian: bool, is_index: bool, target: &mut [u8]) -> u64 {
        let order = if is_big_endian { ByteOrder::Big } else { self.order };
        match (self.is_float, self.bits) {
            (true, 16) => floats(row, target, |value| half(order.u16(value))),
            (true, 32) => floats(row, target, |value| f32::from_bits(order.u32(value))),
            (true, _) => floats(row, target, |value| f64::from_bits(order.u64(value)) as f32),
            (false, bits) if bits % 8 == 0 => {
                let bytes = bits as usize / 8;
                let high = if order == ByteOrder::Big { 0 } else { bytes - 1 };
                let next = if order == ByteOrder::Big { 1 } else { bytes.wrapping_sub(2) };
                for (value, target) in row.chunks_exact(bytes).zip(target) {
                    *target = match value[high] {
                        first if !self.is_signed => first,
                        0x80.. => 0,
                        first => first << 1 | value.get(next).map_or(0, |second| second >> 7),
                    };
                }
                0
            }
            (false, bits) => {
                packed(row, bits, is_index, target);
                0
            }
        }
    }
}

fn floats<const N: usize>(row: &[u8], target: &mut [u8], value: impl Fn([u8; N]) -> f32) -> u64 {
    let mut above_one = 0;
    for (bytes, target) in row.as_chunks::<N>().0.iter().zip(target) {
        let value = value(*bytes);
        above_one += u64::from(value > 1.0);
        // NaN becomes 0.
        *target = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    }
    above_one
}

/// Converts a 16-bit float.
fn half(bits: u16) -> f32 {
    let magnitude = f32::from(bits & 0x3ff);
    let value = match bits >> 10 & 0x1f {
        0 => magnitude * (-24_f32).exp2(),
        0x1f if magnitude == 0.0 => f32::INFINITY,
        0x1f => f32::NAN,
        exponent => (1.0 + magnitude / 1024.0) * (f32::from(exponent) - 15.0).exp2(),
    };
    if bits >> 15 == 1 { -value } else { value }
}

/// Unpacks samples whose size is not a multiple of 8 bits, starting with the highest bit.
fn packed(row: &[u8], bits: u32, is_index: bool, target: &mut [u8]) {
    let largest = (1_u64 << bits) - 1;
    let (mut buffer, mut available) = (0_u64, 0);
    let mut bytes = row.iter();
    for target in target {
        while available < bits {
            buffer = buffer << 8 | u64::from(bytes.next().copied().unwrap_or(0));
            available += 8;
        }
        available -= bits;
        let value = buffer >> available & largest;
        *target = match bits {
            _ if is_index => value as u8,
            0..8 => (value * 255 / largest) as u8,
            _ => (value >> (bits - 8)) as u8,
        };
    }
}

/// The transformation that was applied to rows before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    None,
    /// Each sample is stored as its difference from the one to its left.
    Horizontal,
    /// The bytes of floats are grouped by significance, then stored as differences.
    Float,
}

impl Predictor {
    pub(super) fn read(number: u64, format: Samples) -> Result<Predictor, PrepareError> {
        match number {
            1 => Ok(Predictor::None),
            2 if matches!(format.bits, 8 | 16 | 32 | 64) => Ok(Predictor::Horizontal),
            3 if format.is_float => Ok(Predictor::Float),
            2 => Err(unsupported(format_args!("a predictor for samples of {} bits", format.bits))),
            3 => Err(unsupported("the floating-point predictor for integers")),
            _ => Err(damaged()),
        }
    }

    /// Restores a row in place. `samples` is the number of samples per pixel in this row. Returns whether the row is
    /// now big-endian, regardless of the file.
    pub(super) fn undo(self, row: &mut [u8], samples: usize, format: Samples) -> bool {
        let order = format.order;
        match (self, format.bits) {
            (Predictor::None, _) => return false,
            (Predictor::Horizontal, 8) => sum(row, samples, |[a], [b]| [a.wrapping_add(b)]),
            (Predictor::Horizontal, 16) => {
                sum(row, samples, |a, b| in_order_16(order, order.u16(a).wrapping_add(order.u16(b))));
            }
            (Predictor::Horizontal, 32) => {
                sum(row, samples, |a, b| in_order_32(order, order.u32(a).wrapping_add(order.u32(b))));
            }
            (Predictor::Horizontal, _) => {
                sum(row, samples, |a, b| in_order_64(order, order.u64(a).wrapping_add(order.u64(b))));
            }
            (Predictor::Float, bits) => {
                sum(row, samples, |[a], [b]| [a.wrapping_add(b)]);
                let (sorted, bytes) = (row.to_vec(), bits as usize / 8);
                let values = row.len() / bytes;
                for (index, value) in row.chunks_exact_mut(bytes).enumerate() {
                    for (significance, byte) in value.iter_mut().enumerate() {
                        *byte = sorted[significance * values + index];
                    }
                }
                return true;
            }
        }
        false
    }
}

/// Adds to each value the one `samples` positions before it.
fn sum<const N: usize>(row: &mut [u8], samples: usize, add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let values = row.as_chunks_mut::<N>().0;
    for at in samples..values.len() {
        values[at] = add(values[at], values[at - samples]);
    }
}

fn in_order_16(order: ByteOrder, value: u16) -> [u8; 2] {
    if order == ByteOrder::Big { value.to_be_bytes() } else { value.to_le_bytes() }
}

fn in_order_32(order: ByteOrder, value: u32) -> [u8; 4] {
    if order == ByteOrder::Big { value.to_be_bytes() } else { value.to_le_bytes() }
}

fn in_order_64(order: ByteOrder, value: u64) -> [u8; 8] {
    if order == ByteOrder::Big { value.to_be_bytes() } else { value.to_le_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(samples: Samples, row: &[u8], count: usize) -> Vec<u8> {
        let mut target = vec![0; count];
        samples.to_8_bit(row, false, false, &mut target);
        target
    }

    #[test]
    fn integers_keep_their_high_bits() {
        let of = |bits, order| Samples { bits, is_float: false, is_signed: false, order };
        let (little, big) = (ByteOrder::Little, ByteOrder::Big);
        assert_eq!(bytes_of(of(1, big), &[0b1010_0000], 3), [255, 0, 255]);
        assert_eq!(bytes_of(of(4, big), &[0x0f, 0x80], 3), [0, 255, 136]);
        assert_eq!(bytes_of(of(12, little), &[0x12, 0x3a, 0xbc], 2), [0x12, 0xab]);
        assert_eq!(bytes_of(of(16, little), &[0x34, 0x12], 1), [0x12]);
        assert_eq!(bytes_of(of(16, big), &[0x12, 0x34], 1), [0x12]);
        assert_eq!(bytes_of(of(32, little), &[1, 2, 3, 4], 1), [4]);
        let signed = |bits, order| Samples { is_signed: true, ..of(bits, order) };
        assert_eq!(bytes_of(signed(16, little), &[0x80, 0x12, 0xff, 0x7f, 0, 0x80], 3), [0x25, 0xff, 0]);
        assert_eq!(bytes_of(signed(32, big), &[0x12, 0x80, 0, 0], 1), [0x25]);
        assert_eq!(bytes_of(signed(8, big), &[0x12, 0x80, 0x7f], 3), [0x24, 0, 0xfe]);
    }

    #[test]
    fn floats_are_clamped_to_0_to_1_and_those_above_1_are_counted() {
        let format = Samples { bits: 32, is_float: true, is_signed: false, order: ByteOrder::Big };
        let row: Vec<u8> = [0.0_f32, 0.5, 1.0, 2.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .iter()
            .flat_map(|value| value.to_be_bytes())
            .collect();
        let mut target = [9; 8];
        assert_eq!(format.to_8_bit(&row, false, false, &mut target), 2);
        assert_eq!(target, [0, 128, 255, 255, 0, 0, 255, 0]);
        let halves =
            [(0x3c00, 1.0), (0x3800, 0.5), (0x0001, (-24_f32).exp2()), (0xbc00, -1.0), (0x7c00, f32::INFINITY)];
        assert!(halves.iter().all(|&(bits, value)| half(bits).to_bits() == value.to_bits()));
        assert!(half(0x7e00).is_nan());
    }

    #[test]
    fn predictors_are_undone() {
        let format = Samples { bits: 16, is_float: false, is_signed: false, order: ByteOrder::Little };
        let mut row = [255, 0, 2, 0, 1, 0, 254, 255];
        assert!(!Predictor::Horizontal.undo(&mut row, 2, format));
        assert_eq!(row, [255, 0, 2, 0, 0, 1, 0, 0]);
        // The floats 1.0 and 2.0 (0x3f800000, 0x40000000), grouped from the high byte on, then stored as differences.
        let format = Samples { bits: 32, is_float: true, is_signed: false, order: ByteOrder::Little };
        let mut row = [0x3f, 1, 0x40, 0x80, 0, 0, 0, 0];
        assert!(Predictor::Float.undo(&mut row, 1, format));
        assert_eq!(row, [0x3f, 0x80, 0, 0, 0x40, 0, 0, 0]);
    }
}
