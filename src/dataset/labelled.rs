//! Images with the class that a person gave them.

use std::path::PathBuf;

/// Images and the names of their classes. No image is read yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dataset {
    /// The names as the folders or the table give them, sorted.
    pub classes: Vec<String>,
    /// Sorted by class, then by path.
    pub images: Vec<LabelledImage>,
    /// Number of files directly in the folder, which belong to no class.
    pub loose_files: usize,
}

/// A file and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelledImage {
    pub path: PathBuf,
    /// Index in [`Dataset::classes`].
    pub class: usize,
}

impl Dataset {
    /// The number of files of each class.
    pub(crate) fn images_per_class(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for image in &self.images {
            counts[image.class] += 1;
        }
        counts
    }
}

/// A name as it is compared: without regard to case, surrounding spaces, and underscores in the place of spaces.
pub(super) fn folded(name: &str) -> String {
    name.trim().replace('_', " ").to_lowercase()
}
