//! One image of a pile and its outcome.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{ModelRef, Prediction};
use crate::protocol::ErrorInfo;

/// The outcome of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Names the image within the pile. No two images of a pile have the same.
    pub path: PathText,
    /// The file on disk, for links and sidecars. `None` if the image is a part of an archive or comes from elsewhere.
    pub file: Option<PathBuf>,
    /// The classes, or why there are none.
    pub outcome: Result<Classified, ErrorInfo>,
}

/// The classes and the facts of a classified image.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// The best classes, the best first, as many as were requested.
    pub predictions: Vec<Prediction>,
    /// The classes at or above their thresholds if the model gives an image several labels, otherwise empty.
    pub labels: Vec<Prediction>,
    /// Width in pixels of the upright image.
    pub width: u32,
    /// Height in pixels of the upright image.
    pub height: u32,
    /// When the photograph was taken, as `model::datetime_original` returns it.
    pub datetime_original: Option<String>,
    /// The model that classified the image.
    pub model: ModelRef,
}

/// The path of an image as text. Each path has a text of its own, and [`PathText::to_bytes`] returns the path.
///
/// A path in UTF-8 is its own text. A byte that is not part of UTF-8 is written as `\x` and two hexadecimal digits. Where
/// a path itself contains a backslash, an `x` and two hexadecimal digits, its backslash is written as `\x5c`, so that no
/// two paths have the same text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathText(String);

impl PathText {
    /// The text of a path.
    pub fn new(path: &Path) -> PathText {
        PathText::from_bytes(path.as_os_str().as_encoded_bytes())
    }

    /// The text of a name in an archive or of a key, whose encoding is not known.
    pub fn from_bytes(bytes: &[u8]) -> PathText {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            let valid = chunk.valid();
            for (at, character) in valid.char_indices() {
                if character == '\\' && escaped_byte(&valid.as_bytes()[at..]).is_some() {
                    text.push_str("\\x5c");
                } else {
                    text.push(character);
                }
            }
            text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
        PathText(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes of the path.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut rest = self.0.as_bytes();
        let mut bytes = Vec::with_capacity(rest.len());
        while let [first, after @ ..] = rest {
            match escaped_byte(rest) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &rest[4..];
                }
                None => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        bytes
    }
}

impl fmt::Display for PathText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The byte that `\xHH` at the beginning of this text means.
fn escaped_byte(text: &[u8]) -> Option<u8> {
    let &[b'\\', b'x', high, low, ..] = text else { return None };
    let value = |digit: u8| char::from(digit).to_digit(16);
    Some((value(high)? * 16 + value(low)?) as u8)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An image with these classes, the best first.
    pub(in super::super) fn classified(labels: &[&str]) -> Classified {
        let prediction = |(index, label): (u32, &&str)| Prediction {
            class_index: Some(index),
            label: (*label).to_owned(),
            score: Some(0.5 / (index + 1) as f32),
        };
        Classified {
            predictions: (0..).zip(labels).map(prediction).collect(),
            labels: Vec::new(),
            width: 640,
            height: 480,
            datetime_original: None,
            model: ModelRef { name: "tiny".to_owned(), version: "1".to_owned(), digest: "sha256:00".to_owned() },
        }
    }

    #[test]
    fn path_text_is_the_path_unless_it_is_not_utf8() {
        for path in ["a/b.jpg", "ä ö/日本.png", "a\\b.jpg", "\\x", "\\xg1", "\\x4", "=1+1.jpg", "a\nb"] {
            assert_eq!(PathText::from_bytes(path.as_bytes()).as_str(), path);
        }
        assert_eq!(PathText::from_bytes(b"a/\xff\xc3.jpg").as_str(), "a/\\xff\\xc3.jpg");
        assert_eq!(PathText::from_bytes(b"a\\xff.jpg").as_str(), "a\\x5cxff.jpg");
    }

    #[test]
    fn no_two_paths_have_the_same_text() {
        let parts: [&[u8]; 9] = [b"\\", b"x", b"4", b"c", b"\xff", b"\xc3", b"\xa4", b"5", b"F"];
        let mut texts = std::collections::HashSet::new();
        let mut count = 0;
        for length in 0..=5u32 {
            for number in 0..parts.len().pow(length) {
                let path: Vec<u8> =
                    (0..length).flat_map(|at| parts[number / parts.len().pow(at) % parts.len()].to_vec()).collect();
                let text = PathText::from_bytes(&path);
                assert_eq!(text.to_bytes(), path, "{text}");
                texts.insert(text);
                count += 1;
            }
        }
        assert_eq!(texts.len(), count);
    }
}
