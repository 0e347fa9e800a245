//! PNG → pixels, a row at a time: what is kept is the 8-bit picture alone, whatever the file stores.

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits as PngLimits, Reader, Transformations};

use super::PrepareError;
use super::budget::{Budget, Source};
use super::decode::{Orientation, Origin, Pixels, check_pixels, over_white, room, undecodable};
use crate::config::Limits;

/// What the decoder may keep beside rows and chunks of the file such as EXIF.
const SPARE_BYTES: usize = 1 << 20;

/// Rows that the decoder holds: raw, unfiltered and transformed ones.
const ROWS_HELD: usize = 6;

/// The chunk that ends a PNG. Added to each file, so that one that ends without it is read to its last pixel.
const END: &[u8] = b"\0\0\0\0IEND\xaeB`\x82";

/// Decodes one picture, as it is stored: metadata are not read.
pub fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let refused = |error: DecodingError| budget.reason(why_not(&error));
    let spare = SPARE_BYTES + bytes.len();
    let mut decoder = Decoder::new_with_limits(budget.source([bytes, END]), PngLimits { bytes: spare });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let (width, height) = decoder.read_header_info().map_err(refused)?.size();
    check_pixels(u64::from(width), u64::from(height), limits)?;
    // A pixel has at most four samples of two bytes.
    decoder.set_limits(PngLimits { bytes: spare + ROWS_HELD * 8 * width as usize });
    let mut reader = decoder.read_info().map_err(refused)?;
    let layout = Layout::of(&reader, width)?;
    let (width, height) = (width as usize, height as usize);
    let pixels_bytes = width * height * layout.channels;
    budget.reserve((pixels_bytes + spare + ROWS_HELD * layout.raw_row_bytes) as u64)?;
    let data = room(pixels_bytes);
    let (channels, orientation) = (layout.channels, Orientation::default());
    let mut pixels = Pixels { data, width, height, channels, orientation, origin: Origin::whole(width, height) };
    if reader.info().interlaced {
        read_interlaced(&mut reader, &layout, &mut pixels, budget, refused)?;
    } else {
        read_rows(&mut reader, &layout, &mut pixels, budget, refused)?;
    }
    // Past the last row the checksums are read; a file may end without its last chunk.
    match reader.read_row(&mut vec![0; layout.row_bytes]) {
        Ok(_) => Ok(pixels),
        Err(error) => Err(refused(error)),
    }
}

/// How the decoder hands rows over.
struct Layout {
    /// Samples a pixel, each of 8 bits; the last is alpha where there is one more than channels.
    samples: usize,
    channels: usize,
    row_bytes: usize,
    /// Of a row in the file, decompressed.
    raw_row_bytes: usize,
}

impl Layout {
    fn of(reader: &Reader<Source<'_>>, width: u32) -> Result<Layout, PrepareError> {
        let (samples, channels) = match reader.output_color_type() {
            (ColorType::Grayscale, BitDepth::Eight) => (1, 1),
            (ColorType::GrayscaleAlpha, BitDepth::Eight) => (2, 1),
            (ColorType::Rgb, BitDepth::Eight) => (3, 3),
            (ColorType::Rgba, BitDepth::Eight) => (4, 3),
            _ => return Err(undecodable("the PNG stores its colours in a way that is not supported")),
        };
        let info = reader.info();
        let bits = width as usize * info.color_type.samples() * info.bit_depth as usize;
        Ok(Layout { samples, channels, row_bytes: width as usize * samples, raw_row_bytes: bits / 8 + 2 })
    }

    /// One row of 8-bit samples, opaque.
    fn to_pixels(&self, row: &[u8], pixels: &mut [u8]) {
        match self.samples {
            2 => over_white::<2, 1>(row, pixels),
            4 => over_white::<4, 3>(row, pixels),
            _ => pixels.copy_from_slice(row),
        }
    }
}

fn read_rows(
    reader: &mut Reader<Source<'_>>,
    layout: &Layout,
    pixels: &mut Pixels,
    budget: &Budget,
    refused: impl Fn(DecodingError) -> PrepareError,
) -> Result<(), PrepareError> {
    let mut row = vec![0; layout.row_bytes];
    for (y, target) in pixels.data.chunks_exact_mut(pixels.width * layout.channels).enumerate() {
        if layout.samples == layout.channels {
            reader.read_row(target).map_err(&refused)?;
        } else {
            reader.read_row(&mut row).map_err(&refused)?;
            layout.to_pixels(&row, target);
        }
        // The decoder may have much left of one piece of the file: a black picture shrinks a thousandfold.
        if y % 64 == 63 {
            budget.check()?;
        }
    }
    Ok(())
}

/// First column and row, and steps between columns and between rows, of the passes of an interlaced picture.
const PASSES: [(usize, usize, usize, usize); 7] =
    [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)];

fn read_interlaced(
    reader: &mut Reader<Source<'_>>,
    layout: &Layout,
    pixels: &mut Pixels,
    budget: &Budget,
    refused: impl Fn(DecodingError) -> PrepareError,
) -> Result<(), PrepareError> {
    let (width, height, channels) = (pixels.width, pixels.height, layout.channels);
    let (mut row, mut opaque) = (vec![0; layout.row_bytes], vec![0; width * channels]);
    for (left, top, across, down) in PASSES {
        // A pass without a column has no rows in the file either.
        let columns = width.saturating_sub(left).div_ceil(across);
        let rows = if columns == 0 { 0 } else { height.saturating_sub(top).div_ceil(down) };
        for line in 0..rows {
            reader.read_row(&mut row).map_err(&refused)?;
            let opaque = &mut opaque[..columns * channels];
            layout.to_pixels(&row[..columns * layout.samples], opaque);
            let target = &mut pixels.data[(top + line * down) * width * channels..][..width * channels];
            let places = target.chunks_exact_mut(channels).skip(left).step_by(across);
            for (pixel, place) in opaque.chunks_exact(channels).zip(places) {
                place.copy_from_slice(pixel);
            }
            if line % 64 == 63 {
                budget.check()?;
            }
        }
    }
    Ok(())
}

/// The decoder's own texts may be long and quote the file; this says what the sender can act on.
fn why_not(error: &DecodingError) -> PrepareError {
    undecodable(match error {
        DecodingError::LimitsExceeded => "the PNG needs more memory than its size explains",
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the PNG ends before its picture does"
        }
        _ => "the PNG is damaged",
    })
}
