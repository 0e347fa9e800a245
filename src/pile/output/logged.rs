//! The output to a file: rows go to the log, and the file is made of it when the pile is done.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, bail, ensure};
use uuid::Uuid;

use super::Batch;
use super::config::{OutFile, OutputConfig, Resume, TableFormat, Target};
use super::failures::Counts;
use super::files::{NewFile, existing, identity};
use super::key_set::{Key, KeySet};
use super::log::{Completion, LockedFile, Log, LoggedRow, Resumed};
use super::record::RowRecord;
use super::row::{PathText, Row};
use super::table::{self, Schema, TableWriter};
use super::webhook::Webhook;
use crate::clock;

/// The images that the output has, shared with the threads that read the pile.
#[derive(Debug, Clone, Default)]
pub struct Done {
    keys: Arc<RwLock<KeySet>>,
}

impl Done {
    /// Returns true if the output has this image.
    pub fn contains(&self, path: &PathText) -> bool {
        self.has(Key::of(path))
    }

    fn has(&self, key: Key) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn insert(&self, key: Key) {
        self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(key);
    }
}

pub(super) struct Logged {
    file: OutFile,
    log: Log,
    schema: Schema,
    errors: Option<PathBuf>,
    done: Done,
    /// Images that failed and are classified again.
    retried: KeySet,
    /// The offset of the last row of each image that was classified again.
    replacements: HashMap<Key, u64>,
    counts: Counts,
    /// The file, if it grows with the log.
    growing: Option<Box<dyn TableWriter>>,
    /// The calls to a receiver.
    webhook: Option<Webhook>,
}

/// The images of an earlier run, by its log.
#[derive(Default)]
struct Earlier {
    done: Done,
    retried: KeySet,
    replacements: HashMap<Key, u64>,
    counts: Counts,
}

impl Logged {
    /// Opens the log of a file, and reads it if an earlier run left one.
    ///
    /// # Errors
    /// If the file exists and may not be replaced, or the log cannot be continued.
    pub(super) fn open(file: &OutFile, config: &OutputConfig) -> anyhow::Result<Logged> {
        let errors = config.errors.clone();
        ensure!(errors.as_ref() != Some(&file.path), "--errors and --out name the same file: give two");
        ensure!(!file.path.is_dir(), "--out {} is a folder: give the path of a file", file.path.display());
        let mut options = config.options.clone();
        options.insert("--top-k".to_owned(), config.top_k.to_string());
        let locked = LockedFile::lock(&file.log_path())?;
        locked.check_is_log()?;
        let is_new = config.resume == Resume::Restart || locked.is_new()?;
        let (log, earlier) = if is_new {
            check_new(file, config).inspect_err(|_| locked.discard_if_empty())?;
            (locked.begin(&options)?, Earlier::default())
        } else {
            continued(locked, &options, file, config)?
        };
        let Earlier { done, retried, replacements, counts } = earlier;
        let schema = Schema::new(config);
        let file = file.clone();
        let (growing, webhook) = (None, None);
        let mut logged = Logged { file, log, schema, errors, done, retried, replacements, counts, growing, webhook };
        if config.grows {
            logged.growing = Some(logged.grow()?);
        }
        if let Some(calls) = &config.webhook {
            logged.log.sync()?;
            let (log, table) = (&logged.log, &logged.file.path);
            let webhook = Webhook::start(calls, log.path(), table, is_new, &config.classes)?;
            webhook.durable(log.written_bytes());
            logged.webhook = Some(webhook);
        }
        Ok(logged)
    }

    pub(super) fn done(&self) -> &Done {
        &self.done
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns true if the row of this image is expected: it has none yet, or its image is classified again.
    pub(super) fn expects(&self, path: &PathText) -> bool {
        !self.done.contains(path)
    }

    /// Appends the row of an image that [`Logged::expects`].
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(super) fn append(&mut self, row: Row) -> anyhow::Result<()> {
        let key = Key::of(&row.path);
        let is_failed = row.outcome.is_err();
        let replaces = self.retried.contains(key);
        if let Some(growing) = &mut self.growing {
            growing.write(&row).with_context(|| cannot_grow(&self.file))?;
        }
        let offset = self.log.append(row, replaces)?;
        if replaces {
            self.replacements.insert(key, offset);
        }
        self.counts.add(is_failed, replaces);
        self.done.insert(key);
        Ok(())
    }

    /// The batch of this run: `requested`, or that of the run that is continued, or a new one. Images that failed have
    /// results in the earlier batch, so they are classified again in a new one.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(super) fn batch(&mut self, requested: Option<Uuid>) -> anyhow::Result<Batch> {
        let earlier = self.log.batch();
        let continued = requested.or(earlier.filter(|_| self.retried.is_empty()));
        let id = continued.unwrap_or_else(clock::new_id);
        if earlier != Some(id) {
            self.log.begin_batch(id)?;
        }
        Ok(Batch { id, is_continued: continued.is_some() })
    }

