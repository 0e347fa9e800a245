//! The model's input for one image.

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
    /// Normalised floats in the layout 3 × height × width.
    Floats(Vec<f32>),
    /// Bytes in the layout height × width × 4: red, green, blue and an unused byte. The model normalises them itself.
    Pixels(Vec<u8>),
}
