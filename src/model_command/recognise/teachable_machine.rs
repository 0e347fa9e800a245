//! A project of Teachable Machine, exported for Keras and converted to ONNX. Its `labels.txt` has lines such as `0 cat`,
//! and the code that it is exported with cuts the centre with Lanczos and scales to -1..1.

use crate::model_command::draft::{Channels, Draft, Filter, Head, Resize, Size, Sourced};

/// The name of the preset.
pub(in crate::model_command) const PRESET: &str = "teachable-machine";

const SIDE: u32 = 224;

/// The draft of every project of Teachable Machine. `reason` says what it was recognised by.
pub(in crate::model_command) fn draft(reason: &str) -> Draft {
    let source = |what: &str| format!("{reason}; {what}");
    Draft {
        resize: Some(Sourced::new(Resize::Cover, source("ImageOps.fit"))),
        size: Some(Sourced::new(Size::square(SIDE), source("224 pixels"))),
        filter: Some(Sourced::new(Filter::Lanczos, source("ImageOps.fit with LANCZOS"))),
        rescale: Some(Sourced::new(1.0 / 255.0, source("x / 127.5 - 1"))),
        mean: Some(Sourced::new([0.5; 3], source("x / 127.5 - 1"))),
        std: Some(Sourced::new([0.5; 3], source("x / 127.5 - 1"))),
        channels: Some(Sourced::new(Channels::Rgb, reason)),
        activation: Some(Sourced::new(Head::None, source("its last layer applies softmax"))),
        ..Draft::default()
    }
}
