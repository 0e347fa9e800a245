//! The database of the local backend, `<data_dir>/imgcls.sqlite3`: queues and small objects of all processes of this
//! machine. `transport/local` has the calls that use it.
//!
//! - `engine` takes calls, `writer` is the one thread of a process that writes, and `sync` makes its commits durable.
//! - `reader` serves reads that take long.
//! - `notifier` wakes waiters in other processes.
//! - `upkeep` is a second thread: it copies the write-ahead log into the database (`checkpoint`), keeps the clock of the data
//!   directory (`anchor`) and checks that the files are still there (`health`).
//! - `file` opens a connection, `schema` creates and migrates the tables, `busy` waits for locks of other processes.

mod anchor;
mod busy;
mod call;
mod checkpoint;
mod engine;
mod fault;
mod file;
mod health;
mod notifier;
mod reader;
mod schema;
mod session;
mod sync;
mod thread;
mod upkeep;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use self::health::Health;
use self::thread::lock;
use crate::clock::{self, ServiceClock, Source, SystemSource};
pub use engine::{Calls, Engine};
pub use fault::Fault;
pub use file::{FILE_NAME, make_directory, make_private};
pub use health::is_deleted;
pub use notifier::{Notifier, RECHECK, Subscription, WakeToken};
pub use reader::{Reader, Snapshot};
pub use session::{Durability, Failure, ReadPhase, Session};
pub use upkeep::{Chore, Upkeep};

/// The database of one data directory, as this process has it open.
pub struct Database {
    /// Takes calls.
    pub engine: Engine,
    /// Wakes waiters in this process and in others.
    pub notifier: Arc<Notifier>,
    /// Runs chores beside the calls.
    pub upkeep: Upkeep,
    /// The clock of the data directory.
    pub clock: Arc<ServiceClock>,
    health: Arc<Health>,
}

impl Database {
    /// Resolves to the reason once this process cannot go on with the database and has to end.
    pub async fn failure(&self) -> String {
        self.health.failure().await
    }

    /// Refuses all calls from now on, since it is not certain that what this process wrote is on disk.
    pub fn fail(&self, reason: &str) -> Fault {
        self.health.fail(reason)
    }

    /// Also watches a directory beside the database: calls are refused while it is missing or replaced by another one.
    pub fn watch(&self, directory: &Path) {
        self.health.watch(directory);
    }
}

/// The open databases: queues and stores of one data directory share the thread, and so transactions and their syncs.
static OPEN: Mutex<Vec<(PathBuf, Weak<Database>)>> = Mutex::new(Vec::new());

/// Opens the database in `data_dir`, and creates it if it is missing. A database that this process has open is shared. The
/// clock of the data directory becomes the clock of this process.
///
/// # Errors
/// [`Fault::Fatal`] if the directory or the file cannot be used; it says what to do.
pub fn open(data_dir: &Path) -> Result<Arc<Database>, Fault> {
    let database = open_with(data_dir, Arc::new(SystemSource))?;
    clock::use_for_process(&database.clock);
    Ok(database)
}

/// Opens the database with another clock than the machine's, which the clock of this process does not follow. For tests.
///
/// # Errors
/// As for [`open`].
pub fn open_with(data_dir: &Path, source: Arc<dyn Source>) -> Result<Arc<Database>, Fault> {
    file::prepare(data_dir)?;
    let key = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    // Held until the database is open, so that two callers that open it at once share it.
    let mut open = lock(&OPEN);
    open.retain(|(_, database)| database.strong_count() > 0);
    if let Some(database) = open.iter().find_map(|(path, database)| database.upgrade().filter(|_| *path == key)) {
        return Ok(database);
    }
    let mut connection = file::open(data_dir)?;
    let log = file::open_log(data_dir)?;
    let health = Arc::new(Health::of(data_dir)?);
    checkpoint::restart_log(&connection);
    let clock = anchor::open(&mut connection, source).map_err(|error| Fault::of(&error))?;
    let clock = Arc::new(clock);
    let notifier = Arc::new(Notifier::open(data_dir)?);
    let own = file::open(data_dir)?;
    let upkeep = Upkeep::start(&mut connection, own, Arc::clone(&clock), Arc::clone(&health))?;
    let engine = Engine::start(connection, log, Arc::clone(&notifier), Arc::clone(&clock), Arc::clone(&health))?;
    let database = Arc::new(Database { engine, notifier, upkeep, clock, health });
    open.push((key, Arc::downgrade(&database)));
    Ok(database)
}

/// Opens a separate connection, as another process would have it.
#[cfg(test)]
pub fn open_connection(data_dir: &Path) -> Result<rusqlite::Connection, Fault> {
    file::open(data_dir)
}

/// A duration as the database stores it.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
