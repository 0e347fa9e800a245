//! The progress of a run on standard error: a bar on a terminal, a line a minute elsewhere.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry;

const LINE_INTERVAL: Duration = Duration::from_mins(1);
/// The estimate of the remaining time begins after so long.
const MEASURED_LEAST: Duration = Duration::from_secs(2);

/// Numbers that the threads of a run share.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Images that an earlier run has classified.
    resumed: AtomicU64,
    /// Files that are no images or are excluded.
    skipped: AtomicU64,
    /// Images that were counted so far.
    counted: AtomicU64,
    /// True once all images were counted.
    is_complete: AtomicBool,
}

impl Counters {
    pub(super) fn add_resumed(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_counted(&self, images: u64, is_complete: bool) {
        self.counted.store(images, Ordering::Relaxed);
        self.is_complete.store(is_complete, Ordering::Release);
    }

    /// The number of images of the pile, once it is known.
    pub(super) fn total(&self) -> Option<u64> {
        self.is_complete.load(Ordering::Acquire).then(|| self.counted.load(Ordering::Relaxed))
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }
}

/// Shows how far a run is.
pub(super) struct Progress {
    counters: Arc<Counters>,
    begun: Instant,
    printed: Instant,
    done: u64,
    failed: u64,
    display: Display,
}

enum Display {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    /// `is_shown` is false for a few images, whose output is progress enough. A bar is drawn unless standard output is a
    /// terminal too, where it would be between the rows.
    pub(super) fn new(counters: Arc<Counters>, is_shown: bool, prints_rows: bool) -> Progress {
        let display = if !is_shown {
            Display::Nothing
        } else if !telemetry::can_draw() {
            Display::Lines
        } else if prints_rows && std::io::stdout().is_terminal() {
            Display::Nothing
        } else {
            Display::Bar(bar())
        };
        let now = Instant::now();
        Progress { counters, begun: now, printed: now, done: 0, failed: 0, display }
    }

    /// Counts one image of this run.
    pub(super) fn advance(&mut self, has_failed: bool) {
        self.done += 1;
        self.failed += u64::from(has_failed);
        self.refresh();
    }

    /// Shows the time that passed. Call it now and then, also while no image is done.
    pub(super) fn refresh(&mut self) {
        match &self.display {
            Display::Nothing => {}
            Display::Lines => {
                if self.printed.elapsed() >= LINE_INTERVAL {
                    self.printed = Instant::now();
                    telemetry::stderr_line(&format!("classify: {}", self.state().line()));
                }
            }
            Display::Bar(bar) => {
                let state = self.state();
                bar.set_length(state.total.unwrap_or(state.resumed + state.done));
                bar.set_position(state.resumed + state.done);
                bar.set_message(state.message());
            }
        }
    }

    /// Removes the bar. Returns what was done, for the last line.
    pub(super) fn finish(self) -> String {
        let state = self.state();
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
        state.end()
    }

    fn state(&self) -> State {
        State {
            done: self.done,
            failed: self.failed,
            resumed: self.counters.resumed(),
            skipped: self.counters.skipped(),
            total: self.counters.total(),
            elapsed: self.begun.elapsed(),
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bar:30} {pos}/{len}  {msg}";
    bar.with_style(ProgressStyle::with_template(template).expect("a constant template; this is a bug"))
}

/// The numbers at one moment.
struct State {
    done: u64,
    failed: u64,
    resumed: u64,
    skipped: u64,
    total: Option<u64>,
    elapsed: Duration,
}

impl State {
    fn line(&self) -> String {
        let done = self.resumed + self.done;
        let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
        format!("{done}{of} images, {}", self.message())
    }

    fn message(&self) -> String {
        let left = self.left().map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default();
        format!("{:.1}/s, {} failed{left}", self.rate(), self.failed)
    }

    fn end(&self) -> String {
        let State { done, failed, skipped, elapsed, .. } = self;
        format!(
            "{done} images in {}, {:.1}/s, {failed} failed; {skipped} other files skipped",
            HumanDuration(*elapsed),
            self.rate()
        )
    }

    fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-3)
    }

    fn left(&self) -> Option<Duration> {
        if self.done == 0 || self.elapsed < MEASURED_LEAST {
            return None;
        }
        let left = self.total?.saturating_sub(self.resumed + self.done);
        Duration::try_from_secs_f64(left as f64 / self.rate()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_estimates_the_remaining_time_by_the_images_of_this_run() {
        let elapsed = Duration::from_secs(10);
        let state = State { done: 100, failed: 3, resumed: 500, skipped: 7, total: Some(900), elapsed };
        assert_eq!(state.line(), "600 of 900 images, 10.0/s, 3 failed, 30 seconds left");
        assert_eq!(state.end(), "100 images in 10 seconds, 10.0/s, 3 failed; 7 other files skipped");
        assert_eq!(State { total: None, ..state }.line(), "600 images, 10.0/s, 3 failed");
    }

    #[test]
    fn total_is_known_once_every_image_is_counted() {
        let counters = Counters::default();
        counters.set_counted(5, false);
        assert_eq!(counters.total(), None);
        counters.set_counted(9, true);
        assert_eq!(counters.total(), Some(9));
    }
}
