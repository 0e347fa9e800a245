//! The resize, in 8 bits. Pillow's filters are computed with Pillow's arithmetic (`pillow`), or by the faster
//! `fast_image_resize` for packages that ask for it and for images that were decoded at a fraction of their size. The two
//! ways that read single pixels are computed here: `nearest` as Pillow, and bilinear as OpenCV. Only pixels that the
//! model's input shows are computed, so an image of 1 × 3000 costs no more than another.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3, U8x4};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::crop::{CropRect, PixelRect};
use super::input::{Filter, Passes, Resize};
use super::orientation::Orientation;
use super::pillow;
use super::pixels::{Origin, Pixels};
use super::placement::{Axis, Placement};

/// The resizer's buffers and the resized image, reused for the next image.
#[derive(Default)]
pub(super) struct Scratch {
    resizer: Resizer,
    /// The image after the first pass.
    first: Vec<u8>,
    small: Vec<u8>,
}

/// The visible part of a resized image.
pub(super) struct Resampled<'a> {
    pub data: &'a [u8],
    pub width: usize,
    pub height: usize,
    /// How it is turned upright.
    pub orientation: Orientation,
}

impl Scratch {
    /// Resizes the part of the image that the input shows.
    pub(super) fn resample(&mut self, pixels: &Pixels, resize: Resize, placement: &Placement) -> Resampled<'_> {
        let is_exact = resize.passes == Passes::AsPillow && pixels.origin.reduction == 1;
        let filter = match (resize.filter, is_exact) {
            (Filter::Nearest, _) => return self.upright(pixels, placement, nearest),
            (Filter::OpencvBilinear, _) => return self.upright(pixels, placement, opencv_bilinear),
            // The box contains only one of its edges, so it matters from which side an axis is read.
            (filter, true) | (filter @ Filter::Box, false) => return self.as_pillow(pixels, filter, placement),
            (Filter::Bilinear, false) => FilterType::Bilinear,
            (Filter::Hamming, false) => FilterType::Hamming,
            (Filter::Bicubic, false) => FilterType::CatmullRom,
            (Filter::Lanczos, false) => FilterType::Lanczos3,
        };
        self.convolve(pixels, resize, filter)
    }

    /// Resizes a full image with Pillow's arithmetic. A reduced one cannot equal Pillow's result.
    fn as_pillow(&mut self, pixels: &Pixels, filter: Filter, placement: &Placement) -> Resampled<'_> {
        let Scratch { first, small, .. } = self;
        let (width, height) = pillow::resize(pixels, filter, placement, first, small);
        Resampled { data: small, width, height, orientation: pixels.orientation }
    }

    /// Resizes in the stored orientation, columns before rows: that is faster, and turning the small result costs nothing.
    ///
    /// Each pass is a call of its own. When the library does both in one call, it assumes that the first and the last
    /// pixel of a row read the outermost pixels of the image. That is wrong for an enlarged image whose outermost pixels
    /// are copies, because it leaves out weights of zero: it then reads outside its buffer, and the process ends.
    fn convolve(&mut self, pixels: &Pixels, resize: Resize, filter: FilterType) -> Resampled<'_> {
        let Scratch { resizer, first, small } = self;
        let rect = crop_rect(pixels, resize);
        let (width, height) = rect.target;
        let needed = rect.pixels_needed((pixels.width, pixels.height));
        let across = Range { start: rect.left, length: rect.width };
        let down = Range { start: rect.top, length: rect.height };
        let source = Plane { data: &pixels.data, width: pixels.width, height: pixels.height };
        let all = Range { start: needed.left as f64, length: needed.width as f64 };
        pass(resizer, pixels.channels, filter, &source, [all, down], first, (needed.width, height));
        let source = Plane { data: first, width: needed.width, height };
        let all = Range { start: 0.0, length: height as f64 };
        let across = across.within(needed.left, needed.width);
        pass(resizer, pixels.channels, filter, &source, [across, all], small, (width, height));
        Resampled { data: small, width, height, orientation: pixels.orientation }
    }

    /// Resizes and turns upright at the same time.
    fn upright(&mut self, pixels: &Pixels, placement: &Placement, method: Method) -> Resampled<'_> {
        self.small.clear();
        method(pixels, placement, &mut self.small);
        let (width, height) = (placement.across.visible, placement.down.visible);
        Resampled { data: &self.small, width, height, orientation: Orientation::default() }
    }
}

/// The pixels that a pass reads.
struct Plane<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
}

/// The part of an axis that is resized, in fractions of pixels.
#[derive(Clone, Copy)]
struct Range {
    start: f64,
    length: f64,
}

