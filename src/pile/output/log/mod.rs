//! The log beside the output: one record after the other, appended as images are done.
//!
//! After a crash the log ends with the last record that is whole; what follows is cut off, and those images are classified
//! again. Records are synced about once a second. One process at a time has the log, which its lock guarantees.
//!
//! `locked` is the file before its rows are appended; `follower` reads rows while others are appended.

mod follower;
mod locked;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use uuid::Uuid;

pub(super) use self::follower::{Followed, LogFollower};
pub(super) use self::locked::{LockedFile, Resumed};
use super::files::sync_folder_of;
use super::record::{FileIdentity, MAX_CONTENT_BYTES, Record, RecordReader, RowRecord};
use super::row::Row;
use crate::model::ModelRef;

/// The beginning of every log.
const MAGIC: &[u8; 16] = b"imgcls pile log\n";
/// Records are collected up to this size before they are written.
const BUFFER_BYTES: usize = 64 << 10;
/// Rows are synced when there are so many, or after a second.
const ROWS_PER_SYNC: usize = 4_096;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Syncing takes at most one part in so many of the time, on a disk where it is slow.
const SYNC_SHARE: u32 = 10;

/// A log that this process has locked.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    models: Vec<ModelRef>,
    /// The batch that was begun last.
    batch: Option<Uuid>,
    /// Records that are not written yet. They begin at `written`.
    buffer: Vec<u8>,
    written: u64,
    unsynced_rows: usize,
    next_sync: Instant,
}

/// A row of the log and where it begins.
pub(super) struct LoggedRow {
    pub offset: u64,
    pub record: RowRecord,
}

/// The content of a log apart from its rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Completion {
    /// The table that was made last.
    pub made: Option<FileIdentity>,
    /// The table has its name, and no row came after it.
    pub is_finished: bool,
}

impl Log {
    /// Appends a row, and returns its offset. It is durable after the next [`Log::sync`].
    ///
    /// # Errors
    /// If the file cannot be written. The rows before stay.
    pub(super) fn append(&mut self, row: Row, replaces: bool) -> anyhow::Result<u64> {
        let model = match &row.outcome {
            Ok(classified) => self.index_of(&classified.model),
            Err(_) => 0,
        };
        let buffered = self.buffer.len();
        let offset = self.push(&Record::Row(RowRecord::new(row, model, replaces)));
        if self.buffer.len() - buffered > MAX_CONTENT_BYTES {
            self.buffer.truncate(buffered);
            bail!("the row of an image has more than {MAX_CONTENT_BYTES} bytes: give a smaller --top-k");
        }
        self.unsynced_rows += 1;
        if self.buffer.len() >= BUFFER_BYTES {
            self.write()?;
        }
        Ok(offset)
    }

    /// The batch that was begun last.
    pub(super) fn batch(&self) -> Option<Uuid> {
        self.batch
    }

