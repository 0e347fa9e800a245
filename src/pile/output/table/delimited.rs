//! CSV and TSV that spreadsheets open without running anything.
//!
//! Fields are quoted as RFC 4180 says. A text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return would be a
//! formula in a spreadsheet, so it gets an apostrophe before it. A text that begins with apostrophes and then one of these
//! gets one more, so that a program can undo it: remove one apostrophe from each text that begins with apostrophes and one
//! of these characters. Numbers of the program never get one.

use std::borrow::Cow;
use std::io::Write;

use super::super::row::Row;
use super::TableWriter;
use super::schema::{Cell, Schema};

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

/// The text as no spreadsheet takes it for a formula.
pub(super) fn no_formula(text: &str) -> Cow<'_, str> {
    if text.trim_start_matches('\'').starts_with(['=', '+', '-', '@', '\t', '\r']) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_get_an_apostrophe_that_can_be_removed() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x"] {
            assert_eq!(no_formula(formula), format!("'{formula}"));
        }
        for plain in ["", "a=b", "1-2", "'a'", "'", "img-1.jpg", " =1", "日本"] {
            assert_eq!(no_formula(plain), plain);
        }
    }
}
