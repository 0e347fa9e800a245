//! Tables of rows: the columns, and a writer for each format.
//!
//! - `schema`: the columns and their cells
//! - `delimited`: CSV and TSV; `jsonl`; `parquet`; `terminal`: for a person
//! - `megadetector` and `camtrap`: formats of boxes, whose rows `detections` brings together with the detector's file

mod camtrap;
mod delimited;
mod detections;
mod jsonl;
mod megadetector;
mod parquet;
mod schema;
mod terminal;

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::Context as _;

use super::config::TableFormat;
use super::row::Row;

pub(super) use self::delimited::Delimited;
pub(super) use self::schema::{Schema, class_id};
pub(super) use self::terminal::Terminal;

/// Writes rows in one format.
pub(super) trait TableWriter {
    /// Writes the row of one image, which may be several lines.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write(&mut self, row: &Row) -> anyhow::Result<()>;

    /// Passes on what was written, if the format allows that before the end.
    ///
    /// # Errors
    /// If it cannot be written.
    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// If it cannot be written.
    fn finish(self: Box<Self>) -> anyhow::Result<()>;
}

/// The writer of a format to a file, which the caller syncs.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn writer(format: TableFormat, schema: Schema, file: File) -> anyhow::Result<Box<dyn TableWriter>> {
    Ok(match format {
        TableFormat::Csv => Box::new(Delimited::new(b',', schema, buffered(file))?),
        TableFormat::Tsv => Box::new(Delimited::new(b'\t', schema, buffered(file))?),
        TableFormat::Jsonl => Box::new(jsonl::Jsonl::new(schema, buffered(file))),
        TableFormat::Parquet => Box::new(parquet::Parquet::new(schema, file)?),
        TableFormat::MegaDetector => {
            let boxes = schema.boxes().context("an output in MegaDetector's format needs --boxes")?;
            Box::new(megadetector::MegaDetector::new(boxes, schema.classes(), buffered(file))?)
        }
        TableFormat::CamtrapDp => {
            let boxes = schema.boxes().context("an output in the format of Camtrap DP needs --boxes")?;
            let options = boxes.observations.as_ref().context("the rows of images are missing; this is a bug")?;
            Box::new(camtrap::CamtrapDp::new(boxes, options, buffered(file))?)
        }
    })
}

fn buffered(file: File) -> impl Write {
    BufWriter::with_capacity(256 << 10, file)
}
