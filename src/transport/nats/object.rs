//! Objects in streams: which stream of its bucket keeps an object for how long, and what its message says.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use crate::keys::journal::KEYS_FOLDER;
use crate::protocol::MODELS_FOLDER;

const DAY_SECONDS: u64 = 24 * 3600;
/// The same defaults as on AWS.
const KEEP_IMAGES: Duration = Duration::from_secs(7 * DAY_SECONDS);
const KEEP_RESULTS: Duration = Duration::from_secs(30 * DAY_SECONDS);
/// Size, checksum, and for a larger object the folder and number of its pieces.
pub(super) const ABOUT: &str = "Imgcls-Object";

/// The streams of a bucket, which keep their objects for different times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shelf {
    Images,
    Results,
    Kept,
}

impl Shelf {
    pub(super) const ALL: [Shelf; 3] = [Shelf::Images, Shelf::Results, Shelf::Kept];

    pub(super) fn of(key: &str) -> Shelf {
        if key.starts_with("images/") {
            Shelf::Images
        } else if key.starts_with(KEYS_FOLDER) || key.starts_with(MODELS_FOLDER) {
            Shelf::Kept
        } else {
            Shelf::Results
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Shelf::Images => "images",
            Shelf::Results => "results",
            Shelf::Kept => "kept",
        }
    }

    /// How long objects are kept; zero is for ever.
    pub(super) fn keep(self) -> Duration {
        match self {
            Shelf::Images => KEEP_IMAGES,
            Shelf::Results => KEEP_RESULTS,
            Shelf::Kept => Duration::ZERO,
        }
    }
}

/// The message of an object.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub sequence: u64,
    pub modified: SystemTime,
    pub size_bytes: u64,
    /// `None` if another program wrote the object.
    pub crc32: Option<u32>,
    pub pieces: Option<Pieces>,
    /// Empty if there are pieces.
    pub body: Bytes,
}

/// The pieces of a larger object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pieces {
    pub folder: String,
    pub count: u64,
}

pub(super) fn body_of(message: &Value) -> Option<Bytes> {
    let text = message["data"].as_str().unwrap_or_default();
    STANDARD.decode(text).ok().map(Bytes::from)
}

pub(super) fn record_of(message: &Value) -> Option<Record> {
    let body = body_of(message)?;
    let at: Timestamp = message["time"].as_str()?.parse().ok()?;
    let mut record = Record {
        sequence: message["seq"].as_u64()?,
        modified: SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(at.as_millisecond()).ok()?),
        size_bytes: body.len() as u64,
        crc32: None,
        pieces: None,
        body,
    };
    let headers = STANDARD.decode(message["hdrs"].as_str().unwrap_or_default()).ok()?;
    let headers = String::from_utf8(headers).ok()?;
    let about = headers.lines().find_map(|line| line.strip_prefix(ABOUT)?.strip_prefix(':'));
    let Some(about) = about else { return Some(record) };
    let mut words = about.split_ascii_whitespace();
    record.size_bytes = words.next()?.parse().ok()?;
    record.crc32 = Some(u32::from_str_radix(words.next()?, 16).ok()?);
    if let Some(folder) = words.next() {
        record.pieces = Some(Pieces { folder: folder.to_owned(), count: words.next()?.parse().ok()? });
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(header: &str, data: &str) -> Value {
        let headers = STANDARD.encode(format!("NATS/1.0\r\n{header}\r\n\r\n"));
        json!({"seq": 4, "time": "2026-01-01T00:00:00.5Z", "hdrs": headers, "data": STANDARD.encode(data)})
    }

    #[test]
    fn messages_of_objects_say_where_the_bytes_are() {
        let small = record_of(&message("Imgcls-Object: 3 0a0b0c0d", "abc")).expect("a record");
        assert_eq!((small.sequence, small.size_bytes, small.crc32, small.pieces), (4, 3, Some(0x0a0b_0c0d), None));
        let large = record_of(&message("Imgcls-Object: 900000 00000001 abcd 4", "")).expect("a record");
        assert_eq!(large.pieces, Some(Pieces { folder: "abcd".to_owned(), count: 4 }));
        assert_eq!(large.size_bytes, 900_000);
        let foreign = record_of(&message("KV-Operation: PUT", "abcd")).expect("a value of `nats kv put`");
        assert_eq!((foreign.size_bytes, foreign.crc32), (4, None));
        for broken in ["Imgcls-Object: x", "Imgcls-Object: 1", "Imgcls-Object: 1 00 folder"] {
            assert!(record_of(&message(broken, "a")).is_none(), "{broken}");
        }
    }

    #[test]
    fn documents_of_keys_and_models_never_expire() {
        assert!(Shelf::of("keys/newest").keep().is_zero() && Shelf::of("models/a/current").keep().is_zero());
        assert_eq!(Shelf::of("images/a").keep(), Duration::from_secs(7 * DAY_SECONDS));
        assert_eq!(Shelf::of("results/a.json").keep(), Duration::from_secs(30 * DAY_SECONDS));
    }
}
