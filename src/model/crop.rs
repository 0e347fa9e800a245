//! The part of an image that the model uses: where the visible part of the resized image lies in the stored image.
// Without libjpeg-turbo no decoder can leave out the rest, so some functions are unused.
#![cfg_attr(not(feature = "turbojpeg"), allow(dead_code))]

use super::input::{Fit, Resize};
use super::orientation::Orientation;
use super::placement::{Axis, Placement};

/// Smallest radius of the resize filter that is assumed, in target pixels.
const MIN_FILTER_RADIUS: f64 = 2.0;

/// Additional columns and rows around those that the filter reads. The decoder smooths colours over two pixels, and
/// cannot do so at a cut; the rest allows for rounding.
const MARGIN: f64 = 4.0;

/// How many times the target size a reduced image must have along its short side.
///
/// Reduction cuts off frequencies per block, while the resize rolls them off smoothly. With this margin the resize
/// determines the result, and the first class agrees with that of a full decode on 98.7 % of the photographs that are
/// reduced (fewer with a factor of 1). A smaller factor would save little, because most time is spent reading the
/// blocks.
const MIN_OVERSAMPLING: usize = 2;

/// The rectangle of the stored image that the input shows, in fractions of pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CropRect {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    /// The number of columns and rows to which the rectangle is resized, in the stored orientation.
    pub target: (usize, usize),
    filter_radius: f64,
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
    /// The rectangle of an image that is stored as `width` × `height`.
    pub(super) fn new((width, height): (usize, usize), orientation: Orientation, resize: Resize) -> CropRect {
        let Placement { across, down } = Placement::new(orientation.upright_size(width, height), resize);
        let (across, down) = if orientation.swapped { (down, across) } else { (across, down) };
        let target = (across.visible, down.visible);
        let (left, width) = to_stored_axis(source_range(&across), width, orientation.mirror_x);
        let (top, height) = to_stored_axis(source_range(&down), height, orientation.mirror_y);
        CropRect { left, top, width, height, target, filter_radius: resize.filter.radius().max(MIN_FILTER_RADIUS) }
    }

    /// The rectangle in the image at 1 / `reduction` of its size.
    pub(super) fn reduced(self, reduction: usize) -> CropRect {
        let CropRect { left, top, width, height, .. } = self;
        let reduction = reduction as f64;
        CropRect {
            left: left / reduction,
            top: top / reduction,
            width: width / reduction,
            height: height / reduction,
            ..self
        }
    }

    /// The pixels of an image of `width` × `height` that are needed to resize this rectangle to its target.
    pub(super) fn pixels_needed(self, (width, height): (usize, usize)) -> PixelRect {
        let (columns, rows) = self.target;
        let (left, width) = axis_needed(self.left, self.width, width, columns, self.filter_radius);
        let (top, height) = axis_needed(self.top, self.height, height, rows, self.filter_radius);
        PixelRect { left, top, width, height }
    }

    /// The rectangle relative to the corner of a region that contains it. A rounding error never moves it past the end.
    pub(super) fn relative_to(self, region: PixelRect) -> CropRect {
        let (left, top) = (self.left - region.left as f64, self.top - region.top as f64);
        let width = self.width.min(region.width as f64 - left);
        CropRect { left, top, width, height: self.height.min(region.height as f64 - top), ..self }
    }
}

impl PixelRect {
    /// Extends the rectangle to the left, to a multiple of `columns`.
    pub(super) fn aligned_to(self, columns: usize) -> PixelRect {
        let left = self.left - self.left % columns;
        PixelRect { left, width: self.width + self.left - left, ..self }
    }
}

/// Reports whether an image of `width` × `height` that is decoded at 1 / `reduction` of its size still has enough pixels
/// for the resize.
pub(super) fn is_oversampled((width, height): (usize, usize), resize: Resize, reduction: usize) -> bool {
    let has_enough = |extent: usize, resized: usize| extent.div_ceil(reduction) >= MIN_OVERSAMPLING * resized;
    if let Fit::ShortestEdge(side) = resize.fit {
        return has_enough(width.min(height), side as usize);
    }
    let Placement { across, down } = Placement::new((width, height), resize);
    // The part is never longer than the image, so that rounding it down asks for enough.
    has_enough(across.length as usize, across.resized) && has_enough(down.length as usize, down.resized)
}