    /// Begins a batch. It is durable when this returns, before its first image is sent.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn begin_batch(&mut self, id: Uuid) -> anyhow::Result<()> {
        self.push(&Record::Batch(id));
        self.batch = Some(id);
        self.sync()
    }

    /// Returns true if rows wait for [`Log::sync`] long enough.
    pub(super) fn needs_sync(&self) -> bool {
        self.unsynced_rows >= ROWS_PER_SYNC || (self.unsynced_rows > 0 && Instant::now() >= self.next_sync)
    }

    /// Returns true if there are rows that are not durable yet.
    pub(super) fn has_unsynced_rows(&self) -> bool {
        self.unsynced_rows > 0
    }

    /// Appends that the table is complete and about to get its name. It is durable when this returns.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn finishing(&mut self, identity: FileIdentity) -> anyhow::Result<()> {
        self.push(&Record::Finishing(identity));
        self.sync()
    }

    /// Appends that the table has its name, and keeps the log.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn finished(mut self) -> anyhow::Result<()> {
        self.push(&Record::Finished);
        self.sync()
    }

    /// Removes the log.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        sync_folder_of(&self.path)
    }

    /// Begins again with an empty log.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn begin_again(self, options: &BTreeMap<String, String>) -> anyhow::Result<Log> {
        LockedFile { path: self.path, file: self.file }.begin(options)
    }

    /// The size of the file. After [`Log::sync`] all of it is durable.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written
    }

    /// The path of the log.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes every row durable.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn sync(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.write()?;
        self.file.sync_data().with_context(|| cannot_write(&self.path))?;
        self.unsynced_rows = 0;
        self.next_sync = Instant::now() + SYNC_INTERVAL.max(begun.elapsed() * SYNC_SHARE);
        Ok(())
    }

    /// Calls `visit` with every row in order. Call [`Log::sync`] before.
    ///
    /// # Errors
    /// If the file cannot be read, or `visit` fails.
    pub(super) fn for_each(&self, mut visit: impl FnMut(LoggedRow) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut reader = RecordReader::new(&self.file, MAGIC.len() as u64);
        let mut offset = reader.offset;
        while let Some(content) = reader.next_content().with_context(|| self.cannot_read())? {
            if let Record::Row(record) = Record::decode(content)? {
                visit(LoggedRow { offset, record })?;
            }
            offset = reader.offset;
        }
        anyhow::ensure!(offset == self.written, "{} changed while it was read", self.path.display());
        Ok(())
    }

    /// The row at an offset that [`Log::append`] returned.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn row_at(&self, offset: u64) -> anyhow::Result<Row> {
        let mut reader = RecordReader::new(&self.file, offset);
        let content = reader.next_content().with_context(|| self.cannot_read())?;
        let content = content.with_context(|| format!("{} changed while it was read", self.path.display()))?;
        match Record::decode(content)? {
            Record::Row(record) => record.into_row(&self.models),
            _ => bail!("{} has no row at byte {offset}", self.path.display()),
        }
    }

    /// The row of a record.
    pub(super) fn row(&self, record: RowRecord) -> anyhow::Result<Row> {
        record.into_row(&self.models)
    }

    fn cannot_read(&self) -> String {
        format!("cannot read {}", self.path.display())
    }

    fn index_of(&mut self, model: &ModelRef) -> usize {
        if let Some(index) = self.models.iter().position(|known| known == model) {
            return index;
        }
        self.push(&Record::Model(model.clone()));
        self.models.push(model.clone());
        self.models.len() - 1
    }

    fn push(&mut self, record: &Record) -> u64 {
        let offset = self.written + self.buffer.len() as u64;
        record.encode(offset, &mut self.buffer);
        offset
    }

    /// Writes the buffer. After an error the file ends with the records before, and the buffer may be written again.
    fn write(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.file.write_all_at(&self.buffer, self.written) {
            let _ = self.file.set_len(self.written);
            return Err(error).with_context(|| cannot_write(&self.path));
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}; once this is solved, for example by freeing space, the same command continues where it stopped",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::super::row::PathText;
    use super::super::row::tests::classified;
    use super::*;
    use crate::protocol::{ErrorCode, ErrorInfo};

    fn options() -> BTreeMap<String, String> {
        BTreeMap::from([("--top-k".to_owned(), "1".to_owned())])
    }

    /// Rows of different lengths, failed and not, of two models.
    fn rows() -> Vec<Row> {
        let row = |number: usize| {
            let mut image = classified(&["cat", "dog"]);
            image.model.version = (number % 2).to_string();
            let error = ErrorInfo { code: ErrorCode::Undecodable, message: "x".repeat(number) };
            let outcome = if number == 2 { Err(error) } else { Ok(image) };
            Row { path: PathText::from_bytes(format!("{number}.jpg").as_bytes()), file: None, outcome }
        };
        (0..5).map(row).collect()
    }

    fn read(log: &Log) -> Vec<Row> {
        let mut rows = Vec::new();
        log.for_each(|logged| {
            rows.push(log.row(logged.record)?);
            Ok(())
        })
        .unwrap();
        rows
    }

    /// Opens the log, begins it if it is new, and returns it with its rows.
    fn opened(path: &Path) -> (Log, Vec<Row>) {
        let locked = LockedFile::lock(path).unwrap();
        locked.check_is_log().unwrap();
        let log = if locked.is_new().unwrap() {
            locked.begin(&options()).unwrap()
        } else {
            locked.resume(&options(), |_| {}).unwrap().log
        };
        let rows = read(&log);
        (log, rows)
    }

    fn written(path: &Path, rows: &[Row]) -> Vec<u8> {
        let (mut log, _) = opened(path);
        for row in rows {
            log.append(row.clone(), false).unwrap();
        }
        log.sync().unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn log_torn_at_any_byte_keeps_its_whole_rows_and_takes_the_rest_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let whole = written(&path, &rows());
        let mut counts = Vec::new();
        for length in 0..=whole.len() {
            for tail in [0, 1, 40] {
                std::fs::write(&path, [&whole[..length], &vec![0; tail]].concat()).unwrap();
                let (mut log, found) = opened(&path);
                assert_eq!(found, rows()[..found.len()], "{length} bytes");
                counts.push(found.len());
                for row in &rows()[found.len()..] {
                    log.append(row.clone(), false).unwrap();
                }
                log.sync().unwrap();
                assert_eq!(read(&log), rows(), "{length} bytes");
                drop(log);
                assert_eq!(opened(&path).1, rows(), "{length} bytes");
            }
        }
        assert!(counts.is_sorted() && counts.last() == Some(&5), "{counts:?}");
    }

    #[test]
    fn damaged_byte_never_changes_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let whole = written(&path, &rows());
        for at in MAGIC.len()..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x04;
            std::fs::write(&path, &damaged).unwrap();
            let (_, found) = opened(&path);
            assert_eq!(found, rows()[..found.len()], "byte {at}");
            assert!(found.len() < 5, "byte {at}");
        }
    }

    #[test]
    fn record_at_another_place_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let all = rows();
        let one = written(&path, &all[..1]).len();
        let both = written(&path, &all[2..3]);
        std::fs::write(&path, [&both[..], &both[one..]].concat()).unwrap();
        assert_eq!(opened(&path).1, [all[0].clone(), all[2].clone()]);
    }

    #[test]
    fn second_process_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (log, _) = opened(&path);
        let error = LockedFile::lock(&path).unwrap_err().to_string();
        assert!(error.starts_with("another process writes "), "{error}");
        drop(log);
        std::fs::write(&path, "path,status\n").unwrap();
        let error = LockedFile::lock(&path).unwrap().check_is_log().unwrap_err().to_string();
        assert!(error.ends_with("is not a log of imgcls: move it away"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"path,status\n");
    }

    #[test]
    fn other_options_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        written(&path, &rows());
        let other = BTreeMap::from([("--top-k", "5"), ("model", "b")].map(|(name, value)| (name.into(), value.into())));
        let resumed = LockedFile::lock(&path).unwrap().resume(&other, |_| {}).unwrap();
        assert_eq!(resumed.differences.as_deref(), Some("--top-k was 1, now it is 5; model was nothing, now it is b"));
    }

    #[test]
    fn removed_log_is_not_locked_instead_of_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (log, _) = opened(&path);
        log.remove().unwrap();
        assert!(!path.exists());
        let (_log, found) = opened(&path);
        assert!(found.is_empty() && path.exists());
    }
}
