//! The files of a watched folder between the moment when they were seen and the one when they are whole.

use std::collections::{HashMap, HashSet};
use std::fs::{self, Metadata};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::pile::output::SORTED_MARKER;
use crate::pile::source::{Content, Found, Rules, Visitor, walk_folder};
use crate::protocol::ErrorInfo;

/// A file that a program writes counts as whole after so long without a change, if it is never closed.
const MAX_OPEN: Duration = Duration::from_mins(1);
/// Files that are not whole yet. More are found when the folder is read again.
const MAX_PENDING: usize = 100_000;
/// From so many files on, those that have a row are forgotten.
const MANY_SENT: usize = 8_192;

pub(super) struct Arrivals<'a> {
    root: PathBuf,
    rules: &'a Rules,
    stable_after: Duration,
    /// Files that were passed on and may have no row yet.
    sent: HashSet<PathBuf>,
    /// Files that are not whole yet, by their paths below the folder.
    pending: HashMap<PathBuf, Seen>,
    /// When the files that are not whole yet are looked at again.
    next_check: Instant,
}

/// A file when it changed last.
#[derive(Debug, Clone, Copy)]
struct Seen {
    bytes: u64,
    modified: Option<SystemTime>,
    since: Instant,
    /// A program wrote the file and has not closed it.
    is_open: bool,
}

impl<'a> Arrivals<'a> {
    pub(super) fn new(root: PathBuf, rules: &'a Rules, stable_after: Duration) -> Arrivals<'a> {
        let next_check = Instant::now();
        Arrivals { root, rules, stable_after, sent: HashSet::new(), pending: HashMap::new(), next_check }
    }

    /// Reads the folder, and passes on the files that are whole.
    pub(super) fn scan(&mut self, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let (root, rules) = (self.root.clone(), self.rules);
        walk_folder(&root, Path::new(""), rules, true, &mut Scan { arrivals: self, visitor })
    }

    /// Passes on a file that was closed or moved here.
    pub(super) fn whole(&mut self, path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let Some(relative) = self.relative(path) else { return ControlFlow::Continue(()) };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {
                self.pending.remove(&relative);
                self.send(relative, path, visitor)
            }
            // An empty file gets its content later.
            Ok(metadata) if metadata.is_file() => {
                self.pending.insert(relative, Seen::now(&metadata, false));
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// Notes a file that was created or is written.
    pub(super) fn changed(&mut self, path: &Path, is_open: bool) {
        let Some(relative) = self.relative(path) else { return };
        if self.sent.contains(&relative) || self.pending.len() >= MAX_PENDING {
            return;
        }
        if let Ok(metadata) = fs::metadata(path)
            && metadata.is_file()
        {
            let was_open = self.pending.get(&relative).is_some_and(|seen| seen.is_open);
            self.pending.insert(relative, Seen::now(&metadata, is_open || was_open));
        }
    }

    /// Passes on the files that did not change for long enough.
    pub(super) fn check_pending(&mut self, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let now = Instant::now();
        if now < self.next_check {
            return ControlFlow::Continue(());
        }
        self.next_check = now + (self.stable_after / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let (root, stable_after) = (&self.root, self.stable_after);
        let mut whole = Vec::new();
        self.pending.retain(|relative, seen| {
            let Ok(metadata) = fs::metadata(root.join(relative)) else { return false };
            if !seen.is_of(&metadata) {
                *seen = Seen::now(&metadata, seen.is_open);
            }
            let wait = if seen.is_open { stable_after.max(MAX_OPEN) } else { stable_after };
            let is_whole = seen.bytes > 0 && seen.since.elapsed() >= wait;
            if is_whole {
                whole.push(relative.clone());
            }
            !is_whole
        });
        whole.sort_unstable();
        for relative in whole {
            let path = self.root.join(&relative);
            self.send(relative, &path, visitor)?;
        }
        ControlFlow::Continue(())
    }

    /// Looks at a file that was found by reading the folder.
    fn look(&mut self, relative: PathBuf, path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        if self.pending.contains_key(&relative) || self.pending.len() >= MAX_PENDING {
            return ControlFlow::Continue(());
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() > 0 && has_age(&metadata, self.stable_after) => {
                self.send(relative, path, visitor)
            }
            Ok(metadata) => {
                self.pending.insert(relative, Seen::now(&metadata, false));
                ControlFlow::Continue(())
            }
            // It vanished, or is a link to nothing.
            Err(_) => ControlFlow::Continue(()),
        }
    }

    fn send(&mut self, relative: PathBuf, path: &Path, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        if self.sent.contains(&relative) || !visitor.wants(&relative)? {
            return ControlFlow::Continue(());
        }
        if self.sent.len() >= MANY_SENT {
            self.sent.retain(|sent| visitor.wants(sent) == ControlFlow::Continue(true));
        }
        self.sent.insert(relative.clone());
        visitor.image(Found { path: relative, content: Content::File(path.to_owned()) })
    }

    /// The path of an image below the folder. `None` for files that are not classified.
    fn relative(&self, path: &Path) -> Option<PathBuf> {
        let relative = path.strip_prefix(&self.root).ok()?;
        if !self.rules.takes_in_archive(relative) {
            return None;
        }
        let mut folders = relative.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
        let is_sorted = folders.any(|folder| self.root.join(folder).join(SORTED_MARKER).exists());
        (!is_sorted).then(|| relative.to_owned())
    }
}

impl Seen {
    fn now(metadata: &Metadata, is_open: bool) -> Seen {
        Seen { bytes: metadata.len(), modified: metadata.modified().ok(), since: Instant::now(), is_open }
    }

    fn is_of(&self, metadata: &Metadata) -> bool {
        (self.bytes, self.modified) == (metadata.len(), metadata.modified().ok())
    }
}

/// Returns true if the file was written so long ago. A time in the future says nothing.
fn has_age(metadata: &Metadata, age: Duration) -> bool {
    let modified = metadata.modified().ok();
    modified.and_then(|modified| modified.elapsed().ok()).is_some_and(|elapsed| elapsed >= age)
}

/// Gets what is found by reading the folder.
struct Scan<'a, 'b> {
    arrivals: &'a mut Arrivals<'b>,
    visitor: &'a mut dyn Visitor,
}

impl Visitor for Scan<'_, '_> {
    fn wants(&mut self, path: &Path) -> ControlFlow<(), bool> {
        if self.arrivals.sent.contains(path) {
            return ControlFlow::Continue(false);
        }
        self.visitor.wants(path)
    }

    fn image(&mut self, Found { path, content }: Found) -> ControlFlow<()> {
        match content {
            Content::File(file) => self.arrivals.look(path, &file, self.visitor),
            _ => ControlFlow::Continue(()),
        }
    }

    fn skip(&mut self) -> ControlFlow<()> {
        self.visitor.goes_on()
    }

    fn failed(&mut self, path: PathBuf, error: ErrorInfo) -> ControlFlow<()> {
        tracing::warn!(folder = %path.display(), "{}; it is read again later", error.message);
        self.visitor.goes_on()
    }
}
