//! A small copy of an image, for people whose browser cannot show its format.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use super::budget::Budget;
use super::decode;
use super::error::{PrepareError, undecodable};
use super::input::Geometry;
use super::pixels::Pixels;
use crate::limits::Limits;

const QUALITY: u8 = 80;
const CHANNELS: usize = 3;

/// Decodes an image and returns an upright copy in JPEG, whose longer side has at most `max_side` pixels.
///
/// # Errors
/// Those of [`super::prepare`].
pub fn thumbnail(bytes: &[u8], limits: &Limits, max_side: usize) -> Result<Vec<u8>, PrepareError> {
    // Decoders have panicked on malformed input before. Their state is dropped with the closure.
    catch_unwind(AssertUnwindSafe(|| {
        let budget = Budget::new(limits);
        let pixels = decode::decode(bytes, limits, Geometry::Native, &budget)?;
        let small = Small::of(&pixels, max_side.max(1));
        let (width, height) = pixels.orientation.upright_size(small.width, small.height);
        let upright: Vec<u8> = pixels
            .orientation
            .stored_indices(small.width, small.height)
            .flat_map(|at| small.rgb[CHANNELS * at..][..CHANNELS].iter().copied())
            .collect();
        encode(&upright, width, height)
    }))
    .unwrap_or_else(|_panic| Err(undecodable("the image is damaged in a way that stopped the decoder")))
}

/// A smaller copy in the orientation of the file. Each of its pixels is the mean of those that it covers.
struct Small {
    rgb: Vec<u8>,
    width: usize,
    height: usize,
}

impl Small {
    fn of(pixels: &Pixels, max_side: usize) -> Small {
        let longer = pixels.width.max(pixels.height).max(1);
        let scaled = |side: usize| if longer <= max_side { side } else { (side * max_side / longer).max(1) };
        let (width, height) = (scaled(pixels.width), scaled(pixels.height));
        let mut rgb = Vec::with_capacity(CHANNELS * width * height);
        for y in 0..height {
            let rows = (y * pixels.height / height, ((y + 1) * pixels.height).div_ceil(height));
            for x in 0..width {
                let columns = (x * pixels.width / width, ((x + 1) * pixels.width).div_ceil(width));
                rgb.extend(mean(pixels, rows, columns));
            }
        }
        Small { rgb, width, height }
    }
}

fn mean(pixels: &Pixels, rows: (usize, usize), columns: (usize, usize)) -> [u8; CHANNELS] {
    let mut sums = [0_usize; CHANNELS];
    for row in rows.0..rows.1 {
        for column in columns.0..columns.1 {
            let pixel = &pixels.data[(row * pixels.width + column) * pixels.channels..][..pixels.channels];
            for (channel, sum) in sums.iter_mut().enumerate() {
                *sum += usize::from(*pixel.get(channel).filter(|_| pixels.channels >= CHANNELS).unwrap_or(&pixel[0]));
            }
        }
    }
    let count = ((rows.1 - rows.0) * (columns.1 - columns.0)).max(1);
    sums.map(|sum| u8::try_from((sum + count / 2) / count).unwrap_or(u8::MAX))
}

fn encode(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, PrepareError> {
    let size = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, QUALITY)
        .write_image(rgb, size(width), size(height), ExtendedColorType::Rgb8)
        .map_err(|error| undecodable(format!("its small copy cannot be written: {error}")))?;
    Ok(file)
}
