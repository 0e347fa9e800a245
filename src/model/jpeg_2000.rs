//! JPEG 2000, decoded by `hayro-jpeg2000`: in a JP2 file, or as a bare stream.

use hayro_jpeg2000::{DecodeSettings, Image};

use super::budget::Budget;
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::pixels::{Pixels, check_size, over_white, zeroed_buffer};
use crate::error::ImageFault;
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "JPEG 2000",
    media_type: "image/jp2",
    extensions: &["jp2", "j2k", "jpf", "j2c", "jpc"],
    has_signature: |bytes| bytes.starts_with(b"\0\0\0\x0cjP  \r\n\x87\n") || bytes.starts_with(b"\xff\x4f\xff\x51"),
    decode: |bytes, limits, _, budget| decode(bytes, limits, budget),
};

/// Memory of the decoder for each sample of a pixel, as measured (decision 37).
const BYTES_PER_SAMPLE: u64 = 16;

fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let damaged = |_| undecodable("the JPEG 2000 is damaged or truncated");
    let settings = DecodeSettings { strict: true, ..DecodeSettings::default() };
    let image = Image::new(bytes, &settings).map_err(damaged)?;
    check_size(u64::from(image.width()), u64::from(image.height()), limits)?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let colours = usize::from(image.color_space().num_channels());
    let samples = colours + usize::from(image.has_alpha());
    budget.reserve((width * height * samples) as u64 * BYTES_PER_SAMPLE)?;
    let data = image.decode().map_err(damaged)?;
    budget.check()?;
    if data.len() != width * height * samples {
        return Err(undecodable("the JPEG 2000 is damaged"));
    }
    let channels = if colours == 1 { 1 } else { 3 };
    let mut pixels = Pixels::whole(zeroed_buffer(width * height * channels), (width, height), channels);
    match (colours, image.has_alpha()) {
        (1 | 3, false) => pixels.data.copy_from_slice(&data),
        (1, true) => over_white::<2, 1>(&data, &mut pixels.data),
        (3, true) => over_white::<4, 3>(&data, &mut pixels.data),
        _ => {
            let message = "the JPEG 2000 has other colours than grey and RGB, which are not supported; save it in RGB";
            return Err(PrepareError::new(ImageFault::UnsupportedType, message));
        }
    }
    Ok(pixels)
}
