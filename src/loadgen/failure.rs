//! Why a request failed, as the report groups and counts it.

use std::fmt;
use std::io;

use serde::Deserialize;

/// How much of an answer's text is shown where it explains a failure.
const SHOWN_CHARS: usize = 160;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// What the server or the system said about it, made safe to print.
    pub said: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Refused,
    Unreachable,
    Reset,
    /// Closed by the server in the middle of an answer, or twice before one.
    Closed,
    /// Not HTTP, or another fault of the connection.
    Broken,
    TimedOut,
    Status(u16),
    /// The job ended, but not well: its error code, or its status where no code was told.
    Job(String),
    /// Neither a result nor the state of a job.
    Unreadable,
    /// The picture's file could not be read when its turn came.
    PictureGone,
}

impl Reason {
    /// Whether no connection could be made: the next attempt would most likely end the same way.
    pub fn is_connect(&self) -> bool {
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
            Reason::PictureGone => write!(f, "picture cannot be read"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.said {
            Some(said) => write!(f, "{}: {said}", self.reason),
            None => write!(f, "{}", self.reason),
        }
    }
}

impl Failure {
    pub fn new(reason: Reason) -> Self {
        Failure { reason, said: None }
    }

    /// No connection was made.
    pub fn connect(error: &io::Error) -> Self {
        let reason =
            if error.kind() == io::ErrorKind::ConnectionRefused { Reason::Refused } else { Reason::Unreachable };
        Failure { said: (reason == Reason::Unreachable).then(|| printable(&error.to_string())), reason }
    }

    /// A connection was made and failed.
    pub fn connection(error: &hyper::Error) -> Self {
        let reason = match io_kind(error) {
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Reason::Reset,
            Some(io::ErrorKind::UnexpectedEof) => Reason::Closed,
            _ if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => Reason::Closed,
            _ => Reason::Broken,
        };
        Failure { said: (reason == Reason::Broken).then(|| printable(&error.to_string())), reason }
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

/// What a refusal says: the detail or title of problem+json, else the beginning of the text.
pub fn said(body: &[u8]) -> Option<String> {
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

/// Text from outside in one line without control characters, so that it cannot drive the terminal.
pub fn printable(text: &str) -> String {
    let clean: String = text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() { clean + "…" } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refusal_says_is_short_and_cannot_drive_the_terminal() {
        assert_eq!(said(br#"{"title":"too big","status":413}"#).as_deref(), Some("too big"));
        assert_eq!(said(b" \n"), None);
        assert_eq!(said(b"a\x1b[2Jb\nc").as_deref(), Some("a\u{fffd}[2Jb\u{fffd}c"));
        assert_eq!(said("ü".repeat(1000).as_bytes()).map(|text| text.chars().count()), Some(SHOWN_CHARS + 1));
    }
}
