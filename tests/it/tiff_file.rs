//! Writes TIFF files of any kind, valid and invalid. Tags are numbers, as in the file.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

pub const WIDTH: u16 = 256;
pub const HEIGHT: u16 = 257;
pub const BITS: u16 = 258;
pub const COMPRESSION: u16 = 259;
pub const PHOTOMETRIC: u16 = 262;
pub const FILL_ORDER: u16 = 266;
pub const STRIP_OFFSETS: u16 = 273;
pub const SAMPLES: u16 = 277;
pub const ROWS_PER_STRIP: u16 = 278;
pub const STRIP_BYTE_COUNTS: u16 = 279;
pub const PLANAR: u16 = 284;
pub const PREDICTOR: u16 = 317;
pub const COLOR_MAP: u16 = 320;
pub const TILE_WIDTH: u16 = 322;
pub const TILE_LENGTH: u16 = 323;
pub const TILE_OFFSETS: u16 = 324;
pub const TILE_BYTE_COUNTS: u16 = 325;
pub const EXTRA_SAMPLES: u16 = 338;
pub const SAMPLE_FORMAT: u16 = 339;

const LARGE: [u16; 8] =
    [WIDTH, HEIGHT, STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTE_COUNTS, TILE_OFFSETS, TILE_BYTE_COUNTS, TILE_WIDTH];

/// The tags and chunks of a file.
#[derive(Clone)]
pub struct Tiff {
    pub tags: BTreeMap<u16, Vec<u32>>,
    /// Strips or tiles.
    pub chunks: Vec<Vec<u8>>,
    pub is_big_endian: bool,
    pub is_bigtiff: bool,
}

impl Tiff {
    /// An uncompressed image of 8-bit samples in one strip.
    pub fn new(width: u32, height: u32, samples: u32, pixels: &[u8]) -> Tiff {
        let tags = [
            (WIDTH, vec![width]),
            (HEIGHT, vec![height]),
            (BITS, vec![8; samples as usize]),
            (COMPRESSION, vec![1]),
            (PHOTOMETRIC, vec![if samples < 3 { 1 } else { 2 }]),
            (SAMPLES, vec![samples]),
            (ROWS_PER_STRIP, vec![height]),
        ];
        Tiff { tags: tags.into(), chunks: vec![pixels.to_vec()], is_big_endian: false, is_bigtiff: false }
    }

    /// Sets a tag.
    pub fn with(mut self, tag: u16, values: impl IntoIterator<Item = u32>) -> Tiff {
        self.tags.insert(tag, values.into_iter().collect());
        self
    }

    /// Compresses each chunk.
    pub fn compressed(mut self, number: u32, compress: impl Fn(&[u8]) -> Vec<u8>) -> Tiff {
        self.chunks = self.chunks.iter().map(|chunk| compress(chunk)).collect();
        self.with(COMPRESSION, [number])
    }

    pub fn file(&self) -> Vec<u8> {
        let (mut body, mut ranges) = (Vec::new(), Vec::new());
        for chunk in &self.chunks {
            ranges.push((body.len() as u32, chunk.len() as u32));
            body.extend_from_slice(chunk);
        }
        self.file_of(&body, &ranges)
    }

    /// The file with its chunks at the given ranges (offset and length) of `body`.
    pub fn file_of(&self, body: &[u8], ranges: &[(u32, u32)]) -> Vec<u8> {
        let header = if self.is_bigtiff { 16 } else { 8 };
        let mut tags = self.tags.clone();
        let is_tiled = tags.contains_key(&TILE_WIDTH);
        let (offsets, counts) =
            if is_tiled { (TILE_OFFSETS, TILE_BYTE_COUNTS) } else { (STRIP_OFFSETS, STRIP_BYTE_COUNTS) };
        tags.insert(offsets, ranges.iter().map(|(offset, _)| offset + header).collect());
        tags.insert(counts, ranges.iter().map(|(_, length)| *length).collect());
        let mut file = vec![0; header as usize];
        file.extend_from_slice(body);
        let field = if self.is_bigtiff { 8 } else { 4 };
        let mut entries = Vec::new();
        for (tag, values) in &tags {
            let is_large = LARGE.contains(tag);
            let bytes: Vec<u8> =
                values.iter().flat_map(|&value| self.number(value.into(), if is_large { 4 } else { 2 })).collect();
            entries.extend(self.number(u64::from(*tag), 2));
            entries.extend(self.number(if is_large { 4 } else { 3 }, 2));
            entries.extend(self.number(values.len() as u64, field));
            if bytes.len() > field {
                entries.extend(self.number(file.len() as u64, field));
                file.extend(bytes);
            } else {
                entries.extend_from_slice(&bytes);
                entries.resize(entries.len() + field - bytes.len(), 0);
            }
        }
        let start = file.len() as u64;
        file.extend(self.number(tags.len() as u64, if self.is_bigtiff { 8 } else { 2 }));
        file.extend(entries);
        file.resize(file.len() + field, 0);
        let mut head = if self.is_big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        if self.is_bigtiff {
            for (value, size) in [(43, 2), (8, 2), (0, 2), (start, 8)] {
                head.extend(self.number(value, size));
            }
        } else {
            head.extend(self.number(42, 2));
            head.extend(self.number(start, 4));
        }
        file[..head.len()].copy_from_slice(&head);
        file
    }

    fn number(&self, value: u64, bytes: usize) -> Vec<u8> {
        if self.is_big_endian {
            value.to_be_bytes()[8 - bytes..].to_vec()
        } else {
            value.to_le_bytes()[..bytes].to_vec()
        }
    }
}

pub fn zlib(bytes: &[u8]) -> Vec<u8> {
    zlib_of(std::iter::once(bytes))
}

/// Compresses the concatenated pieces, so that a decompression bomb takes little memory here.
pub fn zlib_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    pieces.into_iter().for_each(|piece| encoder.write_all(piece).unwrap());
    encoder.finish().unwrap()
}

/// A zlib stream of `count` empty stored blocks, then one of one byte.
pub fn empty_blocks(count: usize) -> Vec<u8> {
    let mut stream = b"\x78\x01".to_vec();
    stream.extend(b"\0\0\0\xff\xff".repeat(count));
    // The checksum is wrong but not read, because a row is full before.
    stream.extend(b"\x01\x01\0\xfe\xff\x11\0\x12\0\x12");
    stream
}
