//! The words of `[input]` in `model.toml`, which are also those of the flags of `imgcls model add`.

/// `spellings!(Kind "a kind": One "one", Two "two" | "second")`: the word for each variant and further spellings of it, read
/// from text and from TOML. Upper and lower case are the same.
#[macro_export]
macro_rules! spellings {
    ($kind:ident $what:literal: $($variant:ident $word:literal $(| $alias:literal)*),*) => {
        impl $kind {
            /// The word for it in flags and in `model.toml`.
            pub fn as_str(self) -> &'static str {
                match self { $($kind::$variant => $word),* }
            }
        }

        impl std::str::FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<$kind, String> {
                $(if [$word, $($alias),*].iter().any(|word| word.eq_ignore_ascii_case(text)) {
                    return Ok($kind::$variant);
                })*
                Err(format!("give {}", [$($word.to_lowercase()),*].join(", ")))
            }
        }

        impl<'de> serde::Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$kind, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(|give| serde::de::Error::custom(format!("{text:?} is not {}; {give}", $what)))
            }
        }
    };
}

/// The type of a value of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// Single precision.
    Float32,
    /// Half precision.
    Float16,
    /// Pixels from 0 to 255. The model normalises them itself.
    Uint8,
}

/// The order of the axes after the batch axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Channels, height, width: one plane for each channel.
    Nchw,
    /// Height, width, channels: the channels of a pixel together.
    Nhwc,
}

/// The channels of a pixel, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// RGB and a byte that has no meaning, in which the model has weights of zero. Only models that were made for this
    /// program have it.
    Rgbx,
}

/// How the pixels of a resized image are computed: by the filter of this name in Pillow, which is antialiased, or as
/// OpenCV does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The mean of the pixels.
    Box,
    /// Bilinear.
    Bilinear,
    /// A bilinear one that is sharper.
    Hamming,
    /// Bicubic.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
    /// `cv2.INTER_LINEAR`, which reads two pixels along each axis and is not antialiased.
    OpencvBilinear,
}

/// The place of an image in its letterbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The same space on both sides.
    Centre,
    /// All space below and to the right.
    TopLeft,
}

/// How the size of a letterboxed image becomes a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest number, and halves to the even one, as Python's `round`.
    HalfEven,
    /// Up.
    Up,
    /// Down.
    Down,
}

spellings!(Element "a type of the input": Float32 "float32", Float16 "float16", Uint8 "uint8");
spellings!(Layout "a layout": Nchw "NCHW", Nhwc "NHWC");
spellings!(Channels "an order of channels": Rgb "RGB", Bgr "BGR", Rgbx "RGBX");
spellings!(Filter "a filter": Nearest "nearest", Box "box", Bilinear "bilinear", Hamming "hamming", Bicubic "bicubic",
    Lanczos "lanczos", OpencvBilinear "opencv-bilinear");
spellings!(Position "a position": Centre "centre" | "center", TopLeft "top-left");
spellings!(Rounding "a rounding": HalfEven "half-even", Up "up", Down "down");

impl Filter {
    /// The filter of a number of Pillow's `resample`.
    pub fn of_pillow(number: u64) -> Option<Filter> {
        let filters =
            [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];
        filters.get(usize::try_from(number).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_in_any_case_and_written_in_one() {
        assert_eq!("nhwc".parse(), Ok(Layout::Nhwc));
        assert_eq!("Center".parse::<Position>().map(Position::as_str), Ok("centre"));
        assert_eq!("half_even".parse::<Rounding>(), Err("give half-even, up, down".to_owned()));
        let toml = |text: &str| toml::from_str::<std::collections::BTreeMap<String, Filter>>(text);
        assert_eq!(toml("filter = \"opencv-bilinear\"").unwrap()["filter"], Filter::OpencvBilinear);
        let error = toml("filter = \"area\"").unwrap_err();
        assert!(error.message().starts_with("\"area\" is not a filter; give nearest, box,"), "{error}");
    }
}
