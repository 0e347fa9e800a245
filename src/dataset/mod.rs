//! Labelled images: reads them from a folder per class or a table, classifies them on all cores, and counts what was
//! taken for what.
//!
//! - `labelled`: the images and their classes; `folder`, `table`: the two forms in which they are read
//! - `class_names`: the classes of a model that names of folders and labels of tables mean
//! - `engine`: the model on all cores; `progress`: how far it is, on standard error
//! - `confusion`: counts of actual and predicted classes, and measures of each class

mod class_names;
mod confusion;
mod engine;
mod folder;
mod labelled;
mod progress;
mod table;

use std::path::Path;

pub(crate) use self::class_names::resolve;
pub(crate) use self::confusion::{ClassMeasures, Confusion, Matrix};
pub(crate) use self::engine::{Engine, Failures};
pub(crate) use self::labelled::{Dataset, LabelledImage};

/// Reads a folder with one folder of images per class, or a CSV table with the columns `path` and `label`.
///
/// # Errors
/// One line: what cannot be read, or why it holds no labelled images.
pub(crate) fn read(path: &Path) -> anyhow::Result<Dataset> {
    if path.is_dir() { folder::read(path) } else { table::read(path) }
}