/// Start and length of the visible part along one axis, in source pixels.
fn source_range(axis: &Axis) -> (f64, f64) {
    let scale = axis.length / axis.resized as f64;
    let start = axis.from as f64;
    (axis.start + start * scale, (start + axis.visible as f64) * scale - start * scale)
}

/// Converts a range of an upright axis to the stored axis. A rounding error never moves it past the end.
fn to_stored_axis((start, length): (f64, f64), extent: usize, mirrored: bool) -> (f64, f64) {
    let extent = extent as f64;
    let start = if mirrored { extent - start - length } else { start }.max(0.0);
    (start, length.min(extent - start))
}

/// First pixel and number of pixels that are needed along one axis of `extent` pixels.
fn axis_needed(start: f64, length: f64, extent: usize, target: usize, filter_radius: f64) -> (usize, usize) {
    let scale = (length / target as f64).max(1.0);
    let margin = filter_radius * scale + MARGIN;
    let first = (start - margin).floor().max(0.0) as usize;
    let end = ((start + length + margin).ceil() as usize).min(extent);
    (first, end - first)
}

#[cfg(test)]
mod tests {
    use super::super::input::{Extent, Filter, Passes, Position, Rounding};
    use super::*;

    const SIZES: [(usize, usize); 7] = [(500, 375), (375, 500), (1, 1), (1, 3000), (3000, 1), (8192, 8191), (257, 256)];

    const DEFAULT: Resize = Resize {
        fit: Fit::ShortestEdge(256),
        filter: Filter::Bicubic,
        crop: Some(Extent { height: 224, width: 224 }),
        passes: Passes::Fast,
    };

    #[test]
    fn crop_lies_inside_its_image_and_its_region() {
        let target = Extent { height: 64, width: 96 };
        let letterbox = Fit::Letterbox { target, position: Position::Centre, rounding: Rounding::HalfEven };
        for fit in [DEFAULT.fit, Fit::Squash(target), Fit::Cover(target), letterbox, Fit::Keep] {
            let crop = if matches!(fit, Fit::Letterbox { .. } | Fit::Cover(_)) { None } else { DEFAULT.crop };
            for filter in [Filter::Bicubic, Filter::Lanczos, Filter::Nearest] {
                check_sizes(Resize { fit, filter, crop, ..DEFAULT });
            }
        }
    }

    fn check_sizes(resize: Resize) {
        for (width, height) in SIZES {
            for exif in 1..=8 {
                for reduction in [1, 2, 4, 8] {
                    let rect = CropRect::new((width, height), Orientation::from_exif(exif), resize).reduced(reduction);
                    let size = (width.div_ceil(reduction), height.div_ceil(reduction));
                    let all = PixelRect { left: 0, top: 0, width: size.0, height: size.1 };
                    let region = rect.pixels_needed(size);
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
        let rect = CropRect::new((4000, 3000), Orientation::default(), DEFAULT).reduced(4);
        // The crop is 656 × 656 pixels in the middle of 1000 × 750, shrunk by a factor of 2.93: the filter reads 6
        // pixels more.
        assert_eq!(rect.pixels_needed((1000, 750)), PixelRect { left: 160, top: 37, width: 677, height: 676 });
        let tiny = CropRect::new((64, 64), Orientation::default(), DEFAULT);
        assert_eq!(tiny.pixels_needed((64, 64)), PixelRect { left: 0, top: 0, width: 64, height: 64 });
    }

    #[test]
    fn squashed_image_must_have_enough_pixels_along_both_axes() {
        let squash = Resize { fit: Fit::Squash(Extent { height: 100, width: 100 }), crop: None, ..DEFAULT };
        assert!(is_oversampled((800, 400), squash, 2) && !is_oversampled((800, 399), squash, 4));
        assert!(!is_oversampled((800, 100), squash, 2));
        assert!(is_oversampled((1023, 5000), DEFAULT, 2) && !is_oversampled((1022, 5000), DEFAULT, 2));
    }
}
