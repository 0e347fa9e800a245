//! Reads recorded arrivals from a file.

use std::path::Path;

use anyhow::Context as _;

use crate::workload::Trace;

/// Reads the file that `--trace` names: for this command, and for a simulation of the same load.
///
/// # Errors
/// If the file cannot be read, or a line is not an arrival.
pub fn read_trace(path: &Path) -> anyhow::Result<Trace> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the trace {}; see --trace", path.display()))?;
    Trace::parse(&text).map_err(anyhow::Error::msg).with_context(|| format!("the trace {}", path.display()))
}
