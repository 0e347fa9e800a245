//! Assembles an image from its strips or tiles, a few rows at a time.

use super::chunks::Chunks;
use super::colours::cmy_with_black;
use super::directory::Directory;
use super::header::{Colours, Header, over_white};
use super::tag;
use super::unpack::{Chunk, Compression, Unpacker};
use crate::budget::Budget;
use crate::error::{PrepareError, undecodable};
use crate::pixels::{Pixels, zeroed_buffer};

/// Rows are unpacked in blocks of about this size, and the clock is checked once per block.
const BLOCK_BYTES: usize = 64 << 10;

/// The peak memory that decoding an image needs.
pub(super) fn memory_bytes(header: &Header, chunks: &Chunks) -> u64 {
    let pixels = (header.width * header.height) as u64;
    let extra_plane = if header.has_extra_plane() { pixels } else { 0 };
    let rows = 4 * (BLOCK_BYTES + chunks.row_bytes + chunks.width * header.chunk_samples()) as u64;
    let whole_chunk = match header.compression {
        // The pixels, and coefficients of two bytes if the JPEG is progressive.
        Compression::Jpeg { .. } => 3 * (chunks.row_bytes * chunks.height) as u64,
        // The window of the decoder, or the chunk before and after its chroma is repeated for each pixel.
        Compression::Zstd | Compression::Lzma => 2 * (chunks.row_bytes * chunks.height) as u64 + (1 << 20),
        _ if header.subsampling.is_some() => 2 * (chunks.row_bytes * chunks.height) as u64,
        _ => 0,
    };
    let is_copied = header.is_bit_reversed
        || matches!(header.compression, Compression::Zstd | Compression::Lzma | Compression::Fax(_));
    let copy = if is_copied { 2 * chunks.largest_bytes } else { 0 };
    pixels * header.channels() as u64 + extra_plane + rows + whole_chunk + copy + 16 * chunks.ranges.len() as u64
}

/// Converts chunks and puts their pixels into the image.
pub(super) struct ImageBuilder<'a> {
    header: &'a Header,
    directory: &'a Directory<'a>,
    unpacker: Unpacker<'a>,
    /// The finished pixels, except for the effect of the extra plane.
    data: Vec<u8>,
    /// Alpha, or the black of CMYK, of an image in separate planes.
    extra_plane: Vec<u8>,
    /// Stored rows, and one row of 8-bit samples.
    block: Vec<u8>,
    row: Vec<u8>,
    /// Number of floats above 1.
    above_one: u64,
}

impl<'a> ImageBuilder<'a> {
    pub(super) fn new(header: &'a Header, directory: &'a Directory<'a>) -> ImageBuilder<'a> {
        let pixels = header.width * header.height;
        ImageBuilder {
            header,
            directory,
            unpacker: Unpacker::new(header.compression, directory.raw(tag::JPEG_TABLES)),
            data: zeroed_buffer(pixels * header.channels()),
            extra_plane: vec![0; if header.has_extra_plane() { pixels } else { 0 }],
            block: Vec::new(),
            row: Vec::new(),
            above_one: 0,
        }
    }

    /// Unpacks the chunk at `index` of a plane into the image.
    pub(super) fn add_chunk(
        &mut self,
        chunks: &Chunks,
        plane: usize,
        index: usize,
        budget: &Budget,
    ) -> Result<(), PrepareError> {
        let header = self.header;
        let (left, top) = (index % chunks.across * chunks.width, index / chunks.across * chunks.height);
        let (columns, rows) = (chunks.width.min(header.width - left), chunks.height.min(header.height - top));
        let (offset, length) = chunks.ranges[plane * chunks.across * chunks.down + index];
        let chunk_height = if chunks.are_tiles { chunks.height } else { rows };
        self.unpacker.begin(
            &Chunk {
                bytes: self.directory.bytes(offset, length),
                is_bit_reversed: header.is_bit_reversed,
                width: chunks.width,
                height: chunk_height,
                samples: header.chunk_samples(),
                unpacked_bytes: chunks.row_bytes * chunk_height,
                subsampling: header.subsampling,
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
                self.add_row(row, plane, (left, top + first + y), columns);
            }
        }
        self.block = block;
        Ok(())
    }

    /// Converts one row of a chunk. The columns beyond `columns` lie outside the image.
    fn add_row(&mut self, stored: &mut [u8], plane: usize, (x, y): (usize, usize), columns: usize) {
        let header = self.header;
        let chunk_samples = header.chunk_samples();
        let is_big_endian = header.predictor.undo(stored, chunk_samples, header.format);
        let start = y * header.width + x;
        let samples = if header.format.are_bytes() {
            &stored[..columns * chunk_samples]
        } else {
            self.row.resize(columns * chunk_samples, 0);
            let is_index = matches!(header.colours, Colours::Palette(_));
            self.above_one += header.format.to_8_bit(stored, is_big_endian, is_index, &mut self.row);
            self.row.as_slice()
        };
        let channels = header.channels();
        let target = &mut self.data[start * channels..][..columns * channels];
        if !header.is_planar {
            header.to_pixels(samples, target);
        } else if plane < channels {
            let is_inverted = matches!(header.colours, Colours::Grey { is_inverted: true });
            for (pixel, sample) in target.chunks_exact_mut(channels).zip(samples) {
                pixel[plane] = if is_inverted { 255 - sample } else { *sample };
            }
        } else {
            self.extra_plane[start..start + columns].copy_from_slice(samples);
        }
    }

    /// Applies the extra plane and returns the image.
    pub(super) fn finish(mut self) -> Result<Pixels, PrepareError> {
        let header = self.header;
        // A few floats above 1 are highlights. Many of them mean that white is not 1, and the file does not say what it
        // is.
        if self.above_one * 50 > (header.width * header.height * header.colours.samples()) as u64 {
            return Err(undecodable("the TIFF stores its colours as floats above 1; store them from 0 to 1"));
        }
        let channels = header.channels();
        if header.is_planar && channels == 3 {
            self.data.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| header.colours.to_rgb(pixel));
        }
        for (pixel, &extra) in self.data.chunks_exact_mut(channels).zip(&self.extra_plane) {
            match header.alpha {
                Some((_, alpha)) => over_white(pixel, extra, alpha),
                None => cmy_with_black(pixel, extra),
            }
        }
        Ok(Pixels::whole(self.data, (header.width, header.height), channels))
    }
}
