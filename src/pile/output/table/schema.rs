//! The columns of a table and their cells.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::config::{ClassName, OutputConfig};
use super::super::row::{Classified, Row};
use crate::model::Prediction;
use crate::pile::boxes::Boxes;
use crate::protocol::Status;

/// Separates the labels of an image in one cell.
const BETWEEN_LABELS: &str = " | ";

/// The columns of a table, and how rows become cells.
#[derive(Debug, Clone)]
pub(in super::super) struct Schema {
    columns: Vec<Column>,
    classes: Arc<[ClassName]>,
    is_long: bool,
    boxes: Option<Boxes>,
}

/// A column. The number is the rank of the prediction, from 0; in a long table it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Path,
    Status,
    Rank,
    ClassIndex(usize),
    ClassId(usize),
    Label(usize),
    Score(usize),
    Labels,
    Width,
    Height,
    DatetimeOriginal,
    Model,
    ModelVersion,
    ErrorCode,
    ErrorMessage,
}

/// The type of the cells of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Score,
}

/// The content of one cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell<'a> {
    /// There is no value.
    Empty,
    Text(Cow<'a, str>),
    Integer(u32),
    Score(f32),
}

impl Schema {
    /// The columns of the table that the configuration describes.
    pub(in super::super) fn new(config: &OutputConfig) -> Schema {
        let mut columns = vec![Column::Path, Column::Status];
        let ranks = if config.is_long { 1 } else { config.top_k.max(1) as usize };
        if config.is_long {
            columns.push(Column::Rank);
        }
        for rank in 0..ranks {
            columns.extend([Column::ClassIndex(rank), Column::ClassId(rank), Column::Label(rank), Column::Score(rank)]);
        }
        if config.has_labels {
            columns.push(Column::Labels);
        }
        columns.extend([
            Column::Width,
            Column::Height,
            Column::DatetimeOriginal,
            Column::Model,
            Column::ModelVersion,
            Column::ErrorCode,
            Column::ErrorMessage,
        ]);
        let OutputConfig { classes, is_long, boxes, .. } = config;
        Schema { columns, classes: classes.clone().into(), is_long: *is_long, boxes: boxes.clone() }
    }

    /// The columns of the table of failed images.
    pub(in super::super) fn of_errors() -> Schema {
        let columns = vec![Column::Path, Column::Status, Column::ErrorCode, Column::ErrorMessage];
        Schema { columns, classes: Arc::new([]), is_long: false, boxes: None }
    }

    /// The boxes whose rows these are, if they are of boxes.
    pub(in super::super) fn boxes(&self) -> Option<&Boxes> {
        self.boxes.as_ref()
    }

    /// The classes of the model, by index.
    pub(super) fn classes(&self) -> &[ClassName] {
        &self.classes
    }

    /// The names of the columns and the types of their cells.
    pub(super) fn columns(&self) -> impl Iterator<Item = (String, Kind)> {
        self.columns.iter().map(|column| (column.name(), column.kind()))
    }

    /// The cells of each line of a row: one line, or in a long table one for each prediction and at least one.
    pub(super) fn lines<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = Vec<Cell<'a>>> {
        let lines = match &row.outcome {
            Ok(classified) if self.is_long => classified.predictions.len().max(1),
            _ => 1,
        };
        (0..lines).map(move |line| self.columns.iter().map(|column| self.cell(*column, row, line)).collect())
    }

    fn cell<'a>(&'a self, column: Column, row: &'a Row, line: usize) -> Cell<'a> {
        match (column, &row.outcome) {
            (Column::Path, _) => Cell::text(row.path.as_str()),
            (Column::Status, Ok(_)) => Cell::text(Status::Succeeded.as_str()),
            (Column::Status, Err(_)) => Cell::text(Status::Failed.as_str()),
            (Column::ErrorCode, Err(error)) => Cell::text(error.code.as_str()),
            (Column::ErrorMessage, Err(error)) => Cell::text(&error.message),
            (_, Err(_)) | (Column::ErrorCode | Column::ErrorMessage, Ok(_)) => Cell::Empty,
            (_, Ok(classified)) => self.classified_cell(column, classified, line),
        }
    }

    fn classified_cell<'a>(&'a self, column: Column, classified: &'a Classified, line: usize) -> Cell<'a> {
        let prediction = |rank: usize| classified.predictions.get(rank + line);
        let cell = match column {
            Column::Rank => prediction(0).map(|_| Cell::Integer(line as u32 + 1)),
            Column::ClassIndex(rank) => prediction(rank).and_then(|found| found.class_index).map(Cell::Integer),
            Column::ClassId(rank) => prediction(rank).and_then(|found| class_id(found, &self.classes)).map(Cell::text),
            Column::Label(rank) => prediction(rank).map(|found| Cell::text(&found.label)),
            Column::Score(rank) => {
                prediction(rank).and_then(|found| found.score).filter(|score| score.is_finite()).map(Cell::Score)
            }
            Column::Labels => {
                let labels: Vec<&str> = classified.labels.iter().map(|found| found.label.as_str()).collect();
                (!labels.is_empty()).then(|| Cell::Text(labels.join(BETWEEN_LABELS).into()))
            }
            Column::Width => (classified.width > 0).then_some(Cell::Integer(classified.width)),
            Column::Height => (classified.height > 0).then_some(Cell::Integer(classified.height)),
            Column::DatetimeOriginal => classified.datetime_original.as_deref().map(Cell::text),
            Column::Model => Some(Cell::text(&classified.model.name)),
            Column::ModelVersion => Some(Cell::text(&classified.model.version)),
            Column::Path | Column::Status | Column::ErrorCode | Column::ErrorMessage => None,
        };
        cell.unwrap_or(Cell::Empty)
    }
}

impl Column {
    fn name(self) -> String {
        let ranked = |name: &str, rank: usize| if rank == 0 { name.to_owned() } else { format!("{name}_{}", rank + 1) };
        match self {
            Column::Path => "path".to_owned(),
            Column::Status => "status".to_owned(),
            Column::Rank => "rank".to_owned(),
            Column::ClassIndex(rank) => ranked("class_index", rank),
            Column::ClassId(rank) => ranked("class_id", rank),
            Column::Label(rank) => ranked("label", rank),
            Column::Score(rank) => ranked("score", rank),
            Column::Labels => "labels".to_owned(),
            Column::Width => "width".to_owned(),
            Column::Height => "height".to_owned(),
            Column::DatetimeOriginal => "datetime_original".to_owned(),
            Column::Model => "model".to_owned(),
            Column::ModelVersion => "model_version".to_owned(),
            Column::ErrorCode => "error_code".to_owned(),
            Column::ErrorMessage => "error_message".to_owned(),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Column::Rank | Column::ClassIndex(_) | Column::Width | Column::Height => Kind::Integer,
            Column::Score(_) => Kind::Score,
            _ => Kind::Text,
        }
    }
}

impl<'a> Cell<'a> {
    fn text(text: &'a str) -> Cell<'a> {
        Cell::Text(Cow::Borrowed(text))
    }
}

/// The id of the class of a prediction, if its class has one. A service may have classified the image with another model,
/// whose class of this index has another label.
pub(in super::super) fn class_id<'a>(prediction: &Prediction, classes: &'a [ClassName]) -> Option<&'a str> {
    let class = classes.get(prediction.class_index? as usize).filter(|class| class.label == prediction.label)?;
    class.id.as_deref()
}
