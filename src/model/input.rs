//! The input that a model takes: its type and layout, and the preprocessing that leads to it.

use anyhow::{Context as _, bail, ensure};

use super::description::{FileInput, InputDescription, Size};
pub(super) use super::words::{Channels, Element, Filter, Layout, Position, Rounding};

/// The largest side of an input, and of a resized image whose size is given.
pub const MAX_SIDE: u32 = 4096;

/// The input that the model takes.
#[derive(Debug)]
pub(super) struct Input {
    pub name: String,
    pub element: Element,
    pub layout: Layout,
    pub channels: Channels,
    pub geometry: Geometry,
    /// Red, green and blue of the pixels around a letterboxed image. A crop larger than its image is padded with zeros.
    pub fill: [u8; 3],
    /// `(x × rescale - mean) / std` of every 8-bit value, one table for each channel, in the order of `channels`. It is
    /// not used for bytes.
    pub normalised: [[f32; 256]; 3],
}

/// The steps between decoding an image and normalising it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Geometry {
    /// The image keeps its size.
    Native,
    Resized(Resize),
}

/// A resize and the centre crop after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resize {
    pub fit: Fit,
    pub filter: Filter,
    /// If it is larger than the resized image, zeros surround the image.
    pub crop: Option<Extent>,
    pub passes: Passes,
}

/// The order of the two passes of a resize, of which the first one rounds to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passes {
    /// Rows before columns of the upright image, with Pillow's arithmetic: every value is Pillow's.
    AsPillow,
    /// Columns before rows of the stored image. It is faster, and a tenth of the values differ from Pillow's by one step.
    /// It is the meaning of `short-side`, so that packages that are in use keep their results.
    Fast,
}

/// How the size of the resized image follows from that of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// The shortest edge gets this length, and the other one keeps the aspect ratio.
    ShortestEdge(u32),
    /// The image is stretched to this size.
    Squash(Extent),
    /// The largest part in the middle that has this aspect ratio is resized to this size.
    Cover(Extent),
    /// The image is resized to fit into `target`, and the rest of that is filled.
    Letterbox { target: Extent, position: Position, rounding: Rounding },
    /// The image keeps its size, and is only cropped.
    Keep,
}

/// A size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub height: u32,
    pub width: u32,
}

impl Input {
    /// Combines `[input]` with the input of a file.
    ///
    /// # Errors
    /// A message of one line that names the key. It does not name the file.
    pub(super) fn new(description: &InputDescription, file: Option<&FileInput>) -> anyhow::Result<Input> {
        let element = file.and_then(|file| file.element).or(description.element).unwrap_or(Element::Float32);
        let layout = file.and_then(|file| file.layout).unwrap_or(description.layout);
        let described = description.channels;
        let channels = file.and_then(|file| file.channels).unwrap_or(described);
        ensure!(
            channels != Channels::Rgbx || (element, layout) == (Element::Uint8, Layout::Nhwc),
            "channels \"RGBX\" need type \"uint8\" and layout \"NHWC\""
        );
        ensure!(
            element == Element::Uint8 || channels == described,
            "the channels of the file differ from those of [input], whose order mean and std have"
        );
        let fill = description.fill.unwrap_or_default();
        let is_reversed = channels == Channels::Bgr;
        Ok(Input {
            name: description.name.clone(),
            element,
            layout,
            channels,
            geometry: Geometry::new(description)?,
            fill: if is_reversed { [fill[2], fill[1], fill[0]] } else { fill },
            normalised: normalisation_table(description)?,
        })
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Input {
        Input {
            name: "input".to_owned(),
            element: Element::Float32,
            layout: Layout::Nchw,
            channels: Channels::Rgb,
            geometry: Geometry::Native,
            fill: [0; 3],
            normalised: [std::array::from_fn(|value| value as f32 / 255.0); 3],
        }
    }
}

impl Channels {
    /// The number of channels.
    pub(super) fn count(self) -> usize {
        if self == Channels::Rgbx { 4 } else { 3 }
    }

