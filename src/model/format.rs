//! The type that describes an image format.

use super::budget::Budget;
use super::error::PrepareError;
use super::input::Geometry;
use super::pixels::Pixels;
use crate::limits::Limits;

/// An image format: how its files are recognised, and what decodes them. `decode::FORMATS` lists all of them.
pub(super) struct Format {
    /// The name in messages.
    pub name: &'static str,
    pub media_type: &'static str,
    /// The usual extensions of file names, in lower case.
    pub extensions: &'static [&'static str],
    /// Recognises a file by its first 64 bytes.
    pub has_signature: fn(&[u8]) -> bool,
    pub decode: Decode,
}

/// Decodes the first frame of a file.
///
/// The geometry says what the model uses of the image: a decoder may return the image at a fraction of its size and
/// leave out what lies outside the crop. With [`Geometry::Native`] it returns all pixels.
///
/// # Errors
/// The errors of the limits on size; `DecodeTimeout` and `TooLargeDecoded` if decoding costs more than the budget allows;
/// `Undecodable` for a damaged file, and `UnsupportedType` for a coding that no decoder supports.
pub(super) type Decode = fn(&[u8], &Limits, Geometry, &Budget) -> Result<Pixels, PrepareError>;
