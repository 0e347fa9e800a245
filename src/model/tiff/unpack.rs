//! Compressed bytes of a strip or tile → rows. Rows are unpacked on demand, except for JPEG, whose decoder returns the
//! whole strip or tile.

use std::borrow::Cow;
use std::io::{Cursor, Read};

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use weezl::LzwStatus;
use weezl::decode::{Configuration, Decoder as LzwDecoder};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::directory::Directory;
use super::error::{damaged, truncated, unsupported};
use super::fax::{Fax, FaxCoding};
use super::tag;
use super::xz::Xz;
use crate::budget::{Budget, PIECE_BYTES};
use crate::error::PrepareError;

/// Maximum number of scans of a JPEG in a strip or tile. TIFF allows only sequential ones, with at most one scan per
/// component.
const MAX_SCANS: usize = 4;

/// Maximum size of the tables that JPEGs share, which are read for each strip or tile. All possible tables together
/// take less than 2 KiB.
const MAX_TABLES_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax(FaxCoding),
    Lzw,
    Deflate,
    PackBits,
    Zstd,
    Lzma,
    Jpeg { is_ycbcr: bool },
}

impl Compression {
    pub(super) fn read(directory: &Directory) -> Result<Compression, PrepareError> {
        match directory.number(tag::COMPRESSION).unwrap_or(1) {
            1 => Ok(Compression::None),
            2 => bilevel(directory, FaxCoding::RunLength),
            3 => {
                let options = directory.number(tag::GROUP3_OPTIONS).unwrap_or(0);
                bilevel(directory, FaxCoding::Group3 { is_two_dimensional: options & 1 == 1 })
            }
            4 => bilevel(directory, FaxCoding::Group4),
            5 => Ok(Compression::Lzw),
            8 | 32_946 => Ok(Compression::Deflate),
            32_773 => Ok(Compression::PackBits),
            7 => jpeg(directory),
            6 => Err(unsupported("old-style JPEG compression")),
            34_712 => Err(unsupported("JPEG 2000 compression")),
            34_887 => Err(unsupported("LERC compression")),
            34_925 => Ok(Compression::Lzma),
            50_000 | 34_926 => Ok(Compression::Zstd),
            50_001 | 34_927 => Err(unsupported("WebP compression")),
            50_002 => Err(unsupported("JPEG XL compression")),
            other => Err(unsupported(format_args!("the compression numbered {other}"))),
        }
    }

    /// Reports whether a predictor may be combined with this compression.
    pub(super) fn supports_predictor(self) -> bool {
        matches!(self, Compression::Lzw | Compression::Deflate | Compression::Zstd | Compression::Lzma)
    }
}

fn bilevel(directory: &Directory, coding: FaxCoding) -> Result<Compression, PrepareError> {
    let [bits, samples] = [tag::BITS_PER_SAMPLE, tag::SAMPLES_PER_PIXEL].map(|tag| directory.number(tag).unwrap_or(1));
    if bits == 1 && samples == 1 { Ok(Compression::Fax(coding)) } else { Err(damaged()) }
}

fn jpeg(directory: &Directory) -> Result<Compression, PrepareError> {
    if directory.number(tag::BITS_PER_SAMPLE) != Some(8) {
        return Err(unsupported("JPEG compression of other than 8 bits"));
    }
    Ok(Compression::Jpeg { is_ycbcr: directory.number(tag::PHOTOMETRIC) == Some(6) })
}

/// A strip or tile as it is stored in the file.
pub(super) struct Chunk<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) is_bit_reversed: bool,
    /// Width and height in pixels.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Samples per pixel.
    pub(super) samples: usize,
    /// The size of all rows of the chunk.
    pub(super) unpacked_bytes: usize,
    /// The number of pixels across and down that share their chroma.
    pub(super) subsampling: Option<(usize, usize)>,
}

/// Unpacks one chunk after another, and reuses the state of its method.
pub(super) struct Unpacker<'a> {
    method: Method,
    input: Cow<'a, [u8]>,
    at: usize,
    /// The tables that all JPEGs of the file share.
    tables: Option<&'a [u8]>,
    /// The rows of a chunk with subsampled chroma, in three samples for each pixel.
    expanded: Option<Vec<u8>>,
}

type ZstdDecoder = StreamingDecoder<Cursor<Vec<u8>>, FrameDecoder>;

