//! An image that is decoded once and classified in parts: the boxes that a detector found in it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::budget::Budget;
use super::error::{PrepareError, stopped_decoder};
use super::input::Geometry;
use super::package::ModelPackage;
use super::pixels::{Origin, Pixels, check_bytes, zeroed_buffer};
use super::tensor::Tensor;
use super::{decode, preprocess};
use crate::limits::Limits;

/// A decoded image with all its pixels. Its memory counts against `max_decode_bytes` until it is dropped.
pub struct WholeImage {
    pixels: Pixels,
    /// Holds the reservation of memory.
    _budget: Budget,
}

/// A rectangle of an upright image, in fractions of its width and height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// The left edge.
    pub x: f64,
    /// The upper edge.
    pub y: f64,
    /// The width.
    pub width: f64,
    /// The height.
    pub height: f64,
}

/// The part around a region that the model gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegionCrop {
    /// The part is a square, as far as the image reaches. Otherwise it has the shape of the region.
    pub is_square: bool,
    /// The margin at each side, as a share of the longer side of the region.
    pub padding: f64,
}

/// A rectangle of whole pixels of the upright image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl WholeImage {
    /// Decodes an image. This blocks like [`super::prepare`].
    ///
    /// # Errors
    /// The errors of [`super::prepare`].
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<WholeImage, PrepareError> {
        check_bytes(bytes, limits)?;
        // Decoders have panicked on malformed input before. Their state is dropped with the closure.
        catch_unwind(AssertUnwindSafe(|| {
            let budget = Budget::new(limits);
            let pixels = decode::decode(bytes, limits, Geometry::Native, &budget)?;
            Ok(WholeImage { pixels, _budget: budget })
        }))
        .unwrap_or_else(|_panic| Err(stopped_decoder()))
    }

    /// Width and height of the upright image in pixels.
    pub fn size(&self) -> (u32, u32) {
        let Origin { width, height, .. } = self.pixels.origin;
        let (width, height) = self.pixels.orientation.upright_size(width, height);
        (width as u32, height as u32)
    }

    /// The model's input for a region.
    ///
    /// # Errors
    /// `TooManyPixels` if the size of the input depends on the region, and would have more pixels than allowed.
    pub fn tensor(
        &self,
        region: Region,
        crop: RegionCrop,
        package: &ModelPackage,
        limits: &Limits,
    ) -> Result<Tensor, PrepareError> {
        let (width, height) = self.size();
        let part = Part::around(region, crop, (width as usize, height as usize));
        preprocess::tensor(&self.cut(part), package.input(), limits.max_pixels)
    }

    fn cut(&self, part: Part) -> Pixels {
        let Pixels { data, width, height, channels, orientation, .. } = &self.pixels;
        let mut stored = part;
        if orientation.swapped {
            stored = Part { left: part.top, top: part.left, width: part.height, height: part.width };
        }
        if orientation.mirror_x {
            stored.left = width - stored.left - stored.width;
        }
        if orientation.mirror_y {
            stored.top = height - stored.top - stored.height;
        }
        let row_bytes = stored.width * channels;
        let mut cut = zeroed_buffer(row_bytes * stored.height);
        let rows = data.chunks_exact(width * channels).skip(stored.top);
        for (to, from) in cut.chunks_exact_mut(row_bytes).zip(rows) {
            to.copy_from_slice(&from[stored.left * channels..][..row_bytes]);
        }
        let mut pixels = Pixels::whole(cut, (stored.width, stored.height), *channels);
        pixels.orientation = *orientation;
        pixels
    }
}

impl Part {
    /// The part of an image of this size. It has at least one pixel, also for a region outside of the image.
    fn around(region: Region, crop: RegionCrop, (width, height): (usize, usize)) -> Part {
        let (across, down) = (region.width * width as f64, region.height * height as f64);
        let longer = across.max(down);
        let padded = |length: f64| if crop.is_square { longer } else { length } + 2.0 * crop.padding * longer;
        let (left, width) = range(region.x * width as f64 + across / 2.0, padded(across), width, crop.is_square);
        let (top, height) = range(region.y * height as f64 + down / 2.0, padded(down), height, crop.is_square);
        Part { left, top, width, height }
    }
}

