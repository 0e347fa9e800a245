//! `imgcls classify FILE…`: classifies files in this process, without a queue.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Limits;
use crate::model::{self, ModelChoice, ModelPackage, Session};
use crate::protocol::{ErrorCode, ErrorInfo, ModelRef, Prediction};

/// The configuration of the command.
#[derive(Debug, Clone)]
pub struct Config {
    /// Files to classify, in this order.
    pub files: Vec<PathBuf>,
    /// The model to run.
    pub model: ModelChoice,
    /// Limits on the cost of one image.
    pub limits: Limits,
    /// Number of predictions per file.
    pub top_k: u32,
    /// Prints one line of JSON per file instead of a table.
    pub json: bool,
}

/// Classifies each file and prints its predictions or its error. Returns whether every file was classified.
///
/// # Errors
/// If the model cannot be loaded, or standard output cannot be written. A closed pipe is not an error.
pub fn run(config: &Config) -> anyhow::Result<bool> {
    let package = ModelPackage::load(&config.model)?;
    let mut session = Session::open(&package, &config.model)?;
    tracing::debug!(model = package.summary(), session = session.describe(), "model loaded");
    let mut out = std::io::stdout().lock();
    let mut all_classified = true;
    for file in &config.files {
        let report = report(file, &package, &mut session, config);
        all_classified &= report.error.is_none();
        let text = if config.json { json_line(&report) } else { table(&report) };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(all_classified)
}

/// The result for one file: a line of JSON, also printed as a table.
#[derive(Serialize)]
struct Report {
    file: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    predictions: Vec<Prediction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings_ms: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorInfo>,
}

#[derive(Serialize)]
struct Timings {
    decoded: f64,
    inferred: f64,
    total: f64,
}

fn report(file: &Path, package: &ModelPackage, session: &mut Session, config: &Config) -> Report {
    let name = file.display().to_string();
    match classify(file, package, session, config) {
        Ok((predictions, timings)) => {
            Report { file: name, predictions, model: Some(package.model_ref()), timings_ms: Some(timings), error: None }
        }
        Err(error) => Report { file: name, predictions: Vec::new(), model: None, timings_ms: None, error: Some(error) },
    }
}

fn classify(
    file: &Path,
    package: &ModelPackage,
    session: &mut Session,
    config: &Config,
) -> Result<(Vec<Prediction>, Timings), ErrorInfo> {
    let bytes = std::fs::read(file).map_err(|error| ErrorInfo {
        code: ErrorCode::InputMissing,
        message: format!("cannot read the file: {error}"),
    })?;
    let begun = Instant::now();
    let tensor = model::prepare(&bytes, package, &config.limits)
        .map_err(|error| ErrorInfo { code: error.code, message: error.message })?;
    let decoded = begun.elapsed();
    let probabilities = session
        .infer(&[&tensor])
        .map_err(|error| ErrorInfo { code: ErrorCode::Internal, message: format!("{error:#}") })?
        .pop()
        .expect("infer returns one list per tensor; this is a bug");
    let total = begun.elapsed();
    let timings = Timings {
        decoded: milliseconds(decoded),
        inferred: milliseconds(total.saturating_sub(decoded)),
        total: milliseconds(total),
    };
    Ok((model::top_k(package, &probabilities, config.top_k), timings))
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn json_line(report: &Report) -> String {
    let mut line = serde_json::to_string(report).expect("strings and finite numbers serialise; this is a bug");
    line.push('\n');
    line
}

fn table(report: &Report) -> String {
    let mut text = format!("{}\n", report.file);
    if let Some(ErrorInfo { code, message }) = &report.error {
        let _ = writeln!(text, "  {}: {message}", code.as_str());
    }
    for Prediction { label, score, .. } in &report.predictions {
        let score = score.unwrap_or_default();
        let _ = writeln!(text, "  {:5.1} %  {:<20}  {label}", score * 100.0, bar(score, 20));
    }
    text
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
        let report = Report {
            file: "a.png".to_owned(),
            predictions: Vec::new(),
            model: None,
            timings_ms: None,
            error: Some(error),
        };
        assert_eq!(table(&report), "a.png\n  undecodable: the PNG is damaged\n");
        assert_eq!(
            json_line(&report),
            "{\"file\":\"a.png\",\"error\":{\"code\":\"undecodable\",\"message\":\"the PNG is damaged\"}}\n"
        );
    }
}
