//! Reads the rows of a log while its owner appends others.

use std::collections::VecDeque;
use std::fs::File;

use anyhow::Context as _;

use super::MAGIC;
use crate::model::ModelRef;
use crate::pile::output::record::{Record, RecordReader};
use crate::pile::output::row::Row;

/// A row with the place of its record in the log.
pub(in crate::pile::output) struct Followed {
    pub row: Row,
    pub begin: u64,
    pub end: u64,
}

/// Reads a log from its beginning, a few rows at a time.
pub(in crate::pile::output) struct LogFollower {
    file: File,
    offset: u64,
    models: Vec<ModelRef>,
}

impl LogFollower {
    pub(in crate::pile::output) fn new(file: File) -> LogFollower {
        LogFollower { file, offset: MAGIC.len() as u64, models: Vec::new() }
    }

    /// The end of the last record that was read.
    pub(in crate::pile::output) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on as far as `until`, where a record ends, and at most as far as there are `most` rows. Rows that end before
    /// `from` are left out.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(in crate::pile::output) fn read(
        &mut self,
        until: u64,
        from: u64,
        most: usize,
    ) -> anyhow::Result<VecDeque<Followed>> {
        let mut rows = VecDeque::new();
        let mut reader = RecordReader::new(&self.file, self.offset);
        while rows.len() < most && self.offset < until {
            let content = reader.next_content()?.context("a record of the log is damaged")?;
            let record = Record::decode(content)?;
            let (begin, end) = (self.offset, reader.offset);
            self.offset = end;
            match record {
                Record::Model(model) => self.models.push(model),
                Record::Row(record) if end > from => {
                    rows.push_back(Followed { row: record.into_row(&self.models)?, begin, end });
                }
                _ => {}
            }
        }
        Ok(rows)
    }
}