    /// For each channel of the model, the channel of the image: 0 is red.
    pub(super) fn order(self) -> [usize; 3] {
        if self == Channels::Bgr { [2, 1, 0] } else { [0, 1, 2] }
    }
}

impl Filter {
    /// The distance, in pixels of the smaller of the two images, from which pixels have no influence.
    pub(super) fn radius(self) -> f64 {
        match self {
            Filter::Nearest | Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming | Filter::OpencvBilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// Reports whether the image may be decoded at a fraction of its size. Nearest and OpenCV's bilinear depend on single
    /// pixels, which must not be averaged before, and the pixels of a box are those inside a sharp edge. With Hamming the
    /// first class of too many images differs.
    pub(super) fn allows_reduction(self) -> bool {
        !matches!(self, Filter::Nearest | Filter::Box | Filter::Hamming | Filter::OpencvBilinear)
    }
}

impl Extent {
    fn new(key: &str, size: Size) -> anyhow::Result<Extent> {
        let (height, width) = match size {
            Size::One(side) => (side, side),
            Size::Both([height, width]) => (height, width),
        };
        let allowed = 1..=MAX_SIDE;
        ensure!(allowed.contains(&height) && allowed.contains(&width), "{key} must be from 1 to {MAX_SIDE} pixels");
        Ok(Extent { height, width })
    }
}

impl Geometry {
    /// # Errors
    /// A message of one line that names the key. It does not name the file.
    pub(super) fn new(description: &InputDescription) -> anyhow::Result<Geometry> {
        let InputDescription { resize, size, filter, crop, fill, position, rounding, .. } = description;
        let is_letterbox = resize == "letterbox";
        for (key, is_given) in
            [("fill", fill.is_some()), ("position", position.is_some()), ("rounding", rounding.is_some())]
        {
            ensure!(is_letterbox || !is_given, "{key} has a meaning only for resize = \"letterbox\"");
        }
        let crop = crop.map(|crop| Extent::new("crop", crop)).transpose()?;
        let target = |size: Option<Size>| {
            Extent::new("size", size.with_context(|| format!("resize = {resize:?} needs a size"))?)
        };
        let fit = match resize.as_str() {
            "none" => {
                ensure!(size.is_none() && filter.is_none(), "resize = \"none\" excludes size and filter");
                return Ok(match crop {
                    None => Geometry::Native,
                    Some(_) => Geometry::Resized(Resize {
                        fit: Fit::Keep,
                        filter: Filter::Nearest,
                        crop,
                        passes: Passes::AsPillow,
                    }),
                });
            }
            "shortest-edge" | "short-side" => {
                ensure!(
                    !matches!(size, Some(Size::Both(_))),
                    "resize = {resize:?} needs one size, not [height, width]"
                );
                Fit::ShortestEdge(target(*size)?.height)
            }
            "squash" => Fit::Squash(target(*size)?),
            "cover" => {
                ensure!(crop.is_none(), "resize = \"cover\" excludes crop");
                Fit::Cover(target(*size)?)
            }
            "letterbox" => {
                ensure!(crop.is_none(), "resize = \"letterbox\" excludes crop");
                Fit::Letterbox {
                    target: target(*size)?,
                    position: position.unwrap_or(Position::Centre),
                    rounding: rounding.unwrap_or(Rounding::HalfEven),
                }
            }
            other => {
                bail!(
                    "resize {other:?} is not supported; \"shortest-edge\", \"squash\", \"cover\", \"letterbox\" and \
                     \"none\" are"
                )
            }
        };
        // Bicubic was the only filter when `short-side` was the only way to resize.
        let filter = filter.or((resize == "short-side").then_some(Filter::Bicubic));
        let filter = filter.with_context(|| format!("resize = {resize:?} needs a filter"))?;
        let passes = if resize == "short-side" { Passes::Fast } else { Passes::AsPillow };
        Ok(Geometry::Resized(Resize { fit, filter, crop, passes }))
    }

    /// The size of the input, if it does not depend on the image.
    pub(super) fn output(self) -> Option<Extent> {
        let Geometry::Resized(Resize { fit, crop, .. }) = self else { return None };
        crop.or(match fit {
            Fit::Squash(target) | Fit::Cover(target) | Fit::Letterbox { target, .. } => Some(target),
            Fit::ShortestEdge(_) | Fit::Keep => None,
        })
    }
}

fn normalisation_table(description: &InputDescription) -> anyhow::Result<[[f32; 256]; 3]> {
    let rescale = description.rescale.unwrap_or(1.0);
    let mean = description.mean.unwrap_or([0.0; 3]);
    let std = description.std.unwrap_or([1.0; 3]);
    ensure!(rescale.is_finite() && rescale > 0.0, "rescale must be above 0");
    ensure!(mean.iter().all(|mean| mean.is_finite()), "mean must be numbers");
    ensure!(std.iter().all(|&std| std.is_finite() && std > 0.0), "std must be above 0");
    let value = |channel: usize, value: usize| ((value as f64 * rescale - mean[channel]) / std[channel]) as f32;
    Ok(std::array::from_fn(|channel| std::array::from_fn(|byte| value(channel, byte))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"name = "x"
        layout = "NCHW"
        channels = "RGB"
        resize = "short-side"
        short_side = 256
        crop = 224
        mean = [127, 127, 127]
        std = [128, 128, 128]"#;

    const NEW: &str = r#"name = "x"
        type = "float16"
        layout = "nhwc"
        channels = "bgr"
        resize = "letterbox"
        size = [48, 192]
        filter = "opencv-bilinear"
        fill = [10, 20, 30]
        position = "top-left"
        rounding = "up"
        rescale = 0.5
        mean = [1, 2, 3]"#;

    fn parse(text: &str) -> anyhow::Result<Input> {
        Input::new(&toml::from_str(text)?, None)
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    #[test]
    fn old_description_keeps_its_meaning() {
        let input = parse(OLD).unwrap();
        let crop = Some(Extent { height: 224, width: 224 });
        let fit = Fit::ShortestEdge(256);
        let resize = Resize { fit, filter: Filter::Bicubic, crop, passes: Passes::Fast };
        assert_eq!(input.geometry, Geometry::Resized(resize));
        assert_eq!((input.element, input.layout), (Element::Float32, Layout::Nchw));
        assert!((input.normalised[2][255] - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn new_keys_are_read() {
        let input = parse(NEW).unwrap();
        assert_eq!((input.element, input.layout, input.channels), (Element::Float16, Layout::Nhwc, Channels::Bgr));
        assert_eq!(input.geometry.output(), Some(Extent { height: 48, width: 192 }));
        assert_eq!(input.fill, [30, 20, 10]);
        let found = input.normalised.map(|table| table[4]);
        assert!(found.iter().zip([1.0, 0.0, -1.0]).all(|(found, wanted)| (found - wanted).abs() < 1e-6), "{found:?}");
        let kept = parse("name = \"x\"\nlayout = \"NCHW\"\nchannels = \"RGB\"\nresize = \"none\"").unwrap();
        assert_eq!(kept.geometry, Geometry::Native);
    }

    #[test]
    fn size_of_the_input_is_that_of_the_crop_or_of_the_resized_image() {
        let start = "name = \"x\"\nlayout = \"NCHW\"\nchannels = \"RGB\"\n";
        for (text, size) in [
            ("resize = \"shortest-edge\"\nfilter = \"box\"\nsize = 256\ncrop = 224", Some((224, 224))),
            ("resize = \"shortest-edge\"\nfilter = \"box\"\nsize = 256", None),
            ("resize = \"short-side\"\nshort_side = 256\ncrop = 224", Some((224, 224))),
            ("resize = \"squash\"\nfilter = \"box\"\nsize = [192, 256]", Some((192, 256))),
            ("resize = \"none\"\ncrop = [10, 20]", Some((10, 20))),
            ("resize = \"none\"", None),
        ] {
            let found = parse(&format!("{start}{text}")).unwrap().geometry.output();
            assert_eq!(found.map(|extent| (extent.height, extent.width)), size, "{text}");
        }
    }

    #[test]
    fn unsupported_preprocessing_is_refused() {
        for (from, to, named) in [
            ("NCHW", "CHWN", "layout"),
            ("RGB", "HSV", "channels"),
            ("RGB", "RGBX", "RGBX"),
            ("short-side", "pad", "resize"),
            ("short-side", "none", "size"),
            ("short-side", "shortest-edge", "filter"),
            ("128, 128]", "128, 0]", "std"),
            ("= 256", "= [256, 256]", "one size"),
            ("= 256", "= 5000", "4096"),
            ("= 224", "= 0", "crop"),
        ] {
            let error = refusal(&OLD.replace(from, to));
            assert!(error.contains(named), "{to}: {error}");
        }
        for (from, to, named) in [
            ("opencv-bilinear", "area", "filter"),
            ("letterbox", "squash", "fill"),
            ("size", "sise", "sise"),
            ("top-left", "left", "position"),
            ("size = [48", "crop = [49, 192]\n size = [48", "crop"),
        ] {
            let error = refusal(&NEW.replace(from, to));
            assert!(error.contains(named), "{to}: {error}");
        }
    }

    #[test]
    fn input_of_a_file_replaces_parts_of_the_input() {
        let description = toml::from_str(OLD).unwrap();
        let of = |element: Option<Element>, layout: Option<Layout>, channels: Option<Channels>| {
            let file = FileInput { element, layout, channels };
            Input::new(&description, Some(&file))
        };
        let pixels = of(Some(Element::Uint8), Some(Layout::Nhwc), Some(Channels::Rgbx)).unwrap();
        assert_eq!((pixels.element, pixels.layout, pixels.channels.count()), (Element::Uint8, Layout::Nhwc, 4));
        assert!(
            of(Some(Element::Uint8), Some(Layout::Nchw), Some(Channels::Rgbx))
                .err()
                .unwrap()
                .to_string()
                .contains("RGBX")
        );
        assert!(of(Some(Element::Float32), Some(Layout::Nhwc), None).is_ok());
        assert!(of(None, None, Some(Channels::Bgr)).is_err());
    }
}
