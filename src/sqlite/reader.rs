//! A separate connection for reads of many rows, which would keep the writer thread busy for too long. A read sees one
//! snapshot and delays no writer. While it lasts, the write-ahead log cannot restart.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::fault::Fault;
use super::file;

/// A connection for long reads.
pub struct Reader {
    connection: Connection,
}

/// The database as it was at one moment.
pub struct Snapshot<'a> {
    /// The connection, in the transaction of the snapshot.
    pub connection: &'a Connection,
}

impl Reader {
    /// Opens the connection.
    ///
    /// # Errors
    /// [`Fault::Fatal`] if the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path) -> Result<Reader, Fault> {
        Ok(Reader { connection: file::open(data_dir)? })
    }

    /// Calls `read` with a snapshot.
    ///
    /// # Errors
    /// The fault of the database.
    pub fn read<T>(&mut self, read: impl FnOnce(&Snapshot) -> rusqlite::Result<T>) -> Result<T, Fault> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Deferred);
        let result = transaction.and_then(|transaction| {
            let answer = read(&Snapshot { connection: &transaction })?;
            transaction.commit()?;
            Ok(answer)
        });
        result.map_err(|error| Fault::of(&error))
    }
}
