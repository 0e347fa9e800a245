//! The reports of the commands. The fields are those of the JSON output.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::retention::Freed;

/// The stored data: the output of `imgcls data status`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The stored images.
    pub images: Stored,
    /// The stored results.
    pub results: Stored,
    /// The files with bodies of images.
    pub segments: Segments,
    /// The pages of the database.
    pub database: Pages,
    /// The write-ahead log, whose size is bounded separately.
    pub log_bytes: u64,
    /// Segments and used pages of the database, which count against the limit.
    pub used_bytes: u64,
    /// Bytes free on the file system.
    pub disk_free_bytes: u64,
    /// The limits that apply.
    pub limits: Limits,
}

/// Objects of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    /// The number of objects.
    pub count: u64,
    /// The bytes of their bodies.
    pub bytes: u64,
    /// When the oldest one was written.
    pub oldest: Option<Timestamp>,
    /// The age of the oldest one.
    pub oldest_age_seconds: Option<f64>,
    /// Objects of finished jobs that are older than the limit; `prune` deletes them.
    pub prunable: Counted,
    /// Objects of finished jobs of any age; they are deleted when space is needed.
    pub finished: Counted,
}

/// A number of objects and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// The number of objects.
    pub count: u64,
    /// The bytes of their bodies.
    pub bytes: u64,
}

/// The segments of the store.
#[derive(Debug, Clone, Serialize)]
pub struct Segments {
    /// The number of files.
    pub files: u64,
    /// The bytes of their blocks on disk.
    pub disk_bytes: u64,
}

/// The pages of the database.
#[derive(Debug, Clone, Serialize)]
pub struct Pages {
    /// Pages in use.
    pub used_bytes: u64,
    /// Pages that are free for new data.
    pub free_bytes: u64,
}

/// How long and how much is kept.
#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// How long images are kept.
    pub keep_images_seconds: u64,
    /// How long results are kept.
    pub keep_results_seconds: u64,
    /// How much is kept.
    pub max_data_bytes: u64,
    /// False if no service has run here yet, so that these are the defaults.
    pub are_of_the_service: bool,
}

/// The deleted data, or with `--dry-run` the data that would be deleted: the output of `imgcls data prune`.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    /// Deleted images.
    pub images: Counted,
    /// Deleted results.
    pub results: Counted,
    /// Empty segments that were removed.
    pub removed_segments: u64,
    /// How much segments and database shrank meanwhile. A service that runs adds to them.
    pub freed_bytes: u64,
    /// Nothing was deleted, only counted.
    pub is_dry_run: bool,
    /// A signal ended it early. What was deleted stays deleted.
    pub is_interrupted: bool,
}

impl From<Freed> for Counted {
    fn from(freed: Freed) -> Self {
        Counted { count: freed.objects, bytes: freed.bytes }
    }
}
