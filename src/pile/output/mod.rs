//! The output of a run over a pile of images: a table, links by class, and files beside the images.
//!
//! - `row`: one image and its outcome; `config`: the configuration; `failures`: how many may fail
//! - `logged`: the output to a file, which is made from the `log` when the pile is done; `record`: the records of the log;
//!   `key_set`: the images that are done
//! - `table`: the columns, and a writer for each format
//! - `beside`: `sorter` makes a folder for each class, with a `safe_name`; `sidecar` writes a file beside each image
//! - `webhook`: calls to a receiver of the rows
//! - `files`: files that appear whole or not at all
//!
//! A row is durable about a second after it was appended. Links and sidecars are made before their row, and are durable
//! before it, so that an image with a row has them.

mod beside;
mod config;
mod failures;
mod files;
mod key_set;
mod log;
mod logged;
mod record;
mod row;
mod safe_name;
mod sidecar;
mod sorter;
mod table;
mod webhook;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use uuid::Uuid;

use self::beside::Beside;
use self::failures::{Counts, FailureLimit};
use self::logged::{Logged, out_file};
use self::table::{Delimited, Schema, TableWriter as _, Terminal};

use crate::clock;

pub use self::config::{
    ClassName, MaxFailures, OutFile, OutputConfig, Resume, SidecarFormat, SortEntry, SortInto, TableFormat, Target,
    WebhookConfig,
};
pub use self::logged::Done;
pub use self::row::{Classified, PathText, Row};
pub use self::sorter::SORTED_MARKER;

/// Says if the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next image may follow.
    Continue,
    /// More images failed than are allowed, or nobody reads standard output: call [`Output::suspend`].
    Stop,
}

/// The batch of a run through a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Its id.
    pub id: Uuid,
    /// An earlier run may have sent some of the images.
    pub is_continued: bool,
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
    /// True if the run counts as successful: it was finished, everything could be written, and no image failed or not more
    /// than `--max-failures` allows.
    pub is_within_limit: bool,
    /// Lines for a person: where the output is, and what to do about failed images.
    pub lines: Vec<String>,
}

/// The output of a run. One thread at a time appends rows, in the order of the input.
pub struct Output {
    target: Rows,
    beside: Beside,
    /// Rows of failed images, if there is no log that they can be read from at the end.
    errors: Option<Delimited<File>>,
    counts: Counts,
    limit: FailureLimit,
    stdout_closed: Arc<AtomicBool>,
    done: Done,
}

enum Rows {
    Logged(Box<Logged>),
    Csv(Box<Delimited<Pipe>>),
    Terminal(Pipe),
    Nothing,
}

impl Output {
    /// Opens the output, and continues the log of an earlier run if there is one.
    ///
    /// # Errors
    /// If the file exists and may not be overwritten, another process writes it, or the log was made with other options.
    pub fn open(config: &OutputConfig) -> anyhow::Result<Output> {
        let stdout_closed = Arc::new(AtomicBool::new(false));
        let pipe = Pipe { is_closed: Arc::clone(&stdout_closed) };
        let target = match (&config.target, out_file(config)) {
            (_, Some(file)) => Rows::Logged(Box::new(Logged::open(file, config)?)),
            (Target::Csv, None) => Rows::Csv(Box::new(Delimited::new(b',', Schema::new(config), pipe)?)),
            (Target::Terminal, None) => Rows::Terminal(pipe),
            (Target::Nothing | Target::File(_), None) => Rows::Nothing,
        };
        let (counts, done) = match &target {
            Rows::Logged(logged) => (logged.counts(), logged.done().clone()),
            _ => (Counts::default(), Done::default()),
        };
        let errors = match &target {
            Rows::Logged(_) => None,
            _ => errors_file(config)?,
        };
        let limit = FailureLimit { limit: config.max_failures, total: None };
        Ok(Output { target, beside: Beside::open(config)?, errors, counts, limit, stdout_closed, done })
    }

    /// Tells how many images the pile has, once they are counted. A limit on failures as a share is exact from then on.
    pub fn set_total(&mut self, images: u64) {
        self.limit.total = Some(images);
    }

    /// Returns true if the output has this image already.
    pub fn is_done(&self, path: &PathText) -> bool {
        self.done.contains(path)
    }

    /// The images that the output has, for threads that read the pile while this one appends rows. Each image takes about
    /// thirteen bytes. Without a file it stays empty.
    pub fn done(&self) -> Done {
        self.done.clone()
    }

    /// The number of images that earlier runs have done.
    pub fn resumed(&self) -> u64 {
        self.counts.resumed
    }

