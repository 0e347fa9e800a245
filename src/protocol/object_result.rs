//! The result for an object that an event of S3 named.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::error::ErrorInfo;
use super::message::{Status, TimingsMs};
use crate::model::{ModelRef, Prediction};

/// The result for an object: the content of `results/<bucket>/<key>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectResult {
    /// [`super::WIRE_VERSION`].
    pub v: u32,
    /// The bucket of the object.
    pub bucket: String,
    /// The key of the object.
    pub key: String,
    /// The tag of the content, as the event says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// The sequencer of the event. The result of a later one replaces this result.
    pub sequencer: String,
    /// The outcome.
    pub status: Status,
    /// The best first; empty unless `status` is `succeeded`.
    pub predictions: Vec<Prediction>,
    /// As in the result of a job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Prediction>,
    /// `None` if no model was run.
    pub model: Option<ModelRef>,
    /// How long each stage took.
    pub timings_ms: TimingsMs,
    /// The receive count of the delivery.
    pub attempt: u32,
    /// The process that classified the object.
    pub worker: String,
    /// Why the object could not be classified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorInfo>,
}

impl ObjectResult {
    /// The text that is stored.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a result holds only strings and finite numbers; this is a bug")
    }
}

/// Returns true if a result that is stored under the key is that of this event or of a later one. A text that is no such
/// result is replaced.
pub fn is_current(stored: &[u8], sequencer: &str) -> bool {
    #[derive(Deserialize)]
    struct Stored {
        sequencer: String,
    }
    let stored = serde_json::from_slice::<Stored>(stored);
    stored.is_ok_and(|stored| compare_sequencers(&stored.sequencer, sequencer) != Ordering::Less)
}

/// Orders two events of one key. As S3 says, the shorter sequencer is filled with zeros at its end.
fn compare_sequencers(a: &str, b: &str) -> Ordering {
    let length = a.len().max(b.len());
    let filled = |text: &str| format!("{text:0<length$}").to_ascii_uppercase();
    filled(a).cmp(&filled(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_sequencer_is_greater_whatever_its_length() {
        for (earlier, later) in [("0055", "0056"), ("0055", "00551"), ("", "0"), ("005f", "0060"), ("005a", "005B")] {
            let is_zero = earlier.is_empty();
            assert_eq!(compare_sequencers(earlier, later), if is_zero { Ordering::Equal } else { Ordering::Less });
        }
        let stored = br#"{"sequencer": "0055"}"#;
        assert!(is_current(stored, "0055") && is_current(stored, "0054") && !is_current(stored, "0056"));
        assert!(!is_current(b"no result", "0055"));
    }
}
