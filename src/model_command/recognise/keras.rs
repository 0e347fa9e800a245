//! `--preset keras-tf|keras-caffe|keras-torch`: the modes of `keras.applications.imagenet_utils.preprocess_input`, after
//! `keras.utils.load_img`, which squashes with the nearest pixel unless it is told otherwise.

use anyhow::bail;

use super::{IMAGENET_MEAN, IMAGENET_STD};
use crate::model_command::draft::{Channels, Draft, Filter, Resize, Sourced};

/// The beginning of the names of these presets.
pub(in crate::model_command) const PREFIX: &str = "keras-";

/// The draft of a preset. The size is that of the input.
///
/// # Errors
/// If there is no such mode.
pub(in crate::model_command) fn preset(name: &str) -> anyhow::Result<Draft> {
    let source = format!("preset {name}");
    let (channels, rescale, mean, std) = match name.strip_prefix(PREFIX).unwrap_or(name) {
        // x / 127.5 - 1
        "tf" => (Channels::Rgb, 1.0 / 255.0, [0.5; 3], [0.5; 3]),
        "caffe" => (Channels::Bgr, 1.0, [103.939, 116.779, 123.68], [1.0; 3]),
        "torch" => (Channels::Rgb, 1.0 / 255.0, IMAGENET_MEAN, IMAGENET_STD),
        _ => bail!("there is no preset {name:?}; Keras has keras-tf, keras-caffe and keras-torch"),
    };
    let load_img = "keras.utils.load_img's default; --filter and --resize say otherwise";
    Ok(Draft {
        resize: Some(Sourced::new(Resize::Squash, load_img)),
        crop: Some(Sourced::new(None, load_img)),
        filter: Some(Sourced::new(Filter::Nearest, load_img)),
        channels: Some(Sourced::new(channels, &source)),
        rescale: Some(Sourced::new(rescale, &source)),
        mean: Some(Sourced::new(mean, &source)),
        std: Some(Sourced::new(std, &source)),
        ..Draft::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_those_of_preprocess_input() {
        let at = |name: &str, value: f64| {
            let draft = preset(name).unwrap();
            let (rescale, mean, std) =
                (draft.rescale.unwrap().value, draft.mean.unwrap().value, draft.std.unwrap().value);
            (value * rescale - mean[0]) / std[0]
        };
        assert!((at("keras-tf", 255.0) - 1.0).abs() < 1e-9 && (at("keras-tf", 0.0) + 1.0).abs() < 1e-9);
        assert!((at("keras-caffe", 103.939)).abs() < 1e-9);
        assert!((at("keras-torch", 255.0) - (1.0 - 0.485) / 0.229).abs() < 1e-9);
        assert_eq!(preset("keras-caffe").unwrap().channels.unwrap().value, Channels::Bgr);
        assert!(preset("keras-jax").unwrap_err().to_string().contains("keras-tf"));
    }
}
