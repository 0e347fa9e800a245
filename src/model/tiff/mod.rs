//! TIFF → pixels, a few rows of a strip or tile at a time: what is kept is the 8-bit picture alone, whatever the file
//! stores.
//!
//! - `directory`: what is stored where
//! - `unpack`: compressed bytes of a strip or tile → rows
//! - `samples`: rows → 8-bit samples
//!
//! What this page does not know by name is refused by name: a wrong picture looks like an answer.

mod directory;
mod samples;
mod unpack;

use self::directory::Directory;
use self::samples::{Predictor, Samples};
use self::unpack::{Chunk, Compression, Unpacker};
use super::PrepareError;
use super::budget::Budget;
use super::decode::{Orientation, Origin, Pixels, blend, check_pixels, room, undecodable};
use crate::config::Limits;
use crate::protocol::ErrorCode;

/// Most strips and tiles of one picture: each costs about two microseconds beside its pixels. A scan of 65,500 rows in
/// strips of one row each, in four planes, has as many.
const MAX_CHUNKS: usize = 262_000;

/// Most samples a pixel.
const MAX_SAMPLES: usize = 32;

/// Most bytes that are unpacked, in units of the largest allowed picture: floats of RGB and alpha have as many. Samples
/// that nobody looks at and the parts of tiles beside the picture cost time like others.
const MAX_BYTES_AT_MAX_PIXELS: u64 = 16;

/// Rows are unpacked in blocks of about so many bytes, and the clock is looked at once a block.
const BLOCK_BYTES: usize = 64 << 10;

mod tag {
    pub const IMAGE_WIDTH: u16 = 256;
    pub const IMAGE_LENGTH: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTE_COUNTS: u16 = 279;
    pub const PLANAR_CONFIGURATION: u16 = 284;
    pub const PREDICTOR: u16 = 317;
    pub const COLOR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_LENGTH: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTE_COUNTS: u16 = 325;
    pub const INK_SET: u16 = 332;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
}

/// Decodes the first picture of a file.
pub fn decode(bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let directory = Directory::read(bytes)?;
    let (width, height) = (directory.number(tag::IMAGE_WIDTH), directory.number(tag::IMAGE_LENGTH));
    let (width, height) = width.zip(height).ok_or_else(damaged)?;
    check_pixels(width, height, limits)?;
    let picture = Picture::read(&directory, width as usize, height as usize)?;
    let chunks = Chunks::read(&directory, &picture)?;
    let unpacked = (picture.planes().len() * chunks.across * chunks.row_bytes) as u64 * height;
    let most = limits.max_pixels.saturating_mul(MAX_BYTES_AT_MAX_PIXELS);
    if unpacked > most {
        let message = format!("the TIFF unpacks to {unpacked} bytes, more than {most} (16 times --max-pixels)");
        return Err(PrepareError::new(ErrorCode::TooLargeDecoded, message));
    }
    budget.reserve(picture.memory_bytes(&chunks))?;
    let mut painter = Painter::new(&picture, &directory);
    for plane in picture.planes() {
        for index in 0..chunks.across * chunks.down {
            painter.paint(&chunks, plane, index, budget)?;
        }
    }
    painter.finish()
}

fn damaged() -> PrepareError {
    undecodable("the TIFF is damaged")
}

fn ends() -> PrepareError {
    undecodable("the TIFF ends before its picture does")
}

fn unsupported(what: impl std::fmt::Display) -> PrepareError {
    undecodable(format!("the TIFF uses {what}, which is not supported"))
}

/// What the pixels of the file mean.
struct Picture {
    width: usize,
    height: usize,
    colours: Colours,
    /// Which sample is alpha, and how colours relate to it.
    alpha: Option<(usize, Alpha)>,
    /// Samples of a pixel in the file.
    samples: usize,
    format: Samples,
    /// Each sample has strips or tiles of its own.
    is_planar: bool,
    compression: Compression,
    predictor: Predictor,
    /// The first pixel of a byte is in its lowest bit.
    is_bit_reversed: bool,
}

