//! Decoding by the crate `image`, for the formats that have no decoder of their own here.

use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::budget::Budget;
use super::error::{PrepareError, undecodable};
use super::pixels::{Pixels, check_size, over_white, zeroed_buffer};
use crate::limits::Limits;

/// Memory that a decoder may use in addition to the pixels that it returns.
const SPARE_BYTES: u64 = 64 << 20;

/// A decoder of the crate `image`.
pub(super) struct ImageCrate {
    /// The format's name in messages.
    pub name: &'static str,
    pub format: ImageFormat,
    /// Peak memory of the decoder in addition to the pixels that it returns, in bytes per pixel, as measured.
    pub scratch_bytes_per_pixel: u64,
    /// Corrects the decoded pixels before they are converted.
    pub correct: fn(&mut [u8], ColorType),
}

impl ImageCrate {
    /// Decodes the first frame. The orientation is not read.
    pub(super) fn decode(&self, bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
        let refused = |error: ImageError| budget.reason(undecodable(self.reason(&error)));
        let mut allowed = image::Limits::no_limits();
        allowed.max_alloc = Some(limits.max_pixels.saturating_mul(4).saturating_add(SPARE_BYTES));
        let mut reader = ImageReader::with_format(budget.source([bytes, b""]), self.format);
        reader.limits(allowed.clone());
        let mut decoder = reader.into_decoder().map_err(refused)?;
        let (width, height) = decoder.dimensions();
        check_size(u64::from(width), u64::from(height), limits)?;
        // The decoded image counts towards what the decoder may allocate; the check above bounds it.
        let total_bytes = decoder.total_bytes();
        allowed.max_alloc = Some(total_bytes.saturating_add(SPARE_BYTES));
        decoder.set_limits(allowed).map_err(refused)?;
        let color_type = decoder.color_type();
        let scratch_bytes = (u64::from(width) * u64::from(height)).saturating_mul(self.scratch_bytes_per_pixel);
        budget.reserve(total_bytes.saturating_add(scratch_bytes))?;
        let total_bytes = usize::try_from(total_bytes)
            .map_err(|_| undecodable(format!("the {} is too large for this machine", self.name)))?;
        let mut data = zeroed_buffer(total_bytes);
        decoder.read_image(&mut data).map_err(refused)?;
        (self.correct)(&mut data, color_type);
        let (width, height) = (width as usize, height as usize);
        let channels = to_opaque_8_bit(&mut data, color_type, width)
            .ok_or_else(|| undecodable(format!("the {} has a colour type that is not supported", self.name)))?;
        Ok(Pixels::whole(data, (width, height), channels))
    }

    /// Says what the client can act on. The crate's own texts may be long and quote the file.
    fn reason(&self, error: &ImageError) -> String {
        let name = self.name;
        match error {
            ImageError::Unsupported(_) => format!("the {name} uses a feature that is not supported"),
            ImageError::Limits(_) => format!("the {name} needs more memory than its size explains"),
            ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                format!("the {name} is truncated")
            }
            _ => format!("the {name} is damaged"),
        }
    }
}

/// Converts pixels of any colour type to opaque grey or RGB in place. Returns the number of channels, or `None` when
/// the colour type is not supported.
fn to_opaque_8_bit(data: &mut Vec<u8>, color_type: ColorType, width: usize) -> Option<usize> {
    match color_type {
        ColorType::L8 => return Some(1),
        ColorType::Rgb8 => return Some(3),
        _ => {}
    }
    let channels = if color_type.has_color() { 3 } else { 1 };
    let samples = usize::from(color_type.channel_count());
    let bytes_per_pixel = usize::from(color_type.bytes_per_pixel());
    let to_8_bit: fn(&[u8], &mut [u8]) = match bytes_per_pixel / samples {
        1 => |from, to| to.copy_from_slice(from),
        2 => |from, to| {
            for (sample, to) in from.chunks_exact(2).zip(to) {
                *to = (u16::from_ne_bytes([sample[0], sample[1]]) >> 8) as u8;
            }
        },
        4 => |from, to| {
            for (sample, to) in from.chunks_exact(4).zip(to) {
                let value = f32::from_ne_bytes([sample[0], sample[1], sample[2], sample[3]]);
                *to = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        },
        _ => return None,
    };
    let mut row = vec![0; width * samples];
    for y in 0..data.len() / (width * bytes_per_pixel) {
        to_8_bit(&data[y * width * bytes_per_pixel..][..width * bytes_per_pixel], &mut row);
        let target = &mut data[y * width * channels..][..width * channels];
        match (samples, channels) {
            (2, 1) => over_white::<2, 1>(&row, target),
            (4, 3) => over_white::<4, 3>(&row, target),
            _ => target.copy_from_slice(&row),
        }
    }
    let rows = data.len() / (width * bytes_per_pixel);
    data.truncate(rows * width * channels);
    Some(channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparency_is_blended_over_white() {
        let mut data = vec![10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 200, 128];
        assert_eq!(to_opaque_8_bit(&mut data, ColorType::Rgba8, 3), Some(3));
        assert_eq!(data, [10, 20, 30, 255, 255, 255, 127, 177, 227]);
        let mut grey = vec![0, 128, 50, 255];
        assert_eq!(to_opaque_8_bit(&mut grey, ColorType::La8, 1), Some(1));
        assert_eq!(grey, [127, 50]);
    }

    #[test]
    fn sixteen_bit_samples_keep_their_high_byte() {
        let mut data: Vec<u8> = [0x1234_u16, 0xffff, 0x00ff].iter().flat_map(|value| value.to_ne_bytes()).collect();
        assert_eq!(to_opaque_8_bit(&mut data, ColorType::L16, 3), Some(1));
        assert_eq!(data, [0x12, 0xff, 0x00]);
    }
}
