//! The flags that commands over piles of images have alike.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::parse::positive;
use crate::pile::output::{SidecarFormat, SortEntry, SortInto};
use crate::pile::{Pattern, Rules};

/// The files that are classified, and how.
#[derive(Debug, Args)]
pub struct PileRunArgs {
    /// In folders and archives, classify only files that match this pattern, whatever their extension; may be repeated
    #[arg(long, env = "IMGCLS_INCLUDE", value_name = "PATTERN", value_parser = |text: &str| text.parse::<Pattern>())]
    pub include: Vec<Pattern>,
    /// In folders and archives, leave out files and folders that match this pattern; may be repeated
    #[arg(long, env = "IMGCLS_EXCLUDE", value_name = "PATTERN", value_parser = |text: &str| text.parse::<Pattern>())]
    pub exclude: Vec<Pattern>,
    /// Predictions per image [default: 1 in tables, otherwise 5]
    #[arg(long, env = "IMGCLS_TOP_K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub top_k: Option<u32>,
    /// Images that are classified at the same time [default: as `imgcls tune` found, else the number of cores; through a
    /// service 256]
    #[arg(long, env = "IMGCLS_JOBS", value_parser = positive)]
    pub jobs: Option<usize>,
    /// Run with the lowest priority, so that other programs are not slowed down
    #[arg(long, env = "IMGCLS_NICE")]
    pub nice: bool,
}

/// The files that are made of each image, and the form of its rows.
#[derive(Debug, Args)]
pub struct PileFilesArgs {
    /// Write a row for each prediction instead of a row for each image
    #[arg(long, env = "IMGCLS_LONG")]
    pub long: bool,
    /// Make a folder for each class in this folder, with a link to each image of the class
    #[arg(long, env = "IMGCLS_SORT_INTO", value_name = "DIR")]
    pub sort_into: Option<PathBuf>,
    /// The kind of link that --sort-into makes. Without hard links on the file system, it makes copies
    #[arg(long, env = "IMGCLS_SORT_AS", value_enum, default_value_t = SortAs::Hardlink, requires = "sort_into")]
    pub sort_as: SortAs,
    /// Write a file with the classes beside each image: IMAGE.json, IMAGE.txt or IMAGE.xmp. Files that imgcls did not
    /// write are left alone
    #[arg(long, env = "IMGCLS_SIDECAR", value_enum)]
    pub sidecar: Option<Sidecar>,
}

/// The entry for an image in the folder of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortAs {
    /// Hard links
    Hardlink,
    /// Symbolic links
    Symlink,
    /// Copies
    Copy,
}

/// The format of the file beside each image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sidecar {
    /// The row as a JSON object
    Json,
    /// One class a line
    Txt,
    /// XMP with the labels as keywords
    Xmp,
}

impl PileRunArgs {
    /// The files that are taken from folders and archives.
    pub(super) fn rules(&self) -> Rules {
        Rules { include: self.include.clone(), exclude: self.exclude.clone() }
    }
}

impl PileFilesArgs {
    pub(super) fn sort_into(&self) -> Option<SortInto> {
        let entry = match self.sort_as {
            SortAs::Hardlink => SortEntry::HardLink,
            SortAs::Symlink => SortEntry::Symlink,
            SortAs::Copy => SortEntry::Copy,
        };
        self.sort_into.clone().map(|folder| SortInto { folder, entry })
    }

    pub(super) fn sidecar(&self) -> Option<SidecarFormat> {
        self.sidecar.map(|sidecar| match sidecar {
            Sidecar::Json => SidecarFormat::Json,
            Sidecar::Txt => SidecarFormat::Text,
            Sidecar::Xmp => SidecarFormat::Xmp,
        })
    }
}
