//! JPEG by libjpeg-turbo: at the smallest size that preprocessing can use, and only the part inside the model's crop.

use super::crop::{CropRect, PixelRect, is_oversampled};
use super::error::PrepareError;
use super::input::{Geometry, Resize};
use super::libjpeg::{JpegDecoder, Layout};
use super::orientation::Orientation;
use super::pixels::{Origin, Pixels, zeroed_buffer};

/// Decodes the image. Returns `None` when its colour space is not grey, YCbCr or RGB, or when libjpeg-turbo reports a
/// warning or an error. Pixels outside the crop are not decoded: damage there may go unnoticed, and changes no
/// prediction.
///
/// `guard` is called with width and height before anything is decoded, and `reserve` with the size of the pixels in
/// bytes.
///
/// # Errors
/// The errors of `guard` and `reserve`.
pub(super) fn decode(
    bytes: &[u8],
    geometry: Geometry,
    orientation: Orientation,
    guard: impl Fn(usize, usize) -> Result<(), PrepareError>,
    reserve: impl Fn(usize) -> Result<(), PrepareError>,
) -> Result<Option<Pixels>, PrepareError> {
    let Some(image) = JpegDecoder::new(bytes) else { return Ok(None) };
    guard(image.width, image.height)?;
    let (reduction, region) = part(&image, geometry, orientation);
    let PixelRect { left, top, width, height } = region;
    let layout = layout(&image, geometry);
    let channels = layout.channels();
    let origin = Origin { width: image.width, height: image.height, reduction, left, top };
    let pixel_bytes = width * height * channels;
    // Samples of more than 8 bits are first decoded into two bytes each.
    reserve(if image.bits > 8 { 3 * pixel_bytes } else { pixel_bytes })?;
    let data = zeroed_buffer(pixel_bytes);
    let mut pixels = Pixels { data, width, height, channels, orientation, origin };
    Ok(image.decode(reduction, region, layout, &mut pixels.data).then_some(pixels))
}

/// The reduction and the part of the reduced image that are decoded.
fn part(image: &JpegDecoder, geometry: Geometry, orientation: Orientation) -> (usize, PixelRect) {
    let &JpegDecoder { width, height, column_width, .. } = image;
    let all = PixelRect { left: 0, top: 0, width, height };
    let Geometry::Resized(resize) = geometry else { return (1, all) };
    if image.is_lossless {
        return (1, all);
    }
    let reduction = reduction(orientation.upright_size(width, height), resize);
    let (reduced_width, reduced_height) = (width.div_ceil(reduction), height.div_ceil(reduction));
    let Some(column_width) = column_width else {
        return (reduction, PixelRect { width: reduced_width, height: reduced_height, ..all });
    };
    let rect = CropRect::new((width, height), orientation, resize).reduced(reduction);
    (reduction, rect.pixels_needed((reduced_width, reduced_height)).aligned_to(column_width / reduction))
}

/// Resizing is faster with four bytes per pixel. An image that keeps its size takes less memory with three.
fn layout(image: &JpegDecoder, geometry: Geometry) -> Layout {
    match geometry {
        _ if image.is_grey => Layout::Grey,
        Geometry::Resized(_) => Layout::Rgbx,
        Geometry::Native => Layout::Rgb,
    }
}

/// The reductions for which libjpeg-turbo has fast code. Others take longer than decoding at full size.
const REDUCTIONS: [usize; 3] = [8, 4, 2];

/// The largest reduction that the resize allows, for an image of this upright size.
fn reduction(size: (usize, usize), resize: Resize) -> usize {
    let is_enough = |reduction: &usize| is_oversampled(size, resize, *reduction);
    REDUCTIONS.into_iter().filter(|_| resize.filter.allows_reduction()).find(is_enough).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

    use super::super::input::{Extent, Filter, Fit, Passes};
    use super::*;

    const RESIZE: Resize = Resize {
        fit: Fit::ShortestEdge(256),
        filter: Filter::Bicubic,
        crop: Some(Extent { height: 224, width: 224 }),
        passes: Passes::Fast,
    };

    #[test]
    fn reduced_image_keeps_twice_the_target_size() {
        let sides = [375, 1022, 1023, 1080, 2160, 3000, 4089];
        let reductions = sides.map(|short_side| reduction((5000, short_side), RESIZE));
        assert_eq!(reductions, [1, 1, 2, 2, 4, 4, 8]);
        for filter in [Filter::Nearest, Filter::OpencvBilinear] {
            assert_eq!(sides.map(|short_side| reduction((5000, short_side), Resize { filter, ..RESIZE })), [1; 7]);
        }
    }

    /// Next to a cut, colours are smoothed without the pixels that were left out, so two pixels may differ. The resize
    /// does not read them (`crop::MARGIN`).
    #[test]
    fn partial_decode_equals_full_decode_except_at_the_cut() {
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
        let part = decode(&jpeg, Geometry::Resized(RESIZE), Orientation::default(), |_, _| Ok(()), |_| Ok(()))
            .unwrap()
            .unwrap();
        let Origin { reduction, left, top, .. } = part.origin;
        let (width, height) = (size.0.div_ceil(reduction), size.1.div_ceil(reduction));
        assert!(part.width < width || part.height < height, "{size:?}: nothing was left out");
        let mut whole = vec![0; width * height * part.channels];
        let layout = if part.channels == 1 { Layout::Grey } else { Layout::Rgbx };
        let all = PixelRect { left: 0, top: 0, width, height };
        assert!(JpegDecoder::new(&jpeg).unwrap().decode(reduction, all, layout, &mut whole));
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

    /// A JPEG in which no two blocks and no two neighbouring pixels are alike.
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