impl Range {
    /// The range relative to the first of `count` pixels that contain it. A rounding error never moves it past the end.
    fn within(self, first: usize, count: usize) -> Range {
        let start = (self.start - first as f64).max(0.0);
        Range { start, length: self.length.min(count as f64 - start) }
    }
}

/// Resizes a part of an image along one axis into `target`. Along the other axis the part consists of whole pixels, as
/// many as the target has.
fn pass(
    resizer: &mut Resizer,
    channels: usize,
    filter: FilterType,
    source: &Plane,
    [across, down]: [Range; 2],
    target: &mut Vec<u8>,
    (width, height): (usize, usize),
) {
    target.resize(width * height * channels, 0);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(across.start, down.start, across.length, down.length)
        .use_alpha(false);
    let size = (width, height);
    // The types are named, because `Resizer::resize` would bring the code for thirteen of them: 6 MB.
    match channels {
        1 => resize::<U8>(resizer, source, target, size, &options),
        3 => resize::<U8x3>(resizer, source, target, size, &options),
        _ => resize::<U8x4>(resizer, source, target, size, &options),
    }
}

fn resize<Pixel: PixelTrait>(
    resizer: &mut Resizer,
    source: &Plane,
    target: &mut [u8],
    (width, height): (usize, usize),
    options: &ResizeOptions,
) {
    let source = TypedImageRef::<Pixel>::from_buffer(source.width as u32, source.height as u32, source.data)
        .expect("the source has width × height × channels bytes; this is a bug");
    let mut target = TypedImage::<Pixel>::from_buffer(width as u32, height as u32, target)
        .expect("the buffer has width × height × channels bytes; this is a bug");
    resizer.resize_typed(&source, &mut target, options).expect("the crop lies inside the image; this is a bug");
}

/// Appends the visible pixels, row by row, to an empty buffer.
type Method = fn(&Pixels, &Placement, &mut Vec<u8>);

/// The rectangle of the decoded pixels that the input shows.
fn crop_rect(pixels: &Pixels, resize: Resize) -> CropRect {
    let &Pixels { width, height, orientation, origin: Origin { left, top, reduction, .. }, .. } = pixels;
    // The size in the file is used, so that a reduced image is cropped like the full one: its own size is rounded up.
    let size = (pixels.origin.width, pixels.origin.height);
    let region = PixelRect { left, top, width, height };
    CropRect::new(size, orientation, resize).reduced(reduction).relative_to(region)
}

/// Pillow's nearest: the pixel at the position of the centre of the target pixel, rounded down.
fn nearest(pixels: &Pixels, placement: &Placement, target: &mut Vec<u8>) {
    let Layout { across, down } = Layout::of(pixels);
    let columns: Vec<usize> = nearest_positions(&placement.across).map(|at| across.byte(at)).collect();
    for row in nearest_positions(&placement.down).map(|at| down.byte(at)) {
        for column in &columns {
            target.extend_from_slice(&pixels.data[row + column..][..pixels.channels]);
        }
    }
}

/// Number of pixels up to which positions are added up, as Pillow does. Beyond it, which would take long, they are
/// multiplied; the two differ only in the last bit of a fraction.
const MAX_ADDED: usize = 1 << 20;

fn nearest_positions(axis: &Axis) -> impl Iterator<Item = usize> {
    let &Axis { extent, start, length, resized, from, visible, .. } = axis;
    let scale = length / resized as f64;
    let start = if from > MAX_ADDED {
        start + (from as f64 + 0.5) * scale
    } else {
        (0..from).fold(start + 0.5 * scale, |position, _| position + scale)
    };
    let positions = std::iter::successors(Some(start), move |position| Some(position + scale));
    positions.take(visible).map(move |position| (position as usize).min(extent - 1))
}

/// OpenCV's bilinear interpolation of 8-bit images (`cv2.INTER_LINEAR`), with its fixed-point arithmetic.
fn opencv_bilinear(pixels: &Pixels, placement: &Placement, target: &mut Vec<u8>) {
    let Layout { across, down } = Layout::of(pixels);
    let columns: Vec<Taps> = taps(&placement.across, across, EdgeWeights::One).collect();
    for row in taps(&placement.down, down, EdgeWeights::Kept) {
        let [above, below] = row.bytes.map(|byte| &pixels.data[byte..]);
        for column in &columns {
            let [left, right] = column.bytes;
            for channel in 0..pixels.channels {
                let across = |row: &[u8]| {
                    let value = |byte: usize| i32::from(row[byte + channel]);
                    value(left) * column.weights[0] + value(right) * column.weights[1]
                };
                // The sums have 11 more bits than a pixel; the last bits are dropped where OpenCV drops them.
                let part = |sum: i32, weight: i32| ((sum >> 4) * weight) >> 16;
                let value = part(across(above), row.weights[0]) + part(across(below), row.weights[1]);
                target.push(((value + 2) >> 2).clamp(0, 255) as u8);
            }
        }
    }
}

