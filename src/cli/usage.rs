//! Wrong usage that no parser of a single value can detect.

/// Flags that contradict each other, or a flag that is missing. [`UsageError::exit`] reports it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    /// The command whose usage is printed.
    pub(super) command: &'static str,
    pub(super) message: String,
}

/// The error for `command`, ready to be returned.
pub(super) fn usage(command: &'static str, message: impl Into<String>) -> anyhow::Error {
    UsageError { command, message: message.into() }.into()
}
