//! Pixels → the model's input, in agreement with the reference: resized in 8 bits (`resample`), placed (`placement`),
//! and normalised. The image is turned upright while it is written to the tensor, when it is small.

use std::cell::RefCell;

use half::f16;

use super::error::PrepareError;
use super::input::{Element, Geometry, Input, Layout};
use super::orientation::Orientation;
use super::pixels::Pixels;
use super::placement::Placement;
use super::resample::{Resampled, Scratch};
use super::tensor::{Tensor, Values};
use crate::error::ImageFault;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Resizes, crops and converts an image to the form that the model takes.
///
/// # Errors
/// `TooManyPixels` if the size of the input depends on the image, and would have more than `max_pixels`.
pub(super) fn tensor(pixels: &Pixels, input: &Input, max_pixels: u64) -> Result<Tensor, PrepareError> {
    let Geometry::Resized(resize) = input.geometry else {
        let Pixels { data, width, height, channels, orientation, origin: _ } = pixels;
        return Ok(values(data, *width, *height, *channels, *orientation, input));
    };
    let size = pixels.orientation.upright_size(pixels.origin.width, pixels.origin.height);
    let placement = Placement::new(size, resize);
    check_output(input, &placement, max_pixels)?;
    Ok(SCRATCH.with_borrow_mut(|scratch| {
        let image = scratch.resample(pixels, resize, &placement);
        if placement.is_covered() {
            let Resampled { data, width, height, orientation } = image;
            return values(data, width, height, pixels.channels, orientation, input);
        }
        let canvas = on_canvas(&image, pixels.channels, &placement, input.fill);
        let size = (placement.across.output, placement.down.output);
        values(canvas.as_flattened(), size.0, size.1, 3, Orientation::default(), input)
    }))
}

/// Resizing one edge to a given length can enlarge the other one without limit.
fn check_output(input: &Input, placement: &Placement, max_pixels: u64) -> Result<(), PrepareError> {
    let (width, height) = (placement.across.output, placement.down.output);
    if input.geometry.output().is_none() && (width as u64).saturating_mul(height as u64) > max_pixels {
        let message = format!(
            "the image would have {width} × {height} pixels for this model, more than the limit of {max_pixels}"
        );
        return Err(PrepareError::new(ImageFault::TooManyPixels, message));
    }
    Ok(())
}

/// The upright image in RGB, surrounded by pixels of one colour.
fn on_canvas(image: &Resampled, channels: usize, placement: &Placement, fill: [u8; 3]) -> Vec<[u8; 3]> {
    let Placement { across, down } = placement;
    let mut canvas = vec![fill; across.output * down.output];
    let mut indices = image.orientation.stored_indices(image.width, image.height);
    for row in canvas.chunks_exact_mut(across.output).skip(down.at).take(down.visible) {
        // The image comes first, so that no pixel is taken from the iterator after the end of a row.
        for (pixel, index) in row[across.at..][..across.visible].iter_mut().zip(&mut indices) {
            let stored = &image.data[index * channels..][..channels];
            *pixel = if let &[red, green, blue, ..] = stored { [red, green, blue] } else { [stored[0]; 3] };
        }
    }
    canvas
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
    let image = Stored { data, width, height, channels, orientation };
    let (order, tables) = (input.channels.order(), &input.normalised);
    let values = match (input.element, input.layout) {
        (Element::Float32, layout) => Values::Floats(image.through(layout, order, tables)),
        (Element::Float16, layout) => {
            Values::Halves(image.through(layout, order, &tables.map(|table| table.map(f16::from_f32))))
        }
        (Element::Uint8, Layout::Nhwc) if input.channels.count() == 4 => Values::Pixels(image.rgbx()),
        (Element::Uint8, layout) => {
            Values::Pixels(image.through(layout, order, &[std::array::from_fn(|value| value as u8); 3]))
        }
    };
    let (width, height) = orientation.upright_size(width, height);
    Tensor { values, height, width }
}

/// A stored image of the size of the input.
struct Stored<'a> {
    data: &'a [u8],
    width: usize,
    height: usize,
    channels: usize,
    orientation: Orientation,
}

impl Stored<'_> {
    /// The upright pixels, each channel converted by its table. `order` names the channel of the image for each channel
    /// of the model.
    fn through<T: Copy>(&self, layout: Layout, order: [usize; 3], tables: &[[T; 256]; 3]) -> Vec<T> {
        match layout {
            Layout::Nchw => self.planes(order, tables),
            Layout::Nhwc => self.interleaved(order, tables),
        }
    }

    fn planes<T: Copy>(&self, order: [usize; 3], tables: &[[T; 256]; 3]) -> Vec<T> {
        let &Stored { data, width, height, channels, orientation } = self;
        // Each plane is written once and in order.
        let mut planes = Vec::with_capacity(3 * width * height);
        for (channel, table) in order.into_iter().zip(tables) {
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
        planes
    }

    fn interleaved<T: Copy>(&self, order: [usize; 3], tables: &[[T; 256]; 3]) -> Vec<T> {
        let &Stored { data, width, height, channels, orientation } = self;
        let order = order.map(|channel| channel.min(channels - 1));
        let mut pixels = Vec::with_capacity(3 * width * height);
        for index in orientation.stored_indices(width, height) {
            let pixel = &data[index * channels..][..channels];
            pixels.extend([0, 1, 2].map(|channel| tables[channel][usize::from(pixel[order[channel]])]));
        }
        pixels
    }

    /// Four bytes for each pixel, of which the last has no meaning.
    fn rgbx(&self) -> Vec<u8> {
        let &Stored { data, width, height, channels, orientation } = self;
        let stored: Vec<[u8; 4]> = match channels {
            1 => data.iter().map(|&grey| [grey, grey, grey, 0]).collect(),
            3 => data.as_chunks::<3>().0.iter().map(|&[red, green, blue]| [red, green, blue, 0]).collect(),
            _ => data.as_chunks().0.to_vec(),
        };
        if orientation == Orientation::default() {
            return stored.into_flattened();
        }
        let pixels: Vec<[u8; 4]> = orientation.stored_indices(width, height).map(|index| stored[index]).collect();
        pixels.into_flattened()
    }
}

