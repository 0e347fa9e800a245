//! Bytes → pixels, in agreement with the reference pipeline (`scripts/imgcls_models/preprocess.py`): the first frame, 8
//! bits (the high byte of 16), grey or RGB, transparency blended over white, no colour profile applied. The EXIF
//! orientation is returned instead of applied, because turning the small result of the resize costs nothing.
//!
//! Every file is treated as hostile:
//! - size limits are checked by the header, before memory for pixels is allocated;
//! - memory is reserved and CPU time is measured for every decoder (`budget`);
//! - JPEG has further guards (`jpeg`); PNG and TIFF are converted a few rows at a time (`png`, `tiff`);
//! - a truncated file is refused, as Pillow does: a prediction for half an image looks like any other, and the client
//!   can send the whole image.

use std::path::Path;

use super::budget::Budget;
use super::error::PrepareError;
use super::foreign::foreign_kind;
use super::format::Format;
use super::input::Geometry;
use super::pixels::Pixels;
use super::{bmp, camera_raw, gif, heif, ico, jpeg, jpeg_2000, jpeg_xl, png, tiff, webp};
use crate::error::ImageFault;
use crate::limits::Limits;

/// All formats that are decoded.
static FORMATS: &[Format] = &[
    jpeg::FORMAT,
    png::FORMAT,
    webp::FORMAT,
    heif::AVIF,
    heif::HEIC,
    jpeg_xl::FORMAT,
    jpeg_2000::FORMAT,
    tiff::FORMAT,
    camera_raw::FORMAT,
    gif::FORMAT,
    bmp::FORMAT,
    ico::FORMAT,
];

/// Returns the media type by the file's signature, which takes the first 64 bytes. Returns `None` when the format is
/// not supported.
pub fn sniff(bytes: &[u8]) -> Option<&'static str> {
    find(bytes).map(|format| format.media_type)
}

/// Reports whether a file of this name is meant to be an image of a supported format. The content is not read.
pub fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let has = |format: &Format| format.extensions.iter().any(|known| extension.eq_ignore_ascii_case(known));
    FORMATS.iter().any(has)
}

/// The media types of the supported formats.
pub fn media_types() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|format| format.media_type)
}

/// The names of the supported formats, for messages.
pub fn format_names() -> String {
    FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
}

/// Decodes one image; see [`super::format::Decode`].
pub(super) fn decode(
    bytes: &[u8],
    limits: &Limits,
    geometry: Geometry,
    budget: &Budget,
) -> Result<Pixels, PrepareError> {
    let Some(format) = find(bytes) else {
        let message = match foreign_kind(bytes) {
            Some(kind) => format!("the file is {kind}"),
            None => format!("not an image of a supported format ({})", format_names()),
        };
        return Err(PrepareError::new(ImageFault::UnsupportedType, message));
    };
    (format.decode)(bytes, limits, geometry, budget)
}

fn find(bytes: &[u8]) -> Option<&'static Format> {
    FORMATS.iter().find(|format| (format.has_signature)(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_type_follows_from_the_signature() {
        assert_eq!(sniff(b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n"), Some("image/png"));
        assert_eq!(sniff(b"RIFF\0\0\0\0WEBPVP8 "), Some("image/webp"));
        assert_eq!(sniff(b"RIFF\0\0\0\0WAVEfmt "), None);
        assert_eq!(sniff(b"GIF89a"), Some("image/gif"));
        assert_eq!(sniff(b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"), Some("image/bmp"));
        assert_eq!(sniff(b"BM is how this text begins"), None);
        assert_eq!(sniff(b"MM\0*"), Some("image/tiff"));
        assert_eq!(sniff(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), Some("image/heic"));
        assert_eq!(sniff(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif"), Some("image/avif"));
        assert_eq!(sniff(b"\0\0\0\x18ftypisom\0\0\0\0isommp41"), None);
        assert_eq!(sniff(b"\xff\x0a"), Some("image/jxl"));
        assert_eq!(sniff(b"\0\0\0\x0cJXL \r\n\x87\n"), Some("image/jxl"));
        assert_eq!(sniff(b"\0\0\0\x0cjP  \r\n\x87\n"), Some("image/jp2"));
        assert_eq!(sniff(b"\xff\x4f\xff\x51"), Some("image/jp2"));
        assert_eq!(sniff(b"FUJIFILMCCD-RAW 0201"), Some("image/x-raw"));
        assert_eq!(sniff(b"IIRO\x08\0\0\0"), Some("image/x-raw"));
        assert_eq!(sniff(b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom"), Some("image/x-raw"));
        assert_eq!(
            sniff(b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0\x68\x04\0\0\x16\0\0\0"),
            Some("image/vnd.microsoft.icon")
        );
        assert_eq!(sniff(b"\0\0\x01\0"), None);
        assert_eq!(sniff(b""), None);
        assert_eq!(sniff(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), None);
    }

    #[test]
    fn extension_says_whether_a_file_is_meant_to_be_an_image() {
        assert!(has_image_extension(Path::new("a/b.JPG")) && has_image_extension(Path::new("b.tiff")));
        assert!(!has_image_extension(Path::new("labels.csv")) && !has_image_extension(Path::new("jpg")));
    }
}
