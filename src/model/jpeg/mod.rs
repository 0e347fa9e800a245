//! JPEG → pixels: the guards, and the choice between two decoders.
//!
//! - libjpeg-turbo (`turbo`, feature `turbojpeg`) is twice as fast, decodes large images at a fraction of their size,
//!   and decodes only the part that the model uses. It gets every complete file. If it reports any warning or error,
//!   its result is discarded.
//! - zune-jpeg decides about everything else, so that a damaged file has the same outcome in every build. A file with
//!   an end marker is decoded as far as its data make sense, as in browsers. A file without one must contain every
//!   pixel, which only zune-jpeg's strict mode verifies.
//!
//! A JPEG may contain any number of scans over the whole image, each as expensive as a full decode. So scans × pixels
//! is limited; the scans are counted by walking the markers before either decoder sees the file.

mod markers;
mod repair;

use std::cell::Cell;

use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use self::markers::{Frame, MAX_SCANS, Markers, RareCoding, coefficient_bytes};
use self::repair::repair;
use super::budget::Budget;
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::input::Geometry;
use super::orientation::Orientation;
use super::pixels::{Pixels, check_size, zeroed_buffer};
#[cfg(feature = "turbojpeg")]
use super::turbo;
use crate::error::ImageFault;
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "JPEG",
    media_type: "image/jpeg",
    extensions: &["jpg", "jpeg", "jpe", "jfif"],
    has_signature: |bytes| bytes.starts_with(b"\xff\xd8\xff"),
    decode,
};

/// Maximum of scans × pixels, in units of `max_pixels`: an image of `max_pixels` may have this many scans.
const MAX_SCANS_AT_MAX_PIXELS: u64 = 16;

/// The same limit for the second decoder, because a damaged image costs the time of both.
const MAX_SCANS_AT_MAX_PIXELS_FOR_SECOND: u64 = 6;

/// The decoder of most JPEGs in this build, for a person.
pub const DECODER: &str = if cfg!(feature = "turbojpeg") {
    "libjpeg-turbo"
} else {
    "zune-jpeg (slower; built without the feature turbojpeg)"
};

fn decode(bytes: &[u8], limits: &Limits, geometry: Geometry, budget: &Budget) -> Result<Pixels, PrepareError> {
    decode_turned(bytes, Orientation::default(), limits, geometry, budget)
}

/// Reports whether these bytes are a JPEG of the usual coding, and not for example the lossless JPEG of sensor data.
pub(super) fn is_displayable(bytes: &[u8]) -> bool {
    (FORMAT.has_signature)(bytes) && {
        let Frame { marker, bits, .. } = Markers::walk(bytes).frame;
        matches!(marker, 0xc0..=0xc2) && bits == 8
    }
}

/// Decodes a JPEG that is stored in another file. The orientation of that file counts if it is not upright.
pub(super) fn decode_turned(
    bytes: &[u8],
    orientation: Orientation,
    limits: &Limits,
    geometry: Geometry,
    budget: &Budget,
) -> Result<Pixels, PrepareError> {
    let mut markers = Markers::walk(bytes);
    if orientation != Orientation::default() {
        markers.orientation = orientation;
    }
    if markers.scans > MAX_SCANS {
        return Err(undecodable(format!("the JPEG has more than {MAX_SCANS} scans")));
    }
    if markers.lacks_tables() {
        return Err(undecodable("the JPEG lacks the tables that are needed to decode it"));
    }
    // Each decoder calls the guard once.
    let most_scans = Cell::new(MAX_SCANS_AT_MAX_PIXELS);
    let guard = |width, height| {
        let most_scans = most_scans.replace(MAX_SCANS_AT_MAX_PIXELS_FOR_SECOND);
        check_cost(bytes, &markers, limits, (width, height), most_scans)
    };
    let coefficients = coefficient_bytes(bytes, &markers);
    let reserve = |pixel_bytes: usize| budget.reserve(coefficients.saturating_add(pixel_bytes as u64));
    #[cfg(feature = "turbojpeg")]
    if markers.is_complete
        && let Some(pixels) = turbo::decode(bytes, geometry, markers.orientation, guard, reserve)?
    {
        return Ok(pixels);
    }
    #[cfg(not(feature = "turbojpeg"))]
    let _ = geometry;
    budget.check()?;
    match markers.frame.rare_coding() {
        Some(coding) => Err(refusal(&coding, markers.is_complete)),
        None => decode_with_zune(&repair(bytes, markers.frame), &markers, guard, reserve),
    }
}

/// The error for an image of this coding that was not decoded.
fn refusal(coding: &RareCoding, is_complete: bool) -> PrepareError {
    let name = &coding.name;
    if !(coding.is_supported_by_libjpeg_turbo && cfg!(feature = "turbojpeg")) {
        let message = format!("the JPEG is {name}, which this build does not decode; save it as a baseline JPEG");
        return PrepareError::new(ImageFault::UnsupportedType, message);
    }
    undecodable(if is_complete {
        format!("the JPEG, which is {name}, is damaged or has a colour space that is not supported")
    } else {
        format!("the JPEG, which is {name}, is truncated")
    })
}

/// Decodes at full size by zune-jpeg.
fn decode_with_zune(
    bytes: &[u8],
    markers: &Markers,
    guard: impl Fn(usize, usize) -> Result<(), PrepareError>,
    reserve: impl Fn(usize) -> Result<(), PrepareError>,
) -> Result<Pixels, PrepareError> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .set_strict_mode(!markers.is_complete);
    let damaged = |_| undecodable(if markers.is_complete { "the JPEG is damaged" } else { "the JPEG is truncated" });
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| undecodable("the JPEG has no size"))?;
    guard(width, height)?;
    let channels = if decoder.input_colorspace() == Some(ColorSpace::Luma) { 1 } else { 3 };
    let colours = if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    reserve(width * height * channels)?;
    let mut pixels = Pixels::whole(zeroed_buffer(width * height * channels), (width, height), channels);
    pixels.orientation = markers.orientation;
    decoder.decode_into(&mut pixels.data).map_err(damaged)?;
    Ok(pixels)
}

/// Refuses an image that would cost too much, or whose file is too short, by its header alone.
fn check_cost(
    bytes: &[u8],
    markers: &Markers,
    limits: &Limits,
    (width, height): (usize, usize),
    most_scans: u64,
) -> Result<(), PrepareError> {
    check_size(width as u64, height as u64, limits)?;
    let pixels = (width * height) as u64;
    if pixels.saturating_mul(markers.scans as u64) > limits.max_pixels.saturating_mul(most_scans) {
        return Err(undecodable(format!("the JPEG has {} scans, too many for its size", markers.scans)));
    }
    // A block of 64 pixels takes at least one bit. Half of that is required, because components may be subsampled.
    // Arithmetic coding takes a fraction of a bit for blocks without change.
    let blocks_per_bit = if matches!(markers.frame.marker, 0xc9 | 0xca) { 16 } else { 1 };
    if (bytes.len() as u64) < pixels / (64 * 8 * 2 * blocks_per_bit) {
        return Err(undecodable("the JPEG is truncated"));
    }
    Ok(())
}
