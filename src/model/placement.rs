//! The placement of the resized image in the model's input: the sizes and offsets of every way to resize, for one image.

use super::input::{Extent, Fit, Position, Resize, Rounding};

/// The placement of one upright image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placement {
    pub across: Axis,
    pub down: Axis,
}

/// One axis of a placement, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    /// The image in the file.
    pub extent: usize,
    /// The part of it that is resized, and where it starts. It is the whole image, except for [`Fit::Cover`].
    pub start: f64,
    pub length: f64,
    /// That part after the resize.
    pub resized: usize,
    /// The model's input.
    pub output: usize,
    /// The first pixel of the resized image that the input shows.
    pub from: usize,
    /// The number of pixels of the resized image that the input shows.
    pub visible: usize,
    /// The place in the input of the first of them.
    pub at: usize,
}

impl Placement {
    /// The placement of an image whose upright size is `width` × `height`.
    pub(super) fn new((width, height): (usize, usize), resize: Resize) -> Placement {
        let Canvas { across, down } = Canvas::new(width, height, resize.fit);
        let crop = |side: fn(Extent) -> u32| resize.crop.map(|crop| side(crop) as usize);
        Placement {
            across: across.axis(width, crop(|crop| crop.width)),
            down: down.axis(height, crop(|crop| crop.height)),
        }
    }

    /// Reports whether the image covers the whole input.
    pub(super) fn is_covered(&self) -> bool {
        self.across.visible == self.across.output && self.down.visible == self.down.output
    }
}

/// The area that the crop is taken from: the resized image, and what surrounds it in a letterbox.
struct Canvas {
    across: Side,
    down: Side,
}

/// One axis of the canvas.
struct Side {
    /// Start and length of the part of the image that is resized, if that is not the whole image.
    part: Option<(f64, f64)>,
    resized: usize,
    /// The place of the resized image on the canvas.
    offset: usize,
    canvas: usize,
}

impl Canvas {
    fn new(width: usize, height: usize, fit: Fit) -> Canvas {
        match fit {
            Fit::Keep => Canvas { across: Side::full(width), down: Side::full(height) },
            Fit::ShortestEdge(side) => {
                let (width, height) = resized_size(width, height, side as usize);
                Canvas { across: Side::full(width), down: Side::full(height) }
            }
            Fit::Squash(Extent { height, width }) => {
                Canvas { across: Side::full(width as usize), down: Side::full(height as usize) }
            }
            Fit::Cover(target) => Canvas::covered(width, height, target),
            Fit::Letterbox { target, position, rounding } => {
                let scale = (f64::from(target.width) / width as f64).min(f64::from(target.height) / height as f64);
                let side = |extent: usize, canvas: u32| Side::boxed(extent, scale, canvas as usize, position, rounding);
                Canvas { across: side(width, target.width), down: side(height, target.height) }
            }
        }
    }
}

impl Canvas {
    /// The largest part in the middle that has the aspect ratio of the target, in fractions of pixels: `ImageOps.fit` of
    /// Pillow, whose `resize` takes the edges of the part in single precision.
    fn covered(width: usize, height: usize, target: Extent) -> Canvas {
        let (width, height) = (width as f64, height as f64);
        let ratio = f64::from(target.width) / f64::from(target.height);
        let (across, down) = if width / height >= ratio { (ratio * height, height) } else { (width, width / ratio) };
        let side = |extent: f64, length: f64, target: u32| {
            let start = (extent - length) * 0.5;
            let (start, end) = (start as f32, (start + length) as f32);
            Side { part: Some((f64::from(start), f64::from(end - start))), ..Side::full(target as usize) }
        };
        Canvas { across: side(width, across, target.width), down: side(height, down, target.height) }
    }
}

impl Side {
    fn full(resized: usize) -> Side {
        Side { part: None, resized, offset: 0, canvas: resized }
    }

    fn boxed(extent: usize, scale: f64, canvas: usize, position: Position, rounding: Rounding) -> Side {
        let exact = extent as f64 * scale;
        // A whole number may have become one with a tiny fraction.
        let resized = match rounding {
            Rounding::HalfEven => exact.round_ties_even(),
            Rounding::Up => (exact - 1e-9).ceil(),
            Rounding::Down => (exact + 1e-9).floor(),
        };
        let resized = (resized as usize).clamp(1, canvas);
        let offset = if position == Position::TopLeft { 0 } else { (canvas - resized) / 2 };
        Side { part: None, resized, offset, canvas }
    }