#[cfg(test)]
mod tests {
    use super::super::input::Channels;
    use super::super::orientation::STORED_IN_EACH_ORIENTATION;
    use super::*;

    /// An image of 3 × 2 numbered pixels, stored in each orientation, is turned upright.
    #[test]
    fn every_orientation_is_turned_upright() {
        let mut input = Input::for_tests();
        input.normalised = [std::array::from_fn(|value| value as f32); 3];
        for (exif, width, data) in STORED_IN_EACH_ORIENTATION {
            let upright = |input: &Input| values(&data, width, 6 / width, 1, Orientation::from_exif(exif), input);
            (input.element, input.layout, input.channels) = (Element::Float32, Layout::Nchw, Channels::Rgb);
            let tensor = upright(&input);
            assert_eq!((tensor.width, tensor.height), (3, 2), "orientation {exif}");
            let Values::Floats(planes) = tensor.values else { panic!("floats were asked for") };
            assert_eq!(planes[..6], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "orientation {exif}");
            (input.element, input.layout) = (Element::Uint8, Layout::Nhwc);
            let numbered = |last: &[u8]| (0..6).flat_map(|pixel| [&[pixel; 3], last].concat()).collect::<Vec<u8>>();
            assert_eq!(upright(&input).values, Values::Pixels(numbered(&[])), "orientation {exif}");
            input.channels = Channels::Rgbx;
            assert_eq!(upright(&input).values, Values::Pixels(numbered(&[0])), "orientation {exif}");
        }
    }

    #[test]
    fn layouts_types_and_channel_orders_hold_the_same_values() {
        let data = [10, 20, 30, 40, 50, 60];
        let mut input = Input::for_tests();
        input.normalised = [1.0, 2.0, 3.0].map(|factor| std::array::from_fn(|value| value as f32 * factor));
        let values_of = |input: &Input| values(&data, 2, 1, 3, Orientation::default(), input).values;
        assert_eq!(values_of(&input), Values::Floats(vec![10.0, 40.0, 40.0, 100.0, 90.0, 180.0]));
        input.layout = Layout::Nhwc;
        assert_eq!(values_of(&input), Values::Floats(vec![10.0, 40.0, 90.0, 40.0, 100.0, 180.0]));
        input.channels = Channels::Bgr;
        assert_eq!(values_of(&input), Values::Floats(vec![30.0, 40.0, 30.0, 60.0, 100.0, 120.0]));
        input.element = Element::Float16;
        let halves = [30.0, 40.0, 30.0, 60.0, 100.0, 120.0].map(f16::from_f32);
        assert_eq!(values_of(&input), Values::Halves(halves.to_vec()));
        input.element = Element::Uint8;
        assert_eq!(values_of(&input), Values::Pixels(vec![30, 20, 10, 60, 50, 40]));
        input.layout = Layout::Nchw;
        assert_eq!(values_of(&input), Values::Pixels(vec![30, 60, 20, 50, 10, 40]));
    }

    #[test]
    fn letterboxed_image_is_surrounded_by_the_fill() {
        let text = r#"name = "x"
            layout = "NHWC"
            channels = "RGB"
            type = "uint8"
            resize = "letterbox"
            size = 4
            fill = [7, 8, 9]
            filter = "nearest""#;
        let input = Input::new(&toml::from_str(text).unwrap(), None).unwrap();
        for (exif, size) in [(1, (4, 2)), (6, (2, 4))] {
            let mut pixels = Pixels::whole(vec![1; 8], size, 1);
            pixels.orientation = Orientation::from_exif(exif);
            let Values::Pixels(bytes) = tensor(&pixels, &input, 16).unwrap().values else { panic!("bytes") };
            let (fill, image) = ([[7, 8, 9]; 4], [[1; 3]; 4]);
            assert_eq!(bytes, [fill, image, image, fill].concat().as_flattened(), "{exif}");
        }
    }

    #[test]
    fn size_that_depends_on_the_image_is_limited() {
        let text = r#"name = "x"
            layout = "NCHW"
            channels = "RGB"
            resize = "shortest-edge"
            size = 10
            filter = "bilinear""#;
        let input = Input::new(&toml::from_str(text).unwrap(), None).unwrap();
        let pixels = Pixels::whole(vec![1; 300], (1, 300), 1);
        let error = tensor(&pixels, &input, 29_999).unwrap_err();
        assert_eq!(error.fault, ImageFault::TooManyPixels);
        let tensor = tensor(&pixels, &input, 30_000).unwrap();
        assert_eq!((tensor.width, tensor.height), (10, 3000));
    }
}
