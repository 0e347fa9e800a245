//! Answers of a model, in the form that they have in results.

use serde::{Deserialize, Serialize};

/// One class with its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The 0-based index of the class. `None` from a legacy worker, which returns only the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_index: Option<u32>,
    /// The name of the class.
    pub label: String,
    /// The score of the class, 0 to 1: with softmax its probability. `None` from a legacy worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
}

/// The model that produced a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// The name of the model package.
    pub name: String,
    /// The version of the model package.
    pub version: String,
    /// `sha256:<hex>` of the model file.
    pub digest: String,
}
