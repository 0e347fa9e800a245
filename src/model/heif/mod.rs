//! HEIC and AVIF → pixels: one container (HEIF) with images that are coded by HEVC or AV1.
//!
//! - `boxes`, `container`: the items of the file and their properties; `layout`: the tiles that an image consists of
//! - `hevc`, `av1`: a coded item → a frame of luma and chroma; `frame`: a frame → RGB
//! - `canon_raw`: the previews of camera raw images of Canon
//! - `transform`: cutting, turning and mirroring, which the container states
//!
//! The orientation is that of the container. The standard says that EXIF repeats it at most, and viewers ignore EXIF.
//!
//! A tile is decoded as a whole: the codecs do not read the clock, so the time is checked between tiles. Their cost is
//! bounded by the number of pixels, which is limited for each tile and for all of them together.

mod av1;
mod boxes;
mod canon_raw;
mod container;
mod frame;
mod hevc;
mod layout;
mod transform;

use self::boxes::Reader;
pub(super) use self::canon_raw::{canon_preview, is_canon_raw};
use self::container::Container;
use self::frame::{Canvas, ColourCoding, Frame};
use self::layout::Layout;
use self::transform::Transform;
use super::budget::Budget;
use super::error::{PrepareError, undecodable};
use super::format::Format;
use super::pixels::{Pixels, blend, check_size, zeroed_buffer};
use crate::error::ImageFault;
use crate::limits::Limits;

pub(super) const AVIF: Format = Format {
    name: "AVIF",
    media_type: "image/avif",
    extensions: &["avif"],
    has_signature: |bytes| brands(bytes).any(|brand| matches!(brand, b"avif" | b"avis")),
    decode: |bytes, limits, _, budget| decode("AVIF", bytes, limits, budget),
};

/// Listed after [`AVIF`], whose files declare the general brand of HEIF too.
pub(super) const HEIC: Format = Format {
    name: "HEIC",
    media_type: "image/heic",
    extensions: &["heic", "heif", "hif"],
    has_signature: |bytes| {
        brands(bytes).any(|brand| {
            matches!(brand, b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"mif2" | b"msf1")
        })
    },
    decode: |bytes, limits, _, budget| decode("HEIC", bytes, limits, budget),
};

/// Maximum of the pixels of all tiles together, in units of `max_pixels`: small images in blocks of 64 pixels, and tiles
/// that extend beyond the image, have more pixels than are shown.
const MAX_CODED_PIXELS_AT_MAX_PIXELS: u64 = 2;

/// Peak memory of the codecs for each pixel of a tile: 4 to 5 bytes as measured (decision 37), and more if chroma is
/// stored for each pixel.
const CODEC_BYTES_PER_PIXEL: u64 = 12;

/// The brands of the file that lie in its first 64 bytes: the major one, then those that it is compatible with.
fn brands(bytes: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    let length = bytes.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let is_file_type = bytes.get(4..8) == Some(b"ftyp");
    let end = if is_file_type { length.min(bytes.len()).min(64) } else { 0 };
    let all = bytes.get(8..end).unwrap_or_default().as_chunks::<4>().0;
    // The second word is the version of the major brand.
    all.iter().enumerate().filter(|(index, _)| *index != 1).map(|(_, brand)| brand)
}

fn decode(name: &str, bytes: &[u8], limits: &Limits, budget: &Budget) -> Result<Pixels, PrepareError> {
    let damaged = || undecodable(format!("the {name} is damaged or truncated"));
    if !has_box(bytes, *b"meta") && has_box(bytes, *b"moov") {
        let message = format!("the {name} is a video without a still image; extract a frame first");
        return Err(PrepareError::new(ImageFault::UnsupportedType, message));
    }
    let container = Container::read(bytes).ok_or_else(damaged)?;
    let decoder = Decoder { name, container: &container, limits, budget };
    let primary = container.primary;
    let layout = decoder.layout(primary)?;
    let alpha = alpha_item(&container, primary).map(|item| Ok((item, decoder.layout(item)?))).transpose()?;
    if alpha.as_ref().is_some_and(|(_, alpha)| (alpha.width, alpha.height) != (layout.width, layout.height)) {
        return Err(decoder.unsupported("an alpha channel of another size"));
    }
    let (width, height) = (layout.width, layout.height);
    let transform = Transform::read(container.properties(primary), (width, height));
    let transform =
        transform.map_err(|feature| feature.map_or_else(damaged, |feature| decoder.unsupported(feature)))?;
    let coded_pixels = layout.coded_pixels().max(alpha.as_ref().map_or(0, |(_, alpha)| alpha.coded_pixels()));
    budget.reserve((width * height) as u64 * 4 + coded_pixels * CODEC_BYTES_PER_PIXEL)?;
    let mut canvas = Canvas { data: zeroed_buffer(3 * width * height), width, height, channels: 3 };
    decoder.draw(primary, &layout, &mut canvas)?;
    if let Some((item, layout)) = alpha {
        let mut opacity = Canvas { data: vec![0; width * height], width, height, channels: 1 };
        decoder.draw(item, &layout, &mut opacity)?;
        let is_premultiplied = container.targets(primary, *b"prem").contains(&item);
        over_white(&mut canvas.data, &opacity.data, is_premultiplied);
    }
    let (data, (width, height)) = transform.cut(canvas.data, (width, height));
    let mut pixels = Pixels::whole(data, (width, height), 3);
    pixels.orientation = transform.orientation;
    Ok(pixels)
}

fn has_box(bytes: &[u8], kind: [u8; 4]) -> bool {
    Reader(bytes).find(kind).is_some()
}

