//! The values that are known of a model before it is added. Every value carries where it came from, so that `imgcls model add` can
//! print it, and nothing is guessed in silence.

use std::path::PathBuf;

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// A file and the key in it, a flag, or the rule of a framework.
    pub source: String,
}

impl<T> Sourced<T> {
    /// A value with its source.
    pub fn new(value: T, source: impl Into<String>) -> Sourced<T> {
        Sourced { value, source: source.into() }
    }
}

/// The values that are known so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    /// The class names.
    pub labels: Option<Sourced<Labels>>,
    /// How the aspect ratio of an image is treated.
    pub resize: Option<Sourced<Resize>>,
    /// The size that an image is resized to.
    pub size: Option<Sourced<Size>>,
    /// The part that is cut from the centre, or `None` inside for no crop.
    pub crop: Option<Sourced<Option<Size>>>,
    /// The filter of the resize.
    pub filter: Option<Sourced<Filter>>,
    /// The colour around a letterboxed image.
    pub fill: Option<Sourced<[u8; 3]>>,
    /// The place of a letterboxed image.
    pub position: Option<Sourced<Position>>,
    /// How the size of a letterboxed image becomes whole numbers.
    pub rounding: Option<Sourced<Rounding>>,
    /// The factor of values from 0 to 255.
    pub rescale: Option<Sourced<f64>>,
    /// It is subtracted from each channel after that.
    pub mean: Option<Sourced<[f64; 3]>>,
    /// The divisor of each channel after that.
    pub std: Option<Sourced<[f64; 3]>>,
    /// The order of the channels.
    pub channels: Option<Sourced<Channels>>,
    /// The order of the axes.
    pub layout: Option<Sourced<Layout>>,
    /// How outputs become scores.
    pub activation: Option<Sourced<Head>>,
    /// The score from which a class of a multi-label head is a label.
    pub threshold: Option<Sourced<f64>>,
}

impl Draft {
    /// Fills what is not known with what another draft knows.
    #[must_use]
    pub fn or(self, other: Draft) -> Draft {
        Draft {
            labels: self.labels.or(other.labels),
            resize: self.resize.or(other.resize),
            size: self.size.or(other.size),
            crop: self.crop.or(other.crop),
            filter: self.filter.or(other.filter),
            fill: self.fill.or(other.fill),
            position: self.position.or(other.position),
            rounding: self.rounding.or(other.rounding),
            rescale: self.rescale.or(other.rescale),
            mean: self.mean.or(other.mean),
            std: self.std.or(other.std),
            channels: self.channels.or(other.channels),
            layout: self.layout.or(other.layout),
            activation: self.activation.or(other.activation),
            threshold: self.threshold.or(other.threshold),
        }
    }
}

/// The names of the classes.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// A labels file, which is kept as it is.
    File(PathBuf),
    /// The name of each class.
    Names(Vec<String>),
    /// The WordNet id and the name of each class.
    IdsAndNames(Vec<(String, String)>),
    /// The 1,000 classes of ImageNet, as the shipped model has them.
    ImageNet,
}

/// How the aspect ratio of an image is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The shortest edge gets the size, the other one keeps the aspect ratio.
    ShortestEdge,
    /// Both edges get the size, and the image is distorted.
    Squash,
    /// The largest part in the middle that has the aspect ratio of the size.
    Cover,
    /// The longest edge gets the size, and the rest is filled.
    Letterbox,
    /// The image keeps its size.
    None,
}

/// A height and a width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels from top to bottom.
    pub height: u32,
    /// Pixels from left to right.
    pub width: u32,
}

impl Size {
    /// A square.
    pub fn square(side: u32) -> Size {
        Size { height: side, width: side }
    }

    /// The shorter side.
    pub fn shortest(self) -> u32 {
        self.height.min(self.width)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.height, self.width)
    }
}

/// The filter of a resize. The names are those of Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The mean of the pixels.
    Box,
    /// Bilinear, antialiased.
    Bilinear,
    /// A bilinear one that is sharper.
    Hamming,
    /// Bicubic, antialiased.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
    /// OpenCV's bilinear, which is not antialiased.
    OpencvBilinear,
}

/// The place of a letterboxed image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The same space on both sides.
    Centre,
    /// All space below and to the right.
    TopLeft,
}

/// How the size of a letterboxed image becomes whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest number, halves to the even one, as Python's `round`.
    HalfEven,
    /// Up.
    Up,
    /// Down.
    Down,
}

/// The order of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// The order of the axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Batch, channels, height, width.
    Nchw,
    /// Batch, height, width, channels.
    Nhwc,
}

/// How the outputs of the model become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// One class is right; softmax is applied.
    Softmax,
    /// Each class is right or not; the sigmoid is applied.
    Sigmoid,
    /// The outputs are scores already.
    None,
    /// The outputs are scores already, and each class is right or not.
    MultiLabel,
}

macro_rules! words {
    ($kind:ident: $($variant:ident $word:literal),*) => {
        impl $kind {
            /// The word for it in flags and in `model.toml`.
            pub fn as_str(self) -> &'static str {
                match self { $($kind::$variant => $word),* }
            }
        }

        impl std::str::FromStr for $kind {
            type Err = String;

            fn from_str(text: &str) -> Result<$kind, String> {
                let words = [$(($word, $kind::$variant)),*];
                let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
                found.map(|(_, value)| *value).ok_or_else(|| {
                    let words: Vec<String> = words.iter().map(|(word, _)| word.to_lowercase()).collect();
                    format!("give {}", words.join(", "))
                })
            }
        }
    };
}

words!(Resize: ShortestEdge "shortest-edge", Squash "squash", Cover "cover", Letterbox "letterbox", None "none");
words!(Filter: Nearest "nearest", Box "box", Bilinear "bilinear", Hamming "hamming", Bicubic "bicubic",
    Lanczos "lanczos", OpencvBilinear "opencv-bilinear");
words!(Position: Centre "centre", TopLeft "top-left");
words!(Rounding: HalfEven "half-even", Up "up", Down "down");
words!(Channels: Rgb "RGB", Bgr "BGR");
words!(Layout: Nchw "NCHW", Nhwc "NHWC");
words!(Head: Softmax "softmax", Sigmoid "sigmoid", None "none", MultiLabel "none, multi-label");

impl Head {
    /// The activation in `model.toml`.
    pub fn activation(self) -> &'static str {
        if self == Head::MultiLabel { Head::None.as_str() } else { self.as_str() }
    }

    /// Returns true if several classes can be right.
    pub fn is_multi_label(self) -> bool {
        matches!(self, Head::Sigmoid | Head::MultiLabel)
    }
}

impl Filter {
    /// The filter of a number of Pillow's `resample`.
    pub fn of_pillow(number: u64) -> Option<Filter> {
        let filters =
            [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];
        filters.get(usize::try_from(number).ok()?).copied()
    }
}
