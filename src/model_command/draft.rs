//! The values that are known of a model before it is added. Every value carries where it came from, so that `imgcls model add` can
//! print it, and nothing is guessed in silence.

use std::path::PathBuf;

pub use crate::model::{Channels, Filter, Layout, Position, Rounding};

use crate::model::spellings;

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

spellings!(Resize "a resize": ShortestEdge "shortest-edge", Squash "squash", Cover "cover", Letterbox "letterbox", None "none");
spellings!(Head "a head": Softmax "softmax", Sigmoid "sigmoid", None "none", MultiLabel "none, multi-label");

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
