//! Boxes that a detector found in the images of a pile: each is classified instead of the whole image.
//!
//! - `file`: reads the detector's file, image by image; `walk`: the images that it names
//! - The formats that have boxes are written by `output::table`.

mod file;
mod walk;

use std::path::{Path, PathBuf};

pub(super) use self::file::{DetectedImage, Detection, DetectorFile, Images};
pub(super) use self::walk::walk;

use crate::model::{Region, RegionCrop};

/// The boxes to classify.
#[derive(Debug, Clone, PartialEq)]
pub struct Boxes {
    /// The detector's file, in MegaDetector's format.
    pub file: PathBuf,
    /// The folder that the paths in it are relative to.
    pub root: PathBuf,
    /// The boxes among those of the file.
    pub selection: Selection,
    /// The part of the image around a box that the model gets.
    pub crop: RegionCrop,
    /// The table of observations, if the output is one. It has rows for images without boxes too.
    pub observations: Option<Observations>,
}

/// The choice of boxes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Selection {
    /// Boxes of which the detector is less sure are left out.
    pub min_confidence: f64,
    /// If there are any, only boxes of these categories are classified, by name or by id.
    pub categories: Vec<String>,
}

/// The facts that a table of observations needs beside the detector's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observations {
    /// The deployment of all images. `None` means that each folder of images is one.
    pub deployment: Option<String>,
    /// The offset from UTC of cameras that did not store theirs, such as `+02:00`.
    pub utc_offset: String,
}

/// The boxes of one image that are classified.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageBoxes {
    /// The places of the boxes among the detections of the image, and the boxes.
    pub regions: Vec<(usize, Region)>,
    pub crop: RegionCrop,
}

impl Boxes {
    /// The options that the rows depend on, by the names of their flags.
    ///
    /// # Errors
    /// If the detector's file cannot be read.
    pub(super) fn options(&self) -> anyhow::Result<impl IntoIterator<Item = (String, String)>> {
        let Selection { min_confidence, categories } = &self.selection;
        let shape = if self.crop.is_square { "square" } else { "exact" };
        Ok([
            ("--boxes", file::digest(&self.file)?),
            ("--min-confidence", min_confidence.to_string()),
            ("--box-category", categories.join(",")),
            ("--box-shape", shape.to_owned()),
            ("--box-padding", self.crop.padding.to_string()),
            ("rows for images without boxes", self.observations.is_some().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)))
    }

    /// The paths of the rows of an image: one for each box that is classified, or one for the image if it has none and the
    /// table has rows for such images.
    pub(super) fn row_paths(&self, image: &Path, boxes: impl Iterator<Item = usize>) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = boxes.map(|index| box_path(image, index)).collect();
        if paths.is_empty() && self.observations.is_some() {
            paths.push(image.to_owned());
        }
        paths
    }
}

impl ImageBoxes {
    /// The paths of the rows of the image, in order. An image without boxes has one row.
    pub(super) fn row_paths(&self, image: &Path) -> Vec<PathBuf> {
        match &self.regions[..] {
            [] => vec![image.to_owned()],
            regions => regions.iter().map(|(index, _)| box_path(image, *index)).collect(),
        }
    }
}

/// The path of the row of a box: that of its image, and its place among the detections.
fn box_path(image: &Path, index: usize) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(format!("#{index}"));
    path.into()
}
