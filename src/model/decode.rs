//! Bytes → pixels, as the reference pipeline has them (`scripts/imgcls_models/preprocess.py`): first frame, 8 bits (of
//! 16 the high byte), grey or RGB, what is transparent laid over white, no colour profile applied. The EXIF orientation
//! is handed on instead of applied: turning the small result of the resize costs nothing.
//!
//! What comes in is hostile until shown otherwise:
//! - size limits are held against the header, before memory for pixels is asked for;
//! - memory is reserved and time is measured (`budget`), whichever decoder it is;
//! - a JPEG has more guards (`jpeg`); PNG and TIFF are converted a few rows at a time (`png`, `tiff`);
//! - a decoder gets [`SPARE_BYTES`] beside the picture itself;
//! - a file that ends before its picture does is refused, as Pillow does: an answer for half a picture looks like an
//!   answer, and who sent it can send the whole.

use std::cell::Cell;

use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::budget::Budget;
use super::package::Geometry;
use super::{PrepareError, bmp, exif, jpeg, png, repair, tiff};
use crate::config::Limits;
use crate::protocol::ErrorCode;

/// What a decoder may use beside the pixels it returns.
const SPARE_BYTES: u64 = 64 << 20;

/// Most pixels along one side, as libpng has it. Decoders work row by row: what a row costs beside its pixels would be
/// spent for each pixel of a picture that is one pixel wide.
const MAX_SIDE: u64 = 1_000_000;

/// Pixels of one picture that a thread keeps room for until the next: 1080p in RGB. Rarer, larger ones give theirs back.
const KEPT_BYTES: usize = 1920 * 1080 * 3;

thread_local! {
    /// Room for the pixels of the next picture: what was touched once costs no page faults again.
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A decoded picture as it is stored; `orientation` says how to look at it.
#[derive(Debug)]
pub struct Pixels {
    /// Rows without padding, `channels` bytes a pixel.
    pub data: Vec<u8>,
    pub width: usize,
    pub height: usize,
    /// 1: grey, 3: RGB, 4: RGB and a byte that means nothing.
    pub channels: usize,
    pub orientation: Orientation,
    /// What of the picture in the file these are, where a decoder reduced it or left parts out.
    pub origin: Origin,
}

/// The picture in the file and where in it pixels come from: `reduction` of its pixels lie along one of those that were
/// decoded (the last of a row or column may stand for fewer), and so many decoded ones were left out before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub width: usize,
    pub height: usize,
    pub reduction: usize,
    pub left: usize,
    pub top: usize,
}

impl Origin {
    /// All of it, as it is.
    pub fn whole(width: usize, height: usize) -> Origin {
        Origin { width, height, reduction: 1, left: 0, top: 0 }
    }
}

/// Bytes for the pixels of a picture, all zero: what a decoder leaves out shows nothing of the picture before.
pub(super) fn room(bytes: usize) -> Vec<u8> {
    let mut room = KEPT.take();
    if room.capacity() < bytes {
        return vec![0; bytes];
    }
    room.clear();
    room.resize(bytes, 0);
    room
}

impl Drop for Pixels {
    fn drop(&mut self) {
        if self.data.capacity() <= KEPT_BYTES {
            KEPT.set(std::mem::take(&mut self.data));
        }
    }
}

/// How a stored picture is turned upright: upright (x, y) is stored (x, y), or (y, x) where `swapped`, then each stored
/// axis mirrored where said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    pub swapped: bool,
    pub mirror_x: bool,
    pub mirror_y: bool,
}

impl Orientation {
    /// By the EXIF value; what is not 1 to 8 means upright.
    pub fn from_exif(value: u8) -> Orientation {
        let (swapped, mirror_x, mirror_y) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };
        Orientation { swapped, mirror_x, mirror_y }
    }

    /// Width and height of the upright picture.
    pub(super) fn upright_size(self, width: usize, height: usize) -> (usize, usize) {
        if self.swapped { (height, width) } else { (width, height) }
    }

    /// Where each pixel of the upright picture is stored in one of `width` × `height`, row after row.
    pub(super) fn stored_places(self, width: usize, height: usize) -> impl Iterator<Item = usize> {
        let Orientation { swapped, mirror_x, mirror_y } = self;
        let (upright_width, upright_height) = self.upright_size(width, height);
        (0..upright_height).flat_map(move |y| {
            (0..upright_width).map(move |x| {
                let (x, y) = if swapped { (y, x) } else { (x, y) };
                let x = if mirror_x { width - 1 - x } else { x };
                let y = if mirror_y { height - 1 - y } else { y };
                y * width + x
            })
        })
    }
}

/// The media type by the file's signature; needs the first 18 bytes. None: not a type that is decoded.
pub fn sniff(bytes: &[u8]) -> Option<&'static str> {
    Some(match format(bytes)? {
        ImageFormat::Jpeg => "image/jpeg",
        ImageFormat::Png => "image/png",
        ImageFormat::WebP => "image/webp",
        ImageFormat::Gif => "image/gif",
        ImageFormat::Bmp => "image/bmp",
        _ => "image/tiff",
    })
}

