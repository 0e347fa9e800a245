//! The local queue: one SQLite file, many processes.
pub struct SqliteQueues;
