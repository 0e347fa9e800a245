//! Progress of a run: a bar on a terminal, or with `--verbose` the two lines for each image that the legacy system
//! prints.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::dialect::Answer;
use super::driver::{Load, Observer};
use super::failure::{Failure, printable};
use crate::telemetry;

const REDRAW: Duration = Duration::from_millis(100);

/// Prints nothing for an image.
pub(super) struct Silent;

/// Prints the lines of the legacy system for each image.
pub(super) struct Verbose {
    /// Set if standard output is reserved for the report.
    pub to_stderr: bool,
}

impl Observer for Silent {
    fn answered(&self, _name: &str, _answer: &Answer<'_>) {}
    fn failed(&self, _name: &str, _failure: &Failure) {}
}

impl Observer for Verbose {
    fn answered(&self, name: &str, answer: &Answer<'_>) {
        let label = answer.predictions.first().map_or("", |best| &best.label);
        self.say(&format!("{} uploaded!\nClassification result: {}\n", printable(name), printable(label)));
    }

    fn failed(&self, name: &str, failure: &Failure) {
        self.say(&format!("{} failed: {failure}\n", printable(name)));
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

/// Draws a progress bar while `work` runs, if standard error is a terminal.
pub(super) async fn watched<T>(load: &Arc<Load>, num_request: u64, verbose: bool, work: impl Future<Output = T>) -> T {
    if verbose || !telemetry::can_draw() {
        return work.await;
    }
    let bar = ProgressBar::with_draw_target(Some(num_request), ProgressDrawTarget::stderr());
    let template = "{bar:30} {pos}/{len}  {msg}  {eta} left";
    bar.set_style(ProgressStyle::with_template(template).expect("a constant template; this is a bug"));
    let redraw = async {
        let mut tick = tokio::time::interval(REDRAW);
        loop {
            tick.tick().await;
            let (done, failed) = {
                let measurement = load.measurement();
                (measurement.ok() + measurement.failures(), measurement.failures())
            };
            let per_second = done as f64 / bar.elapsed().as_secs_f64().max(REDRAW.as_secs_f64());
            bar.set_message(format!("{per_second:.1}/s  {failed} failed"));
            bar.set_position(done);
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = redraw => unreachable!("the redraw has no end; this is a bug"),
    };
    bar.finish_and_clear();
    done
}
