//! The images of a pile, one after the other: files, folders, lists, archives and buckets.
//!
//! Nothing is listed ahead: a source passes each image to a [`Visitor`] when it finds it. The walk runs in the order of
//! the inputs, and within each folder in the order of names. A second walk may count the images meanwhile.
//!
//! - `found`: an image, and the interface to its receiver; `rules`: which files are images
//! - `folder`, `list`: files; `pages`: the images of a TIFF with several; `archive` with `tar` and `zip`: images in archives; `s3` with `object`: images in buckets

mod archive;
mod folder;
mod found;
mod list;
mod object;
mod pages;
mod rules;
mod s3;
mod tar;
mod zip;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub(super) use self::folder::walk as walk_folder;
pub(super) use self::found::{Content, Found, Visitor, too_large, unreadable};
pub(super) use self::object::Object;
pub use self::rules::{Pattern, Rules};

use self::archive::{Archive, ArchiveKind};
use self::pages::PagesVisitor;
use self::s3::Location;
use super::boxes::{self, Boxes};
use super::watch::{self, Watch};

/// The path that means standard input.
const STDIN: &str = "-";

/// The inputs that the user named.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Files, folders, archives and `s3://bucket/prefix`; `-` is one image on standard input.
    pub paths: Vec<PathBuf>,
    /// A list of such paths; `-` is standard input.
    pub files_from: Option<PathBuf>,
    /// The files that are taken from folders and archives.
    pub rules: Rules,
    /// The images of files with several.
    pub pages: Pages,
    /// A detector's file, which names the images instead.
    pub boxes: Option<Boxes>,
    /// A folder into which images come, in place of all others. The walk ends when the run is stopped.
    pub watch: Option<Watch>,
    /// The place of the buckets.
    pub aws: AwsPlace,
}

/// The region and the address of S3. What is absent is that of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsPlace {
    /// The region.
    pub region: Option<String>,
    /// Another address than that of AWS.
    pub endpoint_url: Option<String>,
}

/// The pages of a TIFF that are images of the pile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pages {
    /// The first one.
    #[default]
    First,
    /// All of them.
    All,
}

/// The purpose of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The images are classified.
    Classify,
    /// Every image is counted.
    Count,
    /// The images are counted that can be counted at little cost, while others classify them.
    Estimate,
}

impl Inputs {
    /// Returns whether the user named more than single files.
    pub(super) fn is_pile(&self) -> bool {
        let is_many = |path: &PathBuf| Location::of(path).is_some() || ArchiveKind::of(path).is_some() || path.is_dir();
        let has_list = self.files_from.is_some() || self.boxes.is_some() || self.watch.is_some();
        has_list || self.paths.iter().any(is_many)
    }

    /// The number of images, if the user named only single files.
    pub(super) fn single_files(&self) -> Option<usize> {
        (!self.is_pile()).then_some(self.paths.len())
    }

    /// Visits every image.
    ///
    /// # Errors
    /// The list of paths, the detector's file or a bucket cannot be read. Another input that cannot be read is visited as an image with an error.
    pub(super) fn walk(
        &self,
        purpose: Purpose,
        max_image_bytes: u64,
        visitor: &mut dyn Visitor,
    ) -> anyhow::Result<ControlFlow<()>> {
        if let Some(watch) = &self.watch {
            return watch::walk(watch, &self.rules, visitor);
        }
        if let Some(boxes) = &self.boxes {
            return boxes::walk(boxes, visitor);
        }
        if self.pages == Pages::All {
            return self.walk_paths(purpose, max_image_bytes, &mut PagesVisitor { visitor, purpose, max_image_bytes });
        }
        self.walk_paths(purpose, max_image_bytes, visitor)
    }

    fn walk_paths(
        &self,
        purpose: Purpose,
        max_image_bytes: u64,
        visitor: &mut dyn Visitor,
    ) -> anyhow::Result<ControlFlow<()>> {
        let mut walk = Walk { rules: &self.rules, aws: &self.aws, purpose, max_image_bytes, visitor };
        // The paths below a single folder or archive need no prefix to be distinct.
        let is_single = self.paths.len() == 1 && self.files_from.is_none();
        for path in &self.paths {
            let prefix = if is_single { Path::new("") } else { path.as_path() };
            if walk.input(path, prefix)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let Some(list) = &self.files_from else { return Ok(ControlFlow::Continue(())) };
        walk.list(list).with_context(|| format!("cannot read the list of paths {}", list.display()))
    }
}

struct Walk<'a> {
    rules: &'a Rules,
    aws: &'a AwsPlace,
    purpose: Purpose,
    max_image_bytes: u64,
    visitor: &'a mut dyn Visitor,
}

