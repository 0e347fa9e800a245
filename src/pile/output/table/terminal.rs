//! A table for a person: a line for each image, with the score and the name of its best class.

use super::super::row::Row;
use crate::protocol::ErrorInfo;
use crate::telemetry::text::printable;

/// The width of the column of labels. A longer label moves the path of its line to the right.
const LABEL_COLUMNS: usize = 28;

/// Formats rows for a terminal.
pub(in super::super) struct Terminal;

impl Terminal {
    pub(in super::super) fn format(row: &Row) -> String {
        let path = printable(row.path.as_str());
        match &row.outcome {
            Err(ErrorInfo { code, message }) => {
                format!(" failed  {:<LABEL_COLUMNS$}  {path}: {}\n", code.as_str(), printable(message))
            }
            Ok(classified) => {
                let best = classified.predictions.first();
                let score = best.and_then(|best| best.score).unwrap_or_default() * 100.0;
                let label = printable(best.map_or("", |best| &best.label));
                format!("{score:5.1} %  {label:<LABEL_COLUMNS$}  {path}\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::row::PathText;
    use super::super::super::row::tests::classified;
    use super::*;
    use crate::protocol::ErrorCode;

    #[test]
    fn line_has_the_best_class_and_no_control_characters() {
        let path = PathText::from_bytes(b"a\x1b[2J\n.png");
        let error = ErrorInfo { code: ErrorCode::Undecodable, message: "the PNG is damaged".to_owned() };
        let mut row = Row { path, file: None, outcome: Err(error) };
        let expected = " failed  undecodable                   a\\u{1b}[2J\\n.png: the PNG is damaged\n";
        assert_eq!(Terminal::format(&row), expected);
        row.outcome = Ok(classified(&["cat", "dog"]));
        assert_eq!(Terminal::format(&row), " 50.0 %  cat                           a\\u{1b}[2J\\n.png\n");
    }
}
