//! The common JPEG by libjpeg-turbo: at the smallest of its sizes that preprocessing can do with, and of that only what
//! the model's crop shows.

use super::PrepareError;
use super::decode::{Orientation, Origin, Pixels, room};
use super::libjpeg::{Layout, Opened};
use super::package::Geometry;
use super::window::{Region, Window};

/// The decoded picture, or None where its colours are none of grey, YCbCr and RGB, or libjpeg-turbo complains about
/// anything. What lies beside the crop is not read for its own sake: damage there may go unnoticed, and changes no answer.
///
/// `guard` is asked with width and height before anything is decoded, `reserve` with the bytes of the pixels.
///
/// # Errors
/// Those of `guard` and `reserve`.
pub fn decode(
    bytes: &[u8],
    geometry: Geometry,
    orientation: Orientation,
    guard: impl Fn(usize, usize) -> Result<(), PrepareError>,
    reserve: impl Fn(usize) -> Result<(), PrepareError>,
) -> Result<Option<Pixels>, PrepareError> {
    let Some(picture) = Opened::new(bytes) else { return Ok(None) };
    guard(picture.width, picture.height)?;
    let (reduction, region) = part(&picture, geometry, orientation);
    let Region { left, top, width, height } = region;
    let layout = layout(&picture, geometry);
    let channels = layout.channels();
    let origin = Origin { width: picture.width, height: picture.height, reduction, left, top };
    let pixel_bytes = width * height * channels;
    // Samples of more than 8 bits are decoded into two bytes each first.
    reserve(if picture.bits > 8 { 3 * pixel_bytes } else { pixel_bytes })?;
    let data = room(pixel_bytes);
    let mut pixels = Pixels { data, width, height, channels, orientation, origin };
    Ok(picture.decode(reduction, region, layout, &mut pixels.data).then_some(pixels))
}

/// What of the picture is decoded, and at which fraction of its size.
fn part(picture: &Opened, geometry: Geometry, orientation: Orientation) -> (usize, Region) {
    let &Opened { width, height, column_width, .. } = picture;
    let all = Region { left: 0, top: 0, width, height };
    let Geometry::ShortSide { short_side, crop } = geometry else { return (1, all) };
    if picture.is_lossless {
        return (1, all);
    }
    let reduction = reduction(width.min(height), short_side);
    let (reduced_width, reduced_height) = (width.div_ceil(reduction), height.div_ceil(reduction));
    let Some(column_width) = column_width else {
        return (reduction, Region { width: reduced_width, height: reduced_height, ..all });
    };
    let window = Window::of_crop((width, height), orientation, short_side, crop).reduced(reduction);
    (reduction, window.looked_at((reduced_width, reduced_height), crop).aligned_to(column_width / reduction))
}

/// What is resized goes faster in four bytes a pixel; a picture that stays as large as it is takes less room in three.
fn layout(picture: &Opened, geometry: Geometry) -> Layout {
    match geometry {
        _ if picture.is_grey => Layout::Grey,
        Geometry::ShortSide { .. } => Layout::Rgbx,
        Geometry::Native => Layout::Rgb,
    }
}

/// The fractions that libjpeg-turbo has fast code for; the others take longer than the whole.
const REDUCTIONS: [usize; 3] = [8, 4, 2];

/// A reduced picture has its frequencies cut off by block, where the resize rolls them off: with this many times the
/// pixels that are wanted, the resize has the last word, and the first class is the same on 98.7 of 100 photographs
/// that are reduced (on fewer with just as many as are wanted). Less would save little: most of the time goes to reading
/// the blocks.
const TIMES_WANTED: usize = 2;

fn reduction(short_side: usize, wanted: u32) -> usize {
    let enough = |reduction: &usize| short_side.div_ceil(*reduction) >= TIMES_WANTED * wanted as usize;
    REDUCTIONS.into_iter().find(enough).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

    use super::*;

    const GEOMETRY: Geometry = Geometry::ShortSide { short_side: 256, crop: 224 };

    #[test]
    fn a_reduced_picture_keeps_twice_the_wanted_pixels() {
        let reductions = [375, 1022, 1023, 1080, 2160, 3000, 4089].map(|short_side| reduction(short_side, 256));
        assert_eq!(reductions, [1, 1, 2, 2, 4, 4, 8]);
    }

    /// Beside a cut, colours are smoothed without what was left out: two pixels may differ. The resize looks at none of
    /// them (`window::MARGIN`).
    #[test]
    fn what_is_left_out_changes_no_pixel_that_is_looked_at() {
        let subsamplings =
            [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Sub4x1, Subsamp::Gray];
        for (width, height) in [(500, 375), (375, 501), (1300, 1025), (2111, 1024), (64, 1000)] {
            for subsampling in subsamplings {
                for progressive in [false, true] {
                    check((width, height), subsampling, progressive);
                }
            }
        }
    }

    fn check(size: (usize, usize), subsampling: Subsamp, progressive: bool) {
        let jpeg = noisy(size, subsampling, progressive);
        let part = decode(&jpeg, GEOMETRY, Orientation::default(), |_, _| Ok(()), |_| Ok(())).unwrap().unwrap();
        let Origin { reduction, left, top, .. } = part.origin;
        let (width, height) = (size.0.div_ceil(reduction), size.1.div_ceil(reduction));
        assert!(part.width < width || part.height < height, "{size:?}: nothing was left out");
        let mut whole = vec![0; width * height * part.channels];
        let layout = if part.channels == 1 { Layout::Grey } else { Layout::Rgbx };
        let all = Region { left: 0, top: 0, width, height };
        assert!(Opened::new(&jpeg).unwrap().decode(reduction, all, layout, &mut whole));
        let is_cut_near = |at: usize, part: usize, first: usize, all: usize| {
            (first > 0 && at < 2) || (first + part < all && at + 2 >= part)
        };
        for (y, row) in part.data.chunks_exact(part.width * part.channels).enumerate() {
            for (x, pixel) in row.chunks_exact(part.channels).enumerate() {
                let there = &whole[((top + y) * width + left + x) * part.channels..][..part.channels];
                assert!(
                    pixel == there
                        || is_cut_near(x, part.width, left, width)
                        || is_cut_near(y, part.height, top, height),
                    "{size:?} {subsampling:?}, progressive {progressive}: {x}, {y} of {:?}: {pixel:?} {there:?}",
                    part.origin
                );
            }
        }
    }

    /// No two blocks and no two neighbours are alike.
    fn noisy((width, height): (usize, usize), subsampling: Subsamp, progressive: bool) -> Vec<u8> {
        let mut state = 1_u32;
        let noise = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let pixels: Vec<u8> = (0..width * height * 3).map(noise).collect();
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(90).unwrap();
        compressor.set_subsamp(subsampling).unwrap();
        compressor.set_progressive(progressive).unwrap();
        let image = Image { pixels: pixels.as_slice(), width, pitch: width * 3, height, format: PixelFormat::RGB };
        compressor.compress_to_vec(image).unwrap()
    }
}