/// First pixel and number of pixels of a range around `middle`. It is moved into the image if it `keeps_length`, and cut
/// off at the edge otherwise.
fn range(middle: f64, length: f64, extent: usize, keeps_length: bool) -> (usize, usize) {
    let all = extent as f64;
    let (mut start, mut end) = (middle - length / 2.0, middle + length / 2.0);
    if keeps_length {
        let length = length.min(all);
        start = start.min(all - length).max(0.0);
        end = start + length;
    }
    // A number that is not finite becomes 0 or the largest one, which the clamp brings into the image.
    let first = (start.floor() as usize).min(extent - 1);
    let last = (end.ceil() as usize).clamp(first + 1, extent);
    (first, last - first)
}

#[cfg(test)]
mod tests {
    use super::super::orientation::Orientation;
    use super::super::orientation::STORED_IN_EACH_ORIENTATION;
    use super::*;

    const SQUARE: RegionCrop = RegionCrop { is_square: true, padding: 0.0 };
    const EXACT: RegionCrop = RegionCrop { is_square: false, padding: 0.0 };

    fn region(x: f64, y: f64, width: f64, height: f64) -> Region {
        Region { x, y, width, height }
    }

    fn part(region: Region, crop: RegionCrop) -> [usize; 4] {
        let Part { left, top, width, height } = Part::around(region, crop, (100, 50));
        [left, top, width, height]
    }

    #[test]
    fn square_is_moved_into_the_image_and_exact_box_cut_off() {
        assert_eq!(part(region(0.4, 0.4, 0.2, 0.2), EXACT), [40, 20, 20, 10]);
        assert_eq!(part(region(0.4, 0.4, 0.2, 0.2), SQUARE), [40, 15, 20, 20]);
        assert_eq!(part(region(0.9, 0.0, 0.1, 0.8), SQUARE), [60, 0, 40, 40]);
        assert_eq!(part(region(0.0, 0.0, 1.0, 0.1), SQUARE), [0, 0, 100, 50]);
        let padded = |crop| RegionCrop { padding: 0.25, ..crop };
        assert_eq!(part(region(0.0, 0.4, 0.2, 0.2), padded(EXACT)), [0, 15, 25, 20]);
        assert_eq!(part(region(0.0, 0.4, 0.2, 0.2), padded(SQUARE)), [0, 10, 30, 30]);
    }

    #[test]
    fn any_numbers_give_a_part_of_the_image() {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e300, -0.5, 0.0, 1e-9, 0.5, 1.0, 2.0, 1e300];
        for x in numbers {
            for width in numbers {
                for crop in [SQUARE, EXACT] {
                    let [left, top, across, down] = part(region(x, width, width, x), crop);
                    assert!(across > 0 && left + across <= 100, "{x} {width}");
                    assert!(down > 0 && top + down <= 50, "{x} {width}");
                }
            }
        }
    }

    /// The upright image of 3 × 2 pixels is 0 1 2 above 3 4 5, stored in each orientation.
    #[test]
    fn part_is_that_of_the_upright_image() {
        for (exif, width, data) in STORED_IN_EACH_ORIENTATION {
            let mut pixels = Pixels::whole(data.to_vec(), (width, 6 / width), 1);
            pixels.orientation = Orientation::from_exif(exif);
            let image = WholeImage { pixels, _budget: Budget::new(&Limits::default()) };
            assert_eq!(image.size(), (3, 2), "orientation {exif}");
            let cut = image.cut(Part { left: 1, top: 0, width: 2, height: 1 });
            let upright: Vec<u8> =
                cut.orientation.stored_indices(cut.width, cut.height).map(|index| cut.data[index]).collect();
            assert_eq!(upright, [1, 2], "orientation {exif}");
        }
    }
}
