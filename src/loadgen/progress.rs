//! Progress of a run: a live view on a terminal, or with `--verbose` the two lines for each image that the legacy system
//! prints.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::dialect::Answer;
use super::driver::{Load, Observer, Request};
use super::expect::Verdict;
use super::failure::{Failure, printable};
use crate::telemetry;

const REDRAW: Duration = Duration::from_millis(250);
const BAR_STEPS: u64 = 1_000;
/// How many seconds the chart of the live view shows.
const CHART_WIDTH: usize = 60;

/// Prints the lines of the legacy system for each image.
pub(super) struct Verbose {
    /// Set if standard output is reserved for the report.
    pub to_stderr: bool,
}

impl Observer for Verbose {
    fn answered(&self, request: &Request<'_>, answer: &Answer<'_>, _verdict: &Verdict) {
        let label = answer.predictions.first().map_or("", |best| &best.label);
        self.say(&format!("{} uploaded!\nClassification result: {}\n", printable(request.name), printable(label)));
    }

    fn failed(&self, request: &Request<'_>, failure: &Failure) {
        self.say(&format!("{} failed: {failure}\n", printable(request.name)));
    }
}

impl Verbose {
    /// Prints with one write, so that the lines of two images do not mix. A failed write is ignored, because an error
    /// message could not be written either.
    fn say(&self, lines: &str) {
        let _ = if self.to_stderr {
            io::stderr().write_all(lines.as_bytes())
        } else {
            io::stdout().write_all(lines.as_bytes())
        };
    }
}

/// The end of a run that a bar approaches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goal {
    pub num_request: u64,
    pub duration: Option<Duration>,
}

impl Goal {
    /// How much of the run is done, 0 to 1.
    fn share(self, done: u64, elapsed: Duration) -> f64 {
        let of_requests = done as f64 / self.num_request.max(1) as f64;
        let of_time = self.duration.map_or(0.0, |duration| elapsed.as_secs_f64() / duration.as_secs_f64().max(1e-3));
        of_requests.max(of_time).min(1.0)
    }
}

/// Shows a run while `work` runs, if `is_live` and standard error is a terminal that can draw: how much is done, rates, latencies,
/// failures, and the answers of each of the last seconds.
pub(super) async fn watched<T>(load: &Arc<Load>, goal: Goal, is_live: bool, work: impl Future<Output = T>) -> T {
    if !is_live || !telemetry::can_draw() {
        return work.await;
    }
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr());
    let template = "{bar:40} {percent} %  {elapsed}  {eta} left\n{msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a constant template; this is a bug"));
    let redraw = async {
        let mut tick = tokio::time::interval(REDRAW);
        loop {
            tick.tick().await;
            let (share, lines) = state(load, goal, bar.elapsed());
            bar.set_message(lines);
            bar.set_position((share * BAR_STEPS as f64) as u64);
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = redraw => unreachable!("the redraw has no end; this is a bug"),
    };
    bar.finish_and_clear();
    done
}

/// The share of the run that is done, and the lines below the bar.
fn state(load: &Load, goal: Goal, elapsed: Duration) -> (f64, String) {
    let measurement = load.measurement();
    let (ok, failed) = (measurement.ok(), measurement.failures());
    let done = ok + failed;
    let in_flight = measurement.started.saturating_sub(done);
    let latency = |quantile: f64| measurement.latencies.quantile(quantile).unwrap_or_default().as_secs_f64() * 1e3;
    let width = measurement.timeline.width().as_secs_f64();
    let slots = measurement.timeline.slots();
    // The last slot is not over yet.
    let ended = &slots[..slots.len().saturating_sub(1)];
    let shown: Vec<f64> =
        ended[ended.len().saturating_sub(CHART_WIDTH)..].iter().map(|slot| slot.ok as f64 / width).collect();
    let most = shown.iter().copied().fold(0.0, f64::max);
    let overall = ok as f64 / elapsed.as_secs_f64().max(REDRAW.as_secs_f64());
    let lines = format!(
        "{overall:.1} images/s, {in_flight} in flight, {failed} failed\nlatency p50 {:.0} ms, p99 {:.0} ms\n{} up to {most:.1}/s",
        latency(0.5),
        latency(0.99),
        bars(&shown, most)
    );
    (goal.share(done, elapsed), lines)
}

/// One character for each value, as high as its share of `most`.
fn bars(values: &[f64], most: f64) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let bar = |value: &f64| BARS[if most > 0.0 { ((value / most * 7.0).round() as usize).min(7) } else { 0 }];
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_is_as_far_as_its_requests_or_its_time() {
        let goal = |num_request, seconds: Option<u64>| Goal { num_request, duration: seconds.map(Duration::from_secs) };
        let second = Duration::from_secs(1);
        assert!((goal(10, None).share(5, second) - 0.5).abs() < 1e-9);
        assert!((goal(u64::MAX, Some(4)).share(5, second) - 0.25).abs() < 1e-9);
        assert!((goal(5, Some(4)).share(5, second) - 1.0).abs() < 1e-9);
    }
}