    /// The batch of a run through a service, which the log of the output remembers. `requested` is continued if given.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn batch(&mut self, requested: Option<Uuid>) -> anyhow::Result<Batch> {
        match &mut self.target {
            Rows::Logged(logged) => logged.batch(requested),
            _ => Ok(Batch { id: requested.unwrap_or_else(clock::new_id), is_continued: requested.is_some() }),
        }
    }

    /// Appends the row of one image. The row of an image that the output has already is ignored.
    ///
    /// # Errors
    /// If it cannot be written, for example because the disk is full. The run can be resumed.
    pub fn append(&mut self, row: Row) -> anyhow::Result<Flow> {
        if let Rows::Logged(logged) = &self.target
            && !logged.expects(&row.path)
        {
            return Ok(Flow::Continue);
        }
        let is_failed = row.outcome.is_err();
        self.beside.make(&row)?;
        if let (true, Some(errors)) = (is_failed, &mut self.errors) {
            errors.write(&row)?;
            errors.flush().context("cannot write the file of --errors")?;
        }
        match &mut self.target {
            Rows::Logged(logged) => {
                logged.append(row)?;
                self.counts = logged.counts();
                if logged.needs_sync() {
                    self.beside.sync()?;
                    logged.sync()?;
                }
            }
            Rows::Csv(table) => {
                table.write(&row)?;
                table.flush().context("cannot write to standard output")?;
                self.counts.add(is_failed, false);
            }
            Rows::Terminal(pipe) => {
                let written = pipe.write_all(Terminal::format(&row).as_bytes()).and_then(|()| pipe.flush());
                written.context("cannot write to standard output")?;
                self.counts.add(is_failed, false);
            }
            Rows::Nothing => self.counts.add(is_failed, false),
        }
        let is_over = is_failed && self.limit.is_exceeded(self.counts);
        let must_stop = is_over || self.stdout_closed.load(Ordering::Relaxed);
        Ok(if must_stop { Flow::Stop } else { Flow::Continue })
    }

    /// Makes the rows durable that a file that grows does not have yet. Call it when no image is waiting.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn idle(&mut self) -> anyhow::Result<()> {
        if let Rows::Logged(logged) = &mut self.target
            && logged.lags()
        {
            self.beside.sync()?;
            logged.sync()?;
        }
        Ok(())
    }

    /// Ends a run that did not see every image: the log becomes durable, and the same command continues it.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn suspend(mut self) -> anyhow::Result<Summary> {
        self.beside.sync()?;
        let mut lines = Vec::new();
        if self.limit.is_exceeded(self.counts) {
            let Counts { images, failed, .. } = self.counts;
            lines.push(format!("stopped: {failed} of {images} images failed, more than --max-failures allows"));
        }
        if let Rows::Logged(logged) = &mut self.target {
            logged.sync()?;
            logged.end_calls();
            lines.push(logged.suspended_line());
        }
        Ok(self.summary(false, lines))
    }

    /// Makes the file, once every image of the pile is done.
    ///
    /// # Errors
    /// If it cannot be written. The log stays, and the same command tries again.
    pub fn finish(mut self) -> anyhow::Result<Summary> {
        self.beside.sync()?;
        let is_within_limit = self.limit.allows(self.counts) && self.beside.is_complete();
        let lines = match std::mem::replace(&mut self.target, Rows::Nothing) {
            Rows::Logged(logged) => logged.finish()?,
            _ => Vec::new(),
        };
        Ok(self.summary(is_within_limit, lines))
    }

    fn summary(&self, is_within_limit: bool, mut lines: Vec<String>) -> Summary {
        lines.extend(self.beside.lines());
        let Counts { images, failed, resumed } = self.counts;
        Summary { images, failed, resumed, is_within_limit, lines }
    }
}

/// The file for failed images of a run without a log.
fn errors_file(config: &OutputConfig) -> anyhow::Result<Option<Delimited<File>>> {
    let Some(path) = &config.errors else { return Ok(None) };
    let mut options = OpenOptions::new();
    options.write(true);
    if config.overwrite {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let file = options.open(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow::anyhow!("{} exists: --overwrite replaces it", path.display()),
        _ => anyhow::Error::new(error).context(format!("cannot create {}", path.display())),
    })?;
    Delimited::new(b',', Schema::of_errors(), file).map(Some)
}

/// Standard output. After its reader went away, it accepts and forgets everything.
struct Pipe {
    is_closed: Arc<AtomicBool>,
}

impl Pipe {
    fn closed_or<T>(&self, result: io::Result<T>, closed: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed.store(true, Ordering::Relaxed);
                Ok(closed)
            }
            other => other,
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().lock().write(bytes);
        self.closed_or(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = io::stdout().lock().flush();
        self.closed_or(flushed, ())
    }
}