    fn axis(&self, extent: usize, crop: Option<usize>) -> Axis {
        let &Side { part, resized, offset, canvas } = self;
        let (start, length) = part.unwrap_or((0.0, extent as f64));
        let output = crop.unwrap_or(canvas);
        // A crop that is larger than its image is padded, and the odd pixel goes to the end.
        let (from, at) =
            if output < canvas { (crop_offset(canvas, output), offset) } else { (0, offset + (output - canvas) / 2) };
        Axis { extent, start, length, resized, output, from, visible: (resized - from).min(output - at), at }
    }
}

/// The size of the image after its shortest edge is resized to `side`.
fn resized_size(width: usize, height: usize, side: usize) -> (usize, usize) {
    if width <= height { (side, side * height / width) } else { (side * width / height, side) }
}

/// (extent - crop) / 2, with halves rounded to even, as Python does.
fn crop_offset(extent: usize, crop: usize) -> usize {
    let twice = extent - crop;
    let half = twice / 2;
    half + (twice % 2) * (half % 2)
}

#[cfg(test)]
mod tests {
    use super::super::input::{Filter, Passes};
    use super::*;

    fn placement(size: (usize, usize), fit: Fit, crop: Option<(u32, u32)>) -> Placement {
        let crop = crop.map(|(width, height)| Extent { height, width });
        Placement::new(size, Resize { fit, filter: Filter::Bilinear, crop, passes: Passes::AsPillow })
    }

    fn resized(placement: &Placement) -> (usize, usize) {
        (placement.across.resized, placement.down.resized)
    }

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
    fn crop_shows_the_centre_of_the_resized_image() {
        let placement = placement((500, 375), Fit::ShortestEdge(256), Some((224, 224)));
        let axis =
            Axis { start: 0.0, length: 500.0, extent: 500, resized: 341, output: 224, from: 58, visible: 224, at: 0 };
        assert_eq!(placement.across, axis);
        assert_eq!((placement.down.from, placement.down.visible), (16, 224));
        assert!(placement.is_covered());
    }

    /// torchvision pads (crop - extent) // 2 pixels at the start and one more at the end if that is odd.
    #[test]
    fn crop_that_is_larger_than_the_image_is_padded() {
        let placement = placement((40, 30), Fit::Keep, Some((31, 41)));
        assert_eq!((placement.across.from, placement.across.at, placement.across.visible), (4, 0, 31));
        assert_eq!((placement.down.from, placement.down.at, placement.down.visible), (0, 5, 30));
        assert!(!placement.is_covered());
    }

    #[test]
    fn squashed_image_has_exactly_the_size() {
        let squash = Fit::Squash(Extent { height: 100, width: 50 });
        assert_eq!(resized(&placement((7, 9000), squash, None)), (50, 100));
    }

    #[test]
    fn cover_shows_the_largest_part_of_the_aspect_ratio() {
        let part = |axis: Axis| (axis.start, axis.length, axis.resized, axis.visible, axis.at);
        let cover = |size, height, width| placement(size, Fit::Cover(Extent { height, width }), None);
        let wide = cover((501, 300), 224, 224);
        assert_eq!((part(wide.across), part(wide.down)), ((100.5, 300.0, 224, 224, 0), (0.0, 300.0, 224, 224, 0)));
        let tall = cover((100, 900), 50, 100);
        assert_eq!((part(tall.across), part(tall.down)), ((0.0, 100.0, 100, 100, 0), (425.0, 50.0, 50, 50, 0)));
        assert!(wide.is_covered() && tall.is_covered());
    }

    #[test]
    fn letterbox_contains_the_whole_image() {
        let letterbox =
            |position, rounding| Fit::Letterbox { target: Extent { height: 64, width: 64 }, position, rounding };
        let centred = placement((500, 333), letterbox(Position::Centre, Rounding::HalfEven), None);
        // 333 × 0.128 = 42.624.
        assert_eq!((resized(&centred), centred.across.at, centred.down.at), ((64, 43), 0, 10));
        let corner = placement((500, 333), letterbox(Position::TopLeft, Rounding::Down), None);
        assert_eq!((resized(&corner), corner.down.at, corner.down.output), ((64, 42), 0, 64));
        let thin = placement((1, 3000), letterbox(Position::Centre, Rounding::Up), None);
        assert_eq!((resized(&thin), thin.across.at), ((1, 64), 31));
        for side in 1..200 {
            let exact = placement((side, side), letterbox(Position::Centre, Rounding::Up), None);
            assert_eq!(resized(&exact), (64, 64), "{side}");
        }
    }
}
