//! The document of a batch: the object `batches/<id>.json` in the output bucket. Every process finds the jobs of a batch by
//! it, after any restart. It is written once, before the first job is submitted.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::message::ImageRef;

/// The most images of a batch that a request creates.
pub const MAX_BATCH_ITEMS: usize = 10_000;
/// Larger than the document of a batch with the most images, whose names are as long as names may be.
pub const MAX_BATCH_BYTES: u64 = 32 << 20;
/// The folder of the documents in the output bucket.
pub const BATCHES_FOLDER: &str = "batches/";

/// A batch of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The version of the wire format.
    pub v: u32,
    /// A UUIDv7 with the time of creation. With keys, its last four bytes show the owner, as in the id of a job.
    pub id: Uuid,
    /// When it was created.
    pub created_at: Timestamp,
    /// The holder of the list of its images.
    pub source: BatchSource,
    /// The number of predictions for each image.
    pub top_k: u32,
    /// The model that the jobs name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The images, in the order of the request. Empty if the sender has them.
    #[serde(default)]
    pub items: Vec<BatchItem>,
}

/// The holder of the list of the images of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchSource {
    /// The document has it: a request created the batch.
    Request,
    /// `imgcls classify --through queue` has it, and gathers the results.
    Sender,
}

/// An image of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchItem {
    /// Its job.
    pub id: Uuid,
    /// The client's name for it.
    pub name: String,
    /// The object, if the image is not stored as `images/<id>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
}

/// The key of the document of a batch.
pub fn batch_key(id: Uuid) -> String {
    format!("{BATCHES_FOLDER}{id}.json")
}

/// The batch whose document has this key.
pub fn batch_of_key(key: &str) -> Option<Uuid> {
    key.strip_prefix(BATCHES_FOLDER)?.strip_suffix(".json")?.parse().ok()
}