enum Colours {
    Grey { is_inverted: bool },
    Rgb,
    Palette(Vec<[u8; 3]>),
    Cmyk,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Alpha {
    Straight,
    /// Colours were multiplied by it.
    Premultiplied,
}

impl Picture {
    fn read(directory: &Directory, width: usize, height: usize) -> Result<Picture, PrepareError> {
        let samples = directory.number(tag::SAMPLES_PER_PIXEL).unwrap_or(1) as usize;
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(unsupported(format_args!("{samples} samples a pixel")));
        }
        let format = Samples::read(directory)?;
        let compression = Compression::read(directory)?;
        let colours = Colours::read(directory, compression, format, samples)?;
        if samples < colours.samples() {
            return Err(damaged());
        }
        let is_planar = samples > 1 && directory.number(tag::PLANAR_CONFIGURATION) == Some(2);
        let predictor = match directory.number(tag::PREDICTOR) {
            Some(predictor) if compression.takes_predictor() => Predictor::read(predictor, format)?,
            _ => Predictor::None,
        };
        let alpha = alpha(directory, &colours, samples);
        if is_planar && matches!(colours, Colours::Cmyk) && alpha.is_some() {
            return Err(unsupported("CMYK with alpha in planes"));
        }
        Ok(Picture {
            width,
            height,
            colours,
            alpha,
            samples,
            format,
            is_planar,
            compression,
            predictor,
            is_bit_reversed: directory.number(tag::FILL_ORDER) == Some(2),
        })
    }

    /// Of the pixels that are made.
    fn channels(&self) -> usize {
        if matches!(self.colours, Colours::Grey { .. }) { 1 } else { 3 }
    }

    /// Samples of a pixel in one strip or tile.
    fn samples_together(&self) -> usize {
        if self.is_planar { 1 } else { self.samples }
    }

    /// The planes that are looked at.
    fn planes(&self) -> Vec<usize> {
        if !self.is_planar {
            return vec![0];
        }
        (0..self.colours.samples()).chain(self.alpha.map(|(sample, _)| sample)).collect()
    }

    /// Whether one plane more than channels has to be kept until all have been read.
    fn has_late_plane(&self) -> bool {
        self.is_planar && (self.alpha.is_some() || matches!(self.colours, Colours::Cmyk))
    }

    /// The most that decoding holds at a time.
    fn memory_bytes(&self, chunks: &Chunks) -> u64 {
        let pixels = (self.width * self.height) as u64;
        let late = if self.has_late_plane() { pixels } else { 0 };
        let rows = 4 * (BLOCK_BYTES + chunks.row_bytes + chunks.width * self.samples_together()) as u64;
        let whole_chunk = match self.compression {
            // Pixels, and coefficients of two bytes where the JPEG is progressive.
            Compression::Jpeg { .. } => 3 * (chunks.row_bytes * chunks.height) as u64,
            _ => 0,
        };
        let copy = if self.is_bit_reversed { chunks.largest_bytes } else { 0 };
        pixels * self.channels() as u64 + late + rows + whole_chunk + copy + 16 * chunks.places.len() as u64
    }
}

impl Colours {
    fn read(
        directory: &Directory,
        compression: Compression,
        format: Samples,
        samples: usize,
    ) -> Result<Colours, PrepareError> {
        let photometric = directory.number(tag::PHOTOMETRIC).ok_or_else(damaged)?;
        match photometric {
            0 | 1 if samples > 2 => Err(unsupported(format_args!("{samples} bands without colours"))),
            0 | 1 => Ok(Colours::Grey { is_inverted: photometric == 0 }),
            2 => Ok(Colours::Rgb),
            3 if samples != 1 || !format.is_index() => {
                Err(unsupported("a palette of more than 256 colours or with alpha"))
            }
            3 => palette(directory, format).map(Colours::Palette),
            5 if !matches!(directory.number(tag::INK_SET), None | Some(1)) => Err(unsupported("inks other than CMYK")),
            5 => Ok(Colours::Cmyk),
            6 if matches!(compression, Compression::Jpeg { is_ycbcr: true }) => Ok(Colours::Rgb),
            4 => Err(unsupported("a transparency mask as its picture")),
            6 => Err(unsupported("YCbCr colours without JPEG compression")),
            8..=10 => Err(unsupported("Lab colours")),
            32_844 | 32_845 => Err(unsupported("LogLuv colours")),
            other => Err(unsupported(format_args!("the colours numbered {other}"))),
        }
    }