/// The item that contains the alpha channel of an image.
fn alpha_item(container: &Container, image: u32) -> Option<u32> {
    const ALPHA: [&[u8]; 2] = [b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"];
    let is_alpha = |item: &u32| {
        let Some(mut kind) = container.property(*item, *b"auxC") else { return false };
        kind.version().is_some() && ALPHA.contains(&kind.0.split(|byte| *byte == 0).next().unwrap_or_default())
    };
    container.sources(image, *b"auxl").find(is_alpha)
}

/// Blends RGB over white.
fn over_white(pixels: &mut [u8], opacity: &[u8], is_premultiplied: bool) {
    for (pixel, &alpha) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(opacity) {
        for value in pixel {
            *value = if is_premultiplied { value.saturating_add(255 - alpha) } else { blend(*value, alpha) };
        }
    }
}

/// Decodes the items of one file.
struct Decoder<'a> {
    name: &'a str,
    container: &'a Container<'a>,
    limits: &'a Limits,
    budget: &'a Budget,
}

impl Decoder<'_> {
    fn damaged(&self) -> PrepareError {
        undecodable(format!("the {} is damaged or truncated", self.name))
    }

    fn unsupported(&self, feature: impl std::fmt::Display) -> PrepareError {
        let message = format!("the {} uses {feature}, which is not supported", self.name);
        PrepareError::new(ImageFault::UnsupportedType, message)
    }

    /// The tiles of an item, whose size is within the limits.
    fn layout(&self, item: u32) -> Result<Layout, PrepareError> {
        let kind = self.container.kind(item).ok_or_else(|| self.damaged())?;
        if !matches!(&kind, b"hvc1" | b"av01" | b"grid") {
            return Err(self.unsupported(format_args!("the image type {:?}", kind.escape_ascii().to_string())));
        }
        let layout = Layout::read(self.container, item).ok_or_else(|| self.damaged())?;
        check_size(layout.width as u64, layout.height as u64, self.limits)?;
        let coded_pixels = layout.coded_pixels().saturating_mul(layout.tiles.len() as u64);
        if coded_pixels > self.limits.max_pixels.saturating_mul(MAX_CODED_PIXELS_AT_MAX_PIXELS) {
            let message = format!("the {} has tiles of {coded_pixels} pixels, too many for the limit", self.name);
            return Err(PrepareError::new(ImageFault::TooManyPixels, message));
        }
        Ok(layout)
    }

    /// Decodes all tiles of an item.
    fn draw(&self, item: u32, layout: &Layout, canvas: &mut Canvas) -> Result<(), PrepareError> {
        for (index, &tile) in layout.tiles.iter().enumerate() {
            self.budget.check()?;
            let place = (index % layout.columns * layout.tile_width, index / layout.columns * layout.tile_height);
            let size = (layout.tile_width, layout.tile_height);
            let stated = self.colours(tile).or_else(|| self.colours(item));
            let draw = |frame: &Frame| frame.draw(size, stated.unwrap_or(frame.colours), canvas, place);
            self.decode_tile(tile, stated, layout.coded_pixels(), draw)?;
        }
        self.budget.check()
    }

    fn decode_tile(
        &self,
        tile: u32,
        stated: Option<ColourCoding>,
        max_pixels: u64,
        draw: impl FnOnce(&Frame) -> Option<()>,
    ) -> Result<(), PrepareError> {
        let data = self.container.data(tile).ok_or_else(|| self.damaged())?;
        let drawn = match self.container.kind(tile).as_ref() {
            Some(b"hvc1") => {
                let configuration = self.container.property(tile, *b"hvcC").ok_or_else(|| self.damaged())?;
                hevc::decode(configuration, &data, max_pixels, draw)
            }
            Some(b"av01") => av1::decode(stated, &data, max_pixels, draw),
            _ => return Err(self.unsupported("tiles that consist of tiles")),
        };
        drawn.ok_or_else(|| self.damaged())
    }

    /// The colours that the container declares for an item.
    fn colours(&self, item: u32) -> Option<ColourCoding> {
        self.container.properties(item).find_map(|(kind, mut content)| {
            if kind != *b"colr" || content.kind()? != *b"nclx" {
                return None;
            }
            // Primaries and transfer function are not converted, like all colour profiles.
            content.u32()?;
            Some(ColourCoding { matrix: content.u16()?, is_full_range: content.u8()? & 0x80 != 0 })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brands_tell_avif_from_heic() {
        let file = |major: &[u8; 4], others: &[u8]| {
            let length = (16 + others.len()) as u32;
            [&length.to_be_bytes()[..], b"ftyp", major, &[0; 4], others].concat()
        };
        let is = |bytes: &[u8]| ((AVIF.has_signature)(bytes), (HEIC.has_signature)(bytes));
        assert_eq!(is(&file(b"heic", b"mif1heic")), (false, true));
        assert_eq!(is(&file(b"mif1", b"mif1avif")), (true, true));
        assert_eq!(is(&file(b"avif", b"")), (true, false));
        assert_eq!(is(&file(b"isom", b"mp41")), (false, false));
        assert_eq!(is(&file(b"isom", b"")[..14]), (false, false));
        assert_eq!(is(b"\0\0\0\x18moovheic"), (false, false));
    }

    #[test]
    fn transparency_is_blended_over_white() {
        let mut straight = [100, 0, 200, 100, 0, 200];
        over_white(&mut straight, &[128, 0], false);
        assert_eq!(straight, [177, 127, 227, 255, 255, 255]);
        let mut premultiplied = [50, 0, 100];
        over_white(&mut premultiplied, &[128], true);
        assert_eq!(premultiplied, [177, 127, 227]);
    }
}