fn format(bytes: &[u8]) -> Option<ImageFormat> {
    let starts = |signature: &[u8]| bytes.starts_with(signature);
    if starts(b"\xff\xd8\xff") {
        Some(ImageFormat::Jpeg)
    } else if starts(b"\x89PNG\r\n\x1a\n") {
        Some(ImageFormat::Png)
    } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Some(ImageFormat::WebP)
    } else if starts(b"GIF87a") || starts(b"GIF89a") {
        Some(ImageFormat::Gif)
    } else if is_bmp(bytes) {
        Some(ImageFormat::Bmp)
    } else if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        Some(ImageFormat::Tiff)
    } else {
        None
    }
}

/// Two letters alone would make a picture of any text that begins with BM.
fn is_bmp(bytes: &[u8]) -> bool {
    let header_size = bytes.get(14..).and_then(|header| header.first_chunk()).copied().map(u32::from_le_bytes);
    bytes.starts_with(b"BM") && header_size.is_some_and(bmp::is_header_size)
}

/// Decodes one picture.
///
/// `geometry` is what will be looked at: a decoder that can may return the picture at a fraction of its size, and leave
/// out what lies beside the crop. [`Geometry::Native`]: all pixels.
///
/// # Errors
/// Beside those of the limits, `DecodeTimeout` and `TooLargeDecoded` where it would cost more than `budget` has.
pub fn decode(bytes: &[u8], limits: &Limits, geometry: Geometry, budget: &Budget) -> Result<Pixels, PrepareError> {
    match format(bytes) {
        Some(ImageFormat::Jpeg) => jpeg::decode(bytes, limits, geometry, budget),
        Some(format) => {
            let mut pixels = match format {
                ImageFormat::Png => png::decode(bytes, limits, budget),
                ImageFormat::Tiff => tiff::decode(bytes, limits, budget),
                ImageFormat::Bmp => decode_other(&bmp::repair(bytes), format, limits, budget),
                ImageFormat::Gif => decode_other(&repair::gif(bytes), format, limits, budget),
                ImageFormat::WebP => decode_other(&repair::webp(bytes), format, limits, budget),
                _ => decode_other(bytes, format, limits, budget),
            }?;
            pixels.orientation = exif::orientation_of(bytes);
            Ok(pixels)
        }
        None => Err(PrepareError::new(
            ErrorCode::UnsupportedType,
            "not an image of a known type; JPEG, PNG, WebP, GIF, BMP and TIFF are",
        )),
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat, limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let name = name_of(format);
    let refused = |error: ImageError| budget.reason(undecodable(why_not(name, &error)));
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(4).saturating_add(SPARE_BYTES));
    let mut reader = ImageReader::with_format(budget.source([bytes, b""]), format);
    reader.limits(allowed.clone());
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    check_pixels(u64::from(width), u64::from(height), limits)?;
    // The decoded picture counts as part of what may be allocated; it is bounded by the check above.
    let total_bytes = decoder.total_bytes();
    allowed.max_alloc = Some(total_bytes.saturating_add(SPARE_BYTES));
    decoder.set_limits(allowed).map_err(refused)?;
    let color_type = decoder.color_type();
    budget.reserve(peak_bytes(bytes, format, u64::from(width) * u64::from(height), total_bytes))?;
    let mut data = room(usize::try_from(total_bytes).map_err(|_| undecodable("too large for this machine"))?);
    decoder.read_image(&mut data).map_err(refused)?;
    if format == ImageFormat::Bmp && color_type == ColorType::Rgba8 {
        bmp::ignore_empty_alpha(&mut data);
    }
    let (width, height) = (width as usize, height as usize);
    let channels = to_opaque_8_bit(&mut data, color_type, width)
        .ok_or_else(|| undecodable(format!("the {name} stores its colours in a way that is not supported")))?;
    let (orientation, origin) = (Orientation::default(), Origin::whole(width, height));
    Ok(Pixels { data, width, height, channels, orientation, origin })
}

/// The most that a decoder holds at a time for a picture of so many pixels, which it returns in `total_bytes`; as measured.
fn peak_bytes(bytes: &[u8], format: ImageFormat, pixels: u64, total_bytes: u64) -> u64 {
    // A bit of the extended header.
    let is_animated = bytes.get(12..16) == Some(b"VP8X") && bytes.get(20).is_some_and(|flags| flags & 2 != 0);
    let beside = match format {
        // A frame, in four bytes a pixel, before it is copied; of an animation the canvas too.
        ImageFormat::WebP if is_animated => pixels.saturating_mul(8),
        // A frame beside the picture.
        ImageFormat::WebP | ImageFormat::Gif => pixels.saturating_mul(4),
        _ => 0,
    };
    total_bytes.saturating_add(beside)
}

