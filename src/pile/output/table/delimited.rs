//! CSV and TSV that spreadsheets open without running anything.
//!
//! Fields are quoted as RFC 4180 says. A text that would be a formula gets an apostrophe; numbers of the program never get one.

use std::io::Write;

use super::super::row::Row;
use super::TableWriter;
use super::schema::{Cell, Schema};
use crate::spreadsheet::no_formula;

pub(in super::super) struct Delimited<W: Write> {
    schema: Schema,
    writer: csv::Writer<W>,
}

impl<W: Write> Delimited<W> {
    /// Writes the header.
    pub(in super::super) fn new(delimiter: u8, schema: Schema, out: W) -> anyhow::Result<Delimited<W>> {
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(out);
        writer.write_record(schema.columns().map(|(name, _)| name))?;
        Ok(Delimited { schema, writer })
    }
}

impl<W: Write> TableWriter for Delimited<W> {
    fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        for line in self.schema.lines(row) {
            for cell in line {
                match cell {
                    Cell::Empty => self.writer.write_field(""),
                    Cell::Text(text) => self.writer.write_field(no_formula(&text).as_bytes()),
                    Cell::Integer(number) => self.writer.write_field(number.to_string()),
                    Cell::Score(score) => self.writer.write_field(score.to_string()),
                }?;
            }
            self.writer.write_record(None::<&[u8]>)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.writer.flush()?)
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.writer.flush()?)
    }
}
