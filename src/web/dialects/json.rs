//! JSON bodies of dialects: parsed into types that borrow from the body, so that no image is copied as text.
//!
//! Nesting is bounded by serde_json, which refuses more than 127 levels. Lists are bounded by [`Limited`]. A member that
//! is given twice, or that the type does not have, is an error that names it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::protocol::cut_filename;
use crate::web::budget::Reservation;
use crate::web::error::Problem;
use crate::web::upload::UploadRules;

/// Memory for the copies of strings with escapes, in multiples of the body.
const ESCAPED_COPIES: usize = 2;

/// Parses a body.
///
/// # Errors
/// 400 with the reason.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let reason = error.to_string();
        Problem::malformed(format!("the JSON of the body is not what this address takes: {}", cut_filename(&reason)))
    })
}

/// Reserves memory for parsing a body. A string with escapes, such as the `\/` that PHP writes, is copied.
///
/// # Errors
/// 503 when it is not available.
pub(super) fn reserve(body: &[u8], rules: &UploadRules) -> Result<Reservation, Problem> {
    let copies = if memchr::memchr(b'\\', body).is_some() { ESCAPED_COPIES } else { 0 };
    rules.reserve(copies * body.len())
}

/// A string that borrows from the body unless it has escapes.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A list of at most `MAX` items.
#[derive(Debug)]
pub(super) struct Limited<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for Limited<T, MAX> {
    fn default() -> Self {
        Limited(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Limited<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = Limited<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = sequence.next_element()? {
                    if items.len() == MAX {
                        return Err(de::Error::invalid_length(MAX + 1, &self));
                    }
                    items.push(item);
                }
                Ok(Limited(items))
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// An image in base64: as `"…"`, as `{"b64": "…"}`, or as the one member of an object that names its input.
#[derive(Debug)]
pub(super) struct Base64Image<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Base64Image<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ImageVisitor)
    }
}

struct ImageVisitor;

impl<'de> Visitor<'de> for ImageVisitor {
    type Value = Base64Image<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image in base64, as {\"b64\": \"...\"}")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Base64Image(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Base64Image(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((name, image)) = map.next_entry::<Text<'de>, Base64Image<'de>>()? else {
            return Err(de::Error::custom("an object without members is no image; send {\"b64\": \"...\"}"));
        };
        match map.next_key::<Text<'de>>()? {
            None => Ok(image),
            Some(other) => Err(de::Error::custom(format!(
                "an image is an object with one member, and this one has {:?} and {:?}",
                cut_filename(&name.0),
                cut_filename(&other.0)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_text_or_the_only_member_of_objects() {
        for (body, expected) in [
            (r#""abc""#, Some("abc")),
            (r#"{"b64": "abc"}"#, Some("abc")),
            (r#"{"image": {"b64": "a\/c"}}"#, Some("a/c")),
            ("{}", None),
            (r#"{"b64": "a", "b64": "b"}"#, None),
            ("[0.5]", None),
            ("null", None),
        ] {
            let parsed = parse::<Base64Image<'_>>(body.as_bytes()).ok();
            assert_eq!(parsed.map(|image| image.0.into_owned()).as_deref(), expected, "{body}");
        }
        let nested = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        let problem = parse::<Base64Image<'_>>(nested.as_bytes()).unwrap_err();
        assert!(problem.detail.contains("recursion limit"), "{problem}");
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(parse::<Limited<u8, 2>>(b"[1, 2]").unwrap().0, [1, 2]);
        assert!(parse::<Limited<u8, 2>>(b"[1, 2, 3]").unwrap_err().detail.contains("at most 2 items"));
    }
}
