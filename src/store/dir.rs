//! The local store: a directory.
pub struct DirStore;
