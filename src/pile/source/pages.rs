//! `--pages all`: each page of a TIFF is an image of its own, named `FILE#page=N`.
//!
//! A TIFF with one page keeps its name. All of them are read here to find their pages, also objects of buckets; a walk that
//! only estimates the number of images does not fetch those.

use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::Purpose;
use super::found::{Content, Found, Visitor};
use crate::model;
use crate::protocol::ErrorInfo;

/// Passes each page on as an image.
pub(super) struct PagesVisitor<'a> {
    pub visitor: &'a mut dyn Visitor,
    pub purpose: Purpose,
    pub max_image_bytes: u64,
}

impl Visitor for PagesVisitor<'_> {
    /// A TIFF is always wanted: its pages are asked for once they are known.
    fn wants(&mut self, path: &Path) -> ControlFlow<(), bool> {
        if is_tiff(path) { ControlFlow::Continue(true) } else { self.visitor.wants(path) }
    }

    fn image(&mut self, found: Found) -> ControlFlow<()> {
        if !is_tiff(&found.path) {
            return self.visitor.image(found);
        }
        let Found { path, content } = found;
        let read = match &content {
            Content::File(file) => read(file, self.max_image_bytes),
            Content::Object(_) if self.purpose == Purpose::Estimate => {
                self.visitor.uncounted();
                None
            }
            // The error of an object is found again when it is read like one without pages.
            Content::Object(object) => object.read(self.max_image_bytes).ok().and_then(Result::ok),
            _ => None,
        };
        let bytes = match (&content, &read) {
            (Content::Bytes(bytes), _) | (_, Some(bytes)) => bytes,
            _ => &Vec::new(),
        };
        let pages = model::tiff_pages(bytes);
        if pages.len() < 2 {
            if self.visitor.wants(&path)? {
                self.visitor.image(Found { path, content })?;
            }
            return ControlFlow::Continue(());
        }
        for (number, page) in (1..).zip(pages) {
            let path = page_path(&path, number);
            if self.visitor.wants(&path)? {
                self.visitor.image(Found { path, content: Content::Bytes(model::tiff_page(bytes, page)) })?;
            }
        }
        ControlFlow::Continue(())
    }

    fn skip(&mut self) -> ControlFlow<()> {
        self.visitor.skip()
    }

    fn failed(&mut self, path: PathBuf, error: ErrorInfo) -> ControlFlow<()> {
        self.visitor.failed(path, error)
    }

    fn goes_on(&mut self) -> ControlFlow<()> {
        self.visitor.goes_on()
    }

    fn uncounted(&mut self) {
        self.visitor.uncounted();
    }
}

fn is_tiff(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    ["tif", "tiff"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The content of a file. `None` if it cannot be read or is too large: the error is that of the whole file.
fn read(file: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file).ok()?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= max_bytes).then_some(bytes)
}

fn page_path(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("#page={number}"));
    PathBuf::from(name)
}
