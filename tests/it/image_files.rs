//! Makes unusual and damaged image files, which no common encoder writes, from the images of the repository.

use std::io::{Cursor, Write as _};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize, rotate270};
use image::{ImageFormat, RgbImage};

use crate::harness::test_image;

/// The cup of `tests/pictures` at a small size, so that tests are fast.
pub fn small() -> RgbImage {
    resize(&image::load_from_memory(&test_image("rgb.png")).unwrap().into_rgb8(), 96, 64, FilterType::Triangle)
}

/// The image of [`small`], stored so that orientation 6 turns it upright.
pub fn turned() -> RgbImage {
    rotate270(&small())
}

pub fn encode(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A baseline JPEG with the standard Huffman tables.
pub fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(image).unwrap();
    bytes
}

pub fn jpeg_segment(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
    [&[0xff, marker], length.as_slice(), content].concat()
}

/// Inserts segments after the first marker.
pub fn with_segments(jpeg: &[u8], segments: &[Vec<u8>]) -> Vec<u8> {
    [&jpeg[..2], &segments.concat(), &jpeg[2..]].concat()
}

/// The segments before the first scan, each with its marker, and the rest of the file.
pub fn split_jpeg(jpeg: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut segments, mut position) = (Vec::new(), 2);
    while jpeg[position + 1] != 0xda {
        let end = position + 2 + usize::from(u16::from_be_bytes([jpeg[position + 2], jpeg[position + 3]]));
        segments.push(&jpeg[position..end]);
        position = end;
    }
    (segments, &jpeg[position..])
}

/// Removes the segments with a marker before the first scan.
pub fn without_segments(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let (segments, rest) = split_jpeg(jpeg);
    let kept: Vec<u8> = segments.into_iter().filter(|segment| segment[1] != marker).flatten().copied().collect();
    [&jpeg[..2], &kept, rest].concat()
}

/// A Huffman-coded grey JPEG of 16 × 16 flat blocks, with 8 or 12 bits per sample, with or without restart markers.
pub fn mosaic_jpeg(bits: u8, restart_interval: u16) -> Vec<u8> {
    const SIDE: u16 = 16 * 8;
    let mut file = vec![0xff, 0xd8];
    file.extend(jpeg_segment(0xdb, &[&[0], [1; 64].as_slice()].concat()));
    let [high, low] = SIDE.to_be_bytes();
    file.extend(jpeg_segment(0xc1, &[bits, high, low, high, low, 1, 1, 0x11, 0]));
    // DC has sixteen categories of five bits each. AC has only the end of the block, in one bit.
    let differences: Vec<u8> = (0..16).collect();
    file.extend(jpeg_segment(0xc4, &[&[0x00, 0, 0, 0, 0, 16], [0; 11].as_slice(), &differences].concat()));
    file.extend(jpeg_segment(0xc4, &[&[0x10, 1], [0; 15].as_slice(), &[0]].concat()));
    if restart_interval > 0 {
        file.extend(jpeg_segment(0xdd, &restart_interval.to_be_bytes()));
    }
    file.extend(jpeg_segment(0xda, &[1, 1, 0, 0, 63, 0]));
    let (mut scan, mut last, mut restarts) = (Bits::default(), 0, 0);
    for block in 0..256_u16 {
        if restart_interval > 0 && block > 0 && block % restart_interval == 0 {
            file.extend(std::mem::take(&mut scan).finish());
            file.extend([0xff, 0xd0 + restarts % 8]);
            (last, restarts) = (0, restarts + 1);
        }
        let (row, column) = (i32::from(block / 16), i32::from(block % 16));
        let sample = (row * 37 + column * column * 11) % 256;
        let value = 8 * ((sample - 128) << (bits - 8));
        let difference = value - last;
        let size = i32::BITS - difference.unsigned_abs().leading_zeros();
        scan.push(size, 5);
        scan.push((if difference < 0 { difference - 1 } else { difference }).cast_unsigned(), size);
        scan.push(0, 1);
        last = value;
    }
    file.extend(scan.finish());
    file.extend([0xff, 0xd9]);
    file
}

/// Bits of a scan, most significant first.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
    }

    /// Pads with ones and stuffs a zero after each byte of ones.
    fn finish(self) -> Vec<u8> {
        let byte = |bits: &[bool]| (0..8).fold(0, |byte, bit| byte << 1 | u8::from(*bits.get(bit).unwrap_or(&true)));
        self.0.chunks(8).map(byte).flat_map(|byte| if byte == 0xff { vec![0xff, 0] } else { vec![byte] }).collect()
    }
}

