//! The results of a batch as CSV or JSON Lines, one row for each image, in the order of the request.

use std::str::FromStr;

use serde_json::{Value, json};

use super::store::ItemState;
use crate::model::ModelRef;
use crate::protocol::ErrorInfo;
use crate::spreadsheet::no_formula;

/// The format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowFormat {
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object a line.
    Jsonl,
}

impl FromStr for RowFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<RowFormat, String> {
        match text {
            "csv" => Ok(RowFormat::Csv),
            "jsonl" | "ndjson" => Ok(RowFormat::Jsonl),
            _ => Err(format!("{text:?} is neither csv nor jsonl")),
        }
    }
}

impl RowFormat {
    /// The media type of the rows.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            RowFormat::Csv => "text/csv; charset=utf-8",
            RowFormat::Jsonl => "application/x-ndjson",
        }
    }

    /// The text before the first row. `ranks` is the number of predictions that a row has columns for.
    pub(crate) fn header(self, ranks: u32) -> String {
        if self == RowFormat::Jsonl {
            return String::new();
        }
        let mut columns: Vec<String> = ["path", "status"].map(str::to_owned).to_vec();
        for rank in 1..=ranks.max(1) {
            let suffix = if rank == 1 { String::new() } else { format!("_{rank}") };
            columns.extend(["class_index", "label", "score"].map(|name| format!("{name}{suffix}")));
        }
        let rest =
            ["width", "height", "datetime_original", "model", "model_version", "error_code", "error_message", "id"];
        columns.extend(rest.map(str::to_owned));
        csv_line(&columns)
    }

    /// The row of an image.
    pub(crate) fn row(self, state: &ItemState, ranks: u32) -> String {
        match self {
            RowFormat::Csv => csv_row(state, ranks),
            RowFormat::Jsonl => json_row(state),
        }
    }
}

fn csv_row(state: &ItemState, ranks: u32) -> String {
    let mut cells = vec![no_formula(&state.item.name).into_owned(), state.status().to_owned()];
    let result = state.result.as_ref();
    for rank in 0..ranks.max(1) as usize {
        let prediction = result.and_then(|result| result.predictions.get(rank));
        cells.push(prediction.and_then(|found| found.class_index).map(|index| index.to_string()).unwrap_or_default());
        cells.push(prediction.map(|found| no_formula(&found.label).into_owned()).unwrap_or_default());
        cells.push(prediction.and_then(|found| found.score).map(|score| score.to_string()).unwrap_or_default());
    }
    let image = result.and_then(|result| result.image.clone()).unwrap_or_default();
    let pixels = |pixels: u32| if pixels == 0 { String::new() } else { pixels.to_string() };
    cells.extend([pixels(image.width), pixels(image.height), image.datetime_original.unwrap_or_default()]);
    let model = result.and_then(|result| result.model.clone());
    let (name, version) = model.map_or_else(Default::default, |ModelRef { name, version, .. }| (name, version));
    cells.extend([no_formula(&name).into_owned(), no_formula(&version).into_owned()]);
    let (code, message) = match result.and_then(|result| result.error.as_ref()) {
        Some(ErrorInfo { code, message }) => (code.as_str(), no_formula(message).into_owned()),
        None => ("", String::new()),
    };
    cells.extend([code.to_owned(), message, state.item.id.to_string()]);
    csv_line(&cells)
}

fn json_row(state: &ItemState) -> String {
    let mut row = json!({"path": state.item.name, "status": state.status(), "id": state.item.id});
    if let Some(result) = &state.result {
        row["predictions"] = json!(result.predictions);
        if !result.labels.is_empty() {
            row["labels"] = json!(result.labels);
        }
        for (name, value) in
            [("image", json!(result.image)), ("model", json!(result.model)), ("error", json!(result.error))]
        {
            if value != Value::Null {
                row[name] = value;
            }
        }
    }
    format!("{row}\n")
}

/// One record of CSV, as RFC 4180 says.
fn csv_line(cells: &[String]) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells).expect("a vector takes any record; this is a bug");
    let bytes = writer.into_inner().expect("a vector takes any record; this is a bug");
    String::from_utf8(bytes).expect("the cells are UTF-8; this is a bug")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::protocol::{BatchItem, ClassifyResult, ErrorCode, Status};

    fn state(name: &str, result: Option<ClassifyResult>) -> ItemState {
        ItemState { item: BatchItem { id: Uuid::nil(), name: name.to_owned(), image: None }, result }
    }

    #[test]
    fn rows_have_the_columns_of_their_header() {
        let failed =
            ClassifyResult::ended(Uuid::nil(), "", Status::Failed, ErrorCode::Undecodable, "=broken, \"quoted\"");
        let columns = |line: &str| {
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
            reader.records().next().unwrap().unwrap().iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let header = columns(&RowFormat::Csv.header(2));
        assert_eq!(
            header[..8],
            ["path", "status", "class_index", "label", "score", "class_index_2", "label_2", "score_2"]
        );
        let row = columns(&RowFormat::Csv.row(&state("=a,b.jpg", Some(failed)), 2));
        assert_eq!(row.len(), header.len());
        assert_eq!((row[0].as_str(), row[1].as_str()), ("'=a,b.jpg", "failed"));
        assert_eq!((row[13].as_str(), row[14].as_str()), ("undecodable", "'=broken, \"quoted\""));
        let queued = RowFormat::Jsonl.row(&state("a.jpg", None), 1);
        assert_eq!(queued, format!("{{\"id\":\"{}\",\"path\":\"a.jpg\",\"status\":\"queued\"}}\n", Uuid::nil()));
    }
}