/// Brings rows of any colour type to opaque grey or RGB in place; returns the channels that are left.
fn to_opaque_8_bit(data: &mut Vec<u8>, color_type: ColorType, width: usize) -> Option<usize> {
    match color_type {
        ColorType::L8 => return Some(1),
        ColorType::Rgb8 => return Some(3),
        _ => {}
    }
    let channels = if color_type.has_color() { 3 } else { 1 };
    let samples = usize::from(color_type.channel_count());
    let bytes_per_pixel = usize::from(color_type.bytes_per_pixel());
    let to_8_bit: fn(&[u8], &mut [u8]) = match bytes_per_pixel / samples {
        1 => |from, to| to.copy_from_slice(from),
        2 => |from, to| {
            for (sample, to) in from.chunks_exact(2).zip(to) {
                *to = (u16::from_ne_bytes([sample[0], sample[1]]) >> 8) as u8;
            }
        },
        4 => |from, to| {
            for (sample, to) in from.chunks_exact(4).zip(to) {
                let value = f32::from_ne_bytes([sample[0], sample[1], sample[2], sample[3]]);
                *to = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        },
        _ => return None,
    };
    let mut row = vec![0; width * samples];
    for y in 0..data.len() / (width * bytes_per_pixel) {
        to_8_bit(&data[y * width * bytes_per_pixel..][..width * bytes_per_pixel], &mut row);
        let target = &mut data[y * width * channels..][..width * channels];
        match (samples, channels) {
            (2, 1) => over_white::<2, 1>(&row, target),
            (4, 3) => over_white::<4, 3>(&row, target),
            _ => target.copy_from_slice(&row),
        }
    }
    let rows = data.len() / (width * bytes_per_pixel);
    data.truncate(rows * width * channels);
    Some(channels)
}

pub(super) fn over_white<const FROM: usize, const TO: usize>(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.as_chunks::<FROM>().0.iter().zip(to.as_chunks_mut::<TO>().0) {
        for channel in 0..TO {
            to[channel] = blend(from[channel], from[TO]);
        }
    }
}

/// A value seen through `alpha`, with white behind it.
pub(super) fn blend(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let blended = value * alpha + 255 * (255 - alpha) + 128;
    ((blended + (blended >> 8)) >> 8) as u8 // blended / 255, rounded
}

pub(super) fn check_pixels(width: u64, height: u64, limits: &Limits) -> Result<(), PrepareError> {
    if width == 0 || height == 0 {
        return Err(undecodable("the image has no pixels"));
    }
    if width.saturating_mul(height) > limits.max_pixels {
        let message = format!("{width} × {height} pixels are more than the limit of {}", limits.max_pixels);
        return Err(PrepareError::new(ErrorCode::TooManyPixels, message));
    }
    if width.max(height) > MAX_SIDE {
        let message = format!("{width} × {height} pixels: no side may have more than {MAX_SIDE}");
        return Err(PrepareError::new(ErrorCode::TooManyPixels, message));
    }
    Ok(())
}

pub(super) fn undecodable(message: impl Into<String>) -> PrepareError {
    PrepareError::new(ErrorCode::Undecodable, message)
}

fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        _ => "BMP",
    }
}

/// The decoders' own texts may be long and quote the file; this says what the sender can act on.
fn why_not(name: &str, error: &ImageError) -> String {
    match error {
        ImageError::Unsupported(_) => format!("the {name} uses a feature that is not supported"),
        ImageError::Limits(_) => format!("the {name} needs more memory than its size explains"),
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("the {name} ends before its picture does")
        }
        _ => format!("the {name} is damaged"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_tells_the_type() {
        assert_eq!(sniff(b"\xff\xd8\xff\xe0"), Some("image/jpeg"));
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n"), Some("image/png"));
        assert_eq!(sniff(b"RIFF\0\0\0\0WEBPVP8 "), Some("image/webp"));
        assert_eq!(sniff(b"RIFF\0\0\0\0WAVEfmt "), None);
        assert_eq!(sniff(b"GIF89a"), Some("image/gif"));
        assert_eq!(sniff(b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"), Some("image/bmp"));
        assert_eq!(sniff(b"BM is how this text begins"), None);
        assert_eq!(sniff(b"MM\0*"), Some("image/tiff"));
        assert_eq!(sniff(b""), None);
        assert_eq!(sniff(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), None);
    }

    #[test]
    fn what_is_transparent_lies_over_white() {
        let mut data = vec![10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 200, 128];
        assert_eq!(to_opaque_8_bit(&mut data, ColorType::Rgba8, 3), Some(3));
        assert_eq!(data, [10, 20, 30, 255, 255, 255, 127, 177, 227]);
        let mut grey = vec![0, 128, 50, 255];
        assert_eq!(to_opaque_8_bit(&mut grey, ColorType::La8, 1), Some(1));
        assert_eq!(grey, [127, 50]);
    }

    #[test]
    fn of_sixteen_bits_the_high_byte_stays() {
        let mut data: Vec<u8> = [0x1234_u16, 0xffff, 0x00ff].iter().flat_map(|value| value.to_ne_bytes()).collect();
        assert_eq!(to_opaque_8_bit(&mut data, ColorType::L16, 3), Some(1));
        assert_eq!(data, [0x12, 0xff, 0x00]);
    }
}