    /// Samples a pixel that make its colour.
    fn samples(&self) -> usize {
        match self {
            Colours::Grey { .. } | Colours::Palette(_) => 1,
            Colours::Rgb => 3,
            Colours::Cmyk => 4,
        }
    }
}

/// The colours of a palette. They are stored in 16 bits; some writers fill only the lower 8.
fn palette(directory: &Directory, format: Samples) -> Result<Vec<[u8; 3]>, PrepareError> {
    let colours = 1 << format.bits();
    if directory.count(tag::COLOR_MAP) != 3 * colours {
        return Err(damaged());
    }
    let values: Vec<u64> = directory.numbers(tag::COLOR_MAP).collect();
    let shift = if values.iter().all(|&value| value < 256) { 0 } else { 8 };
    let value = |at: usize| (values[at] >> shift) as u8;
    Ok((0..colours).map(|index| [value(index), value(colours + index), value(2 * colours + index)]).collect())
}

/// The first extra sample that is said to be alpha. One about which nothing is said may be anything, near infrared say.
fn alpha(directory: &Directory, colours: &Colours, samples: usize) -> Option<(usize, Alpha)> {
    let extra = directory.numbers(tag::EXTRA_SAMPLES).enumerate();
    let mut alphas = extra.filter_map(|(index, meaning)| match meaning {
        1 => Some((colours.samples() + index, Alpha::Premultiplied)),
        2 => Some((colours.samples() + index, Alpha::Straight)),
        _ => None,
    });
    alphas.next().filter(|(sample, _)| *sample < samples)
}

/// The strips or tiles of a picture: rectangles of one size, row after row, plane after plane.
struct Chunks {
    width: usize,
    height: usize,
    across: usize,
    down: usize,
    /// A tile at the edge is stored whole, the last strip only as far as the picture goes.
    are_tiles: bool,
    /// Of one row of a chunk.
    row_bytes: usize,
    /// Offset and length of each.
    places: Vec<(u64, u64)>,
    largest_bytes: u64,
}

impl Chunks {
    fn read(directory: &Directory, picture: &Picture) -> Result<Chunks, PrepareError> {
        let are_tiles = directory.count(tag::TILE_OFFSETS) > 0;
        let size = |number: Option<u64>, whole: usize| match number {
            None if !are_tiles => Ok(whole),
            Some(length) if length > 0 && are_tiles && length <= 1 << 20 => Ok(length as usize),
            Some(length) if length > 0 && !are_tiles => Ok(usize::try_from(length).unwrap_or(whole).min(whole)),
            _ => Err(damaged()),
        };
        let (width, height, offsets, counts) = if are_tiles {
            let width = size(directory.number(tag::TILE_WIDTH), picture.width)?;
            let height = size(directory.number(tag::TILE_LENGTH), picture.height)?;
            (width, height, tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS)
        } else {
            let height = size(directory.number(tag::ROWS_PER_STRIP), picture.height)?;
            (picture.width, height, tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS)
        };
        let (across, down) = (picture.width.div_ceil(width), picture.height.div_ceil(height));
        let planes = if picture.is_planar { picture.samples } else { 1 };
        let count = across.saturating_mul(down).saturating_mul(planes);
        if count > MAX_CHUNKS {
            let what = if are_tiles { "tiles" } else { "strips" };
            return Err(undecodable(format!("the TIFF has {count} {what}, more than {MAX_CHUNKS}")));
        }
        let row_bits = width * picture.samples_together() * picture.format.bits() as usize;
        let mut chunks = Chunks {
            width,
            height,
            across,
            down,
            are_tiles,
            row_bytes: row_bits.div_ceil(8),
            places: Vec::new(),
            largest_bytes: 0,
        };
        chunks.places = places(directory, offsets, counts, count, (chunks.row_bytes * height) as u64, picture)?;
        chunks.largest_bytes = chunks.places.iter().map(|(_, length)| *length).max().unwrap_or(0);
        Ok(chunks)
    }
}

