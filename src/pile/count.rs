//! The number of images of a pile: for `--dry-run`, and in the background for the remaining time.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;

use super::progress::Counters;
use super::source::{Found, Inputs, Purpose, Visitor};
use crate::protocol::ErrorInfo;
use crate::shutdown::CancellationToken;

/// The numbers of a pile.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) struct Count {
    pub images: u64,
    /// Files that are no images or are excluded.
    pub skipped: u64,
    /// Folders and archives that cannot be read.
    pub unreadable: u64,
}

/// Counts every image.
///
/// # Errors
/// The list of paths cannot be read, or the run is stopped.
pub(super) fn count(inputs: &Inputs, max_image_bytes: u64, stop: &CancellationToken) -> anyhow::Result<Count> {
    let mut counter = Counter { count: Count::default(), is_complete: true, stop };
    let flow = inputs.walk(Purpose::Count, max_image_bytes, &mut counter)?;
    anyhow::ensure!(flow.is_continue(), "stopped before all images were counted");
    Ok(counter.count)
}

/// Counts the images in a thread of its own while others classify them. It ends with the run or before.
///
/// # Errors
/// The system refuses another thread.
pub(super) fn in_background(
    inputs: Inputs,
    max_image_bytes: u64,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let run = move || {
        let count = Count::default();
        let mut counter = Counter { count, is_complete: true, stop: &stop };
        // The walk that classifies reports what cannot be read.
        let is_whole =
            matches!(inputs.walk(Purpose::Estimate, max_image_bytes, &mut counter), Ok(flow) if flow.is_continue());
        counters.set_counted(counter.count.images + counter.count.unreadable, is_whole && counter.is_complete);
    };
    thread::Builder::new().name("count".to_owned()).spawn(run).context("cannot start a thread")?;
    Ok(())
}

struct Counter<'a> {
    count: Count,
    is_complete: bool,
    stop: &'a CancellationToken,
}

impl Counter<'_> {
    fn flow(&self) -> ControlFlow<()> {
        if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Visitor for Counter<'_> {
    fn wants(&mut self, _path: &Path) -> ControlFlow<(), bool> {
        self.flow()?;
        self.count.images += 1;
        ControlFlow::Continue(false)
    }

    fn image(&mut self, _image: Found) -> ControlFlow<()> {
        self.flow()
    }

    fn skip(&mut self) -> ControlFlow<()> {
        self.count.skipped += 1;
        self.flow()
    }

    fn failed(&mut self, _path: PathBuf, _error: ErrorInfo) -> ControlFlow<()> {
        self.count.unreadable += 1;
        self.flow()
    }

    fn uncounted(&mut self) {
        self.is_complete = false;
    }
}
