//! What a run over a pile of images writes: a table, links by class, and files beside the images.
//!
//! - `row`: one image and its outcome; `config`: the configuration

mod config;
mod row;

pub use self::config::{
    ClassName, MaxFailures, OutFile, OutputConfig, Resume, SidecarFormat, SortEntry, SortInto, TableFormat, Target,
};
pub use self::row::{Classified, PathText, Row};

/// Whether the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next image may follow.
    Continue,
    /// More images failed than are allowed: call [`Output::suspend`].
    Stop,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Images in the output, those of earlier runs included.
    pub images: u64,
    /// Images among them that failed.
    pub failed: u64,
    /// Images that an earlier run had done.
    pub resumed: u64,
    /// True if no image failed, or not more than `--max-failures` allows.
    pub is_within_limit: bool,
    /// Lines for a person: where the output is, and what to do about failed images.
    pub lines: Vec<String>,
}

/// The output of a run. One thread at a time appends rows, in the order of the input.
#[derive(Debug)]
pub struct Output {
    summary: Summary,
}

impl Output {
    /// Opens the output, and continues the log of an earlier run if there is one.
    ///
    /// # Errors
    /// If the file exists and may not be overwritten, another process writes it, or the log was made with other options.
    pub fn open(_config: &OutputConfig) -> anyhow::Result<Output> {
        let summary = Summary { images: 0, failed: 0, resumed: 0, is_within_limit: true, lines: Vec::new() };
        Ok(Output { summary })
    }

    /// Tells how many images the pile has, once they are counted. A limit on failures as a share is exact from then on.
    pub fn set_total(&mut self, _images: u64) {}

    /// Returns true if the log has this image already.
    pub fn is_done(&self, _path: &PathText) -> bool {
        false
    }

    /// The number of images that earlier runs have done.
    pub fn resumed(&self) -> u64 {
        self.summary.resumed
    }

    /// Appends the row of one image.
    ///
    /// # Errors
    /// If it cannot be written, for example because the disk is full. The run can be resumed.
    pub fn append(&mut self, row: Row) -> anyhow::Result<Flow> {
        self.summary.images += 1;
        self.summary.failed += u64::from(row.outcome.is_err());
        self.summary.is_within_limit = self.summary.failed == 0;
        Ok(Flow::Continue)
    }

    /// Ends a run that did not see every image: the log becomes durable, and the same command continues it.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn suspend(self) -> anyhow::Result<Summary> {
        Ok(self.summary)
    }

    /// Makes the file, once every image of the pile is done.
    ///
    /// # Errors
    /// If it cannot be written. The log stays, and the same command tries again.
    pub fn finish(self) -> anyhow::Result<Summary> {
        Ok(self.summary)
    }
}
