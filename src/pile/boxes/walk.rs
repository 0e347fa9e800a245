//! The images that a detector's file names.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::file::DetectorFile;
use super::{Boxes, ImageBoxes};
use crate::pile::source::{Content, Found, Visitor};

/// Visits the images with boxes that are classified, in the order of the file. Images that the detector could not read,
/// and videos, are skipped.
///
/// # Errors
/// If the file cannot be read.
pub(in crate::pile) fn walk(boxes: &Boxes, visitor: &mut dyn Visitor) -> anyhow::Result<ControlFlow<()>> {
    let file = DetectorFile::open(&boxes.file)?;
    for image in file.images()? {
        let image = image?;
        let selected = file.selected(&image, &boxes.selection);
        let path = PathBuf::from(&image.file);
        let rows = boxes.row_paths(&path, selected.iter().map(|detection| detection.index));
        let flow = match rows.last() {
            Some(last) if image.is_classified() => {
                // The rows of an image are written together, in order.
                match visitor.wants(last) {
                    ControlFlow::Continue(true) => {
                        let regions = selected.iter().map(|detection| (detection.index, detection.region)).collect();
                        let of_image = Arc::new(ImageBoxes { regions, crop: boxes.crop });
                        let content = Content::Boxed(image.path_below(&boxes.root), of_image);
                        visitor.image(Found { path, content })
                    }
                    ControlFlow::Continue(false) => ControlFlow::Continue(()),
                    ControlFlow::Break(()) => ControlFlow::Break(()),
                }
            }
            _ => visitor.skip(),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}
