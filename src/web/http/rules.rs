//! The limits that connections of both versions of HTTP share.

use std::time::Duration;

/// Largest request line with all headers. The HTTP library reads bodies in pieces of at most this size, too.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;

/// Timeouts of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServeRules {
    /// How long a client may take for its headers, and how long a connection may idle between requests.
    pub(crate) idle_timeout: Duration,
    /// How long a client may leave its answer unread.
    pub(crate) write_timeout: Duration,
}
