//! Exemplars: for each bucket of a histogram of latencies, the newest observation that belongs to a trace, so that a dashboard
//! leads from a slow request to its trace.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Exemplars of one series are kept for so many powers of two at most, from 2⁻²⁰ s (a microsecond) on.
const SLOTS: i32 = 40;
const FIRST_POWER: i32 = -20;

/// The trace and the span that an observation belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanIds {
    /// The id of the trace.
    pub trace: [u8; 16],
    /// The id of the span.
    pub span: [u8; 8],
}

/// An observation that belongs to a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Exemplar {
    pub value: f64,
    pub ids: SpanIds,
    pub at: SystemTime,
}

/// A series of a histogram: the name of the family and the text of its labels, as the text format has them.
type Series = (&'static str, String);

static STORE: LazyLock<Mutex<BTreeMap<Series, BTreeMap<i32, Exemplar>>>> = LazyLock::new(Mutex::default);

/// Remembers an observation of the histogram `name`, whose labels are given in the order of their names. Does nothing without
/// a trace that is sampled.
pub fn record(name: &'static str, labels: &[(&str, &str)], value: f64, ids: Option<SpanIds>) {
    let Some(ids) = ids else { return };
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let slot = value.max(f64::MIN_POSITIVE).log2().ceil().clamp(f64::from(FIRST_POWER), f64::from(FIRST_POWER + SLOTS));
    let exemplar = Exemplar { value, ids, at: SystemTime::now() };
    store().entry((name, labels.join(","))).or_default().insert(slot as i32, exemplar);
}

/// The exemplars of each series: the family, its labels, and the observations.
pub(super) fn all() -> Vec<(&'static str, String, Vec<Exemplar>)> {
    let series = |((name, labels), found): (&Series, &BTreeMap<i32, Exemplar>)| {
        (*name, labels.clone(), found.values().copied().collect())
    };
    store().iter().map(series).collect()
}

impl Exemplar {
    /// The exemplar as OpenMetrics writes it after a sample: labels, value, and seconds since the Unix epoch.
    pub(super) fn to_text(self) -> String {
        let SpanIds { trace, span } = self.ids;
        let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
        let seconds = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        format!("{{trace_id=\"{trace:032x}\",span_id=\"{span:016x}\"}} {} {seconds:.3}", self.value)
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Each change is one insertion, so a poisoned lock guards a consistent map.
fn store() -> MutexGuard<'static, BTreeMap<Series, BTreeMap<i32, Exemplar>>> {
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_observation_of_each_magnitude_is_kept() {
        let ids = |number| Some(SpanIds { trace: [number; 16], span: [number; 8] });
        let name = "imgcls_exemplars_test_seconds";
        for (number, value) in [0.9, 0.6, 0.1, 0.0, 1e9].into_iter().enumerate() {
            record(name, &[("stage", "a\"b")], value, ids(number as u8));
        }
        record(name, &[("stage", "never")], 1.0, None);
        let found: Vec<_> = all().into_iter().filter(|(family, ..)| *family == name).collect();
        let [(_, labels, exemplars)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(labels, "stage=\"a\\\"b\"");
        let values: Vec<f64> = exemplars.iter().map(|exemplar| exemplar.value).collect();
        assert_eq!(values, [0.0, 0.1, 0.6, 1e9]);
        let text = exemplars[2].to_text();
        let expected = format!("{{trace_id=\"{}\",span_id=\"{}\"}} 0.6 ", "01".repeat(16), "01".repeat(8));
        assert!(text.starts_with(&expected), "{text}");
    }
}
