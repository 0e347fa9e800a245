//! The common JPEG by libjpeg-turbo, at the smallest of its sizes that preprocessing can do with.

use std::cell::RefCell;

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat, ScalingFactor};

use super::PrepareError;
use super::decode::{Orientation, Pixels, Whole, room};

thread_local! {
    /// Made with a thread's first picture; holds nothing of a picture between two calls.
    static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
}

/// The decoded picture, or None where it is none of the common ones or libjpeg-turbo complains about anything.
///
/// `guard` is asked with width and height before memory for pixels is.
///
/// # Errors
/// Those of `guard`.
pub fn decode(
    bytes: &[u8],
    short_side: Option<u32>,
    orientation: Orientation,
    guard: impl Fn(usize, usize) -> Result<(), PrepareError>,
) -> Result<Option<Pixels>, PrepareError> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        if kept.is_none() {
            *kept = Decompressor::new().ok();
        }
        let Some(decompressor) = kept else { return Ok(None) };
        let Ok(header) = decompressor.read_header(bytes) else { return Ok(None) };
        let format = match header.colorspace {
            Colorspace::Gray => PixelFormat::GRAY,
            Colorspace::YCbCr | Colorspace::RGB => PixelFormat::RGB,
            _ => return Ok(None),
        };
        if header.is_lossless || header.is_arithmetic {
            return Ok(None);
        }
        guard(header.width, header.height)?;
        let scale = smallest(header.width.min(header.height), short_side);
        let whole = Whole { width: header.width, height: header.height, reduction: scale.denom() };
        let (width, height, channels) = (scale.scale(whole.width), scale.scale(whole.height), format.size());
        let data = room(width * height * channels);
        let mut pixels = Pixels { data, width, height, channels, orientation, whole };
        let image = Image { pixels: pixels.data.as_mut_slice(), width, pitch: width * channels, height, format };
        let decoded = decompressor.set_scaling_factor(scale).and_then(|()| decompressor.decompress(bytes, image));
        Ok(decoded.is_ok().then_some(pixels))
    })
}

/// The fractions that libjpeg-turbo has fast code for; the others take longer than the whole.
const FRACTIONS: [ScalingFactor; 3] = [ScalingFactor::ONE_EIGHTH, ScalingFactor::ONE_QUARTER, ScalingFactor::ONE_HALF];

/// The smallest that leaves the resize something to do: what it is to give, and
fn smallest(short: usize, wanted: Option<u32>) -> ScalingFactor {
    let margin: usize = std::env::var("MARGIN").ok().and_then(|m| m.parse().ok()).unwrap_or(100);
    let Some(wanted) = wanted else { return ScalingFactor::ONE };
    let enough = |factor: &ScalingFactor| factor.scale(short) * 100 >= wanted as usize * margin;
    FRACTIONS.into_iter().find(enough).unwrap_or(ScalingFactor::ONE)
}
