//! The file of a log before its rows are appended: it is locked, checked, and begun or continued.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};

use super::{Completion, Log, LoggedRow, MAGIC, SYNC_INTERVAL, cannot_write};
use crate::pile::output::files::sync_folder_of;
use crate::pile::output::record::{Header, Record, RecordReader, VERSION};

/// The header is durable before the first row is written. A longer file has had a header.
const MAX_HEADER_BYTES: u64 = 64 << 10;

/// The file of a log that this process has locked, before its content is read.
#[derive(Debug)]
pub(in crate::pile::output) struct LockedFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// A log that is continued.
pub(in crate::pile::output) struct Resumed {
    pub log: Log,
    pub completion: Completion,
    /// The options that are not those of the earlier run, for a person.
    pub differences: Option<String>,
}

impl LockedFile {
    /// Locks the log at this path; creates an empty file if there is none.
    ///
    /// # Errors
    /// If another process has it, or it cannot be created.
    pub(in crate::pile::output) fn lock(path: &Path) -> anyhow::Result<LockedFile> {
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    bail!("another process writes {}: wait until it is done, or choose another --out", path.display())
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                    tracing::warn!(path = %path.display(), "the file system has no locks: start no second process on it");
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            // A process that finished may have removed the file before it released the lock.
            let is_current = match std::fs::symlink_metadata(path) {
                Ok(current) => {
                    let own = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
                    current.is_symlink() || (current.ino(), current.dev()) == (own.ino(), own.dev())
                }
                Err(_) => false,
            };
            if is_current {
                return Ok(LockedFile { path: path.to_owned(), file });
            }
        }
    }

    /// Returns true if the file has no row, because a run ended while it began the log.
    ///
    /// # Errors
    /// If the log is damaged.
    pub(in crate::pile::output) fn is_new(&self) -> anyhow::Result<bool> {
        let cannot_read = || format!("cannot read {}", self.path.display());
        let length = self.file.metadata().with_context(cannot_read)?.len();
        let has_header =
            RecordReader::new(&self.file, MAGIC.len() as u64).next_content().with_context(cannot_read)?.is_some();
        anyhow::ensure!(
            has_header || length <= MAX_HEADER_BYTES,
            "the beginning of {} is damaged: begin again with --restart",
            self.path.display()
        );
        Ok(!has_header)
    }

    /// Checks that the file is a log, or the beginning of one.
    ///
    /// # Errors
    /// If it is a file of somebody else.
    pub(in crate::pile::output) fn check_is_log(&self) -> anyhow::Result<()> {
        let cannot_read = || format!("cannot read {}", self.path.display());
        let length = self.file.metadata().with_context(cannot_read)?.len();
        let mut begin = [0; MAGIC.len()];
        let begin = &mut begin[..(length as usize).min(MAGIC.len())];
        self.file.read_exact_at(begin, 0).with_context(cannot_read)?;
        // After power loss, zeros may be in the place of what was not written.
        let written = begin.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if !MAGIC.starts_with(&begin[..written]) {
            bail!("{} exists and is not a log of imgcls: move it away", self.path.display());
        }
        Ok(())
    }

    /// Begins a log. Whatever the file has is lost.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(in crate::pile::output) fn begin(self, options: &BTreeMap<String, String>) -> anyhow::Result<Log> {
        let LockedFile { path, file } = self;
        let mut buffer = MAGIC.to_vec();
        let header = Header { version: VERSION, options: options.clone() };
        Record::Header(header).encode(MAGIC.len() as u64, &mut buffer);
        file.set_len(0).with_context(|| format!("cannot write {}", path.display()))?;
        let next_sync = Instant::now() + SYNC_INTERVAL;
        let (models, batch) = (Vec::new(), None);
        let mut log = Log { path, file, models, batch, buffer, written: 0, unsynced_rows: 0, next_sync };
        log.sync()?;
        sync_folder_of(&log.path)?;
        Ok(log)
    }

    /// Continues a log. `visit` gets every row in order.
    ///
    /// # Errors
    /// If another release made the log, or it cannot be read.
    pub(in crate::pile::output) fn resume(
        self,
        options: &BTreeMap<String, String>,
        mut visit: impl FnMut(&LoggedRow),
    ) -> anyhow::Result<Resumed> {
        let LockedFile { path, file } = self;
        let cannot_read = || format!("cannot read {}", path.display());
        let (mut models, mut batch) = (Vec::new(), None);
        let (mut completion, mut found) = (Completion::default(), None);
        let mut reader = RecordReader::new(&file, MAGIC.len() as u64);
        let mut offset = reader.offset;
        while let Some(content) = reader.next_content().with_context(cannot_read)? {
            match Record::decode(content).with_context(|| other_release(&path))? {
                Record::Header(header) => {
                    anyhow::ensure!(header.version == VERSION, other_release(&path));
                    found = Some(header.options);
                }
                Record::Model(model) => models.push(model),
                Record::Row(record) => {
                    completion.is_finished = false;
                    visit(&LoggedRow { offset, record });
                }
                Record::Batch(id) => batch = Some(id),
                Record::Finishing(identity) => completion.made = Some(identity),
                Record::Finished => completion.is_finished = true,
            }
            offset = reader.offset;
        }
        let length = file.metadata().with_context(cannot_read)?.len();
        if length > offset {
            tracing::info!(bytes = length - offset, path = %path.display(), "removed the torn end of the log");
            file.set_len(offset).with_context(|| cannot_write(&path))?;
        }
        let next_sync = Instant::now() + SYNC_INTERVAL;
        let log = Log { path, file, models, batch, buffer: Vec::new(), written: offset, unsynced_rows: 0, next_sync };
        Ok(Resumed { log, completion, differences: differences(&found.unwrap_or_default(), options) })
    }

    /// Removes the file if it is empty, because it was created only for its lock.
    pub(in crate::pile::output) fn discard_if_empty(&self) {
        if self.file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn other_release(path: &Path) -> String {
    format!(
        "{} was written by another release of imgcls: finish it with that one, or begin again with --restart",
        path.display()
    )
}

/// The options that are not the same, for a person. `None` if all are.
fn differences(earlier: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let names: BTreeSet<&String> = earlier.keys().chain(now.keys()).collect();
    let value = |options: &BTreeMap<String, String>, name| options.get(name).cloned().unwrap_or("nothing".to_owned());
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| earlier.get(*name) != now.get(*name))
        .map(|name| format!("{name} was {}, now it is {}", value(earlier, name), value(now, name)))
        .collect();
    (!differences.is_empty()).then(|| differences.join("; "))
}
