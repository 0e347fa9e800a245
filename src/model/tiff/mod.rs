//! TIFF → pixels, a few rows of a strip or tile at a time, so that only the 8-bit image is kept in memory, whatever the
//! file stores.
//!
//! - `directory`: the tags of the file; `tag`: their numbers
//! - `header`: what the pixels mean; `chunks`: where the strips or tiles are
//! - `unpack`: compressed bytes of a strip or tile → rows; `samples`: rows → 8-bit samples
//! - `builder`: strips or tiles → the image
//!
//! An unknown feature is refused by name, because a prediction for a wrongly decoded image looks like any other.

mod builder;
mod chunks;
mod directory;
mod error;
mod header;
mod samples;
mod tag;
mod unpack;

use self::builder::ImageBuilder;
use self::chunks::Chunks;
use self::directory::Directory;
use self::error::damaged;
use self::header::Header;
use super::budget::Budget;
use super::error::PrepareError;
use super::exif::Metadata;
use super::format::Format;
use super::pixels::{Pixels, check_size};
use crate::config::Limits;
use crate::protocol::ErrorCode;

pub(super) const FORMAT: Format = Format {
    name: "TIFF",
    media_type: "image/tiff",
    extensions: &["tif", "tiff"],
    has_signature: |bytes| {
        // TIFF and BigTIFF, in either byte order.
        [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|signature| bytes.starts_with(*signature))
    },
    decode: |bytes, limits, _, budget| decode(bytes, limits, budget),
};

/// Maximum number of bytes that are unpacked, in units of the largest allowed image: RGB and alpha in floats have as
/// many. Samples that are not used, and the parts of tiles outside the image, take time like all others.
const MAX_BYTES_AT_MAX_PIXELS: u64 = 16;

fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let directory = Directory::read(bytes)?;
    let (width, height) = (directory.number(tag::IMAGE_WIDTH), directory.number(tag::IMAGE_LENGTH));
    let (width, height) = width.zip(height).ok_or_else(damaged)?;
    check_size(width, height, limits)?;
    let header = Header::read(&directory, width as usize, height as usize)?;
    let chunks = Chunks::read(&directory, &header)?;
    let unpacked_bytes = (header.planes().len() * chunks.across * chunks.row_bytes) as u64 * height;
    let most = limits.max_pixels.saturating_mul(MAX_BYTES_AT_MAX_PIXELS);
    if unpacked_bytes > most {
        let message =
            format!("the TIFF unpacks to {unpacked_bytes} bytes, more than the limit of {most} (16 × --max-pixels)");
        return Err(PrepareError::new(ErrorCode::TooLargeDecoded, message));
    }
    budget.reserve(builder::memory_bytes(&header, &chunks))?;
    let mut builder = ImageBuilder::new(&header, &directory);
    for plane in header.planes() {
        for index in 0..chunks.across * chunks.down {
            builder.add_chunk(&chunks, plane, index, budget)?;
        }
    }
    let mut pixels = builder.finish()?;
    pixels.orientation = Metadata::of_tiff(bytes).orientation();
    Ok(pixels)
}
