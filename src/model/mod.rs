//! The model: a folder under `models/`, bytes → pixels → tensor → predictions.
//!
//! - `find`: where the model and the ONNX Runtime library are looked for
//! - `package`: `model.toml`, the variant for this CPU, digests, labels
//! - `decode`: bytes → 8-bit pixels, within limits; `jpeg`, `turbo`, `libjpeg`: those of a JPEG; `png`, `tiff`
//! - `exif`: which way up an image is
//! - `bmp`, `repair`: files that every viewer shows, made such that the decoders take them
//! - `budget`: the time and memory that one image may cost; `memory`: how much of it there is
//! - `window`: what of a picture the model's crop shows
//! - `preprocess`: pixels → the model's input
//! - `onnx`: the session; `runtime`: which library it runs on; `seal`: files of the cache that can be believed
//! - `tuning`: what `imgcls tune` found; `choice`: a choice of the model completed by it

mod bmp;
mod budget;
mod choice;
mod decode;
mod exif;
mod find;
mod jpeg;
#[cfg(feature = "turbojpeg")]
mod libjpeg;
mod memory;
mod onnx;
mod package;
mod png;
mod preprocess;
mod repair;
mod runtime;
mod seal;
mod tiff;
mod tuning;
#[cfg(feature = "turbojpeg")]
mod turbo;
mod window;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use self::budget::Budget;
use self::package::Geometry;
use crate::config::Limits;
use crate::protocol::{ErrorCode, Prediction};

pub use budget::{thread_cpu_time, timeout_message};
pub use choice::{TunedChoice, default_cache_dir};
pub use decode::sniff;
pub use find::model_folder;
pub use jpeg::DECODER as JPEG_DECODER;
pub use memory::default_decode_bytes;
pub use onnx::Session;
pub use package::ModelPackage;
pub use runtime::portable_runtime;
pub use tuning::{Tuning, cores};

/// Which model to run and how, as the flags say it.
#[derive(Debug, Clone, Default)]
pub struct ModelChoice {
    /// A folder with a `model.toml`, or a name under a `models/` folder. None: `efficientnet-lite0`.
    pub model: Option<String>,
    /// A variant of model.toml (`int8`, `fp16`). None: by what this CPU can do.
    pub variant: Option<String>,
    /// The ONNX Runtime library. None: searched for.
    pub ort_dylib: Option<PathBuf>,
    /// Threads inside one inference. None: 1.
    pub intra_threads: Option<usize>,
    /// Where optimised graphs and what `tune` found are kept. None: nowhere.
    pub cache_dir: Option<PathBuf>,
}

/// One image as the model takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub values: Values,
    pub height: usize,
    pub width: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// 3 × height × width, normalised.
    Floats(Vec<f32>),
    /// Height × width × 4, red, green, blue and a byte that means nothing; the model normalises them itself.
    Pixels(Vec<u8>),
}

/// Why bytes did not become a tensor; always the client's fault, so never worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PrepareError {
    pub code: ErrorCode,
    /// For a person; holds no byte of the image.
    pub message: String,
}

impl PrepareError {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        PrepareError { code, message: message.into() }
    }
}

/// Decodes and preprocesses one image. Blocks on the CPU; any thread may call it. It waits while other threads of the
/// process decode what leaves too little of `max_decode_bytes` for this image.
///
/// # Errors
/// `InputTooLarge`, `UnsupportedType`, `TooManyPixels` and `TooLargeDecoded` before any pixel is decoded, `Undecodable` and
/// `DecodeTimeout` after.
pub fn prepare(bytes: &[u8], package: &ModelPackage, limits: &Limits) -> Result<Tensor, PrepareError> {
    prepare_from(bytes, package, limits, package.input().geometry)
}

/// As [`prepare`], but from every pixel, however large the picture: what decoding less is held against.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_unscaled(bytes: &[u8], package: &ModelPackage, limits: &Limits) -> Result<Tensor, PrepareError> {
    prepare_from(bytes, package, limits, Geometry::Native)
}

fn prepare_from(
    bytes: &[u8],
    package: &ModelPackage,
    limits: &Limits,
    decoded: Geometry,
) -> Result<Tensor, PrepareError> {
    if bytes.len() as u64 > limits.max_upload_bytes {
        let message = format!("{} bytes are more than the limit of {}", bytes.len(), limits.max_upload_bytes);
        return Err(PrepareError::new(ErrorCode::InputTooLarge, message));
    }
    // Decoders have panicked on malformed input before; what they leave behind is dropped with the closure.
    catch_unwind(AssertUnwindSafe(|| {
        let budget = Budget::new(limits);
        let pixels = decode::decode(bytes, limits, decoded, &budget)?;
        Ok(preprocess::tensor(&pixels, package.input()))
    }))
    .unwrap_or_else(|_panic| {
        Err(PrepareError::new(ErrorCode::Undecodable, "the image is damaged in a way that stopped the decoder"))
    })
}

/// The `k` most probable classes, best first; of equals the lower class index.
pub fn top_k(package: &ModelPackage, probabilities: &[f32], k: u32) -> Vec<Prediction> {
    let mut classes: Vec<u32> = (0..probabilities.len() as u32).collect();
    let probability = |class: u32| probabilities[class as usize];
    let better = |a: &u32, b: &u32| probability(*b).total_cmp(&probability(*a)).then(a.cmp(b));
    let k = classes.len().min(k as usize);
    if k < classes.len() {
        classes.select_nth_unstable_by(k, better);
        classes.truncate(k);
    }
    classes.sort_unstable_by(better);
    classes
        .into_iter()
        .map(|class_index| Prediction {
            class_index: Some(class_index),
            label: package.label(class_index).to_owned(),
            score: Some(probability(class_index)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_of_equals_the_lower_index() {
        let package = ModelPackage::for_tests(&["a", "b", "c", "d"]);
        let best: Vec<(Option<u32>, String)> = top_k(&package, &[0.1, 0.4, 0.1, 0.4], 3)
            .into_iter()
            .map(|prediction| (prediction.class_index, prediction.label))
            .collect();
        assert_eq!(best, [(Some(1), "b".to_owned()), (Some(3), "d".to_owned()), (Some(0), "a".to_owned())]);
        assert_eq!(top_k(&package, &[0.1, 0.4, 0.1, 0.4], 1000).len(), 4);
        assert!(top_k(&package, &[], 5).is_empty());
    }
}