/// A block of EXIF with one field, without a prefix. `behind` follows at offset 26.
pub fn exif(is_big_endian: bool, tag: u16, kind: u16, count: u32, value: [u8; 4], behind: &[u8]) -> Vec<u8> {
    let short = |number: u16| if is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
    let long = |number: u32| if is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
    let mut block = if is_big_endian { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
    block.extend(long(8));
    for number in [1, tag, kind] {
        block.extend(short(number));
    }
    block.extend(long(count));
    block.extend(value);
    block.extend(long(0));
    block.extend_from_slice(behind);
    block
}

/// The block that most cameras write.
pub fn exif_orientation(orientation: u8) -> Vec<u8> {
    exif(false, 0x0112, 3, 1, [orientation, 0, 0, 0], b"")
}

pub fn exif_segment(block: &[u8]) -> Vec<u8> {
    jpeg_segment(0xe1, &[b"Exif\0\0", block].concat())
}

pub fn png_chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
    let named = [kind, data].concat();
    [&(data.len() as u32).to_be_bytes(), named.as_slice(), &crc32fast::hash(&named).to_be_bytes()].concat()
}

/// Inserts a chunk after the header of a PNG, or before its end.
pub fn with_png_chunk(png: &[u8], chunk: &[u8], is_before_pixels: bool) -> Vec<u8> {
    let at = if is_before_pixels { 33 } else { png.len() - 12 };
    [&png[..at], chunk, &png[at..]].concat()
}

pub fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A block of EXIF in the text form of ImageMagick and GIMP.
pub fn raw_profile(block: &[u8]) -> Vec<u8> {
    let block = [b"Exif\0\0", block].concat();
    let digits: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<&str> = digits.as_bytes().chunks(72).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("\nexif\n{:8}\n{}\n", block.len(), lines.join("\n")).into_bytes()
}

/// A WebP file with these flags in its header, followed by these chunks.
pub fn webp(flags: u8, (width, height): (u32, u32), chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    let mut add = |kind: &[u8], data: &[u8]| {
        body.extend_from_slice(kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(2), 0);
    };
    let extent = |number: u32| (number - 1).to_le_bytes();
    let (w, h) = (extent(width), extent(height));
    add(b"VP8X", &[flags, 0, 0, 0, w[0], w[1], w[2], h[0], h[1], h[2]]);
    for (kind, data) in chunks {
        add(kind.as_slice(), data);
    }
    [b"RIFF", (body.len() as u32).to_le_bytes().as_slice(), &body].concat()
}

/// A BMP of a header, bytes between it and the pixels, a stated offset of the pixels, and the pixels.
pub fn bmp(header: &[u8], between: &[u8], offset: usize, pixels: &[u8]) -> Vec<u8> {
    let length = (14 + header.len() + between.len() + pixels.len()) as u32;
    let stated = u32::try_from(offset).unwrap().to_le_bytes();
    [b"BM", length.to_le_bytes().as_slice(), &[0; 4], &stated, header, between, pixels].concat()
}

/// The header of a BMP of [`small`], of Windows or OS/2 version 2.
pub fn bmp_header(size: usize, planes: u16, bits: u16, compression: u32, colours: u32, masks: &[u32]) -> Vec<u8> {
    let mut header = (size as u32).to_le_bytes().to_vec();
    header.extend([96_u32, 64].into_iter().flat_map(u32::to_le_bytes));
    header.extend([planes, bits].into_iter().flat_map(u16::to_le_bytes));
    header.extend([compression, 0, 0, 0, colours, 0].into_iter().flat_map(u32::to_le_bytes));
    header.extend(masks.iter().flat_map(|mask| mask.to_le_bytes()));
    header.resize(size, 0);
    header
}

/// The pixels of a BMP in the order blue, green, red, from the last row on, with the fourth byte if one is given.
pub fn bmp_pixels(image: &RgbImage, fourth: Option<u8>) -> Vec<u8> {
    let pixel = |pixel: &image::Rgb<u8>| [pixel[2], pixel[1], pixel[0]].into_iter().chain(fourth).collect::<Vec<_>>();
    image.rows().rev().flat_map(|row| row.flat_map(pixel).collect::<Vec<_>>()).collect()
}

/// Indices of a BMP into a palette of 64 greys, from the last row on, and the image that they represent.
pub fn bmp_indices(image: &RgbImage) -> (Vec<u8>, RgbImage) {
    let index = |pixel: &image::Rgb<u8>| pixel[1] / 4;
    let indices = image.rows().rev().flat_map(|row| row.map(index)).collect();
    let mut shown = image.clone();
    shown.pixels_mut().for_each(|pixel| *pixel = image::Rgb([index(pixel) * 4; 3]));
    (indices, shown)
}

/// The palette of [`bmp_indices`].
pub fn bmp_palette(bytes_per_colour: usize, colours: u8) -> Vec<u8> {
    (0..colours)
        .flat_map(|grey| [[grey.wrapping_mul(4); 3].as_slice(), &[0]].concat()[..bytes_per_colour].to_vec())
        .collect()
}
