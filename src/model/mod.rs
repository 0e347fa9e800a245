//! The model: a folder under `models/`; bytes → pixels → tensor → predictions.
//!
//! This is a crate of its own, `imgcls-model`, which knows nothing of queues, HTTP and AWS. The program spends its time
//! here, so it is compiled for speed, and the rest of imgcls for size (decision 46).
//!
//! - `limits`: what one image may take; `error`: in which ways an image is at fault
//!
//! From a file to pixels:
//! - `decode`: the list of image formats, and the choice among them; `format`: what a format declares
//! - `jpeg` (with `turbo` and `libjpeg`), `png`, `heif` (HEIC and AVIF), `tiff`, `camera_raw`, `jpeg_xl`,
//!   `jpeg_2000`, `ico`, `webp`, `gif`, `bmp`: one module for each format; `image_crate`: the decoder of the last three
//! - `foreign`: the names of files that are refused
//! - `exif`: the orientation in the metadata; `capture_time`: when a photograph was taken; `orientation`, `pixels`: the
//!   types that decoders return
//! - `budget`: CPU time and memory that one image may use; `memory`: how much memory the process may use
//! - `thumbnail`: a small copy of an image, for people
//!
//! From pixels to predictions:
//! - `placement`: where the resized image lies in the model's input; `crop`: the part of an image that is used
//! - `preprocess` (with `resample`): pixels → `tensor`, the model's input; `whole`: an image that is classified in parts
//! - `onnx`: the session; `graph`: how it is built; `runtime`: which library it runs on
//! - `head`: outputs → scores → `prediction`s
//!
//! Files:
//! - `choice`: what the settings choose, completed by the result of `imgcls tune`; `find`: where the model and the ONNX Runtime library are searched for
//! - `library`: the models directory, with versions and the pointer to the current one
//! - `package`: a folder with `model.toml` (`description`), the `variant` for this CPU, `input`, `labels`, digests;
//!   `summary`: what a listing shows of it; `used_part`: what a fleet needs of it
//! - `onnx_file`: facts of an ONNX file that are read without the runtime; `protobuf`: its encoding
//! - `seal`: files of the cache that can be trusted; `tuning`: the result of `imgcls tune`; `file`: reading and digests

mod answer_digest;
mod bmp;
mod budget;
mod camera_raw;
mod capture_time;
mod choice;
mod crop;
mod decode;
mod description;
mod error;
mod exif;
mod file;
mod find;
mod foreign;
mod format;
mod gif;
mod graph;
mod head;
mod heif;
mod ico;
mod image_crate;
mod input;
mod jpeg;
mod jpeg_2000;
mod jpeg_xl;
mod labels;
#[cfg(feature = "turbojpeg")]
mod libjpeg;
mod library;
mod limits;
mod memory;
mod onnx;
pub mod onnx_field;
mod onnx_file;
pub mod onnx_writer;
mod orientation;
mod package;
mod pillow;
mod pixels;
mod placement;
mod png;
mod prediction;
mod preprocess;
mod protobuf;
mod resample;
mod runtime;
mod seal;
mod summary;
mod tensor;
mod thumbnail;
mod tiff;
mod tuning;
#[cfg(feature = "turbojpeg")]
mod turbo;
mod used_part;
mod variant;
mod webp;
mod whole;
mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::budget::Budget;
use self::input::Geometry;

pub use self::budget::{thread_cpu_time, timeout_message};
pub use self::capture_time::datetime_original;
pub use self::choice::{ModelChoice, default_cache_dir, default_models_dir};
pub use self::decode::{format_names, has_image_extension, media_types, sniff};
pub use self::description::Activation;
pub use self::error::{ImageFault, PrepareError};
pub use self::file::hex;
pub use self::find::{DESCRIPTION, model_folder, shipped_models};
pub use self::foreign::foreign_kind;
pub use self::head::{Head, head_of, labels_above, top_k};
pub use self::input::MAX_SIDE;
pub use self::jpeg::DECODER as JPEG_DECODER;
pub use self::library::{Installed, Library, Pointer, Reference, Staging, content_version};
pub use self::limits::{Limits, MIN_DECODE_BYTES};
pub use self::memory::{default_decode_bytes, default_model_bytes, resident_bytes};
pub use self::onnx::Session;
pub use self::onnx_file::{OnnxFile, TensorInfo};
pub use self::package::ModelPackage;
pub use self::prediction::{ModelRef, Prediction};
pub use self::protobuf::{Field, Message, Value as FieldValue};
pub use self::runtime::RuntimeFacts;
pub use self::runtime::{file_sha256, portable_runtime, runtime_facts};
pub use self::summary::{FileSummary, ModelSummary, model_name};
pub use self::tensor::{Tensor, Values};
pub use self::thumbnail::thumbnail;
pub use self::tiff::{tiff_page, tiff_pages};
pub use self::tuning::reference_variant;
pub use self::tuning::{BATCH_SIZES, BatchTime, MIN_BATCH_GAIN, TunedChoice, Tuning, cores, worthwhile_batch_size};
pub use self::used_part::used_part;
pub use self::variant::cpu_features;
pub use self::whole::{Region, RegionCrop, WholeImage};
pub use self::words::{Channels, Element, Filter, Layout, Position, Rounding};

/// Decodes and preprocesses one image. This blocks the calling thread, which may be any thread. While other threads of
/// the process use so much of `max_decode_bytes` that this image does not fit, it waits for them.
///
/// # Errors
/// `InputTooLarge`, `UnsupportedType`, `TooManyPixels` and `TooLargeDecoded` before any pixel is decoded; `Undecodable`
/// and `DecodeTimeout` afterwards.
pub fn prepare(bytes: &[u8], package: &ModelPackage, limits: &Limits) -> Result<Tensor, PrepareError> {
    prepare_sized(bytes, package, limits).map(|(tensor, _)| tensor)
}

/// Like [`prepare`], and returns width and height of the upright image in pixels too.
///
/// # Errors
/// The errors of [`prepare`].
pub fn prepare_sized(
    bytes: &[u8],
    package: &ModelPackage,
    limits: &Limits,
) -> Result<(Tensor, (u32, u32)), PrepareError> {
    prepare_from(bytes, package, limits, package.input().geometry)
}

/// Like [`prepare`], but decodes every pixel at full size. Tests and benchmarks compare partial decoding with it.
///
/// # Errors
/// The errors of [`prepare`].
pub fn prepare_unscaled(bytes: &[u8], package: &ModelPackage, limits: &Limits) -> Result<Tensor, PrepareError> {
    prepare_from(bytes, package, limits, Geometry::Native).map(|(tensor, _)| tensor)
}

fn prepare_from(
    bytes: &[u8],
    package: &ModelPackage,
    limits: &Limits,
    decoded: Geometry,
) -> Result<(Tensor, (u32, u32)), PrepareError> {
    pixels::check_bytes(bytes, limits)?;
    // Decoders have panicked on malformed input before. Their state is dropped with the closure.
    catch_unwind(AssertUnwindSafe(|| {
        let budget = Budget::new(limits);
        let pixels = decode::decode(bytes, limits, decoded, &budget)?;
        let (width, height) = pixels.orientation.upright_size(pixels.origin.width, pixels.origin.height);
        let tensor = preprocess::tensor(&pixels, package.input(), limits.max_pixels)?;
        Ok((tensor, (width as u32, height as u32)))
    }))
    .unwrap_or_else(|_panic| Err(error::stopped_decoder()))
}
