//! The model's input for one image.

use half::f16;

/// One image in the form that the model takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The values, in the layout of their variant.
    pub values: Values,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The values of a [`Tensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Normalised floats, in the layout of the package: 3 × height × width, or height × width × 3.
    Floats(Vec<f32>),
    /// The same in half precision.
    Halves(Vec<f16>),
    /// Bytes, which the model normalises itself. The files of this project take them in the layout height × width × 4:
    /// red, green, blue and an unused byte.
    Pixels(Vec<u8>),
}
