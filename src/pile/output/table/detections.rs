//! Rows of boxes, brought together with the images of the detector's file, which are in the same order.

use std::path::Path;

use anyhow::Context as _;

use super::super::row::{PathText, Row};
use crate::pile::boxes::{Boxes, DetectedImage, Detection, DetectorFile, Images};

/// Reads the detector's file as rows come.
pub(super) struct Matching {
    pub detector: DetectorFile,
    pub boxes: Boxes,
    images: Images,
    current: Option<Matched>,
}

/// An image of the detector's file with its rows.
pub(super) struct Matched {
    pub image: DetectedImage,
    /// The boxes that are classified.
    pub detections: Vec<Detection>,
    /// The row of each box, or that of an image without boxes. A box may have none, if its file is named twice.
    pub rows: Vec<Option<Row>>,
    paths: Vec<PathText>,
}

impl Matching {
    /// # Errors
    /// If the detector's file cannot be read.
    pub(super) fn new(boxes: &Boxes) -> anyhow::Result<Matching> {
        let detector = DetectorFile::open(&boxes.file)?;
        let images = detector.images()?;
        Ok(Matching { detector, boxes: boxes.clone(), images, current: None })
    }

    /// Adds the next row. `each` gets every image that has all its rows.
    ///
    /// # Errors
    /// If the detector's file cannot be read or does not have the image of the row, or `each` fails.
    pub(super) fn add(
        &mut self,
        row: &Row,
        mut each: impl FnMut(Matched, &DetectorFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let mut image = match self.current.take() {
                Some(image) => image,
                None => self.next()?.with_context(|| format!("{} is not in the file of --boxes", row.path))?,
            };
            while let Some(path) = image.paths.get(image.rows.len()) {
                let is_it = *path == row.path;
                image.rows.push(is_it.then(|| row.clone()));
                if is_it {
                    self.current = Some(image);
                    return Ok(());
                }
            }
            each(image, &self.detector)?;
        }
    }

    /// Calls `each` with the images that are left.
    ///
    /// # Errors
    /// If the detector's file cannot be read, or `each` fails.
    pub(super) fn finish(
        &mut self,
        mut each: impl FnMut(Matched, &DetectorFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut next = self.current.take();
        loop {
            let Some(mut image) = (match next.take() {
                Some(image) => Some(image),
                None => self.next()?,
            }) else {
                return Ok(());
            };
            image.rows.resize(image.paths.len(), None);
            each(image, &self.detector)?;
        }
    }

    fn next(&mut self) -> anyhow::Result<Option<Matched>> {
        let Some(image) = self.images.next().transpose()? else { return Ok(None) };
        let detections = self.detector.selected(&image, &self.boxes.selection);
        let paths = if image.is_classified() {
            self.boxes.row_paths(Path::new(&image.file), detections.iter().map(|detection| detection.index))
        } else {
            Vec::new()
        };
        let paths = paths.iter().map(|path| PathText::new(path)).collect();
        Ok(Some(Matched { image, detections, rows: Vec::new(), paths }))
    }
}
