//! Copies the write-ahead log into the file beside the work. SQLite by itself does that inside some commit, which then
//! lasts until megabytes are synced, and all who wait for the file with it.
//!
//! A copy runs while others write, so the log starts again from its beginning only when a commit comes after a copy that
//! had caught up. Where commits follow each other too closely for that, they are held up once for the little that is left.
//!
//! A reader with an open transaction (a backup, a `sqlite3` shell) keeps what it may still read in the log. Nobody waits
//! for it: the log grows meanwhile, and starts again once the reader is gone.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::file;

/// Pages that the log grows by from one copy to the next (1 MiB): little enough that a sync of the log, behind the copy
/// on the same disk, is not held up for long, and that what is copied is still in the processor's cache.
pub(super) const STEP_PAGES: i32 = (1 << 20) / file::PAGE_BYTES;
/// At this length (8 MiB) the log has to start again.
const RESTART_PAGES: i32 = (8 << 20) / file::PAGE_BYTES;
/// At this length (256 MiB), and again whenever it has doubled, somebody is told.
const WARN_PAGES: i32 = (256 << 20) / file::PAGE_BYTES;
/// How long a restart of the log may hold up writers while it waits for readers.
const RESTART_LIMIT: Duration = Duration::from_millis(50);
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// When the log is tried to be restarted next, and what was said about its length.
pub(super) struct Checkpointer {
    backoff: Duration,
    retry_at: Option<Instant>,
    warn_pages: i32,
}

/// How far a copy came.
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
    pub fn new() -> Checkpointer {
        Checkpointer { backoff: FIRST_BACKOFF, retry_at: None, warn_pages: WARN_PAGES }
    }

    /// When [`Checkpointer::run`] wants to be called although the log has not grown.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Called when the log has grown by [`STEP_PAGES`], or a retry is due.
    ///
    /// # Errors
    /// The database could not be synced: pages that were copied may be lost, and the next copy would not write them again.
    pub fn run(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let copied = self.copy(connection);
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.postpone();
        }
        match copied {
            Err(error) if is_failed_sync(&error) => Err(error),
            // Another process copies right now, or the disk is full; commits go on, and the next step tries again.
            Err(error) => {
                tracing::debug!(%error, "the write-ahead log is not copied");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn copy(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let is_retry = self.retry_at.is_some_and(|at| Instant::now() >= at);
        let before = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        if before.log_pages - before.copied_pages < STEP_PAGES && !is_retry {
            // Another process was first.
            return Ok(());
        }
        let copied = checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
        // That tells of the log as it was when the copy began; meanwhile it grew.
        let left = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
        self.tell(left.log_pages);
        if left.log_pages < RESTART_PAGES {
            self.has_restarted();
        } else if left.copied_pages >= left.log_pages {
            // The next commit restarts it; where a reader is in the way, its next step comes here again.
            self.retry_at = None;
        } else if self.retry_at.is_none_or(|at| Instant::now() >= at) {
            self.restart(connection, copied)?;
        }
        Ok(())
    }

    /// `copied`: of the copy before. One that stopped short tells of a reader that is not to be waited for.
    fn restart(&mut self, connection: &Connection, copied: Progress) -> rusqlite::Result<()> {
        if copied.is_complete() {
            let restarted =
                file::waiting_at_most(RESTART_LIMIT, || checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)"))?;
            if restarted.is_complete() {
                self.has_restarted();
                return Ok(());
            }
        }
        self.postpone();
        Ok(())
    }

    fn postpone(&mut self) {
        self.retry_at = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    fn has_restarted(&mut self) {
        self.retry_at = None;
        self.backoff = FIRST_BACKOFF;
        if self.warn_pages > WARN_PAGES {
            self.warn_pages = WARN_PAGES;
            tracing::info!("the write-ahead log starts again from its beginning");
        }
    }

    fn tell(&mut self, log_pages: i32) {
        if log_pages < self.warn_pages {
            return;
        }
        self.warn_pages = log_pages.saturating_mul(2);
        let mebibytes = (i64::from(log_pages) * i64::from(file::PAGE_BYTES)) >> 20;
        tracing::warn!(
            mebibytes,
            "the write-ahead log cannot start again: a reader of the database (a backup, a sqlite3 shell) keeps a \
             transaction open; end it to get the space back"
        );
    }
}

/// Once, before anything is called durable: what an earlier process could not sync may be in the memory of the system and
/// not on the disk. It is written to the file and synced again, and the log is restarted.
pub(super) fn restart_log(connection: &Connection) {
    let restarted = file::waiting_at_most(RESTART_LIMIT, || checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)"));
    match restarted {
        Ok(progress) if progress.is_complete() => {}
        Ok(_) => tracing::debug!("the write-ahead log is in use and goes on where it is"),
        Err(error) => tracing::debug!(%error, "the write-ahead log goes on where it is"),
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
