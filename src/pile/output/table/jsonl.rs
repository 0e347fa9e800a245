//! One JSON object a line, with the columns as members. A member without a value is `null`.

use std::io::Write;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::super::row::Row;
use super::TableWriter;
use super::schema::{Cell, Schema};

pub(super) struct Jsonl<W: Write> {
    schema: Schema,
    names: Vec<String>,
    out: W,
}

impl<W: Write> Jsonl<W> {
    pub(super) fn new(schema: Schema, out: W) -> Jsonl<W> {
        let names = schema.columns().map(|(name, _)| name).collect();
        Jsonl { schema, names, out }
    }
}

impl<W: Write> TableWriter for Jsonl<W> {
    fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        for cells in self.schema.lines(row) {
            serde_json::to_writer(&mut self.out, &Line { names: &self.names, cells: &cells })?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

/// An object whose members are in the order of the columns.
struct Line<'a> {
    names: &'a [String],
    cells: &'a [Cell<'a>],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.cells.len()))?;
        for (name, cell) in self.names.iter().zip(self.cells) {
            match cell {
                Cell::Empty => map.serialize_entry(name, &())?,
                Cell::Text(text) => map.serialize_entry(name, text)?,
                Cell::Integer(number) => map.serialize_entry(name, number)?,
                Cell::Score(score) => map.serialize_entry(name, score)?,
            }
        }
        map.end()
    }
}
