//! A table of all answers, one line for each request in the order in which they ended.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;

use super::dialect::Answer;
use super::driver::{Observer, Request};
use super::expect::Verdict;
use super::failure::{Failure, printable};

const COLUMNS: [&str; 8] = ["file", "answer", "class_index", "score", "expected", "correct", "latency_ms", "error"];

/// Writes the table. The columns are a stable interface. A cell without a value is empty.
pub(super) struct AnswerTable {
    state: Mutex<State>,
}

struct State {
    table: csv::Writer<BufWriter<File>>,
    /// The first error of a write, after which nothing is written.
    error: Option<csv::Error>,
}

impl AnswerTable {
    /// # Errors
    /// If the file cannot be created.
    pub(super) fn create(path: &Path) -> anyhow::Result<AnswerTable> {
        let file = File::create(path).with_context(|| format!("cannot create the table {}", path.display()))?;
        let mut table = csv::Writer::from_writer(BufWriter::new(file));
        table.write_record(COLUMNS).with_context(|| format!("cannot write the table {}", path.display()))?;
        Ok(AnswerTable { state: Mutex::new(State { table, error: None }) })
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// If this, or any write before, failed.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        match state.error.take() {
            Some(error) => Err(error.into()),
            None => Ok(state.table.flush()?),
        }
    }

    fn write(&self, record: [String; COLUMNS.len()]) {
        let mut state = self.state();
        if state.error.is_none() {
            state.error = state.table.write_record(record).err();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for AnswerTable {
    fn answered(&self, request: &Request<'_>, answer: &Answer<'_>, verdict: &Verdict) {
        let best = answer.predictions.first();
        let (expected, correct) = match verdict {
            Verdict::Judged { wrong: None, .. } => (request.expected.clone().unwrap_or_default(), "true"),
            Verdict::Judged { wrong: Some(wrong), .. } => (wrong.expected.clone(), "false"),
            Verdict::NoExpectations | Verdict::WithoutExpectation => (String::new(), ""),
        };
        self.write([
            printable(request.name),
            best.map_or_else(String::new, |best| printable(&best.label)),
            best.and_then(|best| best.class_index).map_or_else(String::new, |index| index.to_string()),
            best.and_then(|best| best.score).map_or_else(String::new, |score| format!("{score:.4}")),
            expected,
            correct.to_owned(),
            format!("{:.3}", request.latency.as_secs_f64() * 1e3),
            String::new(),
        ]);
    }

    fn failed(&self, request: &Request<'_>, failure: &Failure) {
        let mut record: [String; COLUMNS.len()] = Default::default();
        record[0] = printable(request.name);
        record[4] = request.expected.clone().unwrap_or_default();
        record[5] = if request.expected.is_some() { "false".to_owned() } else { String::new() };
        record[6] = format!("{:.3}", request.latency.as_secs_f64() * 1e3);
        record[7] = failure.to_string();
        self.write(record);
    }
}
