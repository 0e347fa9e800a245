//! The files that a run makes apart from the table: links in folders of classes, and files beside the images.

use std::io;
use std::path::Path;

use anyhow::Context as _;

use super::config::OutputConfig;
use super::files::is_disk_fault;
use super::row::{Classified, Row};
use super::sidecar::{Sidecars, Written};
use super::sorter::Sorter;

/// The links and sidecars of a run.
pub(super) struct Beside {
    sorter: Option<Sorter>,
    sidecars: Option<Sidecars>,
    has_labels: bool,
    /// Links and sidecars that could not be made, and the reason of the first.
    failed: u64,
    first_reason: Option<String>,
    /// Images whose sidecar would replace a file of somebody else.
    not_ours: u64,
    /// Images that are no files on this machine.
    without_file: u64,
}

impl Beside {
    /// # Errors
    /// If the folder for links cannot be written.
    pub(super) fn open(config: &OutputConfig) -> anyhow::Result<Beside> {
        let sorter = config.sort_into.as_ref().map(|sort_into| Sorter::open(sort_into, &config.classes)).transpose()?;
        let sidecars = config.sidecar.map(|format| Sidecars::new(format, config.classes.clone()));
        let has_labels = config.has_labels;
        Ok(Beside { sorter, sidecars, has_labels, failed: 0, first_reason: None, not_ours: 0, without_file: 0 })
    }

    /// Makes the links and the sidecar of an image. Repeating it for the same image changes nothing.
    ///
    /// # Errors
    /// If the disk is full. Other failures are counted, and the run goes on.
    pub(super) fn make(&mut self, row: &Row) -> anyhow::Result<()> {
        let Ok(classified) = &row.outcome else { return Ok(()) };
        if self.sorter.is_none() && self.sidecars.is_none() {
            return Ok(());
        }
        match &row.file {
            None => self.without_file += 1,
            Some(file) => {
                let placed = self.place(file, classified);
                self.count(placed, || format!("cannot sort {}", file.display()))?;
                let written = self.write_sidecar(file, classified);
                self.count(written, || format!("cannot write the sidecar of {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// Makes everything durable that was made.
    ///
    /// # Errors
    /// If a disk fails.
    pub(super) fn sync(&mut self) -> anyhow::Result<()> {
        if let Some(sorter) = &mut self.sorter {
            sorter.sync().context("cannot sync the folder of --sort-into")?;
        }
        if let Some(sidecars) = &mut self.sidecars {
            sidecars.sync().context("cannot sync the sidecars")?;
        }
        Ok(())
    }

    /// Returns true if everything could be made.
    pub(super) fn is_complete(&self) -> bool {
        self.failed == 0
    }

    /// Lines for a person about what could not be made.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(reason) = &self.first_reason {
            lines.push(format!("{} links or sidecars could not be made; the first: {reason}", self.failed));
        }
        if self.not_ours > 0 {
            lines.push(format!("{} sidecars were left alone, because imgcls did not write them", self.not_ours));
        }
        if self.without_file > 0 {
            lines.push(format!("{} images are no files here, so they have no link or sidecar", self.without_file));
        }
        lines
    }

    fn place(&mut self, file: &Path, classified: &Classified) -> io::Result<()> {
        match &mut self.sorter {
            Some(sorter) => sorter.place(file, classified, self.has_labels),
            None => Ok(()),
        }
    }

    fn write_sidecar(&mut self, file: &Path, classified: &Classified) -> io::Result<()> {
        if let Some(sidecars) = &mut self.sidecars {
            self.not_ours += u64::from(sidecars.write(file, classified)? == Written::NotOurs);
        }
        Ok(())
    }

    /// Counts a failure.
    fn count(&mut self, made: io::Result<()>, what: impl Fn() -> String) -> anyhow::Result<()> {
        match made {
            Ok(()) => Ok(()),
            Err(error) if is_disk_fault(&error) => Err(error).with_context(what),
            Err(error) => {
                self.failed += 1;
                self.first_reason.get_or_insert_with(|| format!("{}: {error}", what()));
                Ok(())
            }
        }
    }
}
