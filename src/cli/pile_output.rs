//! The output of a pile of images.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::pile_run::PileFilesArgs;
use crate::pile::output::{ClassName, MaxFailures, OutFile, OutputConfig, Resume, TableFormat, Target};

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
    #[command(flatten)]
    pub files: PileFilesArgs,
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
        if is_table && !json && !self.files.long { 1 } else { 5 }
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
        OutputConfig {
            target: self.target(json),
            overwrite: self.overwrite,
            resume,
            is_long: self.files.long,
            top_k,
            errors: self.errors.clone(),
            retry_errors: self.retry_errors,
            max_failures: self.max_failures,
            sort_into: self.files.sort_into(),
            sidecar: self.files.sidecar(),
            classes,
            has_labels,
            options,
            boxes: None,
            grows: false,
            webhook: None,
        }
    }
}
