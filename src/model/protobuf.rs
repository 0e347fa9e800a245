//! Protobuf messages as lists of fields. Nothing is lost between reading and writing, whatever the schema of the writer
//! was. Nested messages stay bytes until they are parsed, and no bytes are copied, so that reading a large file needs
//! little more memory than its bytes.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;

/// The number of fields of one message. More are not an ONNX graph, and would need much more memory than the file.
const MAX_FIELDS: usize = 4 << 20;

/// A message: its fields in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The fields, of which several may have the same number.
    pub fields: Vec<Field>,
}

/// One field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The number that the schema gives the field.
    pub number: u32,
    /// Its value.
    pub value: Value,
}

/// The value of a field, by its wire type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A whole number, a truth value or an enumeration.
    Varint(u64),
    /// Eight bytes, such as a double.
    Fixed64(u64),
    /// Four bytes, such as a float.
    Fixed32(u32),
    /// A string, bytes, a nested message or packed numbers.
    Bytes(Bytes),
}

impl Message {
    /// Parses the fields of a message, without its nested messages.
    ///
    /// # Errors
    /// If the bytes are not a protobuf message.
    pub fn parse(bytes: &Bytes) -> anyhow::Result<Message> {
        let mut reader = Reader { bytes, position: 0 };
        let mut fields = Vec::new();
        while reader.position < bytes.len() {
            ensure!(fields.len() < MAX_FIELDS, "a message has more than {MAX_FIELDS} fields");
            fields.push(reader.field()?);
        }
        Ok(Message { fields })
    }

    /// The bytes, nested messages and strings of one field number.
    pub fn bytes(&self, number: u32) -> impl Iterator<Item = &Bytes> {
        self.fields.iter().filter(move |field| field.number == number).filter_map(|field| match &field.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        })
    }

    /// The nested messages of one field number.
    ///
    /// # Errors
    /// If one of them is not a message.
    pub fn messages(&self, number: u32) -> anyhow::Result<Vec<Message>> {
        self.bytes(number).map(Message::parse).collect()
    }

    /// The nested message of a field that occurs once; the last one if there are several, as protobuf requires.
    pub fn message(&self, number: u32) -> anyhow::Result<Option<Message>> {
        self.bytes(number).last().map(Message::parse).transpose()
    }

    /// A number that occurs once.
    pub fn varint(&self, number: u32) -> Option<u64> {
        self.fields.iter().rev().find_map(|field| match field.value {
            Value::Varint(value) if field.number == number => Some(value),
            _ => None,
        })
    }

    /// A text that occurs once. Bytes that are not UTF-8 are replaced.
    pub fn text(&self, number: u32) -> Option<String> {
        self.bytes(number).last().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The numbers of a repeated field, packed or not.
    ///
    /// # Errors
    /// If packed numbers are cut off.
    pub fn varints(&self, number: u32) -> anyhow::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for field in self.fields.iter().filter(|field| field.number == number) {
            match &field.value {
                Value::Varint(value) => numbers.push(*value),
                Value::Bytes(bytes) => {
                    let mut reader = Reader { bytes, position: 0 };
                    while reader.position < bytes.len() {
                        numbers.push(reader.varint()?);
                    }
                }
                Value::Fixed64(_) | Value::Fixed32(_) => bail!("field {number} does not contain whole numbers"),
            }
        }
        Ok(numbers)
    }

    /// Appends a field.
    pub fn push(&mut self, number: u32, value: Value) {
        self.fields.push(Field { number, value });
    }

    /// Appends a text or bytes.
    pub fn push_bytes(&mut self, number: u32, bytes: impl Into<Bytes>) {
        self.push(number, Value::Bytes(bytes.into()));
    }

    /// Appends a nested message.
    pub fn push_message(&mut self, number: u32, message: &Message) {
        self.push_bytes(number, message.encode());
    }

    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for Field { number, value } in &self.fields {
            let key = |wire_type: u64| u64::from(*number) << 3 | wire_type;
            match value {
                Value::Varint(value) => {
                    write_varint(&mut out, key(0));
                    write_varint(&mut out, *value);
                }
                Value::Fixed64(value) => {
                    write_varint(&mut out, key(1));
                    out.extend_from_slice(&value.to_le_bytes());
                }
                Value::Bytes(bytes) => {
                    write_varint(&mut out, key(2));
                    write_varint(&mut out, bytes.len() as u64);
                    out.extend_from_slice(bytes);
                }
                Value::Fixed32(value) => {
                    write_varint(&mut out, key(5));
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
        }
        out
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'a> {
    bytes: &'a Bytes,
    position: usize,
}

impl Reader<'_> {
    fn field(&mut self) -> anyhow::Result<Field> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0).context("a field has no number")?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => {
                let length = usize::try_from(self.varint()?).context("a field is too long")?;
                let end = self.position.checked_add(length).filter(|end| *end <= self.bytes.len());
                let end = end.context("a field is longer than the file")?;
                let bytes = self.bytes.slice(self.position..end);
                self.position = end;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.fixed()?)),
            other => bail!("a field has the unknown wire type {other}"),
        };
        Ok(Field { number, value })
    }

    fn varint(&mut self) -> anyhow::Result<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.position).context("the file ends within a number")?;
            self.position += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number has more than ten bytes")
    }

    fn fixed<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let end = self.position + N;
        let bytes = self.bytes.get(self.position..end).context("the file ends within a number")?;
        self.position = end;
        Ok(bytes.try_into().expect("the slice has N bytes; this is a bug"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let mut inner = Message::default();
        inner.push(1, Value::Varint(u64::MAX));
        inner.push_bytes(2, "text");
        let mut message = Message::default();
        message.push(1, Value::Varint(300));
        message.push(2, Value::Fixed64(5));
        message.push_message(100, &inner);
        message.push(3, Value::Fixed32(7));
        message.push_bytes(4, vec![1, 0x80, 1]);
        message
    }

    #[test]
    fn encoded_message_is_read_without_a_loss() {
        let message = sample();
        let read = Message::parse(&message.encode().into()).unwrap();
        assert_eq!(read, message);
        assert_eq!(read.varint(1), Some(300));
        assert_eq!(read.varints(4).unwrap(), [1, 128]);
        let inner = read.message(100).unwrap().unwrap();
        assert_eq!((inner.varint(1), inner.text(2).as_deref()), (Some(u64::MAX), Some("text")));
    }

    #[test]
    fn damaged_message_is_an_error_and_never_a_panic() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            let _ = Message::parse(&bytes[..at].to_vec().into());
            for flipped in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flipped;
                let _ = Message::parse(&changed.into());
            }
        }
        assert!(Message::parse(&Bytes::from_static(&[0xff; 32])).is_err());
        assert!(Message::parse(&Bytes::from_static(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f])).is_err());
        assert!(Message::parse(&Bytes::from_static(&[0x00, 0x01])).is_err());
    }
}