/// Where chunks lie, clamped to the file.
///
/// # Errors
/// They are too few, or together much longer than the file: many chunks of the same bytes would multiply what it costs
/// to unpack them.
fn places(
    directory: &Directory,
    offsets: u16,
    counts: u16,
    count: usize,
    unpacked_bytes: u64,
    picture: &Picture,
) -> Result<Vec<(u64, u64)>, PrepareError> {
    let file_bytes = directory.file_bytes();
    let has_counts = directory.count(counts) >= count;
    if directory.count(offsets) < count || (!has_counts && count > 1 && picture.compression != Compression::None) {
        return Err(damaged());
    }
    let mut lengths = directory.numbers(counts);
    let places: Vec<(u64, u64)> = directory
        .numbers(offsets)
        .take(count)
        .map(|offset| {
            let said = lengths.next().filter(|_| has_counts).unwrap_or(u64::MAX);
            // What is not compressed has the length that its size says, whatever else is said.
            let length = if picture.compression == Compression::None { unpacked_bytes } else { said };
            (offset, length.min(file_bytes.saturating_sub(offset)))
        })
        .collect();
    let together: u64 = places.iter().map(|(_, length)| length).sum();
    if picture.compression != Compression::None && together > 2 * file_bytes + BLOCK_BYTES as u64 {
        let message = format!("the strips of the TIFF overlap: {together} bytes in a file of {file_bytes}");
        return Err(undecodable(message));
    }
    Ok(places)
}

/// Puts pixels where they belong.
struct Painter<'a> {
    picture: &'a Picture,
    directory: &'a Directory<'a>,
    unpacker: Unpacker<'a>,
    /// The finished pixels, but for what the late plane adds.
    data: Vec<u8>,
    /// Alpha, or the black of CMYK, of a picture in planes.
    late: Vec<u8>,
    /// Rows as they are stored, and one row of them in 8-bit samples.
    block: Vec<u8>,
    row: Vec<u8>,
    /// Floats above 1.
    too_bright: u64,
}

