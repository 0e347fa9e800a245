//! Copies the write-ahead log into the database beside the calls. SQLite by itself would do it inside a commit, which then
//! lasts until megabytes are synced and delays every caller of the database.
//!
//! Others write during a copy, so the log restarts from its beginning only if a commit comes after a copy that has caught
//! up. If commits follow each other too closely for that, they are delayed once, for the little that is left.
//!
//! A reader with an open transaction (a backup, a `sqlite3` shell) keeps the pages that it may still read in the log.
//! Writers do not wait for it: the log grows until the reader is gone, and restarts then.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::busy::waiting_at_most;
use super::file;
use crate::retry::{Backoff, Schedule};

/// The log grows by this many pages (1 MiB) from one copy to the next. That is little enough that a copy delays a sync of
/// the log on the same disk only briefly, and that its pages are still in the processor's cache.
pub(super) const STEP_PAGES: i32 = (1 << 20) / file::PAGE_BYTES;
/// At this length (8 MiB) the log has to restart.
const RESTART_PAGES: i32 = (8 << 20) / file::PAGE_BYTES;
/// At this length (256 MiB), and whenever it has doubled since, a warning is logged.
const WARN_PAGES: i32 = (256 << 20) / file::PAGE_BYTES;
/// How long a restart of the log may delay writers while it waits for readers.
const RESTART_LIMIT: Duration = Duration::from_millis(50);
/// Delays between the attempts to restart the log.
const RETRY: Schedule = Schedule::new(Duration::from_millis(20), Duration::from_secs(10));

/// Decides when to copy the log and when to restart it.
pub(super) struct Checkpointer {
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// The length of the log at the next warning.
    warn_pages: i32,
}

/// How far a copy has come.
#[derive(Clone, Copy)]
struct Progress {
    is_busy: bool,
    log_pages: i32,
    copied_pages: i32,
}

impl Progress {
    fn is_complete(self) -> bool {
        !self.is_busy && self.copied_pages >= self.log_pages
    }
}

impl Checkpointer {
    pub(super) fn new() -> Checkpointer {
        Checkpointer { backoff: RETRY.start(), retry_at: None, warn_pages: WARN_PAGES }
    }

    /// The time at which [`Checkpointer::run`] has to be called even if the log has not grown.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Copies the log, and restarts it if it is long. Called when it has grown by [`STEP_PAGES`] or a retry is due.
    ///
    /// # Errors
    /// The database cannot be synced: copied pages may be lost, and the next copy would not write them again.
    pub(super) fn run(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let copied = self.copy(connection);
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.postpone();
        }
        match copied {
            Err(error) if is_failed_sync(&error) => Err(error),
            // Another process is copying, or the disk is full. Commits continue, and the next step tries again.
            Err(error) => {
                tracing::debug!(%error, "cannot copy the write-ahead log; trying again later");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn copy(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let is_retry = self.retry_at.is_some_and(|at| Instant::now() >= at);
        let before = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        if before.log_pages - before.copied_pages < STEP_PAGES && !is_retry {
            // Another process has copied it.
            return Ok(());
        }
        let copied = checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
        // `copied` describes the log as it was when the copy began; it has grown since.
        let left = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        self.warn_of_length(left.log_pages);
        if left.log_pages < RESTART_PAGES {
            self.has_restarted();
        } else if left.copied_pages >= left.log_pages {
            // The next commit restarts it; if a reader prevents that, the next step gets here again.
            self.retry_at = None;
        } else if self.retry_at.is_none_or(|at| Instant::now() >= at) {
            self.restart(connection, copied)?;
        }
        Ok(())
    }

    /// Restarts the log. `copied` is the progress of the copy before; if it is incomplete, a reader is in the way, and
    /// the restart is postponed.
    fn restart(&mut self, connection: &Connection, copied: Progress) -> rusqlite::Result<()> {
        if copied.is_complete() {
            let restarted =
                waiting_at_most(RESTART_LIMIT, || checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)"))?;
            if restarted.is_complete() {
                self.has_restarted();
                return Ok(());
            }
        }
        self.postpone();
        Ok(())
    }

    fn postpone(&mut self) {
        self.retry_at = Some(Instant::now() + self.backoff.next_delay());
    }

    fn has_restarted(&mut self) {
        self.retry_at = None;
        self.backoff.reset();
        if self.warn_pages > WARN_PAGES {
            self.warn_pages = WARN_PAGES;
            tracing::info!("the write-ahead log has restarted from its beginning");
        }
    }

    fn warn_of_length(&mut self, log_pages: i32) {
        if log_pages < self.warn_pages {
            return;
        }
        self.warn_pages = log_pages.saturating_mul(2);
        let mebibytes = (i64::from(log_pages) * i64::from(file::PAGE_BYTES)) >> 20;
        tracing::warn!(
            mebibytes,
            "the write-ahead log cannot restart: a reader of the database (a backup, a sqlite3 shell) keeps a transaction \
             open; end it to free the space"
        );
    }
}

/// Restarts the log, before the first call of this process is durable. What an earlier process could not sync may be in the
/// page cache of the system and not on disk; this writes it to the database and syncs it again.
pub(super) fn restart_log(connection: &Connection) {
    let restarted = waiting_at_most(RESTART_LIMIT, || checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)"));
    match restarted {
        Ok(progress) if progress.is_complete() => {}
        Ok(_) => tracing::debug!("the write-ahead log is in use; it is not restarted"),
        Err(error) => tracing::debug!(%error, "cannot restart the write-ahead log; it continues"),
    }
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_FSYNC)
}

fn checkpoint(connection: &Connection, sql: &str) -> rusqlite::Result<Progress> {
    connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok(Progress { is_busy: row.get(0)?, log_pages: row.get(1)?, copied_pages: row.get(2)? }))
}
