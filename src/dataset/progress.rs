//! Progress of long work, on standard error.

use std::time::{Duration, Instant};

use crate::telemetry;

/// Short work prints nothing.
const INTERVAL: Duration = Duration::from_secs(5);

/// Prints a line every few seconds.
pub(super) struct Progress<'a> {
    name: &'a str,
    total: usize,
    begun: Instant,
    printed: Instant,
}

impl Progress<'_> {
    pub(super) fn new(name: &str, total: usize) -> Progress<'_> {
        let now = Instant::now();
        Progress { name, total, begun: now, printed: now }
    }

    /// Call it after each image.
    pub(super) fn advance(&mut self, done: usize) {
        if self.printed.elapsed() < INTERVAL {
            return;
        }
        self.printed = Instant::now();
        telemetry::stderr_line(&line(self.name, done, self.total, self.begun.elapsed()));
    }
}

fn line(name: &str, done: usize, total: usize, elapsed: Duration) -> String {
    let per_second = done as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = (total - done.min(total)) as f64 / per_second.max(1e-3);
    format!("{name}: {done} of {total} images, {per_second:.1}/s, about {left:.0} s left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_estimates_the_remaining_time() {
        let line = line("eval", 50, 200, Duration::from_secs(5));
        assert_eq!(line, "eval: 50 of 200 images, 10.0/s, about 15 s left");
    }
}