impl<'a> Painter<'a> {
    fn new(picture: &'a Picture, directory: &'a Directory<'a>) -> Painter<'a> {
        let pixels = picture.width * picture.height;
        Painter {
            picture,
            directory,
            unpacker: Unpacker::new(picture.compression, directory.raw(tag::JPEG_TABLES)),
            data: room(pixels * picture.channels()),
            late: vec![0; if picture.has_late_plane() { pixels } else { 0 }],
            block: Vec::new(),
            row: Vec::new(),
            too_bright: 0,
        }
    }

    /// Reads the chunk at `index` of a plane.
    fn paint(&mut self, chunks: &Chunks, plane: usize, index: usize, budget: &Budget) -> Result<(), PrepareError> {
        let picture = self.picture;
        let (left, top) = (index % chunks.across * chunks.width, index / chunks.across * chunks.height);
        let (columns, rows) = (chunks.width.min(picture.width - left), chunks.height.min(picture.height - top));
        let (offset, length) = chunks.places[plane * chunks.across * chunks.down + index];
        self.unpacker.begin(
            &Chunk {
                bytes: self.directory.bytes(offset, length),
                is_bit_reversed: picture.is_bit_reversed,
                width: chunks.width,
                height: if chunks.are_tiles { chunks.height } else { rows },
                samples: picture.samples_together(),
            },
            budget,
        )?;
        let rows_at_once = (BLOCK_BYTES / chunks.row_bytes).clamp(1, rows);
        let mut block = std::mem::take(&mut self.block);
        block.resize(rows_at_once * chunks.row_bytes, 0);
        for first in (0..rows).step_by(rows_at_once) {
            budget.check()?;
            let block = &mut block[..rows_at_once.min(rows - first) * chunks.row_bytes];
            self.unpacker.read(block, budget)?;
            for (y, row) in block.chunks_exact_mut(chunks.row_bytes).enumerate() {
                self.paint_row(row, plane, (left, top + first + y), columns);
            }
        }
        self.block = block;
        Ok(())
    }

    /// One row of a chunk; the columns beyond `columns` lie outside of the picture.
    fn paint_row(&mut self, stored: &mut [u8], plane: usize, (x, y): (usize, usize), columns: usize) {
        let picture = self.picture;
        let together = picture.samples_together();
        let is_big_endian = picture.predictor.undo(stored, together, picture.format);
        let start = y * picture.width + x;
        let samples = if picture.format.are_bytes() {
            &stored[..columns * together]
        } else {
            self.row.resize(columns * together, 0);
            let is_index = matches!(picture.colours, Colours::Palette(_));
            self.too_bright += picture.format.to_8_bit(stored, is_big_endian, is_index, &mut self.row);
            self.row.as_slice()
        };
        let channels = picture.channels();
        let target = &mut self.data[start * channels..][..columns * channels];
        if !picture.is_planar {
            picture.to_pixels(samples, target);
        } else if plane < channels {
            let is_inverted = matches!(picture.colours, Colours::Grey { is_inverted: true });
            for (pixel, sample) in target.chunks_exact_mut(channels).zip(samples) {
                pixel[plane] = if is_inverted { 255 - sample } else { *sample };
            }
        } else {
            self.late[start..start + columns].copy_from_slice(samples);
        }
    }

    fn finish(mut self) -> Result<Pixels, PrepareError> {
        let picture = self.picture;
        // A few floats above 1 are highlights. Many say that 1 is not white, and what else is nobody tells.
        if self.too_bright * 50 > (picture.width * picture.height * picture.colours.samples()) as u64 {
            return Err(undecodable("the TIFF stores its colours as floats above 1; store them from 0 to 1"));
        }
        let channels = picture.channels();
        for (pixel, &late) in self.data.chunks_exact_mut(channels).zip(&self.late) {
            match picture.alpha {
                Some((_, alpha)) => over_white(pixel, late, alpha),
                None => cmy_with_black(pixel, late),
            }
        }
        Ok(Pixels {
            data: self.data,
            width: picture.width,
            height: picture.height,
            channels,
            orientation: Orientation::default(),
            origin: Origin::whole(picture.width, picture.height),
        })
    }
}

impl Picture {
    /// Whole pixels in 8-bit samples → opaque grey or RGB.
    fn to_pixels(&self, samples: &[u8], target: &mut [u8]) {
        let (alpha, pixels) = (self.alpha, samples.chunks_exact(self.samples));
        match &self.colours {
            Colours::Grey { is_inverted: false } | Colours::Rgb if samples.len() == target.len() => {
                target.copy_from_slice(samples);
            }
            Colours::Grey { is_inverted } => {
                for (pixel, samples) in target.iter_mut().zip(pixels) {
                    *pixel = if *is_inverted { 255 - samples[0] } else { samples[0] };
                    if let Some((alpha, kind)) = alpha {
                        over_white(std::slice::from_mut(pixel), samples[alpha], kind);
                    }
                }
            }
            Colours::Rgb => {
                for (pixel, samples) in target.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    pixel.copy_from_slice(&samples[..3]);
                    if let Some((alpha, kind)) = alpha {
                        over_white(pixel, samples[alpha], kind);
                    }
                }
            }
            Colours::Palette(colours) => {
                for (pixel, &index) in target.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
                    // A sample of n bits is below 2^n, and so many colours there are.
                    *pixel = colours.get(usize::from(index)).copied().unwrap_or_default();
                }
            }
            Colours::Cmyk => {
                for (pixel, samples) in target.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                    pixel.copy_from_slice(&samples[..3]);
                    cmy_with_black(pixel, samples[3]);
                    if let Some((alpha, kind)) = alpha {
                        over_white(pixel, samples[alpha], kind);
                    }
                }
            }
        }
    }
}

fn over_white(pixel: &mut [u8], alpha: u8, kind: Alpha) {
    for value in pixel {
        *value = match kind {
            Alpha::Straight => blend(*value, alpha),
            Alpha::Premultiplied => value.saturating_add(255 - alpha),
        };
    }
}

/// Cyan, magenta and yellow become red, green and blue.
fn cmy_with_black(pixel: &mut [u8], black: u8) {
    let light = 1.0 - f32::from(black) / 255.0;
    for value in pixel {
        *value = ((255.0 - f32::from(*value)) * light) as u8;
    }
}
