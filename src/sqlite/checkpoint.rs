//! Copies the write-ahead log into the file beside the work. SQLite by itself does that inside some commit, which then
//! lasts until megabytes are synced, and all who wait for the file with it.
//!
//! Each process has one thread for it, told by its commits how long the log has become. A copy runs while others write,
//! so the log starts again from its beginning only when a commit comes after a copy that had caught up; where commits
//! follow each other too closely for that, the thread holds them up once for the little that is left.

use std::sync::mpsc::{self, Receiver, TrySendError};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::{Fault, file};

/// Pages that the log grows by from one copy to the next (1 MiB): little enough that a sync of the log, behind the copy
/// on the same disk, is not held up for long, and that what is copied is still in the processor's cache.
const STEP_PAGES: i32 = (1 << 20) / file::PAGE_BYTES;
/// At this length (8 MiB) the log has to start again.
const RESTART_PAGES: i32 = (8 << 20) / file::PAGE_BYTES;

pub(super) struct Checkpointer {
    thread: Option<JoinHandle<()>>,
}

/// How far a copy came.
struct Progress {
    log_pages: i32,
    copied_pages: i32,
}

impl Checkpointer {
    /// `commits`: the connection whose commits tell; dropping it ends the thread. `copies`: another one on the same file.
    pub fn start(commits: &mut Connection, copies: Connection) -> Result<Checkpointer, Fault> {
        let (wake, woken) = mpsc::sync_channel(1);
        let mut told = 0;
        commits
            .wal_hook(Some(move |_: &mut _, pages| {
                // Shorter than before: it has started again.
                told = if pages < told { 0 } else { told };
                if pages - told >= STEP_PAGES {
                    told = pages;
                    match wake.try_send(()) {
                        // It is awake, or has ended with an error in the log; the next step tells it again.
                        Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
                    }
                }
                Ok(())
            }))
            .map_err(|error| file::fault(&error))?;
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&copies, &woken))
            .map_err(|error| file::thread_error(&error))?;
        Ok(Checkpointer { thread: Some(thread) })
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that copies the write-ahead log panicked; this is a bug");
        }
    }
}

fn run(connection: &Connection, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        if let Err(error) = copy(connection) {
            // Another process copies right now, or the disk is full; commits go on, and the next step tries again.
            tracing::debug!(%error, "the write-ahead log is not copied");
        }
    }
}

fn copy(connection: &Connection) -> rusqlite::Result<()> {
    let before = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
    if before.log_pages - before.copied_pages < STEP_PAGES {
        // Another process was first.
        return Ok(());
    }
    checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)")?;
    // That tells of the log as it was when the copy began; meanwhile it grew.
    let left = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)")?;
    if left.log_pages >= RESTART_PAGES && left.copied_pages < left.log_pages {
        checkpoint(connection, "PRAGMA wal_checkpoint(RESTART)")?;
    }
    Ok(())
}

fn checkpoint(connection: &Connection, sql: &str) -> rusqlite::Result<Progress> {
    connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok(Progress { log_pages: row.get(1)?, copied_pages: row.get(2)? }))
}