    pub(super) fn needs_sync(&self) -> bool {
        self.log.needs_sync()
    }

    /// Makes every row durable.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(super) fn sync(&mut self) -> anyhow::Result<()> {
        self.log.sync()?;
        if let Some(webhook) = &self.webhook {
            webhook.durable(self.log.written_bytes());
        }
        match &mut self.growing {
            Some(growing) => growing.flush().with_context(|| cannot_grow(&self.file)),
            None => Ok(()),
        }
    }

    /// Ends the calls to a receiver, which takes a few seconds if it does not answer. Call [`Logged::sync`] before.
    pub(super) fn end_calls(&mut self) {
        if let Some(webhook) = self.webhook.take() {
            webhook.finish();
        }
    }

    /// Returns true if the file grows, and there are rows that it does not have yet.
    pub(super) fn lags(&self) -> bool {
        self.growing.is_some() && self.log.has_unsynced_rows()
    }

    /// Makes the file with all rows of the log, and returns its writer for the next ones. Rows of images that are
    /// classified again are left out.
    fn grow(&self) -> anyhow::Result<Box<dyn TableWriter>> {
        let file = NewFile::create(&self.file.path)?;
        let mut table = table::writer(self.file.format, self.schema.clone(), file.writer()?)?;
        self.log.for_each(|LoggedRow { record, .. }| {
            let is_again = self.retried.contains(Key::of(&record.path));
            match self.current(record)? {
                Some(row) if !(is_again && row.outcome.is_err()) => table.write(&row),
                _ => Ok(()),
            }
        })?;
        table.flush()?;
        file.sync()?;
        file.publish()?;
        Ok(table)
    }

    /// The last row of the image of a record. `None` if the record replaces an earlier one, in whose place it belongs.
    fn current(&self, record: RowRecord) -> anyhow::Result<Option<Row>> {
        if record.replaces {
            return Ok(None);
        }
        let may_be_replaced = record.is_failed() && !self.replacements.is_empty();
        let replacement = may_be_replaced.then(|| self.replacements.get(&Key::of(&record.path))).flatten();
        match replacement {
            Some(offset) => self.log.row_at(*offset),
            None => self.log.row(record),
        }
        .map(Some)
    }

    /// Makes the file from the log. The log is removed, unless images failed, which may be classified again.
    ///
    /// # Errors
    /// If a file cannot be written. The log stays.
    pub(super) fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.log.sync()?;
        let log_path = self.file.log_path();
        let lost_nothing = || {
            format!(
                "cannot make {}; every row is in {}: once this is solved, for example by freeing space, give the same \
                 command again",
                self.file.path.display(),
                log_path.display()
            )
        };
        let table = NewFile::create(&self.file.path).with_context(lost_nothing)?;
        let errors = self.errors.as_deref().map(NewFile::create).transpose();
        let errors = match errors.and_then(|errors| self.write_tables(&table, errors.as_ref()).map(|()| errors)) {
            Ok(errors) => errors,
            Err(error) => {
                table.discard();
                return Err(error).with_context(lost_nothing);
            }
        };
        let identity = table.sync().with_context(lost_nothing)?;
        if let Some(errors) = errors {
            errors.sync().with_context(lost_nothing)?;
            errors.publish()?;
        }
        // A run that is killed after this finds that the file is its own.
        self.log.finishing(identity)?;
        table.publish()?;
        let lines = self.lines();
        if self.counts.failed == 0 {
            self.log.remove()?;
        } else {
            self.log.finished()?;
        }
        Ok(lines)
    }

    /// Tells a person where a run that is not done continues.
    pub(super) fn suspended_line(&self) -> String {
        format!(
            "{} {} are in {}; the same command continues there",
            self.counts.images,
            self.noun(),
            self.file.log_path().display()
        )
    }

    fn write_tables(&self, table: &NewFile, errors: Option<&NewFile>) -> anyhow::Result<()> {
        let mut table = table::writer(self.file.format, self.schema.clone(), table.writer()?)?;
        let errors = errors.map(|errors| table::writer(TableFormat::Csv, Schema::of_errors(), errors.writer()?));
        let mut errors = errors.transpose()?;
        self.log.for_each(|LoggedRow { record, .. }| {
            let Some(row) = self.current(record)? else { return Ok(()) };
            if let (Err(_), Some(errors)) = (&row.outcome, &mut errors) {
                errors.write(&row)?;
            }
            table.write(&row)
        })?;
        if let Some(errors) = errors {
            errors.finish()?;
        }
        table.finish()
    }

    /// A word for the rows, for a person.
    fn noun(&self) -> &'static str {
        if self.schema.boxes().is_some() { "rows" } else { "images" }
    }

    fn lines(&self) -> Vec<String> {
        let Counts { images, failed, .. } = self.counts;
        let mut lines = vec![format!("{}: {images} {}, {failed} failed", self.file.path.display(), self.noun())];
        if let Some(errors) = &self.errors {
            lines.push(format!("{}: the {failed} failed images", errors.display()));
        }
        if failed > 0 {
            lines.push(format!(
                "the same command with --retry-errors classifies the failed images again; {} is kept for that",
                self.file.log_path().display()
            ));
        }
        lines
    }
}

