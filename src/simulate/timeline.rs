//! The timeline as CSV: one line for each second and policy. The columns are a stable interface.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::simulated::Simulated;

const COLUMNS: [&str; 13] = [
    "policy",
    "second",
    "arrivals",
    "completed",
    "visible",
    "in_flight",
    "booting",
    "ready",
    "draining",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "max_ms",
];

pub(super) fn write(path: &Path, simulated: &[Simulated]) -> anyhow::Result<()> {
    let context = || format!("cannot write the timeline {}", path.display());
    let mut out = csv::Writer::from_path(path).with_context(context)?;
    out.write_record(COLUMNS).with_context(context)?;
    for Simulated { variant, run, .. } in simulated {
        for (number, second) in run.timeline.iter().enumerate() {
            let counts = [
                number as u64,
                second.arrivals.into(),
                second.completed.into(),
                second.visible.into(),
                second.in_flight.into(),
                second.booting.into(),
                second.ready.into(),
                second.draining.into(),
            ];
            let latencies = second.latency.map(|it| [it.p50, it.p90, it.p99, it.max]);
            let latencies = latencies.map_or_else(<[String; 4]>::default, |them| them.map(ms));
            let record =
                std::iter::once(variant.name.clone()).chain(counts.iter().map(u64::to_string)).chain(latencies);
            out.write_record(record).with_context(context)?;
        }
    }
    out.flush().with_context(context)
}

fn ms(latency: Duration) -> String {
    format!("{:.3}", latency.as_secs_f64() * 1e3)
}
