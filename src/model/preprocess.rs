//! Pixels → the model's input, in agreement with Pillow's resize: cubic convolution with a = -0.5, widened by the scale
//! when shrinking, in 8 bits. Only the pixels of the crop are computed, so a picture of 1 × 3000 costs no more than
//! another; the picture is turned upright on the way into the tensor, when it is small.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::decode::{Orientation, Origin, Pixels};
use super::package::{Form, Geometry, Input};
use super::window::{Region, Window};
use super::{Tensor, Values};

thread_local! {
    /// The resizer's buffers and the resized picture, kept from one image to the next.
    static SCRATCH: RefCell<(Resizer, Vec<u8>)> = RefCell::default();
}

pub fn tensor(pixels: &Pixels, input: &Input) -> Tensor {
    match input.geometry {
        Geometry::Native => {
            let Pixels { data, width, height, channels, orientation, origin: _ } = pixels;
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
    let pixel_type = match pixels.channels {
        1 => PixelType::U8,
        3 => PixelType::U8x3,
        _ => PixelType::U8x4,
    };
    let source = ImageRef::new(pixels.width as u32, pixels.height as u32, &pixels.data, pixel_type)
        .expect("a decoder returns width × height × channels bytes; this is a bug");
    let mut target = Image::from_slice_u8(crop, crop, small, pixel_type)
        .expect("the caller made room for crop × crop × channels bytes; this is a bug");
    let window = window(pixels, short_side, crop);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(window.left, window.top, window.width, window.height)
        .use_alpha(false);
    resizer.resize(&source, &mut target, &options).expect("a window lies inside its picture; this is a bug");
}

/// What of the decoded pixels the crop shows.
fn window(pixels: &Pixels, short_side: u32, crop: u32) -> Window {
    let &Pixels { width, height, orientation, origin: Origin { left, top, reduction, .. }, .. } = pixels;
    // By the size in the file, so that a reduced picture is cut where the whole one is: its own size is rounded up.
    let size = (pixels.origin.width, pixels.origin.height);
    Window::of_crop(size, orientation, short_side, crop).reduced(reduction).within(Region { left, top, width, height })
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
        3 => data.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]).collect(),
        _ => data.as_chunks().0.to_vec(),
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
                3 => planes.extend(data.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])])),
                _ => planes.extend(data.as_chunks::<4>().0.iter().map(|pixel| table[usize::from(pixel[channel])])),
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
