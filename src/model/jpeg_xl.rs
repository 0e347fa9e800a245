//! JPEG XL, decoded by `jxl-oxide`: the first frame, in sRGB if the file leaves the choice, otherwise as it is stored.
//!
//! The decoder gets the file in pieces, between which the clock is checked. It counts what it allocates, and stops at
//! the memory that was reserved for the image.

use jxl_oxide::{
    AllocTracker, EnumColourEncoding, ExtraChannelType, InitializeResult, JxlImage, JxlThreadPool, RenderingIntent,
};

use super::budget::{Budget, PIECE_BYTES};
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::pixels::{Pixels, blend, check_size, zeroed_buffer};
use crate::error::ImageFault;
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "JPEG XL",
    media_type: "image/jxl",
    extensions: &["jxl"],
    has_signature: |bytes| bytes.starts_with(b"\xff\x0a") || bytes.starts_with(b"\0\0\0\x0cJXL \r\n\x87\n"),
    decode: |bytes, limits, _, budget| decode(bytes, limits, budget),
};

/// Maximum number of frames up to the first one that is shown: layers that are blended, and references.
const MAX_FRAMES: usize = 64;

/// Maximum of frames × pixels, in units of `max_pixels`.
const MAX_FRAMES_AT_MAX_PIXELS: u64 = 8;

/// Memory of the decoder for each pixel, as measured, and for any image (decision 37).
const BYTES_PER_PIXEL: u64 = 48;
const SPARE_BYTES: u64 = 16 << 20;

fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let available = usize::try_from(limits.max_decode_bytes).unwrap_or(usize::MAX);
    let tracker = AllocTracker::with_limit(available);
    let (mut image, rest) = begin(bytes, tracker.clone(), budget)?;
    let (width, height) = (image.width(), image.height());
    check_size(u64::from(width), u64::from(height), limits)?;
    let pixels = u64::from(width) * u64::from(height);
    let needed = pixels * BYTES_PER_PIXEL + SPARE_BYTES;
    budget.reserve(needed)?;
    let surplus = available.saturating_sub(usize::try_from(needed).unwrap_or(usize::MAX));
    tracker.shrink_limit(surplus).map_err(|_| damaged())?;
    load_first_frame(&mut image, rest, pixels, limits, budget)?;
    let is_grey = image.pixel_format().is_grayscale();
    if image.pixel_format().has_black() {
        let message = "the JPEG XL has CMYK colours, which are not supported; save it in RGB";
        return Err(PrepareError::new(ImageFault::UnsupportedType, message));
    }
    if image.image_header().metadata.xyb_encoded {
        let intent = RenderingIntent::Relative;
        let srgb = if is_grey { EnumColourEncoding::gray_srgb(intent) } else { EnumColourEncoding::srgb(intent) };
        image.request_color_encoding(srgb);
    }
    render(&image, (width as usize, height as usize), if is_grey { 1 } else { 3 }, budget)
}

fn damaged() -> PrepareError {
    undecodable("the JPEG XL is damaged")
}

fn truncated() -> PrepareError {
    undecodable("the JPEG XL is truncated")
}

/// Reads the header. Returns the image and the part of the file that was not read.
fn begin<'a>(bytes: &'a [u8], tracker: AllocTracker, budget: &Budget) -> Result<(JxlImage, &'a [u8]), PrepareError> {
    let builder = JxlImage::builder().pool(JxlThreadPool::none()).alloc_tracker(tracker);
    let (mut beginning, mut rest, mut length) = (builder.build_uninit(), bytes, PIECE_BYTES);
    loop {
        budget.check()?;
        if rest.is_empty() {
            return Err(truncated());
        }
        let read = beginning.feed_bytes(&rest[..length.min(rest.len())]).map_err(|_| damaged())?;
        if read == 0 && length >= rest.len() {
            return Err(truncated());
        }
        rest = &rest[read..];
        beginning = match beginning.try_init().map_err(|_| damaged())? {
            InitializeResult::Initialized(image) => return Ok((image, rest)),
            InitializeResult::NeedMoreData(beginning) => beginning,
        };
        // Each turn parses the header again, so the pieces grow.
        length *= 2;
    }
}

/// Reads the file up to the end of the first frame that is shown.
fn load_first_frame(
    image: &mut JxlImage,
    mut rest: &[u8],
    pixels: u64,
    limits: &Limits,
    budget: &Budget,
) -> Result<(), PrepareError> {
    let mut length = PIECE_BYTES;
    while image.num_loaded_keyframes() == 0 {
        budget.check()?;
        let read = image.feed_bytes(&rest[..length.min(rest.len())]).map_err(|_| damaged())?;
        if read == 0 && length >= rest.len() {
            return Err(truncated());
        }
        length = if read == 0 { 2 * length } else { PIECE_BYTES };
        rest = &rest[read..];
        let frames = image.num_loaded_frames();
        let most = limits.max_pixels.saturating_mul(MAX_FRAMES_AT_MAX_PIXELS);
        if frames > MAX_FRAMES || pixels.saturating_mul(frames as u64) > most {
            return Err(undecodable("the JPEG XL has too many frames for its size"));
        }
    }
    Ok(())
}

/// Renders the first frame, turned upright, and blends it over white.
fn render(
    image: &JxlImage,
    (width, height): (usize, usize),
    channels: usize,
    budget: &Budget,
) -> Result<Pixels, PrepareError> {
    let frame = image.render_frame(0).map_err(|_| damaged())?;
    budget.check()?;
    let mut stream = frame.stream();
    let samples = stream.channels() as usize;
    let is_expected = (stream.width() as usize, stream.height() as usize) == (width, height);
    if !is_expected || !(samples == channels || samples == channels + 1) {
        return Err(damaged());
    }
    let is_premultiplied = image.image_header().metadata.ec_info.iter().find_map(|extra| match extra.ty {
        ExtraChannelType::Alpha { alpha_associated } => Some(alpha_associated),
        _ => None,
    });
    let mut pixels = Pixels::whole(zeroed_buffer(width * height * channels), (width, height), channels);
    let mut row = vec![0_u8; width * samples];
    for (y, target) in pixels.data.chunks_exact_mut(width * channels).enumerate() {
        stream.write_to_buffer(&mut row);
        if samples == channels {
            target.copy_from_slice(&row);
        } else {
            over_white(&row, target, channels, is_premultiplied == Some(true));
        }
        if y % 64 == 63 {
            budget.check()?;
        }
    }
    Ok(pixels)
}

fn over_white(row: &[u8], target: &mut [u8], channels: usize, is_premultiplied: bool) {
    for (from, to) in row.chunks_exact(channels + 1).zip(target.chunks_exact_mut(channels)) {
        let alpha = from[channels];
        for (value, to) in from.iter().zip(to) {
            *to = if is_premultiplied { value.saturating_add(255 - alpha) } else { blend(*value, alpha) };
        }
    }
}
