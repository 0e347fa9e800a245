//! The outputs of a model, and those that a request asks for.

use crate::web::query::DEFAULT_TOP_K;

/// The names of the classes.
pub(super) const LABELS: &str = "labels";
/// Their scores.
pub(super) const SCORES: &str = "scores";
/// Their indices in the model's own output.
pub(super) const INDICES: &str = "indices";
/// All outputs.
pub(super) const OUTPUTS: [&str; 3] = [LABELS, SCORES, INDICES];

/// One output of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// One of [`OUTPUTS`].
    pub(super) name: &'static str,
    /// The number of classes.
    pub(super) top_k: u32,
    /// True if each class is one text, `score:index:label`.
    pub(super) is_classification: bool,
    pub(super) is_binary: bool,
}

/// The outputs of the answer, in the order of the request.
pub(super) struct WantedOutputs(pub(super) Vec<Wanted>);

impl WantedOutputs {
    /// The number of classes that the largest output has.
    pub(super) fn top_k(&self) -> u32 {
        self.0.iter().map(|output| output.top_k).max().unwrap_or(DEFAULT_TOP_K)
    }
}
