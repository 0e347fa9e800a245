//! A connection for reads that take longer than the thread of the file can be kept from its work: walks through many
//! rows. A read of it sees one snapshot, and delays no writer; while it lasts, the write-ahead log cannot start again.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{Fault, file};

pub struct Reader {
    connection: Connection,
}

/// The file as it was at one moment.
pub struct Snapshot<'a> {
    pub connection: &'a Connection,
}

impl Reader {
    /// # Errors
    /// [`Fault::Fatal`] where the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path) -> Result<Reader, Fault> {
        Ok(Reader { connection: file::open(data_dir)? })
    }

    /// Whatever `work` reads is of one moment.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read<T>(&mut self, work: impl FnOnce(&Snapshot) -> rusqlite::Result<T>) -> Result<T, Fault> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Deferred);
        let read = transaction.and_then(|transaction| {
            let answer = work(&Snapshot { connection: &transaction })?;
            transaction.commit()?;
            Ok(answer)
        });
        read.map_err(|error| file::fault(&error))
    }
}
