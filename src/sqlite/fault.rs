//! Why the database refused a call.

use rusqlite::ErrorCode;

/// Why an operation on the database failed, by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The operation may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The operation will fail again until an operator does what the message says.
    #[error("{0}")]
    Fatal(String),
}

impl Fault {
    /// The fault that an error of SQLite amounts to.
    pub fn of(error: &rusqlite::Error) -> Fault {
        let text = format!("the database of the local backend: {error}");
        match error.sqlite_error_code() {
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::CannotOpen,
            ) => Fault::Fatal(text),
            _ => Fault::Unavailable(text),
        }
    }
}
