//! Why a request failed, as the report groups and counts failures.

use std::fmt;
use std::io;

use serde::Deserialize;

/// Maximum length of the text of an answer that is shown to explain a failure.
const MAX_SHOWN_CHARS: usize = 160;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub reason: Reason,
    /// The explanation of the server or the system, safe to print.
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    Refused,
    Unreachable,
    Reset,
    /// The server closed the connection in the middle of an answer, or twice before one.
    Closed,
    /// The answer was not HTTP, or the connection failed in another way.
    Broken,
    TimedOut,
    Status(u16),
    /// The job failed or expired: its error code, or its status if there is no code.
    Job(String),
    /// The answer is neither a result nor the state of a job.
    Unreadable,
    /// The file of the image could not be read when it was to be sent.
    ImageUnreadable,
}

impl Reason {
    /// Returns true if no connection could be made, so that the next attempt would most likely fail too.
    pub(super) fn is_connect(&self) -> bool {
        matches!(self, Reason::Refused | Reason::Unreachable)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Refused => write!(f, "connection refused"),
            Reason::Unreachable => write!(f, "cannot connect"),
            Reason::Reset => write!(f, "connection reset"),
            Reason::Closed => write!(f, "connection closed before the answer was complete"),
            Reason::Broken => write!(f, "broken connection"),
            Reason::TimedOut => write!(f, "timed out"),
            Reason::Status(status) => write!(f, "status {status}"),
            Reason::Job(code) => write!(f, "job failed: {code}"),
            Reason::Unreadable => write!(f, "unreadable answer"),
            Reason::ImageUnreadable => write!(f, "image cannot be read"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.reason),
            None => write!(f, "{}", self.reason),
        }
    }
}

impl Failure {
    pub(super) fn new(reason: Reason) -> Self {
        Failure { reason, detail: None }
    }

    /// A failure to connect.
    pub(super) fn connect(error: &io::Error) -> Self {
        let reason =
            if error.kind() == io::ErrorKind::ConnectionRefused { Reason::Refused } else { Reason::Unreachable };
        Failure { detail: (reason == Reason::Unreachable).then(|| printable(&error.to_string())), reason }
    }

    /// A failure of an established connection.
    pub(super) fn connection(error: &hyper::Error) -> Self {
        let reason = match io_kind(error) {
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Reason::Reset,
            Some(io::ErrorKind::UnexpectedEof) => Reason::Closed,
            _ if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => Reason::Closed,
            _ => Reason::Broken,
        };
        Failure { detail: (reason == Reason::Broken).then(|| printable(&error.to_string())), reason }
    }
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        source = error.source();
    }
    None
}

/// The explanation in a refusal: the detail or title of problem+json, otherwise the start of the text.
pub(super) fn detail_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        title: Option<String>,
        #[serde(default)]
        detail: Option<String>,
    }
    let text = match serde_json::from_slice(body) {
        Ok(Problem { detail: Some(text), .. } | Problem { title: Some(text), .. }) => text,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let text = printable(text.trim());
    (!text.is_empty()).then_some(text)
}

/// Text from outside on one line without control characters, so that it cannot control the terminal.
pub(super) fn printable(text: &str) -> String {
    let clean: String =
        text.chars().take(MAX_SHOWN_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() { clean + "…" } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanation_is_short_and_has_no_control_characters() {
        assert_eq!(detail_of(br#"{"title":"too big","status":413}"#).as_deref(), Some("too big"));
        assert_eq!(detail_of(b" \n"), None);
        assert_eq!(detail_of(b"a\x1b[2Jb\nc").as_deref(), Some("a\u{fffd}[2Jb\u{fffd}c"));
        assert_eq!(detail_of("ü".repeat(1000).as_bytes()).map(|text| text.chars().count()), Some(MAX_SHOWN_CHARS + 1));
    }
}
