//! The output of a pile of images.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::pile::output::{
    ClassName, MaxFailures, OutFile, OutputConfig, Resume, SidecarFormat, SortEntry, SortInto, TableFormat, Target,
};

/// The output of a pile of images.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct PileOutput {
    /// Write a table to this file: FILE.csv, .tsv, .jsonl or .parquet, with --boxes also .json. It appears when every image is done; until then
    /// FILE.part has the rows, and the same command continues where a killed one was [default: a table on a terminal,
    /// CSV in a pipe]
    #[arg(long, env = "IMGCLS_OUT", value_name = "FILE")]
    pub out: Option<OutFile>,
    /// Replace the file of --out if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Refuse to run if there is nothing to continue; a run whose FILE.part exists is continued in any case
    #[arg(long, env = "IMGCLS_RESUME", conflicts_with = "restart", requires = "out")]
    pub resume: bool,
    /// Delete FILE.part of an earlier run and begin with the first image
    #[arg(long, requires = "out")]
    pub restart: bool,
    /// Write a row for each prediction instead of a row for each image
    #[arg(long, env = "IMGCLS_LONG")]
    pub long: bool,
    /// Write the rows of failed images to this file too, as CSV
    #[arg(long, env = "IMGCLS_ERRORS", value_name = "FILE")]
    pub errors: Option<PathBuf>,
    /// Classify the images again that failed in an earlier run; the others keep their rows
    #[arg(long, env = "IMGCLS_RETRY_ERRORS", requires = "out", conflicts_with = "restart")]
    pub retry_errors: bool,
    /// Stop once more images failed than this number or percentage; up to it the exit code is 0 [default: no limit, and
    /// exit code 1 if any image failed]
    #[arg(long, env = "IMGCLS_MAX_FAILURES", value_name = "N|P%")]
    pub max_failures: Option<MaxFailures>,
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

impl PileOutput {
    /// The target of the rows. With `--json` standard output has the objects instead of a table.
    pub fn target(&self, json: bool) -> Target {
        match &self.out {
            Some(file) => Target::File(file.clone()),
            None if json => Target::Nothing,
            None => Target::of_stdout(),
        }
    }

    /// The number of predictions without `--top-k`: 1 in tables, otherwise 5.
    pub fn default_top_k(&self, json: bool) -> u32 {
        let is_json = |file: &OutFile| file.format == TableFormat::MegaDetector;
        let is_table = match &self.target(json) {
            Target::File(file) => !is_json(file),
            target => *target == Target::Csv,
        };
        if is_table && !json && !self.long { 1 } else { 5 }
    }

    /// The configuration of the output. `options` has what the rows depend on, `classes` the classes of the model.
    pub fn config(
        &self,
        json: bool,
        top_k: u32,
        classes: Vec<ClassName>,
        has_labels: bool,
        options: BTreeMap<String, String>,
    ) -> OutputConfig {
        let resume = match (self.resume, self.restart) {
            (_, true) => Resume::Restart,
            (true, _) => Resume::Required,
            _ => Resume::IfPossible,
        };
        let entry = match self.sort_as {
            SortAs::Hardlink => SortEntry::HardLink,
            SortAs::Symlink => SortEntry::Symlink,
            SortAs::Copy => SortEntry::Copy,
        };
        let sidecar = self.sidecar.map(|sidecar| match sidecar {
            Sidecar::Json => SidecarFormat::Json,
            Sidecar::Txt => SidecarFormat::Text,
            Sidecar::Xmp => SidecarFormat::Xmp,
        });
        OutputConfig {
            target: self.target(json),
            overwrite: self.overwrite,
            resume,
            is_long: self.long,
            top_k,
            errors: self.errors.clone(),
            retry_errors: self.retry_errors,
            max_failures: self.max_failures,
            sort_into: self.sort_into.clone().map(|folder| SortInto { folder, entry }),
            sidecar,
            classes,
            has_labels,
            options,
            boxes: None,
            grows: false,
        }
    }
}
