//! The records of the log and their encoding.
//!
//! A record is the length of its content, a checksum, and the content: a byte that names the kind, then JSON. The checksum
//! covers the offset of the record in the file too. A record that was not written whole, or that lies at another place,
//! does not match it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt as _;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::row::{Classified, PathText, Row};
use crate::model::{ModelRef, Prediction};
use crate::protocol::ErrorInfo;

/// The length and the checksum.
const FRAME_BYTES: usize = 8;
/// No record is longer. A row with a thousand predictions has less than a quarter of this.
pub(super) const MAX_CONTENT_BYTES: usize = 16 << 20;
/// Records are read in pieces of this size.
const READ_BYTES: usize = 64 << 10;
/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// The first record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub version: u32,
    /// The options that the rows depend on.
    pub options: BTreeMap<String, String>,
}

/// The content of a record.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Header(Header),
    /// A model. Rows name it by its index among these records.
    Model(ModelRef),
    Row(RowRecord),
    /// The batch of a service that classifies the images from here on.
    Batch(Uuid),
    /// The table was written completely and is about to get its name.
    Finishing(FileIdentity),
    /// The table has its name.
    Finished,
}

/// The outcome of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RowRecord {
    pub path: PathText,
    /// Replaces the earlier row of the image, which had failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaces: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    classified: Option<ClassifiedRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<ErrorInfo>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ClassifiedRecord {
    predictions: Vec<Prediction>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Prediction>,
    width: u32,
    height: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    datetime_original: Option<String>,
    model: usize,
}

/// Recognises a file that was written earlier and not changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    pub inode: u64,
    pub bytes: u64,
    pub modified_seconds: i64,
    pub modified_nanos: i64,
}

impl RowRecord {
    /// The record of a row whose model has this index.
    pub(super) fn new(row: Row, model: usize, replaces: bool) -> RowRecord {
        let Row { path, file: _, outcome } = row;
        match outcome {
            Ok(Classified { predictions, labels, width, height, datetime_original, model: _ }) => {
                let classified = ClassifiedRecord { predictions, labels, width, height, datetime_original, model };
                RowRecord { path, replaces, classified: Some(classified), error: None }
            }
            Err(error) => RowRecord { path, replaces, classified: None, error: Some(error) },
        }
    }

    pub(super) fn is_failed(&self) -> bool {
        self.classified.is_none()
    }

    /// The row, without the file on disk.
    pub(super) fn into_row(self, models: &[ModelRef]) -> anyhow::Result<Row> {
        let outcome = match (self.classified, self.error) {
            (Some(record), None) => {
                let ClassifiedRecord { predictions, labels, width, height, datetime_original, model } = record;
                let model = models.get(model).context("a row names a model that the log does not have")?.clone();
                Ok(Classified { predictions, labels, width, height, datetime_original, model })
            }
            (None, Some(error)) => Err(error),
            _ => anyhow::bail!("a row has neither classes nor an error"),
        };
        Ok(Row { path: self.path, file: None, outcome })
    }
}

impl Record {
    /// Appends the record, which begins at `offset` of the file.
    pub(super) fn encode(&self, offset: u64, bytes: &mut Vec<u8>) {
        let json = |value: serde_json::Result<Vec<u8>>| value.expect("strings and numbers serialise; this is a bug");
        let (kind, content) = match self {
            Record::Header(header) => (b'h', json(serde_json::to_vec(header))),
            Record::Model(model) => (b'm', json(serde_json::to_vec(model))),
            Record::Row(row) => (b'r', json(serde_json::to_vec(row))),
            Record::Batch(id) => (b'b', json(serde_json::to_vec(id))),
            Record::Finishing(identity) => (b'f', json(serde_json::to_vec(identity))),
            Record::Finished => (b'd', Vec::new()),
        };
        let begin = bytes.len();
        bytes.extend_from_slice(&[0; FRAME_BYTES]);
        bytes.push(kind);
        bytes.extend_from_slice(&content);
        let length = (bytes.len() - begin - FRAME_BYTES) as u32;
        let checksum = checksum(offset, &bytes[begin + FRAME_BYTES..]);
        bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
        bytes[begin + 4..begin + FRAME_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the content of a record whose checksum is right.
    ///
    /// # Errors
    /// If this release does not know it.
    pub(super) fn decode(content: &[u8]) -> anyhow::Result<Record> {
        let (kind, json) = content.split_first().context("a record is empty")?;
        Ok(match kind {
            b'h' => Record::Header(serde_json::from_slice(json)?),
            b'm' => Record::Model(serde_json::from_slice(json)?),
            b'r' => Record::Row(serde_json::from_slice(json)?),
            b'b' => Record::Batch(serde_json::from_slice(json)?),
            b'f' => Record::Finishing(serde_json::from_slice(json)?),
            b'd' => Record::Finished,
            other => anyhow::bail!("a record has the unknown kind {other}"),
        })
    }
}

/// The length of the content and its checksum, or `None` if this is no beginning of a record.
fn length_and_checksum(bytes: [u8; FRAME_BYTES]) -> Option<(usize, u32)> {
    let [a, b, c, d, checksum @ ..] = bytes;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    (1..=MAX_CONTENT_BYTES).contains(&length).then_some((length, u32::from_le_bytes(checksum)))
}

/// The checksum of the content of a record that begins at `offset`.
fn checksum(offset: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// Reads records from an offset until the end or the first that is not whole.
pub(super) struct RecordReader<'a> {
    bytes: BufReader<At<'a>>,
    content: Vec<u8>,
    /// The offset after the last record.
    pub offset: u64,
}

impl<'a> RecordReader<'a> {
    pub(super) fn new(file: &'a File, offset: u64) -> RecordReader<'a> {
        RecordReader { bytes: BufReader::with_capacity(READ_BYTES, At { file, offset }), content: Vec::new(), offset }
    }

    /// The content of the next record. Returns `None` at the end, and when the record is not whole or damaged.
    ///
    /// # Errors
    /// If the file cannot be read. That says nothing about its content.
    pub(super) fn next_content(&mut self) -> io::Result<Option<&[u8]>> {
        let mut frame = [0; FRAME_BYTES];
        if !read_whole(&mut self.bytes, &mut frame)? {
            return Ok(None);
        }
        let Some((length, expected)) = length_and_checksum(frame) else { return Ok(None) };
        self.content.clear();
        let read = self.bytes.by_ref().take(length as u64).read_to_end(&mut self.content)?;
        if read < length || checksum(self.offset, &self.content) != expected {
            return Ok(None);
        }
        self.offset += (FRAME_BYTES + length) as u64;
        Ok(Some(&self.content))
    }
}

/// Fills the buffer. Returns false if the file ends before.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a file from an offset without its cursor.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
