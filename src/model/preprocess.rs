//! Pixels → the model's input, in agreement with Pillow's resize: cubic convolution with a = -0.5, widened by the scale
//! when shrinking, in 8 bits. Only the pixels of the crop are computed, so a picture of 1 × 3000 costs no more than
//! another; the picture is turned upright on the way into the tensor, when it is small.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::decode::{Orientation, Pixels};
use super::package::{Form, Geometry, Input};
use super::{Tensor, Values};

thread_local! {
    /// The resizer's buffers and the resized picture, kept from one image to the next.
    static SCRATCH: RefCell<(Resizer, Vec<u8>)> = RefCell::default();
}

pub fn tensor(pixels: &Pixels, input: &Input) -> Tensor {
    match input.geometry {
        Geometry::Native => {
            let Pixels { data, width, height, channels, orientation, whole: _ } = pixels;
            values(data, *width, *height, *channels, *orientation, input)
        }
        Geometry::ShortSide { short_side, crop } => SCRATCH.with_borrow_mut(|(resizer, small)| {
            let side = crop as usize;
            small.resize(side * side * pixels.channels, 0);
            resize_crop(resizer, pixels, short_side, crop, small);
            values(small, side, side, pixels.channels, pixels.orientation, input)
        }),
    }
}

/// The crop, still as the picture is stored.
fn resize_crop(resizer: &mut Resizer, pixels: &Pixels, short_side: u32, crop: u32, small: &mut [u8]) {
    let pixel_type = if pixels.channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
    let source = ImageRef::new(pixels.width as u32, pixels.height as u32, &pixels.data, pixel_type)
        .expect("a decoder returns width × height × channels bytes; this is a bug");
    let mut target = Image::from_slice_u8(crop, crop, small, pixel_type)
        .expect("the caller made room for crop × crop × channels bytes; this is a bug");
    let window = Window::of_crop(pixels, short_side, crop);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(window.left, window.top, window.width, window.height)
        .use_alpha(false);
    resizer.resize(&source, &mut target, &options).expect("a window lies inside its picture; this is a bug");
}

/// What of the decoded pixels the crop shows, in fractions of a pixel.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Window {
    fn of_crop(pixels: &Pixels, short_side: u32, crop: u32) -> Window {
        let Orientation { swapped, mirror_x, mirror_y } = pixels.orientation;
        // By the size in the file, so that a reduced picture is cut where the whole one is: its own size is rounded up.
        let (stored_width, stored_height) = (pixels.whole.width as u64, pixels.whole.height as u64);
        let (width, height) = if swapped { (stored_height, stored_width) } else { (stored_width, stored_height) };
        let (resized_width, resized_height) = resized_size(width, height, u64::from(short_side));
        let across = axis(width, resized_width, u64::from(crop));
        let down = axis(height, resized_height, u64::from(crop));
        let (across, down) = if swapped { (down, across) } else { (across, down) };
        let (left, width) = inside(across, stored_width, mirror_x);
        let (top, height) = inside(down, stored_height, mirror_y);
        let reduction = pixels.whole.reduction as f64;
        Window { left: left / reduction, top: top / reduction, width: width / reduction, height: height / reduction }
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

/// In the form that the model takes, upright.
fn values(
    data: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    orientation: Orientation,
    input: &Input,
) -> Tensor {
    match input.form {
        Form::Floats => normalise(data, width, height, channels, orientation, &input.normalised),
        Form::Pixels => four_bytes_a_pixel(data, width, height, channels, orientation),
    }
}

/// Pixel after pixel, upright.
fn four_bytes_a_pixel(data: &[u8], width: usize, height: usize, channels: usize, orientation: Orientation) -> Tensor {
    let stored: Vec<[u8; 4]> = match channels {
        1 => data.iter().map(|&grey| [grey, grey, grey, 0]).collect(),
        _ => data.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]).collect(),
    };
    if orientation == Orientation::default() {
        return Tensor { values: Values::Pixels(stored.into_flattened()), height, width };
    }
    let pixels: Vec<[u8; 4]> = orientation.stored_places(width, height).map(|place| stored[place]).collect();
    let (width, height) = orientation.upright_size(width, height);
    Tensor { values: Values::Pixels(pixels.into_flattened()), height, width }
}

/// Into planes of normalised values, upright.
fn normalise(
    data: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    orientation: Orientation,
    tables: &[[f32; 256]; 3],
) -> Tensor {
    // Plane after plane, each written once and in order.
    let mut planes = Vec::with_capacity(3 * width * height);
    for (channel, table) in tables.iter().enumerate() {
        if orientation == Orientation::default() {
            match channels {
                1 => planes.extend(data.iter().map(|&grey| table[usize::from(grey)])),
                _ => planes.extend(data.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])])),
            }
            continue;
        }
        let channel = channel.min(channels - 1);
        let places = orientation.stored_places(width, height);
        planes.extend(places.map(|place| table[usize::from(data[place * channels + channel])]));
    }
    let (width, height) = orientation.upright_size(width, height);
    Tensor { values: Values::Floats(planes), height, width }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::Whole;

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
    fn a_window_lies_inside_its_picture() {
        for (width, height) in [(500, 375), (375, 500), (1, 1), (1, 3000), (3000, 1), (8192, 8191), (257, 256)] {
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif);
                for reduction in [1, 2, 4, 8] {
                    let whole = Whole { width, height, reduction };
                    let (width, height) = (width.div_ceil(reduction), height.div_ceil(reduction));
                    let pixels = Pixels { data: Vec::new(), width, height, channels: 3, orientation, whole };
                    let window = Window::of_crop(&pixels, 256, 224);
                    assert!(window.left >= 0.0 && window.left + window.width <= width as f64, "{window:?}");
                    assert!(window.top >= 0.0 && window.top + window.height <= height as f64, "{window:?}");
                }
            }
        }
    }

    /// A picture of 3 × 2 whose pixels are numbered, stored as each orientation stores it, comes out upright.
    #[test]
    fn every_orientation_comes_out_upright() {
        let stored: [(u8, usize, [u8; 6]); 8] = [
            (1, 3, [0, 1, 2, 3, 4, 5]),
            (2, 3, [2, 1, 0, 5, 4, 3]),
            (3, 3, [5, 4, 3, 2, 1, 0]),
            (4, 3, [3, 4, 5, 0, 1, 2]),
            (5, 2, [0, 3, 1, 4, 2, 5]),
            (6, 2, [2, 5, 1, 4, 0, 3]),
            (7, 2, [5, 2, 4, 1, 3, 0]),
            (8, 2, [3, 0, 4, 1, 5, 2]),
        ];
        let identity: [[f32; 256]; 3] = [std::array::from_fn(|value| value as f32); 3];
        for (exif, width, data) in stored {
            let tensor = normalise(&data, width, 6 / width, 1, Orientation::from_exif(exif), &identity);
            assert_eq!((tensor.width, tensor.height), (3, 2), "orientation {exif}");
            let Values::Floats(planes) = tensor.values else { panic!("floats were asked for") };
            assert_eq!(planes[..6], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "orientation {exif}");
            let tensor = four_bytes_a_pixel(&data, width, 6 / width, 1, Orientation::from_exif(exif));
            assert_eq!((tensor.width, tensor.height), (3, 2), "orientation {exif}");
            let upright: Vec<u8> = (0..6).flat_map(|pixel| [pixel, pixel, pixel, 0]).collect();
            assert_eq!(tensor.values, Values::Pixels(upright), "orientation {exif}");
        }
    }
}
