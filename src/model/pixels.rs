//! Decoded pixels: the result of every decoder, the checks that all of them share, and blending.

use std::cell::Cell;

use super::error::{PrepareError, undecodable};
use super::orientation::Orientation;
use crate::error::ImageFault;
use crate::limits::Limits;

/// Maximum number of pixels along one side, the same as libpng's. Decoders work row by row, so an image that is one
/// pixel wide pays the overhead of a row for every pixel.
const MAX_SIDE: u64 = 1_000_000;

/// Largest buffer that a thread keeps for its next image: 1080p in RGB. Larger images are rare, and their buffers are
/// freed.
const MAX_KEPT_BYTES: usize = 1920 * 1080 * 3;

thread_local! {
    /// The pixel buffer of the previous image. Reusing it avoids page faults.
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A decoded image as it is stored; `orientation` says how to turn it upright.
#[derive(Debug)]
pub(super) struct Pixels {
    /// Rows without padding, `channels` bytes per pixel.
    pub data: Vec<u8>,
    pub width: usize,
    pub height: usize,
    /// 1: grey, 3: RGB, 4: RGB and an unused byte.
    pub channels: usize,
    pub orientation: Orientation,
    /// The part of the image in the file that these pixels show.
    pub origin: Origin,
}

impl Pixels {
    /// All pixels of an image at full size.
    pub(super) fn whole(data: Vec<u8>, (width, height): (usize, usize), channels: usize) -> Pixels {
        let origin = Origin::whole(width, height);
        Pixels { data, width, height, channels, orientation: Orientation::default(), origin }
    }
}

impl Drop for Pixels {
    fn drop(&mut self) {
        if self.data.capacity() <= MAX_KEPT_BYTES {
            KEPT.set(std::mem::take(&mut self.data));
        }
    }
}

/// The size of the image in the file, and the part of it that was decoded. Each decoded pixel covers `reduction` ×
/// `reduction` pixels of the file (fewer at the right and bottom edge). `left` and `top` count the decoded pixels that
/// were left out before the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub width: usize,
    pub height: usize,
    pub reduction: usize,
    pub left: usize,
    pub top: usize,
}

impl Origin {
    /// The whole image at full size.
    pub(super) fn whole(width: usize, height: usize) -> Origin {
        Origin { width, height, reduction: 1, left: 0, top: 0 }
    }
}

/// Returns a buffer of zeros for the pixels of an image. It is cleared because a decoder may leave bytes unwritten,
/// which must not show the previous image.
pub(super) fn zeroed_buffer(bytes: usize) -> Vec<u8> {
    let mut buffer = KEPT.take();
    if buffer.capacity() < bytes {
        return vec![0; bytes];
    }
    buffer.clear();
    buffer.resize(bytes, 0);
    buffer
}

/// Checks the size of an image file, before it is parsed.
pub(super) fn check_bytes(bytes: &[u8], limits: &Limits) -> Result<(), PrepareError> {
    if bytes.len() as u64 > limits.max_upload_bytes {
        let message =
            format!("the image has {} bytes, more than the limit of {}", bytes.len(), limits.max_upload_bytes);
        return Err(PrepareError::new(ImageFault::InputTooLarge, message));
    }
    Ok(())
}

/// Checks an image's size by its header, before memory for pixels is allocated.
pub(super) fn check_size(width: u64, height: u64, limits: &Limits) -> Result<(), PrepareError> {
    if width == 0 || height == 0 {
        return Err(undecodable("the image has no pixels"));
    }
    if width.saturating_mul(height) > limits.max_pixels {
        let message = format!("the image has {width} × {height} pixels, more than the limit of {}", limits.max_pixels);
        return Err(PrepareError::new(ImageFault::TooManyPixels, message));
    }
    if width.max(height) > MAX_SIDE {
        let message = format!("the image has {width} × {height} pixels; each side may have at most {MAX_SIDE}");
        return Err(PrepareError::new(ImageFault::TooManyPixels, message));
    }
    Ok(())
}

/// Blends pixels of `TO` colour channels and alpha over white.
pub(super) fn over_white<const FROM: usize, const TO: usize>(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.as_chunks::<FROM>().0.iter().zip(to.as_chunks_mut::<TO>().0) {
        for channel in 0..TO {
            to[channel] = blend(from[channel], from[TO]);
        }
    }
}

/// Blends one value over white.
#[inline]
pub(super) fn blend(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let blended = value * alpha + 255 * (255 - alpha) + 128;
    ((blended + (blended >> 8)) >> 8) as u8 // blended / 255, rounded
}