impl Earlier {
    fn add(&mut self, LoggedRow { offset, record }: &LoggedRow, retry_errors: bool) {
        let key = Key::of(&record.path);
        if record.replaces {
            self.replacements.insert(key, *offset);
        }
        if record.is_failed() && retry_errors {
            self.retried.insert(key);
        } else {
            self.done.insert(key);
        }
        self.counts.add(record.is_failed(), record.replaces);
    }
}

/// Continues the log of an earlier run. Begins again if that run was finished and its file is to be overwritten.
fn continued(
    locked: LockedFile,
    options: &std::collections::BTreeMap<String, String>,
    file: &OutFile,
    config: &OutputConfig,
) -> anyhow::Result<(Log, Earlier)> {
    let mut earlier = Earlier::default();
    let resumed = locked.resume(options, |row| earlier.add(row, config.retry_errors))?;
    let Resumed { log, completion, differences } = resumed;
    let is_continued = config.retry_errors || config.resume == Resume::Required;
    if completion.is_finished && config.overwrite && !is_continued {
        return Ok((log.begin_again(options)?, Earlier::default()));
    }
    if let Some(differences) = differences {
        bail!(
            "{} is of a run with other options ({differences}): give the same ones to continue it, or begin again with \
             --restart",
            file.log_path().display()
        );
    }
    // A file that grows is made of its log again.
    if !config.grows {
        check_replaceable(file, config, &completion)?;
    }
    earlier.counts.resumed = earlier.counts.images;
    if config.retry_errors {
        earlier.counts.resumed -= earlier.counts.failed;
    }
    Ok((log, earlier))
}

/// Refuses a run without a log that would replace a file, or that should continue one.
fn check_new(file: &OutFile, config: &OutputConfig) -> anyhow::Result<()> {
    ensure!(
        config.resume != Resume::Required,
        "there is no run to resume: {} does not exist; leave out --resume",
        file.log_path().display()
    );
    check_replaceable(file, config, &Completion::default())?;
    if let Some(errors) = &config.errors
        && !config.overwrite
        && existing(errors)?.is_some()
    {
        bail!("{} exists: --overwrite replaces it", errors.display());
    }
    Ok(())
}

/// Refuses to replace a file that this log did not make.
fn check_replaceable(file: &OutFile, config: &OutputConfig, completion: &Completion) -> anyhow::Result<()> {
    match existing(&file.path)? {
        Some(metadata) if !config.overwrite && completion.made != Some(identity(&metadata)) => {
            bail!("{} exists: --overwrite replaces it", file.path.display())
        }
        _ => Ok(()),
    }
}

fn cannot_grow(file: &OutFile) -> String {
    format!(
        "cannot write {}; once this is solved, for example by freeing space, the same command continues where it stopped",
        file.path.display()
    )
}

/// The file of a configuration that has one.
pub(super) fn out_file(config: &OutputConfig) -> Option<&OutFile> {
    match &config.target {
        Target::File(file) => Some(file),
        Target::Terminal | Target::Csv | Target::Nothing => None,
    }
}
