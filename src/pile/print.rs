//! The form in which a few images are printed on standard output: text with bars for a person, or one JSON object a line
//! for a program.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use serde::Serialize;

use super::finished::{Finished, Timings};
use super::output::Flow;
use crate::model::{ModelRef, Prediction};
use crate::protocol::ErrorInfo;

/// Prints the outcome of each image.
pub(super) struct Printer {
    pub is_json: bool,
}

impl Printer {
    /// Prints one image. A reader that went away stops the run, and is no error.
    ///
    /// # Errors
    /// When standard output cannot be written for another reason, such as a full disk.
    pub(super) fn print(&self, image: &Finished) -> io::Result<Flow> {
        let report = Report::new(image);
        let text = if self.is_json { report.json_line() } else { report.text() };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(Flow::Continue),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Flow::Stop),
            Err(error) => Err(error),
        }
    }
}

/// The result for one file: a line of JSON, also printed as text.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    #[serde(skip_serializing_if = "<[Prediction]>::is_empty")]
    predictions: &'a [Prediction],
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a ModelRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings_ms: Option<&'a Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorInfo>,
}

impl<'a> Report<'a> {
    fn new(image: &'a Finished) -> Report<'a> {
        let file = shown(&image.path);
        match &image.outcome {
            Ok(answer) => Report {
                file,
                predictions: &answer.predictions,
                model: Some(&answer.model),
                timings_ms: Some(&answer.timings),
                error: None,
            },
            Err(error) => Report { file, predictions: &[], model: None, timings_ms: None, error: Some(error) },
        }
    }

    fn json_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("strings and finite numbers serialise; this is a bug");
        line.push('\n');
        line
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.file);
        if let Some(ErrorInfo { code, message }) = self.error {
            let _ = writeln!(text, "  {}: {message}", code.as_str());
        }
        for Prediction { label, score, .. } in self.predictions {
            let score = score.unwrap_or_default();
            let _ = writeln!(text, "  {:5.1} %  {:<20}  {label}", score * 100.0, bar(score, 20));
        }
        text
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A bar whose length is proportional to the score, in steps of an eighth of a column.
fn bar(score: f32, columns: usize) -> String {
    const PART: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (score.clamp(0.0, 1.0) * columns as f32 * 8.0).round() as usize;
    "█".repeat(eighths / 8) + PART[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ErrorCode;

    #[test]
    fn bar_length_is_proportional_to_the_score() {
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(1.0, 4), "████");
        assert_eq!(bar(0.5, 4), "██");
        assert_eq!(bar(0.28, 4), "█▏");
        assert_eq!(bar(f32::NAN, 4), "");
    }

    #[test]
    fn failed_file_reports_its_error_in_both_formats() {
        let error = ErrorInfo { code: ErrorCode::Undecodable, message: "the PNG is damaged".to_owned() };
        let image = Finished { sequence: 0, path: "a.png".into(), file: None, boxes: None, outcome: Err(error) };
        let report = Report::new(&image);
        assert_eq!(report.text(), "a.png\n  undecodable: the PNG is damaged\n");
        assert_eq!(
            report.json_line(),
            "{\"file\":\"a.png\",\"error\":{\"code\":\"undecodable\",\"message\":\"the PNG is damaged\"}}\n"
        );
    }
}
