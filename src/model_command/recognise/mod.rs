//! The exports that are recognised, one file each. A recogniser is a pure function from the parsed files of an export to a
//! [`Draft`](super::draft::Draft). What it does not know stays open, and a flag has to say it.

pub(super) mod hugging_face;
pub(super) mod keras;
mod literal;
pub(super) mod teachable_machine;
pub(super) mod timm;
pub(super) mod torchvision;
pub(super) mod ultralytics;

use serde_json::Value;

/// ImageNet's mean and standard deviation of values from 0 to 1.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Three numbers of a JSON list; one number counts for each channel.
fn three(value: &Value) -> Option<[f64; 3]> {
    if let Some(number) = value.as_f64() {
        return Some([number; 3]);
    }
    let numbers: Vec<f64> = value.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// A number of pixels.
fn pixels(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0)
}