impl Walk<'_> {
    fn input(&mut self, path: &Path, prefix: &Path) -> anyhow::Result<ControlFlow<()>> {
        if path == Path::new(STDIN) {
            return Ok(self.standard_input());
        }
        if let Some(location) = Location::of(path) {
            let has_prefix = !prefix.as_os_str().is_empty();
            return s3::walk(&location, has_prefix, self.aws, self.rules, self.visitor);
        }
        Ok(self.local(path, prefix))
    }

    fn local(&mut self, path: &Path, prefix: &Path) -> ControlFlow<()> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let is_ordered = self.purpose == Purpose::Classify;
                folder::walk(path, prefix, self.rules, is_ordered, self.visitor)
            }
            Ok(metadata) if metadata.is_file() => match ArchiveKind::of(path) {
                Some(kind) => self.archive(kind, path, prefix),
                None => self.file(path),
            },
            // A pipe is read like a file.
            Ok(_) => self.file(path),
            Err(error) => self.visitor.failed(path.to_owned(), unreadable("file", &error)),
        }
    }

    fn file(&mut self, path: &Path) -> ControlFlow<()> {
        if self.visitor.wants(path)? {
            self.visitor.image(Found { path: path.to_owned(), content: Content::File(path.to_owned()) })?;
        }
        ControlFlow::Continue(())
    }

    fn archive(&mut self, kind: ArchiveKind, file: &Path, prefix: &Path) -> ControlFlow<()> {
        let archive = Archive { file, prefix, rules: self.rules, max_image_bytes: self.max_image_bytes };
        match kind {
            ArchiveKind::Zip => zip::walk(&archive, self.visitor),
            ArchiveKind::Tar => tar::walk(&archive, self.visitor),
            ArchiveKind::TarGzip if self.purpose == Purpose::Estimate => {
                self.visitor.uncounted();
                ControlFlow::Continue(())
            }
            ArchiveKind::TarGzip => tar::walk_gzip(&archive, self.visitor),
        }
    }

    fn standard_input(&mut self) -> ControlFlow<()> {
        let path = PathBuf::from(STDIN);
        if !self.visitor.wants(&path)? {
            return ControlFlow::Continue(());
        }
        let mut bytes = Vec::new();
        match io::stdin().lock().take(self.max_image_bytes + 1).read_to_end(&mut bytes) {
            Ok(_) => self.visitor.image(Found { path, content: Content::Bytes(bytes) }),
            Err(error) => self.visitor.image(Found { path, content: Content::Failed(unreadable("input", &error)) }),
        }
    }

    fn list(&mut self, list: &Path) -> anyhow::Result<ControlFlow<()>> {
        if list != Path::new(STDIN) {
            return self.listed(BufReader::new(File::open(list)?), list);
        }
        if self.purpose == Purpose::Estimate {
            self.visitor.uncounted();
            return Ok(ControlFlow::Continue(()));
        }
        self.listed(BufReader::new(io::stdin().lock()), list)
    }

    fn listed(&mut self, reader: impl BufRead, list: &Path) -> anyhow::Result<ControlFlow<()>> {
        let mut fault = None;
        let read = list::read(reader, |path| {
            // Looking at each path would slow down the walk that needs them.
            if self.purpose == Purpose::Estimate && ArchiveKind::of(&path).is_none() {
                return self.file(&path);
            }
            self.input(&path, &path).unwrap_or_else(|error| {
                fault = Some(error);
                ControlFlow::Break(())
            })
        });
        match (fault, read) {
            (Some(error), _) => Err(error),
            (None, Ok(flow)) => Ok(flow),
            (None, Err(error)) => Ok(self.visitor.failed(list.to_owned(), unreadable("list of paths", &error))),
        }
    }
}
