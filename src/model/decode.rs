//! Bytes → pixels, as the reference pipeline has them (`scripts/imgcls_models/preprocess.py`): first frame, 8 bits (of
//! 16 the high byte), grey or RGB, what is transparent laid over white, no colour profile applied. The EXIF orientation
//! is handed on instead of applied: turning the small result of the resize costs nothing.
//!
//! What comes in is hostile until shown otherwise:
//! - size limits are held against the header, before memory for pixels is asked for;
//! - a JPEG may hold any number of scans over the whole image, each as long as a decode, so scans × pixels is bounded
//!   too, counted by walking the markers;
//! - a decoder gets [`SPARE_BYTES`] beside the picture itself;
//! - a file that ends before its picture does is refused, as Pillow does: an answer for half a picture looks like an
//!   answer, and who sent it can send the whole.

use std::io::Cursor;

use image::metadata::Orientation as ExifOrientation;
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::PrepareError;
use crate::config::Limits;
use crate::protocol::ErrorCode;

/// What a decoder may use beside the pixels it returns.
const SPARE_BYTES: u64 = 64 << 20;

/// Most scans of one JPEG. Encoders write about ten (libjpeg's and mozjpeg's scripts), tools that search for the
/// smallest file below twenty.
const MAX_SCANS: usize = 64;

/// Most scans × pixels, in units of the largest allowed picture: a picture of `max_pixels` may have this many scans.
const MAX_SCANS_AT_MAX_PIXELS: u64 = 20;

/// A decoded picture as it is stored; `orientation` says how to look at it.
#[derive(Debug)]
pub struct Pixels {
    /// Rows without padding, `channels` bytes a pixel.
    pub data: Vec<u8>,
    pub width: usize,
    pub height: usize,
    /// 1: grey, 3: RGB.
    pub channels: usize,
    pub orientation: Orientation,
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

    fn from_exif_block(block: &[u8]) -> Option<Orientation> {
        // WebP files carry JPEG's prefix at times.
        let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        ExifOrientation::from_exif_chunk(block).map(|orientation| Orientation::from_exif(orientation.to_exif()))
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
    } else if starts(b"BM") && bytes.get(14..18).is_some_and(is_bmp_header_size) {
        Some(ImageFormat::Bmp)
    } else if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        Some(ImageFormat::Tiff)
    } else {
        None
    }
}

/// Two letters alone would make a picture of any text that begins with BM.
fn is_bmp_header_size(field: &[u8]) -> bool {
    matches!(field, [12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0])
}

/// Decodes one picture.
///
/// `short_side` is what the picture will be reduced to: a decoder that can decode at a fraction of the size may return
/// any size whose short side is not below it. None of today's does.
pub fn decode(bytes: &[u8], limits: &Limits, short_side: Option<u32>) -> Result<Pixels, PrepareError> {
    match format(bytes) {
        Some(ImageFormat::Jpeg) => decode_jpeg(bytes, limits, short_side),
        Some(format) => decode_other(bytes, format, limits),
        None => Err(PrepareError::new(
            ErrorCode::UnsupportedType,
            "not an image of a known type; JPEG, PNG, WebP, GIF, BMP and TIFF are",
        )),
    }
}

fn decode_jpeg(bytes: &[u8], limits: &Limits, _short_side: Option<u32>) -> Result<Pixels, PrepareError> {
    let scans = JpegScans::walk(bytes);
    if scans.count > MAX_SCANS {
        return Err(undecodable(format!("the JPEG has more than {MAX_SCANS} scans")));
    }
    // A file that says where it ends is decoded as far as its data make sense, as browsers and libjpeg do. One that was
    // cut off must still hold every pixel, which only the strict decoder tells.
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .set_strict_mode(!scans.ended);
    let damaged =
        |_| undecodable(if scans.ended { "the JPEG is damaged" } else { "the JPEG ends before its picture does" });
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| undecodable("the JPEG has no size"))?;
    check_pixels(width as u64, height as u64, limits)?;
    let pixels = (width * height) as u64;
    if pixels.saturating_mul(scans.count as u64) > limits.max_pixels.saturating_mul(MAX_SCANS_AT_MAX_PIXELS) {
        return Err(undecodable(format!("the JPEG has {} scans, too many for its size", scans.count)));
    }
    // A block of 64 pixels takes a bit at the very least; halved for components that are subsampled.
    if (bytes.len() as u64) < pixels / (64 * 8 * 2) {
        return Err(undecodable("the JPEG ends before its picture does"));
    }
    let channels = if decoder.input_colorspace() == Some(ColorSpace::Luma) { 1 } else { 3 };
    let colours = if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let orientation = decoder.exif().and_then(|block| Orientation::from_exif_block(block)).unwrap_or_default();
    let mut data = vec![0; width * height * channels];
    decoder.decode_into(&mut data).map_err(damaged)?;
    Ok(Pixels { data, width, height, channels, orientation })
}

