//! The part of an image that the model uses: where the centre crop of the resized image lies in the stored image.
// Without libjpeg-turbo no decoder can leave out the rest, so some functions are unused.
#![cfg_attr(not(feature = "turbojpeg"), allow(dead_code))]

use super::orientation::Orientation;

/// Radius of the resize filter, in target pixels.
const FILTER_RADIUS: f64 = 2.0;

/// Additional columns and rows around those that the filter reads. The decoder smooths colours over two pixels, and
/// cannot do so at a cut; the rest allows for rounding.
const MARGIN: f64 = 4.0;

/// The rectangle of the stored image that the crop shows, in fractions of pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CropRect {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PixelRect {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

impl CropRect {
    /// The crop of an image that is stored as `width` × `height`: the short side is resized to `short_side`, then
    /// `crop` × `crop` pixels are cut from the centre.
    pub(super) fn new(
        (width, height): (usize, usize),
        orientation: Orientation,
        short_side: u32,
        crop: u32,
    ) -> CropRect {
        let (stored_width, stored_height) = (width as u64, height as u64);
        let (width, height) = orientation.upright_size(width, height);
        let (width, height) = (width as u64, height as u64);
        let (resized_width, resized_height) = resized_size(width, height, u64::from(short_side));
        let across = axis(width, resized_width, u64::from(crop));
        let down = axis(height, resized_height, u64::from(crop));
        let (across, down) = if orientation.swapped { (down, across) } else { (across, down) };
        let (left, width) = to_stored_axis(across, stored_width, orientation.mirror_x);
        let (top, height) = to_stored_axis(down, stored_height, orientation.mirror_y);
        CropRect { left, top, width, height }
    }

    /// The rectangle in the image at 1 / `reduction` of its size.
    pub(super) fn reduced(self, reduction: usize) -> CropRect {
        let CropRect { left, top, width, height } = self;
        let reduction = reduction as f64;
        CropRect { left: left / reduction, top: top / reduction, width: width / reduction, height: height / reduction }
    }

    /// The pixels of an image of `width` × `height` that are needed to resize this rectangle to `crop` × `crop`.
    pub(super) fn pixels_needed(self, (width, height): (usize, usize), crop: u32) -> PixelRect {
        let (left, width) = axis_needed(self.left, self.width, width, crop);
        let (top, height) = axis_needed(self.top, self.height, height, crop);
        PixelRect { left, top, width, height }
    }

    /// The rectangle relative to the corner of a region that contains it. A rounding error never moves it past the end.
    pub(super) fn relative_to(self, region: PixelRect) -> CropRect {
        let (left, top) = (self.left - region.left as f64, self.top - region.top as f64);
        let width = self.width.min(region.width as f64 - left);
        CropRect { left, top, width, height: self.height.min(region.height as f64 - top) }
    }
}

impl PixelRect {
    /// Extends the rectangle to the left, to a multiple of `columns`.
    pub(super) fn aligned_to(self, columns: usize) -> PixelRect {
        let left = self.left - self.left % columns;
        PixelRect { left, width: self.width + self.left - left, ..self }
    }
}

/// The size of the image after its short side is resized to `short_side`.
fn resized_size(width: u64, height: u64, short_side: u64) -> (u64, u64) {
    if width <= height { (short_side, short_side * height / width) } else { (short_side * width / height, short_side) }
}

/// Start and length of the centre crop along one axis, in source pixels.
fn axis(extent: u64, resized: u64, crop: u64) -> (f64, f64) {
    let scale = extent as f64 / resized as f64;
    let start = crop_offset(resized, crop) as f64;
    (start * scale, (start + crop as f64) * scale - start * scale)
}

/// (extent - crop) / 2, with halves rounded to even, as Python does.
fn crop_offset(extent: u64, crop: u64) -> u64 {
    let twice = extent - crop;
    let half = twice / 2;
    half + (twice % 2) * (half % 2)
}

/// Converts a range of an upright axis to the stored axis. A rounding error never moves it past the end.
fn to_stored_axis((start, length): (f64, f64), extent: u64, mirrored: bool) -> (f64, f64) {
    let extent = extent as f64;
    let start = if mirrored { extent - start - length } else { start }.max(0.0);
    (start, length.min(extent - start))
}

/// First pixel and number of pixels that are needed along one axis of `extent` pixels.
fn axis_needed(start: f64, length: f64, extent: usize, crop: u32) -> (usize, usize) {
    let scale = (length / f64::from(crop)).max(1.0);
    let margin = FILTER_RADIUS * scale + MARGIN;
    let first = (start - margin).floor().max(0.0) as usize;
    let end = ((start + length + margin).ceil() as usize).min(extent);
    (first, end - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 7] = [(500, 375), (375, 500), (1, 1), (1, 3000), (3000, 1), (8192, 8191), (257, 256)];

    #[test]
    fn sizes_and_offsets_equal_those_of_the_reference() {
        assert_eq!(resized_size(500, 375, 256), (341, 256));
        assert_eq!(resized_size(375, 500, 256), (256, 341));
        assert_eq!(resized_size(1, 3000, 256), (256, 768_000));
        // Python: round(58.5) == 58, round(59.5) == 60, round(16) == 16.
        assert_eq!([341, 343, 256].map(|extent| crop_offset(extent, 224)), [58, 60, 16]);
        assert_eq!(crop_offset(224, 224), 0);
    }

    #[test]
    fn crop_lies_inside_its_image_and_its_region() {
        for (width, height) in SIZES {
            for exif in 1..=8 {
                for reduction in [1, 2, 4, 8] {
                    let rect =
                        CropRect::new((width, height), Orientation::from_exif(exif), 256, 224).reduced(reduction);
                    let size = (width.div_ceil(reduction), height.div_ceil(reduction));
                    let all = PixelRect { left: 0, top: 0, width: size.0, height: size.1 };
                    let region = rect.pixels_needed(size, 224);
                    for (rect, region) in [
                        (rect, all),
                        (rect.relative_to(region), region),
                        (rect.relative_to(region.aligned_to(16)), region.aligned_to(16)),
                    ] {
                        assert!(region.left + region.width <= all.width && region.top + region.height <= all.height);
                        assert!(rect.left >= 0.0 && rect.left + rect.width <= region.width as f64, "{rect:?}");
                        assert!(rect.top >= 0.0 && rect.top + rect.height <= region.height as f64, "{rect:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn pixels_far_from_the_crop_are_not_needed() {
        let rect = CropRect::new((4000, 3000), Orientation::default(), 256, 224).reduced(4);
        // The crop is 656 × 656 pixels in the middle of 1000 × 750, shrunk by a factor of 2.93: the filter reads 6
        // pixels more.
        assert_eq!(rect.pixels_needed((1000, 750), 224), PixelRect { left: 160, top: 37, width: 677, height: 676 });
        let tiny = CropRect::new((64, 64), Orientation::default(), 256, 224);
        assert_eq!(tiny.pixels_needed((64, 64), 224), PixelRect { left: 0, top: 0, width: 64, height: 64 });
    }
}
