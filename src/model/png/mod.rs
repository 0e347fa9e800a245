//! PNG → pixels, one row at a time, so that only the 8-bit image is kept in memory, whatever the file stores.

mod metadata;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits as PngLimits, Reader, Transformations};

use super::budget::{Budget, Source};
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::pixels::{Pixels, check_size, over_white, zeroed_buffer};
use crate::limits::Limits;

pub(super) const FORMAT: Format = Format {
    name: "PNG",
    media_type: "image/png",
    extensions: &["png", "apng"],
    has_signature: |bytes| bytes.starts_with(SIGNATURE),
    decode: |bytes, limits, _, budget| decode(bytes, limits, budget),
};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Memory that the decoder may use in addition to rows and to chunks of the file such as EXIF.
const SPARE_BYTES: usize = 1 << 20;

/// Number of rows that the decoder holds at a time: raw, unfiltered and transformed ones.
const ROWS_HELD: usize = 6;

/// The chunk that ends a PNG. It is appended to each file, so that a file without it is read to its last pixel.
const END: &[u8] = b"\0\0\0\0IEND\xaeB`\x82";

fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let refused = |error: DecodingError| budget.reason(reason(&error));
    let spare = SPARE_BYTES + bytes.len();
    let mut decoder = Decoder::new_with_limits(budget.source([bytes, END]), PngLimits { bytes: spare });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let (width, height) = decoder.read_header_info().map_err(refused)?.size();
    check_size(u64::from(width), u64::from(height), limits)?;
    // A pixel has at most four samples of two bytes.
    decoder.set_limits(PngLimits { bytes: spare + ROWS_HELD * 8 * width as usize });
    let mut reader = decoder.read_info().map_err(refused)?;
    check_palette(&reader)?;
    let layout = Layout::of(&reader, width)?;
    let (width, height) = (width as usize, height as usize);
    let pixels_bytes = width * height * layout.channels;
    budget.reserve((pixels_bytes + spare + ROWS_HELD * layout.raw_row_bytes) as u64)?;
    let data = zeroed_buffer(pixels_bytes);
    let mut pixels = Pixels::whole(data, (width, height), layout.channels);
    if reader.info().interlaced {
        read_interlaced(&mut reader, &layout, &mut pixels, budget, refused)?;
    } else {
        read_rows(&mut reader, &layout, &mut pixels, budget, refused)?;
    }
    // Reading past the last row verifies the checksums.
    reader.read_row(&mut vec![0; layout.row_bytes]).map_err(refused)?;
    pixels.orientation = metadata::read(bytes).orientation();
    Ok(pixels)
}

/// Refuses a palette whose last colour is incomplete. The decoder would panic.
fn check_palette(reader: &Reader<Source<'_>>) -> Result<(), PrepareError> {
    let palette = reader.info().palette.as_ref();
    if palette.is_some_and(|palette| palette.len() % 3 != 0) {
        return Err(undecodable("the PNG is damaged: the last colour of its palette is incomplete"));
    }
    Ok(())
}

/// The layout of the rows that the decoder returns.
struct Layout {
    /// 8-bit samples per pixel. If there is one more than channels, the last is alpha.
    samples: usize,
    channels: usize,
    row_bytes: usize,
    /// Size of a decompressed row of the file.
    raw_row_bytes: usize,
}

impl Layout {
    fn of(reader: &Reader<Source<'_>>, width: u32) -> Result<Layout, PrepareError> {
        let (samples, channels) = match reader.output_color_type() {
            (ColorType::Grayscale, BitDepth::Eight) => (1, 1),
            (ColorType::GrayscaleAlpha, BitDepth::Eight) => (2, 1),
            (ColorType::Rgb, BitDepth::Eight) => (3, 3),
            (ColorType::Rgba, BitDepth::Eight) => (4, 3),
            _ => return Err(undecodable("the PNG has a colour type that is not supported")),
        };
        let info = reader.info();
        let bits = width as usize * info.color_type.samples() * info.bit_depth as usize;
        Ok(Layout { samples, channels, row_bytes: width as usize * samples, raw_row_bytes: bits / 8 + 2 })
    }

    /// Converts one row of samples to opaque pixels.
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
        // One piece of the file may contain many rows (a black image compresses a thousandfold), so the clock is
        // checked here too.
        if y % 64 == 63 {
            budget.check()?;
        }
    }
    Ok(())
}

/// First column, first row, and steps between columns and between rows, of each pass of an interlaced image.
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
        // A pass without columns has no rows in the file.
        let columns = width.saturating_sub(left).div_ceil(across);
        let rows = if columns == 0 { 0 } else { height.saturating_sub(top).div_ceil(down) };
        for line in 0..rows {
            reader.read_row(&mut row).map_err(&refused)?;
            let opaque = &mut opaque[..columns * channels];
            layout.to_pixels(&row[..columns * layout.samples], opaque);
            let target = &mut pixels.data[(top + line * down) * width * channels..][..width * channels];
            let targets = target.chunks_exact_mut(channels).skip(left).step_by(across);
            for (pixel, target) in opaque.chunks_exact(channels).zip(targets) {
                target.copy_from_slice(pixel);
            }
            if line % 64 == 63 {
                budget.check()?;
            }
        }
    }
    Ok(())
}

/// Says what the client can act on. The decoder's own texts may be long and quote the file.
fn reason(error: &DecodingError) -> PrepareError {
    undecodable(match error {
        DecodingError::LimitsExceeded => "the PNG needs more memory than its size explains",
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "the PNG is truncated",
        _ => "the PNG is damaged",
    })
}
