//! The types that the callers of the database share with the thread that serves them.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection;

use crate::clock::ServiceClock;

/// When a call is answered, and whether a power loss may undo its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// A power loss may undo it, and nothing waits for it: the call shares the transaction of a later call, or its own
    /// after the flush delay. For acknowledgements.
    Deferred,
    /// A power loss may undo it. For receives, extensions and acknowledgements, whose loss means one more delivery.
    Normal,
    /// It is on disk before the caller is answered, which may take this much longer, so that several calls can share one
    /// fsync.
    FullWithin(Duration),
}

impl Durability {
    /// It is on disk before the caller is answered, as soon as possible.
    pub const FULL: Durability = Durability::FullWithin(Duration::ZERO);
}

/// The view that a call has of the database.
pub struct Session<'a> {
    /// The connection, in the snapshot or the transaction of the call.
    pub connection: &'a Connection,
    /// The service time. It is read under the write lock, so that it never runs backwards from one transaction to the next.
    pub now_ms: i64,
    /// Queues to notify after the commit.
    pub notify: BTreeSet<String>,
    /// Queues that the transaction removes.
    pub removed: BTreeSet<String>,
    /// True once the transaction is committed.
    pub committed: Arc<AtomicBool>,
    /// Files that are synced together with the log.
    pub(super) unsynced: Vec<Arc<File>>,
}

impl Session<'_> {
    /// Has this file synced before the calls of this transaction that must be durable are answered.
    pub fn sync(&mut self, file: &Arc<File>) {
        self.unsynced.push(Arc::clone(file));
    }

    pub(super) fn new<'a>(connection: &'a Connection, clock: &ServiceClock) -> Session<'a> {
        Session::at(connection, clock.now_ms())
    }

    /// A session at a service time of the caller's choice.
    pub fn at(connection: &Connection, now_ms: i64) -> Session<'_> {
        Session {
            connection,
            now_ms,
            notify: BTreeSet::new(),
            removed: BTreeSet::new(),
            committed: Arc::new(AtomicBool::new(false)),
            unsynced: Vec::new(),
        }
    }
}

/// Why a phase of a call failed.
pub enum Failure<E> {
    /// For a reason of its own, which it found before it wrote anything. The other calls of the transaction succeed.
    Call(E),
    /// In the database. The whole transaction fails.
    Sql(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for Failure<E> {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sql(error)
    }
}

/// How the read phase of a call ended.
pub enum ReadPhase<T> {
    /// The call is complete and needs no write lock.
    Answer(T),
    /// The call needs its write phase.
    Write,
}

/// Runs a statement without parameters. It is parsed once per connection: parsing `BEGIN` and `COMMIT` would take as long
/// as the work of a small transaction.
pub(super) fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}
