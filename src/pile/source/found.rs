//! An image that was found, and the interface between the sources and what is done with their images.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::object::Object;
use crate::pile::boxes::ImageBoxes;
use crate::protocol::{ErrorCode, ErrorInfo};

/// An image of the pile, or an input that cannot be read.
#[derive(Debug)]
pub(crate) struct Found {
    /// The path with which the image is reported.
    pub path: PathBuf,
    pub content: Content,
}

/// The content of an image.
#[derive(Debug)]
pub(crate) enum Content {
    /// A file that has not been opened yet.
    File(PathBuf),
    /// A file of which only these boxes are classified.
    Boxed(PathBuf, Arc<ImageBoxes>),
    /// The content of an image that is not a file of its own.
    Bytes(Vec<u8>),
    /// An image in a bucket.
    Object(Object),
    /// The image, folder or archive cannot be read.
    Failed(ErrorInfo),
}

/// Gets what a source finds, in order. `Break` ends the walk.
pub(crate) trait Visitor {
    /// Asked once about each image, before it is read. An image that is not wanted is not passed to
    /// [`Visitor::image`].
    fn wants(&mut self, path: &Path) -> ControlFlow<(), bool>;

    /// An image that is wanted.
    fn image(&mut self, image: Found) -> ControlFlow<()>;

    /// A file that is left out, because its name does not say that it is an image or a rule excludes it.
    fn skip(&mut self) -> ControlFlow<()>;

    /// An image, a folder or an archive that cannot be read, with the path with which it is reported.
    fn failed(&mut self, path: PathBuf, error: ErrorInfo) -> ControlFlow<()>;

    /// Asked by a source that waits for images.
    fn goes_on(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// Some images are not counted, because that would mean to read them.
    fn uncounted(&mut self) {}
}

/// The error of a file, folder or archive that cannot be read.
pub(crate) fn unreadable(what: &str, error: &io::Error) -> ErrorInfo {
    ErrorInfo { code: ErrorCode::InputMissing, message: format!("cannot read the {what}: {error}") }
}

/// The error of an image that has more bytes than `limit`.
pub(crate) fn too_large(bytes: u64, limit: u64) -> ErrorInfo {
    let message = format!("the image has {bytes} bytes, more than the limit of {limit} (--max-upload-bytes)");
    ErrorInfo { code: ErrorCode::InputTooLarge, message }
}

/// The error of an archive or a part of it that cannot be read further.
pub(super) fn damaged(message: String) -> ErrorInfo {
    ErrorInfo { code: ErrorCode::Undecodable, message }
}
