//! The one file of the local backend, `<data_dir>/imgcls.sqlite3`: queues and small objects of all processes of this
//! machine.
//!
//! In each process one thread (`engine`) writes it and groups what waits into transactions, one more (`bells`) hears
//! when another process has news, and a third (`upkeep`) copies the write-ahead log into the file (`checkpoint`), keeps
//! its clock (`anchor`) and looks after the files (`health`). `file` says how it is made, opened and laid out. What is done
//! in it is said by who uses it: `queue/sqlite` and `store/sqlite`.

mod anchor;
mod checkpoint;
mod engine;
mod file;
mod health;
mod notifier;
mod reader;
mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use self::health::Health;
use crate::clock::{self, ServiceClock, Source, SystemSource};
pub use engine::{Calls, Durability, Engine, Failure, Look, Session};
pub use file::{FILE_NAME, fault, make_directory, make_private};
pub use health::is_deleted;
pub use notifier::{Notifier, RECHECK, WakeToken};
pub use reader::{Reader, Snapshot};
pub use upkeep::{Chore, Upkeep};

/// Why the file did not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Wait and try again.
    #[error("{0}")]
    Unavailable(String),
    /// Trying again will not help; it says what to do.
    #[error("{0}")]
    Fatal(String),
}

/// The file of one data directory, as this process has it open.
pub struct Database {
    pub engine: Engine,
    pub notifier: Arc<Notifier>,
    pub upkeep: Upkeep,
    pub clock: Arc<ServiceClock>,
    health: Arc<Health>,
}

impl Database {
    /// Resolves when this process cannot go on with the file and has to end; says why. Otherwise never.
    pub async fn failure(&self) -> String {
        self.health.failure().await
    }

    /// From here on no call is served: this process cannot tell what it wrote is on the disk.
    pub fn fail(&self, reason: &str) -> Fault {
        self.health.fail(reason)
    }

    /// Looks after a directory beside the file too: calls are refused while it is gone or another one.
    pub fn watch(&self, directory: &Path) {
        self.health.watch(directory);
    }
}

/// What is open: queues and stores of one data directory share the thread, and so transactions and their syncs.
static OPEN: Mutex<Vec<(PathBuf, Weak<Database>)>> = Mutex::new(Vec::new());

/// Opens, or makes, the file under `data_dir`; what this process has open already is shared. From here on the clock of this
/// process is that of the data directory.
///
/// # Errors
/// [`Fault::Fatal`] where the directory or file cannot be used; it says what to do.
pub fn open(data_dir: &Path) -> Result<Arc<Database>, Fault> {
    let database = open_with(data_dir, Arc::new(SystemSource))?;
    clock::use_for_process(&database.clock);
    Ok(database)
}

/// The same by another clock than the machine's, which the clock of this process does not follow: for tests.
///
/// # Errors
/// As [`open`].
pub fn open_with(data_dir: &Path, source: Arc<dyn Source>) -> Result<Arc<Database>, Fault> {
    file::prepare(data_dir)?;
    let key = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    // Held while opening: two that open at once get one.
    let mut open = lock(&OPEN);
    open.retain(|(_, database)| database.strong_count() > 0);
    if let Some(database) = open.iter().find_map(|(path, database)| database.upgrade().filter(|_| *path == key)) {
        return Ok(database);
    }
    let mut connection = file::open(data_dir)?;
    let log = file::open_log(data_dir)?;
    let health = Arc::new(Health::of(data_dir)?);
    checkpoint::restart_log(&connection);
    let clock = anchor::open(&mut connection, source).map_err(|error| file::fault(&error))?;
    let clock = Arc::new(clock);
    let notifier = Arc::new(Notifier::open(data_dir)?);
    let own = file::open(data_dir)?;
    let upkeep = Upkeep::start(&mut connection, own, Arc::clone(&clock), Arc::clone(&health))?;
    let engine = Engine::start(connection, log, Arc::clone(&notifier), Arc::clone(&clock), Arc::clone(&health))?;
    let database = Arc::new(Database { engine, notifier, upkeep, clock, health });
    open.push((key, Arc::downgrade(&database)));
    Ok(database)
}

/// A connection of its own, as another process would have.
#[cfg(test)]
pub fn open_connection(data_dir: &Path) -> Result<rusqlite::Connection, Fault> {
    file::open(data_dir)
}

/// How long the end of a process waits for a thread that may be stuck in a disk or behind another process's lock.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A thread that ends with its owner.
struct OwnedThread {
    name: &'static str,
    /// None only while dropping.
    handle: Option<JoinHandle<()>>,
    /// Its other end is dropped by the thread when it ends.
    ended: Mutex<Receiver<()>>,
}

impl OwnedThread {
    fn start(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<OwnedThread, Fault> {
        let (has_ended, ended) = mpsc::channel();
        let run = move || {
            run();
            drop(has_ended);
        };
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let handle = Some(handle.map_err(|error| file::thread_error(&error))?);
        Ok(OwnedThread { name, handle, ended: Mutex::new(ended) })
    }

    /// Waits for the end of a thread that was asked to end.
    fn join(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        if lock(&self.ended).recv_timeout(END_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(thread = self.name, "a thread of the local backend did not end in time and is left behind");
        } else if handle.join().is_err() {
            tracing::error!(thread = self.name, "a thread of the local backend panicked; this is a bug");
        }
    }
}

/// Nothing that runs under a lock of this room leaves its state half changed; a connection whose thread panicked in the
/// middle of a transaction is used no more.
fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As the file has durations.
pub fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