enum Method {
    None,
    PackBits {
        literal: usize,
        repeat: (usize, u8),
    },
    Lzw(Box<LzwDecoder>),
    Deflate(Decompress),
    /// The decoder is `None` before the first chunk.
    Zstd(Option<Box<ZstdDecoder>>),
    /// The decoder is `None` before the first chunk.
    Lzma(Option<Box<Xz>>),
    Jpeg {
        is_ycbcr: bool,
    },
    /// The decoder is `None` before the first chunk.
    Fax(FaxCoding, Option<Box<Fax>>),
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(compression: Compression, tables: Option<&'a [u8]>) -> Unpacker<'a> {
        let method = match compression {
            Compression::None => Method::None,
            Compression::PackBits => Method::PackBits { literal: 0, repeat: (0, 0) },
            // Decoding stops when the rows are full, because the bytes that follow may be garbage.
            Compression::Lzw => {
                let configuration = Configuration::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
                Method::Lzw(Box::new(configuration.with_yield_on_full_buffer(true).build()))
            }
            Compression::Deflate => Method::Deflate(Decompress::new(true)),
            Compression::Zstd => Method::Zstd(None),
            Compression::Lzma => Method::Lzma(None),
            Compression::Jpeg { is_ycbcr } => Method::Jpeg { is_ycbcr },
            Compression::Fax(coding) => Method::Fax(coding, None),
        };
        Unpacker { method, input: Cow::Borrowed(&[]), at: 0, tables, expanded: None }
    }

    /// Starts another chunk.
    pub(super) fn begin(&mut self, chunk: &Chunk<'a>, budget: &Budget) -> Result<(), PrepareError> {
        self.at = 0;
        self.expanded = None;
        self.input = match &self.method {
            Method::Jpeg { is_ycbcr } => Cow::Owned(decode_jpeg(chunk, self.tables, *is_ycbcr)?),
            _ if chunk.is_bit_reversed => Cow::Owned(chunk.bytes.iter().map(|byte| byte.reverse_bits()).collect()),
            _ => Cow::Borrowed(chunk.bytes),
        };
        match &mut self.method {
            Method::None | Method::Jpeg { .. } => {}
            Method::PackBits { literal, repeat } => (*literal, *repeat) = (0, (0, 0)),
            Method::Lzw(decoder) => decoder.reset(),
            Method::Deflate(inflater) => inflater.reset(true),
            Method::Zstd(decoder) => {
                let input = Cursor::new(std::mem::take(&mut self.input).into_owned());
                *decoder = Some(Box::new(StreamingDecoder::new(input).map_err(|_| damaged())?));
            }
            Method::Lzma(decoder) => {
                let input = std::mem::take(&mut self.input).into_owned();
                *decoder = Some(Box::new(Xz::new(input, chunk.unpacked_bytes).ok_or_else(damaged)?));
            }
            Method::Fax(coding, fax) => {
                *fax = Some(Box::new(Fax::new(*coding, std::mem::take(&mut self.input), chunk.width)?));
            }
        }
        if let Some(subsampling) = chunk.subsampling {
            let mut packed = vec![0; packed_bytes(chunk, subsampling)];
            self.read(&mut packed, budget)?;
            self.expanded = Some(expand(&packed, chunk, subsampling));
            self.at = 0;
        }
        budget.check()
    }

    /// Fills `rows` with the next complete rows of the chunk.
    ///
    /// # Errors
    /// The chunk is damaged or truncated, or the budget is spent.
    pub(super) fn read(&mut self, rows: &mut [u8], budget: &Budget) -> Result<(), PrepareError> {
        let Unpacker { method, input, at, expanded, .. } = self;
        if let Some(expanded) = expanded {
            rows.copy_from_slice(expanded.get(*at..*at + rows.len()).ok_or_else(truncated)?);
            *at += rows.len();
            return Ok(());
        }
        match method {
            Method::None | Method::Jpeg { .. } => {
                let bytes = input.get(*at..*at + rows.len()).ok_or_else(truncated)?;
                rows.copy_from_slice(bytes);
                *at += rows.len();
                Ok(())
            }
            Method::PackBits { literal, repeat } => unpack_bits(input, at, literal, repeat, rows),
            Method::Lzw(decoder) => fill(input, at, rows, budget, |input, rows| {
                let done = decoder.decode_bytes(input, rows);
                match done.status {
                    Ok(LzwStatus::Done) => Ok((done.consumed_in, done.consumed_out, true)),
                    Ok(_) => Ok((done.consumed_in, done.consumed_out, false)),
                    Err(_) => Err(damaged()),
                }
            }),
            Method::Deflate(inflater) => fill(input, at, rows, budget, |input, rows| {
                let (read, written) = (inflater.total_in(), inflater.total_out());
                let status = inflater.decompress(input, rows, FlushDecompress::None).map_err(|_| damaged())?;
                let (read, written) = (inflater.total_in() - read, inflater.total_out() - written);
                Ok((read as usize, written as usize, status == Status::StreamEnd))
            }),
            Method::Zstd(decoder) => read_stream(decoder.as_mut().ok_or_else(damaged)?, rows, budget),
            Method::Lzma(decoder) => read_stream(decoder.as_mut().ok_or_else(damaged)?, rows, budget),
            Method::Fax(_, fax) => fax.as_mut().ok_or_else(damaged)?.read(rows),
        }
    }
}

/// Reads a stream until `rows` are full.
fn read_stream(stream: &mut impl Read, rows: &mut [u8], budget: &Budget) -> Result<(), PrepareError> {
    let mut filled = 0;
    while filled < rows.len() {
        let end = rows.len().min(filled + PIECE_BYTES);
        let read = stream.read(&mut rows[filled..end]).map_err(|_| damaged())?;
        if read == 0 {
            return Err(truncated());
        }
        filled += read;
        budget.check()?;
    }
    Ok(())
}

/// Calls `step` with pieces of `input` from `at` on until `rows` are full. `step` returns how much it read and wrote,
/// and whether the stream has ended.
fn fill(
    input: &[u8],
    at: &mut usize,
    rows: &mut [u8],
    budget: &Budget,
    mut step: impl FnMut(&[u8], &mut [u8]) -> Result<(usize, usize, bool), PrepareError>,
) -> Result<(), PrepareError> {
    let mut filled = 0;
    while filled < rows.len() {
        let rest = &input[*at..];
        let (read, written, is_done) = step(&rest[..rest.len().min(PIECE_BYTES)], &mut rows[filled..])?;
        *at += read;
        filled += written;
        if filled < rows.len() && (is_done || (read == 0 && written == 0)) {
            return Err(truncated());
        }
        // A piece may contain nothing but empty blocks, so the clock is checked even if nothing was written.
        if filled < rows.len() {
            budget.check()?;
        }
    }
    Ok(())
}

/// The size of a chunk whose blocks of pixels share their chroma.
fn packed_bytes(chunk: &Chunk, (across, down): (usize, usize)) -> usize {
    chunk.width.div_ceil(across) * chunk.height.div_ceil(down) * (across * down + 2)
}

/// Repeats the chroma of each block for its pixels. A block is stored as its luma, row by row, then Cb and Cr.
fn expand(packed: &[u8], chunk: &Chunk, (across, down): (usize, usize)) -> Vec<u8> {
    let Chunk { width, height, .. } = *chunk;
    let mut pixels = vec![0; width * height * 3];
    let blocks = packed.chunks_exact(across * down + 2);
    for (index, block) in blocks.enumerate() {
        let blocks_across = width.div_ceil(across);
        let (left, top) = (index % blocks_across * across, index / blocks_across * down);
        let (luma, chroma) = block.split_at(across * down);
        for (at, luma) in luma.iter().enumerate() {
            let (x, y) = (left + at % across, top + at / across);
            if x < width && y < height {
                pixels[(y * width + x) * 3..][..3].copy_from_slice(&[*luma, chroma[0], chroma[1]]);
            }
        }
    }
    pixels
}

fn unpack_bits(
    input: &[u8],
    at: &mut usize,
    literal: &mut usize,
    repeat: &mut (usize, u8),
    rows: &mut [u8],
) -> Result<(), PrepareError> {
    let mut filled = 0;
    while filled < rows.len() {
        let left = rows.len() - filled;
        if repeat.0 > 0 {
            let length = repeat.0.min(left);
            rows[filled..filled + length].fill(repeat.1);
            repeat.0 -= length;
            filled += length;
        } else if *literal > 0 {
            let length = (*literal).min(left);
            rows[filled..filled + length].copy_from_slice(input.get(*at..*at + length).ok_or_else(truncated)?);
            *literal -= length;
            *at += length;
            filled += length;
        } else {
            let header = *input.get(*at).ok_or_else(truncated)?;
            *at += 1;
            match header {
                0..128 => *literal = usize::from(header) + 1,
                // A no-op that some writers use for alignment.
                128 => {}
                129.. => {
                    *repeat = (257 - usize::from(header), *input.get(*at).ok_or_else(truncated)?);
                    *at += 1;
                }
            }
        }
    }
    Ok(())
}

/// Decodes all rows of a JPEG, to RGB if it is YCbCr, otherwise without converting colours.
fn decode_jpeg(chunk: &Chunk, tables: Option<&[u8]>, is_ycbcr: bool) -> Result<Vec<u8>, PrepareError> {
    const END_OF_IMAGE: &[u8] = b"\xff\xd9";
    let jpeg = match tables {
        // The tables are a JPEG without an image. Its end marker and the start marker of the chunk are removed to join
        // them.
        Some(tables) if tables.len() > MAX_TABLES_BYTES => return Err(damaged()),
        Some(tables) => {
            let tables = tables.strip_suffix(END_OF_IMAGE).unwrap_or(tables);
            [tables, chunk.bytes.get(2..).ok_or_else(truncated)?].concat()
        }
        None => chunk.bytes.to_vec(),
    };
    let last = &jpeg[jpeg.len().saturating_sub(16)..];
    let is_complete = last.windows(2).any(|marker| marker == END_OF_IMAGE);
    let options = DecoderOptions::default()
        .set_max_width(chunk.width)
        .set_max_height(chunk.height)
        .jpeg_set_max_scans(MAX_SCANS)
        .set_strict_mode(!is_complete);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&jpeg), options);
    decoder.decode_headers().map_err(|_| damaged())?;
    let colours = decoder.input_colorspace().ok_or_else(damaged)?;
    let size = decoder.dimensions().ok_or_else(damaged)?;
    if size != (chunk.width, chunk.height) || colours.num_components() != chunk.samples {
        return Err(damaged());
    }
    // Only YCbCr is converted; other colour spaces are those of the TIFF.
    let colours = if is_ycbcr { ColorSpace::RGB } else { colours };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(|_| if is_complete { damaged() } else { truncated() })?;
    if pixels.len() == chunk.width * chunk.height * chunk.samples { Ok(pixels) } else { Err(damaged()) }
}
