//! The error of a variable or a file.

/// A variable or a file gives a wrong value, or a file cannot be used: one line. It is an error of usage (exit code 2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub(super) String);
