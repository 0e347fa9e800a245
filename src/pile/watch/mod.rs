//! A folder into which images come: each is classified once it is whole, as long as the process runs.
//!
//! - `events`: the events that the system reports; `arrivals`: the files that are not whole yet
//!
//! A file is whole when the program that wrote it closed it, or moved it into the folder. Where the system reports no events,
//! as on network file systems, it is whole when it did not change for a while. Every file is found in the end, because the
//! folder is also read again and again.

mod arrivals;
mod events;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use self::arrivals::Arrivals;
use self::events::{Event, Events};
use super::output::PathText;
use super::source::{Rules, Visitor};

/// How long the walk waits for an event before it looks whether the run was stopped.
const TICK: Duration = Duration::from_millis(100);

/// A folder to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The folder, with the folders below it.
    pub folder: PathBuf,
    /// A file that was not seen being written is whole when it did not change for so long.
    pub stable_after: Duration,
    /// How often the folder is read for files without an event.
    pub rescan: Duration,
}

impl Watch {
    /// The folder by its absolute path, which a log is continued for.
    ///
    /// # Errors
    /// If there is no such folder.
    pub(super) fn name(&self) -> anyhow::Result<String> {
        Ok(PathText::new(&self.root()?).as_str().to_owned())
    }

    fn root(&self) -> anyhow::Result<PathBuf> {
        let root = self.folder.canonicalize();
        let root = root.with_context(|| format!("cannot watch the folder {}", self.folder.display()))?;
        anyhow::ensure!(root.is_dir(), "cannot watch {}: it is not a folder", self.folder.display());
        Ok(root)
    }
}

/// Visits each image in the folder once it is whole, until the visitor ends the walk.
///
/// # Errors
/// If there is no such folder.
pub(super) fn walk(watch: &Watch, rules: &Rules, visitor: &mut dyn Visitor) -> anyhow::Result<ControlFlow<()>> {
    let root = watch.root()?;
    // Events are collected before the folder is read, so that no file comes between.
    let events = Events::open(&root, watch.rescan);
    let mut arrivals = Arrivals::new(root, rules, watch.stable_after);
    if arrivals.scan(visitor).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    tracing::info!(folder = %watch.folder.display(), "watching");
    Ok(follow(watch, &events, &mut arrivals, visitor))
}

fn follow(watch: &Watch, events: &Events, arrivals: &mut Arrivals, visitor: &mut dyn Visitor) -> ControlFlow<()> {
    let mut next_scan = Instant::now() + watch.rescan;
    // A folder that is new is read twice: files may come before their events are subscribed to.
    let mut second_scan = None;
    loop {
        visitor.goes_on()?;
        match events.next(TICK) {
            Some(Event::Whole(path)) => arrivals.whole(&path, visitor)?,
            Some(Event::Created(path)) => arrivals.changed(&path, false),
            Some(Event::Written(path)) => arrivals.changed(&path, true),
            Some(Event::Folder) => {
                next_scan = Instant::now();
                second_scan = Some(next_scan + watch.stable_after);
            }
            Some(Event::Lost) => next_scan = Instant::now(),
            None => {}
        }
        arrivals.check_pending(visitor)?;
        let now = Instant::now();
        if now >= next_scan || second_scan.is_some_and(|at| now >= at) {
            second_scan = second_scan.filter(|at| now < *at);
            arrivals.scan(visitor)?;
            next_scan = now + watch.rescan;
        }
    }
}
