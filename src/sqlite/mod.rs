//! The one file of the local backend, `<data_dir>/imgcls.sqlite3`: queues and small objects of all processes of this
//! machine.
//!
//! In each process one thread (`engine`) writes it and groups what waits into transactions, one more (`bells`) hears
//! when another process has news, and a third (`checkpoint`) copies the write-ahead log into the file. `file` says how
//! that is made, opened and laid out. What is done in it is said by who uses it: `queue/sqlite` and `store/sqlite`.

mod bells;
mod checkpoint;
mod engine;
mod file;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use self::checkpoint::Checkpointer;
pub use bells::{Baton, Bells, RECHECK};
pub use engine::{Calls, Durability, Engine, Failure, Look, Session, now_ms};
pub use file::{FILE_NAME, fault, make_directory};
pub use reader::{Reader, Snapshot};

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
    /// Before the checkpointer: its thread ends with the connection of this one.
    pub engine: Engine,
    pub bells: Arc<Bells>,
    _checkpointer: Checkpointer,
}

/// What is open: queues and stores of one data directory share the thread, and so transactions and their syncs.
static OPEN: Mutex<Vec<(PathBuf, Weak<Database>)>> = Mutex::new(Vec::new());

/// Opens, or makes, the file under `data_dir`; what this process has open already is shared.
///
/// # Errors
/// [`Fault::Fatal`] where the directory or file cannot be used; it says what to do.
pub fn open(data_dir: &Path) -> Result<Arc<Database>, Fault> {
    file::make_directory(data_dir)?;
    let key = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    // Held while opening: two that open at once get one.
    let mut open = lock(&OPEN);
    open.retain(|(_, database)| database.strong_count() > 0);
    if let Some(database) = open.iter().find_map(|(path, database)| database.upgrade().filter(|_| *path == key)) {
        return Ok(database);
    }
    let mut connection = file::open(data_dir)?;
    let log = file::open_log(data_dir)?;
    let bells = Arc::new(Bells::open(data_dir)?);
    // What may fail comes before: dropped, the checkpointer waits for the end of the connection, which the engine owns.
    let checkpointer = Checkpointer::start(&mut connection, file::open(data_dir)?)?;
    let engine = Engine::start(connection, log, Arc::clone(&bells))?;
    let database = Arc::new(Database { engine, bells, _checkpointer: checkpointer });
    open.push((key, Arc::downgrade(&database)));
    Ok(database)
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
