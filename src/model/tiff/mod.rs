//! TIFF → pixels, a few rows of a strip or tile at a time, so that only the 8-bit image is kept in memory, whatever the
//! file stores.
//!
//! - `directory`: the tags of the file; `tag`: their numbers
//! - `header`: what the pixels mean; `colours`: their conversion; `chunks`: where the strips or tiles are
//! - `unpack` (with `fax` and `xz`): compressed bytes of a strip or tile → rows; `samples`: rows → 8-bit samples
//! - `builder`: strips or tiles → the image
//! - `pages`: the images of a file with several
//! - `raw`: camera raw images with the structure of a TIFF, of which a preview is decoded
//!
//! An unknown feature is refused by name, because a prediction for a wrongly decoded image looks like any other.

mod builder;
mod chunks;
mod colours;
mod directory;
mod error;
mod fax;
mod header;
mod pages;
pub(super) mod raw;
mod samples;
mod tag;
mod unpack;
mod xz;

use self::builder::ImageBuilder;
use self::chunks::Chunks;
use self::directory::Directory;
use self::error::damaged;
use self::header::Header;
pub use self::pages::{tiff_page, tiff_pages};
use self::raw::Kind;
use super::budget::Budget;
use super::error::PrepareError;
use super::exif::Metadata;
use super::format::Format;
use super::input::Geometry;
use super::jpeg;
use super::orientation::Orientation;
use super::pixels::{Pixels, check_size};
use crate::error::ImageFault;
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "TIFF",
    media_type: "image/tiff",
    extensions: &["tif", "tiff"],
    has_signature: |bytes| {
        // TIFF and BigTIFF, in either byte order.
        [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|signature| bytes.starts_with(*signature))
    },
    decode,
};

/// Maximum number of bytes that are unpacked, in units of the largest allowed image: RGB and alpha in floats have as
/// many. Samples that are not used, and the parts of tiles outside the image, take time like all others.
const MAX_BYTES_AT_MAX_PIXELS: u64 = 16;

/// The error of a camera raw image without a preview.
pub(super) fn no_preview() -> PrepareError {
    let message = "the file is a camera raw image without a JPEG preview; convert it to JPEG or TIFF";
    PrepareError::new(ImageFault::UnsupportedType, message)
}

/// Decodes a TIFF, or the preview of a camera raw image with the structure of one.
pub(super) fn decode(
    bytes: &[u8],
    limits: &Limits,
    geometry: Geometry,
    budget: &Budget,
) -> Result<Pixels, PrepareError> {
    let directory = Directory::read(bytes)?;
    match raw::kind_of(bytes, &directory) {
        Kind::Raw(Some(preview)) => {
            let orientation = directory.number(tag::ORIENTATION).and_then(|value| u8::try_from(value).ok());
            let orientation = Orientation::from_exif(orientation.unwrap_or_default());
            return jpeg::decode_turned(preview, orientation, limits, geometry, budget);
        }
        Kind::Raw(None) => return Err(no_preview()),
        Kind::Image => {}
    }
    if let Some(whole) = old_style_jpeg(&directory) {
        return jpeg::decode_turned(whole, Metadata::of_tiff(bytes).orientation(), limits, geometry, budget);
    }
    decode_image(bytes, &directory, limits, budget)
}

/// The image of a TIFF that contains one JPEG with all its markers, as its first edition described it.
fn old_style_jpeg<'a>(directory: &Directory<'a>) -> Option<&'a [u8]> {
    let [compression, offset, length] =
        [tag::COMPRESSION, tag::JPEG_INTERCHANGE, tag::JPEG_INTERCHANGE_LENGTH].map(|tag| directory.number(tag));
    let whole = directory.bytes(offset?, length.unwrap_or(u64::MAX));
    (compression == Some(6) && jpeg::is_displayable(whole)).then_some(whole)
}

fn decode_image(bytes: &[u8], directory: &Directory, limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let (width, height) = (directory.number(tag::IMAGE_WIDTH), directory.number(tag::IMAGE_LENGTH));
    let (width, height) = width.zip(height).ok_or_else(damaged)?;
    check_size(width, height, limits)?;
    let header = Header::read(directory, width as usize, height as usize)?;
    let chunks = Chunks::read(directory, &header)?;
    let unpacked_bytes = (header.planes().len() * chunks.across * chunks.row_bytes) as u64 * height;
    let most = limits.max_pixels.saturating_mul(MAX_BYTES_AT_MAX_PIXELS);
    if unpacked_bytes > most {
        let message =
            format!("the TIFF unpacks to {unpacked_bytes} bytes, more than the limit of {most} (16 × --max-pixels)");
        return Err(PrepareError::new(ImageFault::TooLargeDecoded, message));
    }
    budget.reserve(builder::memory_bytes(&header, &chunks))?;
    let mut builder = ImageBuilder::new(&header, directory);
    for plane in header.planes() {
        for index in 0..chunks.across * chunks.down {
            builder.add_chunk(&chunks, plane, index, budget)?;
        }
    }
    let mut pixels = builder.finish()?;
    pixels.orientation = Metadata::of_tiff(bytes).orientation();
    Ok(pixels)
}
