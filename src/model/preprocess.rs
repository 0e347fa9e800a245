//! Pixels → the model's input, in agreement with Pillow's resize: cubic convolution with a = -0.5, widened by the scale
//! when shrinking, in 8 bits. Only the pixels of the crop are computed, so an image of 1 × 3000 costs no more than
//! another. The image is turned upright while it is written to the tensor, when it is small.

use std::cell::RefCell;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::crop::{CropRect, PixelRect};
use super::orientation::Orientation;
use super::package::{Form, Geometry, Input};
use super::pixels::{Origin, Pixels};
use super::tensor::{Tensor, Values};

thread_local! {
    /// The resizer's buffers and the resized image, reused for the next image.
    static SCRATCH: RefCell<(Resizer, Vec<u8>)> = RefCell::default();
}

/// Resizes, crops and converts an image to the form that the model takes.
pub(super) fn tensor(pixels: &Pixels, input: &Input) -> Tensor {
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

/// Resizes the crop into `small`, in the stored orientation.
fn resize_crop(resizer: &mut Resizer, pixels: &Pixels, short_side: u32, crop: u32, small: &mut [u8]) {
    let pixel_type = match pixels.channels {
        1 => PixelType::U8,
        3 => PixelType::U8x3,
        _ => PixelType::U8x4,
    };
    let source = ImageRef::new(pixels.width as u32, pixels.height as u32, &pixels.data, pixel_type)
        .expect("a decoder returns width × height × channels bytes; this is a bug");
    let mut target = Image::from_slice_u8(crop, crop, small, pixel_type)
        .expect("the caller passes crop × crop × channels bytes; this is a bug");
    let rect = crop_rect(pixels, short_side, crop);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(rect.left, rect.top, rect.width, rect.height)
        .use_alpha(false);
    resizer.resize(&source, &mut target, &options).expect("the crop lies inside the image; this is a bug");
}

/// The rectangle of the decoded pixels that the crop shows.
fn crop_rect(pixels: &Pixels, short_side: u32, crop: u32) -> CropRect {
    let &Pixels { width, height, orientation, origin: Origin { left, top, reduction, .. }, .. } = pixels;
    // The size in the file is used, so that a reduced image is cropped like the full one: its own size is rounded up.
    let size = (pixels.origin.width, pixels.origin.height);
    let region = PixelRect { left, top, width, height };
    CropRect::new(size, orientation, short_side, crop).reduced(reduction).relative_to(region)
}

/// Converts stored pixels to an upright tensor in the form that the model takes.
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
        Form::Pixels => rgbx(data, width, height, channels, orientation),
    }
}

/// Four bytes per pixel, upright.
fn rgbx(data: &[u8], width: usize, height: usize, channels: usize, orientation: Orientation) -> Tensor {
    let stored: Vec<[u8; 4]> = match channels {
        1 => data.iter().map(|&grey| [grey, grey, grey, 0]).collect(),
        3 => data.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]).collect(),
        _ => data.as_chunks().0.to_vec(),
    };
    if orientation == Orientation::default() {
        return Tensor { values: Values::Pixels(stored.into_flattened()), height, width };
    }
    let pixels: Vec<[u8; 4]> = orientation.stored_indices(width, height).map(|index| stored[index]).collect();
    let (width, height) = orientation.upright_size(width, height);
    Tensor { values: Values::Pixels(pixels.into_flattened()), height, width }
}

/// Planes of normalised values, upright.
fn normalise(
    data: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    orientation: Orientation,
    tables: &[[f32; 256]; 3],
) -> Tensor {
    // Each plane is written once and in order.
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
        let indices = orientation.stored_indices(width, height);
        planes.extend(indices.map(|index| table[usize::from(data[index * channels + channel])]));
    }
    let (width, height) = orientation.upright_size(width, height);
    Tensor { values: Values::Floats(planes), height, width }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of 3 × 2 numbered pixels, stored in each orientation, is turned upright.
    #[test]
    fn every_orientation_is_turned_upright() {
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
            let tensor = rgbx(&data, width, 6 / width, 1, Orientation::from_exif(exif));
            assert_eq!((tensor.width, tensor.height), (3, 2), "orientation {exif}");
            let upright: Vec<u8> = (0..6).flat_map(|pixel| [pixel, pixel, pixel, 0]).collect();
            assert_eq!(tensor.values, Values::Pixels(upright), "orientation {exif}");
        }
    }
}
