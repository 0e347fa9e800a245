//! The strips or tiles of a TIFF, called chunks: their size, and where they are in the file.

use super::directory::Directory;
use super::error::damaged;
use super::header::Header;
use super::tag;
use super::unpack::Compression;
use crate::error::{PrepareError, undecodable};

/// Maximum number of strips or tiles in one image: each costs about two microseconds in addition to its pixels. A scan
/// of 65,500 rows in strips of one row each, in four planes, has as many.
const MAX_CHUNKS: usize = 262_000;

/// The number of bytes by which chunks of a small file may overlap.
const OVERLAP_BYTES: u64 = 64 << 10;

/// The chunks of an image: rectangles of one size, row by row and plane by plane.
pub(super) struct Chunks {
    pub width: usize,
    pub height: usize,
    /// Number of chunks in a row, and number of rows of chunks.
    pub across: usize,
    pub down: usize,
    /// A tile at the edge is stored in full size. The last strip ends with the image.
    pub are_tiles: bool,
    /// Size of one row of a chunk.
    pub row_bytes: usize,
    /// Offset and length of each chunk in the file.
    pub ranges: Vec<(u64, u64)>,
    pub largest_bytes: u64,
}

impl Chunks {
    /// Reads the sizes and ranges of all chunks.
    pub(super) fn read(directory: &Directory, header: &Header) -> Result<Chunks, PrepareError> {
        let are_tiles = directory.count(tag::TILE_OFFSETS) > 0;
        let size = |number: Option<u64>, full: usize| match number {
            None if !are_tiles => Ok(full),
            Some(length) if length > 0 && are_tiles && length <= 1 << 20 => Ok(length as usize),
            Some(length) if length > 0 && !are_tiles => Ok(usize::try_from(length).unwrap_or(full).min(full)),
            _ => Err(damaged()),
        };
        let (width, height, offsets, counts) = if are_tiles {
            let width = size(directory.number(tag::TILE_WIDTH), header.width)?;
            let height = size(directory.number(tag::TILE_LENGTH), header.height)?;
            (width, height, tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS)
        } else {
            let height = size(directory.number(tag::ROWS_PER_STRIP), header.height)?;
            (header.width, height, tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS)
        };
        let (across, down) = (header.width.div_ceil(width), header.height.div_ceil(height));
        let planes = if header.is_planar { header.samples } else { 1 };
        let count = across.saturating_mul(down).saturating_mul(planes);
        if count > MAX_CHUNKS {
            let kind = if are_tiles { "tiles" } else { "strips" };
            return Err(undecodable(format!("the TIFF has {count} {kind}, more than the limit of {MAX_CHUNKS}")));
        }
        let row_bits = width * header.chunk_samples() * header.format.bits() as usize;
        let mut chunks = Chunks {
            width,
            height,
            across,
            down,
            are_tiles,
            row_bytes: row_bits.div_ceil(8),
            ranges: Vec::new(),
            largest_bytes: 0,
        };
        chunks.ranges = read_ranges(directory, offsets, counts, count, (chunks.row_bytes * height) as u64, header)?;
        chunks.largest_bytes = chunks.ranges.iter().map(|(_, length)| *length).max().unwrap_or(0);
        Ok(chunks)
    }
}

/// Offset and length of each chunk, clamped to the file.
///
/// # Errors
/// If there are too few, or if together they are much longer than the file: chunks that share bytes would multiply the
/// cost of unpacking.
fn read_ranges(
    directory: &Directory,
    offsets: u16,
    counts: u16,
    count: usize,
    unpacked_bytes: u64,
    header: &Header,
) -> Result<Vec<(u64, u64)>, PrepareError> {
    let file_bytes = directory.file_bytes();
    let has_counts = directory.count(counts) >= count;
    if directory.count(offsets) < count || (!has_counts && count > 1 && header.compression != Compression::None) {
        return Err(damaged());
    }
    let mut lengths = directory.numbers(counts);
    let ranges: Vec<(u64, u64)> = directory
        .numbers(offsets)
        .take(count)
        .map(|offset| {
            let stated = lengths.next().filter(|_| has_counts).unwrap_or(u64::MAX);
            // The length of an uncompressed chunk follows from its size, whatever the file states.
            let length = if header.compression == Compression::None { unpacked_bytes } else { stated };
            (offset, length.min(file_bytes.saturating_sub(offset)))
        })
        .collect();
    let together: u64 = ranges.iter().map(|(_, length)| length).sum();
    if header.compression != Compression::None && together > 2 * file_bytes + OVERLAP_BYTES {
        let message = format!("the strips of the TIFF overlap: {together} bytes in a file of {file_bytes}");
        return Err(undecodable(message));
    }
    Ok(ranges)
}
