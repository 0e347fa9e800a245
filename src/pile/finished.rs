//! An image with its outcome, on its way from a session to the output.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::boxes::ImageBoxes;
use crate::model::{ModelRef, Prediction};
use crate::protocol::{ErrorInfo, TimingsMs};

/// An image that is classified or failed.
#[derive(Debug)]
pub(super) struct Finished {
    /// The number of the image in the order of the input.
    pub sequence: u64,
    /// The path with which the image is reported.
    pub path: PathBuf,
    /// The file, if the image is one of its own.
    pub file: Option<PathBuf>,
    /// The boxes that are classified instead of the image.
    pub boxes: Option<Arc<ImageBoxes>>,
    pub outcome: Result<Answer, ErrorInfo>,
}

/// The answer for a classified image.
#[derive(Debug)]
pub(super) struct Answer {
    pub predictions: Vec<Prediction>,
    pub labels: Vec<Prediction>,
    /// Width of the upright image in pixels; 0 if a worker of an earlier release classified it.
    pub width: u32,
    /// Height of the upright image in pixels; 0 as the width.
    pub height: u32,
    pub datetime_original: Option<String>,
    pub model: ModelRef,
    pub timings: Timings,
    /// The answer for each box, if boxes are classified: there are no predictions for the image then.
    pub boxes: Vec<BoxAnswer>,
}

/// The answer for a box of an image, or for all of it.
#[derive(Debug, Default)]
pub(super) struct BoxAnswer {
    pub predictions: Vec<Prediction>,
    pub labels: Vec<Prediction>,
}

/// Durations in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Timings {
    decoded: f64,
    inferred: f64,
    total: f64,
}

impl Timings {
    /// The durations of decoding and of both steps together.
    pub(super) fn new(decoded: Duration, total: Duration) -> Timings {
        let inferred = milliseconds(total.saturating_sub(decoded));
        Timings { decoded: milliseconds(decoded), inferred, total: milliseconds(total) }
    }

    /// The durations that a result of a service says. The total is the time from submission to completion.
    pub(super) fn of_result(timings_ms: &TimingsMs) -> Timings {
        let &TimingsMs { decoded, inferred, total, .. } = timings_ms;
        Timings { decoded, inferred, total }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
