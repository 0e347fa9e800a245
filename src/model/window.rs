//! What of a picture the model sees: the centre crop after its short side was resized, computed without either.
// Only a decoder that can leave something out asks what is looked at.
#![cfg_attr(not(feature = "turbojpeg"), allow(dead_code))]

use super::decode::Orientation;

/// How far the resize's filter reaches from the middle of a target pixel, in target pixels.
const FILTER_RADIUS: f64 = 2.0;

/// Columns and rows beside those that the filter looks at. The decoder smooths colours over two pixels and knows nothing
/// of what it was told to leave out; the rest is room for rounding.
const MARGIN: f64 = 4.0;

/// What the crop shows, in pixels of the stored picture and fractions of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// Whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

impl Window {
    /// Of a picture that is stored as `width` × `height`.
    pub fn of_crop((width, height): (usize, usize), orientation: Orientation, short_side: u32, crop: u32) -> Window {
        let (stored_width, stored_height) = (width as u64, height as u64);
        let (width, height) = orientation.upright_size(width, height);
        let (width, height) = (width as u64, height as u64);
        let (resized_width, resized_height) = resized_size(width, height, u64::from(short_side));
        let across = axis(width, resized_width, u64::from(crop));
        let down = axis(height, resized_height, u64::from(crop));
        let (across, down) = if orientation.swapped { (down, across) } else { (across, down) };
        let (left, width) = inside(across, stored_width, orientation.mirror_x);
        let (top, height) = inside(down, stored_height, orientation.mirror_y);
        Window { left, top, width, height }
    }

    /// In the picture at 1 / `reduction` of its size.
    pub fn reduced(self, reduction: usize) -> Window {
        let Window { left, top, width, height } = self;
        let reduction = reduction as f64;
        Window { left: left / reduction, top: top / reduction, width: width / reduction, height: height / reduction }
    }

    /// The pixels of a picture of `width` × `height` that a resize of this to `crop` × `crop` looks at, and a few more.
    pub fn looked_at(self, (width, height): (usize, usize), crop: u32) -> Region {
        let (left, width) = reach(self.left, self.width, width, crop);
        let (top, height) = reach(self.top, self.height, height, crop);
        Region { left, top, width, height }
    }

    /// Counted from the corner of a region that it lies in; never past its end by a rounding error.
    pub fn within(self, region: Region) -> Window {
        let (left, top) = (self.left - region.left as f64, self.top - region.top as f64);
        let width = self.width.min(region.width as f64 - left);
        Window { left, top, width, height: self.height.min(region.height as f64 - top) }
    }
}

impl Region {
    /// With the same right edge, from a multiple of `columns`.
    pub fn aligned_to(self, columns: usize) -> Region {
        let left = self.left - self.left % columns;
        Region { left, width: self.width + self.left - left, ..self }
    }
}

/// The size after the short side became `short_side`.
fn resized_size(width: u64, height: u64, short_side: u64) -> (u64, u64) {
    if width <= height { (short_side, short_side * height / width) } else { (short_side * width / height, short_side) }
}

/// Start and extent of the centre crop along one axis, in source pixels.
fn axis(extent: u64, resized: u64, crop: u64) -> (f64, f64) {
    let scale = extent as f64 / resized as f64;
    let start = crop_offset(resized, crop) as f64;
    (start * scale, (start + crop as f64) * scale - start * scale)
}

/// (extent - crop) / 2, a half to the even neighbour, as Python rounds.
fn crop_offset(extent: u64, crop: u64) -> u64 {
    let twice = extent - crop;
    let half = twice / 2;
    half + (twice % 2) * (half % 2)
}

/// Seen from the stored side of the axis; never past its end by a rounding error.
fn inside((start, length): (f64, f64), extent: u64, mirrored: bool) -> (f64, f64) {
    let extent = extent as f64;
    let start = if mirrored { extent - start - length } else { start }.max(0.0);
    (start, length.min(extent - start))
}

/// First pixel and number of pixels along one axis of `extent`.
fn reach(start: f64, length: f64, extent: usize, crop: u32) -> (usize, usize) {
    let scale = (length / f64::from(crop)).max(1.0);
    let beside = FILTER_RADIUS * scale + MARGIN;
    let first = (start - beside).floor().max(0.0) as usize;
    let end = ((start + length + beside).ceil() as usize).min(extent);
    (first, end - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [(usize, usize); 7] = [(500, 375), (375, 500), (1, 1), (1, 3000), (3000, 1), (8192, 8191), (257, 256)];

    #[test]
    fn sizes_and_offsets_are_those_of_the_reference() {
        assert_eq!(resized_size(500, 375, 256), (341, 256));
        assert_eq!(resized_size(375, 500, 256), (256, 341));
        assert_eq!(resized_size(1, 3000, 256), (256, 768_000));
        // Python: round(58.5) == 58, round(59.5) == 60, round(16) == 16.
        assert_eq!([341, 343, 256].map(|extent| crop_offset(extent, 224)), [58, 60, 16]);
        assert_eq!(crop_offset(224, 224), 0);
    }

    #[test]
    fn a_window_lies_inside_its_picture_and_its_region() {
        for (width, height) in SIZES {
            for exif in 1..=8 {
                for reduction in [1, 2, 4, 8] {
                    let window =
                        Window::of_crop((width, height), Orientation::from_exif(exif), 256, 224).reduced(reduction);
                    let size = (width.div_ceil(reduction), height.div_ceil(reduction));
                    let all = Region { left: 0, top: 0, width: size.0, height: size.1 };
                    let region = window.looked_at(size, 224);
                    for (window, region) in [
                        (window, all),
                        (window.within(region), region),
                        (window.within(region.aligned_to(16)), region.aligned_to(16)),
                    ] {
                        assert!(region.left + region.width <= all.width && region.top + region.height <= all.height);
                        assert!(window.left >= 0.0 && window.left + window.width <= region.width as f64, "{window:?}");
                        assert!(window.top >= 0.0 && window.top + window.height <= region.height as f64, "{window:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_lies_far_from_the_crop_is_not_looked_at() {
        let window = Window::of_crop((4000, 3000), Orientation::default(), 256, 224).reduced(4);
        // 656 × 656 pixels in the middle of 1000 × 750, made 2.93 times smaller: the filter reaches 6 beyond them.
        assert_eq!(window.looked_at((1000, 750), 224), Region { left: 160, top: 37, width: 677, height: 676 });
        let tiny = Window::of_crop((64, 64), Orientation::default(), 256, 224);
        assert_eq!(tiny.looked_at((64, 64), 224), Region { left: 0, top: 0, width: 64, height: 64 });
    }
}
