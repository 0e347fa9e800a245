//! Apache Parquet. Texts are UTF-8 strings, numbers 32-bit integers, scores 32-bit floats. Every column but `path` and
//! `status` may be null.

use std::fs::File;
use std::io::BufWriter;
use std::sync::Arc;

use ::parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::{Type, TypePtr};

use super::super::row::Row;
use super::TableWriter;
use super::schema::{Cell, Kind, Schema};

/// A row group is written when its rows take about so many bytes. This bounds the memory.
const ROW_GROUP_BYTES: usize = 8 << 20;
/// The bytes of a cell beside its text.
const CELL_BYTES: usize = 40;

pub(super) struct Parquet {
    schema: Schema,
    writer: SerializedFileWriter<BufWriter<File>>,
    columns: Vec<Values>,
    bytes: usize,
}

/// The cells of one column that are not written yet.
struct Values {
    values: TypedValues,
    /// For a column that may be null: 1 for each cell with a value, 0 for each without.
    levels: Option<Vec<i16>>,
}

enum TypedValues {
    Text(Vec<ByteArray>),
    Integer(Vec<i32>),
    Score(Vec<f32>),
}

impl Parquet {
    pub(super) fn new(schema: Schema, file: File) -> anyhow::Result<Parquet> {
        let fields = schema.columns().enumerate().map(|(at, (name, kind))| field(&name, kind, at >= 2));
        let fields = fields.collect::<Result<Vec<TypePtr>, _>>()?;
        let root = Type::group_type_builder("images").with_fields(fields).build()?;
        let properties = WriterProperties::builder()
            .set_created_by(concat!("imgcls ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::SNAPPY)
            .build();
        let writer = SerializedFileWriter::new(BufWriter::new(file), Arc::new(root), Arc::new(properties))?;
        let columns = schema.columns().enumerate().map(|(at, (_, kind))| Values::new(kind, at >= 2)).collect();
        Ok(Parquet { schema, writer, columns, bytes: 0 })
    }

    fn write_row_group(&mut self) -> anyhow::Result<()> {
        let mut group = self.writer.next_row_group()?;
        for column in &mut self.columns {
            let writer = group.next_column()?;
            column.write(writer.expect("the file has a column for each of the schema; this is a bug"))?;
        }
        group.close()?;
        self.bytes = 0;
        Ok(())
    }
}

impl TableWriter for Parquet {
    fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        for line in self.schema.lines(row) {
            for (column, cell) in self.columns.iter_mut().zip(&line) {
                self.bytes += column.push(cell);
            }
        }
        if self.bytes >= ROW_GROUP_BYTES {
            self.write_row_group()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        if self.bytes > 0 {
            self.write_row_group()?;
        }
        self.writer.close()?;
        Ok(())
    }
}

fn field(name: &str, kind: Kind, is_optional: bool) -> ::parquet::errors::Result<TypePtr> {
    let (physical, logical) = match kind {
        Kind::Text => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
        Kind::Integer => (PhysicalType::INT32, None),
        Kind::Score => (PhysicalType::FLOAT, None),
    };
    let repetition = if is_optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
    let field = Type::primitive_type_builder(name, physical).with_repetition(repetition);
    field.with_logical_type(logical).build().map(Arc::new)
}

impl Values {
    fn new(kind: Kind, is_optional: bool) -> Values {
        let values = match kind {
            Kind::Text => TypedValues::Text(Vec::new()),
            Kind::Integer => TypedValues::Integer(Vec::new()),
            Kind::Score => TypedValues::Score(Vec::new()),
        };
        Values { values, levels: is_optional.then(Vec::new) }
    }

    /// Adds a cell, and returns how many bytes it takes.
    fn push(&mut self, cell: &Cell) -> usize {
        let mut bytes = CELL_BYTES;
        let is_present = match (&mut self.values, cell) {
            (TypedValues::Text(values), Cell::Text(text)) => {
                bytes += text.len();
                values.push(ByteArray::from(text.as_bytes().to_vec()));
                true
            }
            (TypedValues::Integer(values), Cell::Integer(number)) => {
                values.push(i32::try_from(*number).unwrap_or(i32::MAX));
                true
            }
            (TypedValues::Score(values), Cell::Score(score)) => {
                values.push(*score);
                true
            }
            _ => false,
        };
        if let Some(levels) = &mut self.levels {
            levels.push(i16::from(is_present));
        }
        bytes
    }

    /// Writes the cells and forgets them.
    fn write(&mut self, mut writer: SerializedColumnWriter<'_>) -> anyhow::Result<()> {
        let levels = self.levels.as_mut();
        match &mut self.values {
            TypedValues::Text(values) => write_batch::<ByteArrayType>(&mut writer, values, levels)?,
            TypedValues::Integer(values) => write_batch::<Int32Type>(&mut writer, values, levels)?,
            TypedValues::Score(values) => write_batch::<FloatType>(&mut writer, values, levels)?,
        }
        writer.close()?;
        Ok(())
    }
}

fn write_batch<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: &mut Vec<T::T>,
    levels: Option<&mut Vec<i16>>,
) -> ::parquet::errors::Result<()> {
    writer.typed::<T>().write_batch(values.as_slice(), levels.as_deref().map(Vec::as_slice), None)?;
    values.clear();
    if let Some(levels) = levels {
        levels.clear();
    }
    Ok(())
}