/// The two pixels along an axis that a target pixel is made of, and their weights, which add up to `WEIGHT_ONE`.
struct Taps {
    bytes: [usize; 2],
    weights: [i32; 2],
}

/// The weight of 1 in OpenCV's fixed-point arithmetic.
const WEIGHT_ONE: f32 = 2048.0;

/// The treatment of the weights of a target pixel whose position is outside the centres of the first and last pixel. The
/// result differs by the rounding only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EdgeWeights {
    /// The outermost pixel gets all the weight, as OpenCV does along rows.
    One,
    /// Both weights belong to the outermost pixel, as OpenCV does along columns.
    Kept,
}

fn taps(axis: &Axis, stored: Stored, edge: EdgeWeights) -> impl Iterator<Item = Taps> {
    let &Axis { extent, start, length, resized, from, visible, .. } = axis;
    let scale = 1.0 / (resized as f64 / length);
    (from..from + visible).map(move |target| {
        let position = (start + (target as f64 + 0.5) * scale - 0.5) as f32;
        let first = position.floor();
        let is_outside = first < 0.0 || first as usize >= extent - 1;
        let fraction = if is_outside && edge == EdgeWeights::One { 0.0 } else { position - first };
        let clamped = |at: f32| (at.max(0.0) as usize).min(extent - 1);
        Taps {
            bytes: [first, first + 1.0].map(|at| stored.byte(clamped(at))),
            weights: [1.0 - fraction, fraction].map(|weight| (weight * WEIGHT_ONE).round_ties_even() as i32),
        }
    })
}

/// The places where the pixels of an upright image are stored: a pixel's first byte is the sum of the bytes of its axes.
struct Layout {
    across: Stored,
    down: Stored,
}

/// One upright axis.
#[derive(Clone, Copy)]
struct Stored {
    /// Bytes from a pixel to the next one along this axis.
    stride: usize,
    /// The number of pixels in the file along this axis, if it is stored in the opposite direction.
    mirrored: Option<usize>,
    /// The first of these pixels that was decoded.
    first: usize,
}

impl Layout {
    /// The layout of pixels that were decoded at full size.
    fn of(pixels: &Pixels) -> Layout {
        let &Pixels { width, channels, orientation, origin, .. } = pixels;
        let Orientation { swapped, mirror_x, mirror_y } = orientation;
        let x = Stored { stride: channels, mirrored: mirror_x.then_some(origin.width), first: origin.left };
        let y = Stored { stride: channels * width, mirrored: mirror_y.then_some(origin.height), first: origin.top };
        if swapped { Layout { across: y, down: x } } else { Layout { across: x, down: y } }
    }
}

impl Stored {
    /// The offset of a position along this axis. It must have been decoded.
    fn byte(self, upright: usize) -> usize {
        let stored = self.mirrored.map_or(upright, |extent| extent - 1 - upright);
        (stored - self.first) * self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::{Extent, Fit};
    use super::*;

    /// In these sizes the outermost pixels of the enlarged crop are copies of pixels of the image.
    #[test]
    fn enlarged_image_whose_outermost_pixels_are_copies_is_resized() {
        let crop = Some(Extent { height: 224, width: 224 });
        for (width, height) in [(82, 47), (115, 53), (207, 53), (110, 63), (122, 70), (244, 70), (366, 70)] {
            for size in [(width, height), (height, width)] {
                for (channels, filter) in [(1, Filter::Bicubic), (3, Filter::Lanczos), (4, Filter::Bicubic)] {
                    for passes in [Passes::Fast, Passes::AsPillow] {
                        let resize = Resize { fit: Fit::ShortestEdge(256), filter, crop, passes };
                        let pixels = Pixels::whole(vec![200; size.0 * size.1 * channels], size, channels);
                        let mut scratch = Scratch::default();
                        let resampled = scratch.resample(&pixels, resize, &Placement::new(size, resize));
                        assert_eq!((resampled.width, resampled.height), (224, 224));
                        assert!(resampled.data.iter().all(|&value| value == 200), "{size:?}");
                    }
                }
            }
        }
    }
}
