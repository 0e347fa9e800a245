//! The elements of tensors, in JSON and in binary.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::call::MAX_IMAGES;

/// The elements of a tensor in JSON: one list, or lists in lists, of texts or numbers. Numbers that are no bytes are only
/// noted, so that the refusal can name the type of the tensor.
#[derive(Debug, Default)]
pub(super) struct Elements<'a> {
    pub(super) texts: Vec<Cow<'a, str>>,
    pub(super) bytes: Vec<u8>,
    pub(super) has_other: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut elements = Elements::default();
        deserializer.deserialize_seq(Level(&mut elements))?;
        Ok(elements)
    }
}

/// One level of lists, whose elements are added to all others.
struct Level<'a, 'de>(&'a mut Elements<'de>);

impl<'de> Visitor<'de> for Level<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of the elements of a tensor")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Element(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

/// One element, or a list of them.
struct Element<'a, 'de>(&'a mut Elements<'de>);

impl<'de> de::DeserializeSeed<'de> for Element<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Element<'_, 'de> {
    fn push_text<E: de::Error>(&mut self, text: Cow<'de, str>) -> Result<(), E> {
        if self.0.texts.len() == MAX_IMAGES {
            return Err(E::custom(format!("a request may have at most {MAX_IMAGES} images")));
        }
        self.0.texts.push(text);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Element<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an element of a tensor: a number, or an image in base64")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<(), E> {
        match u8::try_from(number) {
            Ok(byte) => self.0.bytes.push(byte),
            Err(_) => self.0.has_other = true,
        }
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.0.has_other = true;
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.0.has_other = true;
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.0.has_other = true;
        Ok(())
    }

    fn visit_borrowed_str<E: de::Error>(mut self, text: &'de str) -> Result<(), E> {
        self.push_text(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        self.push_text(Cow::Owned(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<(), A::Error> {
        Level(self.0).visit_seq(sequence)
    }
}

/// Splits a binary tensor of the type BYTES: each element follows its length, in four bytes, the lowest first. Returns
/// `None` if the lengths do not fit, or if there are more than `count` elements.
pub(super) fn split(mut data: Bytes, count: usize) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while !data.is_empty() {
        if data.len() < 4 || elements.len() == count {
            return None;
        }
        let head = data.split_to(4);
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > data.len() {
            return None;
        }
        elements.push(data.split_to(length));
    }
    (elements.len() == count).then_some(elements)
}

/// Appends an element of a binary tensor of the type BYTES.
pub(super) fn append(data: &mut Vec<u8>, element: &str) {
    data.extend_from_slice(&(element.len() as u32).to_le_bytes());
    data.extend_from_slice(element.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_lists_are_flattened() {
        let elements: Elements<'_> = serde_json::from_str(r"[[[1, 2], [255]], 0]").unwrap();
        assert_eq!((elements.bytes, elements.has_other), (vec![1, 2, 255, 0], false));
        let elements: Elements<'_> = serde_json::from_str(r#"["a", ["b\/c"]]"#).unwrap();
        assert_eq!(elements.texts, ["a", "b/c"]);
        for other in ["[0.5]", "[256]", "[-1]", "[true]"] {
            assert!(serde_json::from_str::<Elements<'_>>(other).unwrap().has_other, "{other}");
        }
        for wrong in ["1", "[null]", "[{}]", "{}", "\"a\""] {
            assert!(serde_json::from_str::<Elements<'_>>(wrong).is_err(), "{wrong}");
        }
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(serde_json::from_str::<Elements<'_>>(&nested).is_err());
    }

    #[test]
    fn binary_elements_fit_their_lengths_exactly() {
        let mut data = Vec::new();
        append(&mut data, "ab");
        append(&mut data, "");
        let data = Bytes::from(data);
        assert_eq!(split(data.clone(), 2).unwrap(), [Bytes::from("ab"), Bytes::new()]);
        assert_eq!((split(data.clone(), 1), split(data.clone(), 3)), (None, None));
        for end in 1..data.len() {
            assert!(end == 6 || split(data.slice(..end), 2).is_none(), "{end}");
        }
        assert_eq!(split(Bytes::from_static(&[255, 255, 255, 255, 1]), 1), None);
    }
}