/// What the markers of a JPEG tell without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct JpegScans {
    /// Scans seen; stops counting beyond [`MAX_SCANS`].
    count: usize,
    /// An end marker follows the scans.
    ended: bool,
}

impl JpegScans {
    fn walk(bytes: &[u8]) -> JpegScans {
        const START_OF_SCAN: u8 = 0xda;
        const END_OF_IMAGE: u8 = 0xd9;
        let mut count = 0;
        let mut position = 2;
        while let Some(offset) = memchr::memchr(0xff, bytes.get(position..).unwrap_or_default()) {
            position += offset + 1;
            match bytes.get(position).copied() {
                // A stuffed or restarted byte of a scan, padding, or a marker without content.
                Some(0x00 | 0x01 | 0xd0..=0xd8) => position += 1,
                Some(0xff) => {}
                Some(END_OF_IMAGE) => return JpegScans { count, ended: true },
                Some(marker) => {
                    count += usize::from(marker == START_OF_SCAN);
                    if count > MAX_SCANS {
                        break;
                    }
                    let length =
                        bytes.get(position + 1..position + 3).map(|field| u16::from_be_bytes([field[0], field[1]]));
                    position += 1 + usize::from(length.unwrap_or(u16::MAX));
                }
                None => break,
            }
        }
        JpegScans { count, ended: false }
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat, limits: &Limits) -> Result<Pixels, PrepareError> {
    let name = name_of(format);
    let refused = |error: ImageError| undecodable(why_not(name, &error));
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(4).saturating_add(SPARE_BYTES));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allowed.clone());
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    check_pixels(u64::from(width), u64::from(height), limits)?;
    // The decoded picture counts as part of what may be allocated; it is bounded by the check above.
    let total_bytes = decoder.total_bytes();
    allowed.max_alloc = Some(total_bytes.saturating_add(SPARE_BYTES));
    decoder.set_limits(allowed).map_err(refused)?;
    let orientation = match decoder.orientation().map_err(refused)? {
        // The general reader does not see through the prefix that some WebP files have.
        ExifOrientation::NoTransforms => {
            let block = decoder.exif_metadata().ok().flatten();
            block.and_then(|block| Orientation::from_exif_block(&block)).unwrap_or_default()
        }
        orientation => Orientation::from_exif(orientation.to_exif()),
    };
    let color_type = decoder.color_type();
    let mut data = vec![0; usize::try_from(total_bytes).map_err(|_| undecodable("too large for this machine"))?];
    decoder.read_image(&mut data).map_err(refused)?;
    let (width, height) = (width as usize, height as usize);
    let channels = to_opaque_8_bit(&mut data, color_type, width)
        .ok_or_else(|| undecodable(format!("the {name} stores its colours in a way that is not supported")))?;
    Ok(Pixels { data, width, height, channels, orientation })
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

fn over_white<const FROM: usize, const TO: usize>(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.as_chunks::<FROM>().0.iter().zip(to.as_chunks_mut::<TO>().0) {
        let alpha = u32::from(from[TO]);
        for channel in 0..TO {
            let blended = u32::from(from[channel]) * alpha + 255 * (255 - alpha) + 128;
            to[channel] = ((blended + (blended >> 8)) >> 8) as u8; // blended / 255, rounded
        }
    }
}

fn check_pixels(width: u64, height: u64, limits: &Limits) -> Result<(), PrepareError> {
    if width == 0 || height == 0 {
        return Err(undecodable("the image has no pixels"));
    }
    if width.saturating_mul(height) > limits.max_pixels {
        let message = format!("{width} × {height} pixels are more than the limit of {}", limits.max_pixels);
        return Err(PrepareError::new(ErrorCode::TooManyPixels, message));
    }
    Ok(())
}

fn undecodable(message: impl Into<String>) -> PrepareError {
    PrepareError::new(ErrorCode::Undecodable, message)
}

fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Bmp => "BMP",
        _ => "TIFF",
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
    fn scans_are_counted_without_decoding() {
        // A thumbnail's own markers inside a segment do not count; stuffed bytes and restarts belong to the scan.
        let mut jpeg = b"\xff\xd8\xff\xe1\x00\x08\xff\xda\xff\xd9\x00\x00".to_vec();
        jpeg.extend_from_slice(b"\xff\xda\x00\x03\x01\x11\xff\x00\x22\xff\xd0\x33");
        jpeg.extend_from_slice(b"\xff\xc4\x00\x02\xff\xda\x00\x03\x01\x44");
        assert_eq!(JpegScans::walk(&jpeg), JpegScans { count: 2, ended: false });
        jpeg.extend_from_slice(b"\xff\xff\xd9trailing\xff\xda");
        assert_eq!(JpegScans::walk(&jpeg), JpegScans { count: 2, ended: true });
        let endless: Vec<u8> = b"\xff\xda\x00\x02".repeat(100_000);
        assert_eq!(JpegScans::walk(&endless).count, MAX_SCANS + 1);
        assert_eq!(JpegScans::walk(b"\xff\xd8"), JpegScans { count: 0, ended: false });
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
