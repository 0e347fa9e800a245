//! The lines that a worker prints on standard output for the process that started it: one when it is ready, then two
//! for each second in which it completed images, with its work and with its metrics. Other lines are ignored.

use std::fmt;
use std::time::Duration;

/// One line of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerLine {
    /// The worker receives messages.
    Ready,
    /// The worker completed images.
    Worked(Worked),
    /// All metrics of the worker, in Prometheus' text format. The line has them as one JSON string.
    Metrics(String),
}

/// The images that a worker completed since the last line, and how long it was busy: the total time of its sessions
/// divided by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Worked {
    /// The number of images.
    pub images: u64,
    /// The busy time, rounded to a microsecond.
    pub busy: Duration,
}

impl Worked {
    /// The mean time for an image. Returns `None` when there was no image.
    pub fn service_time(self) -> Option<Duration> {
        (self.images > 0).then(|| self.busy.div_f64(self.images as f64))
    }
}

impl WorkerLine {
    /// Returns `None` for any other line.
    pub fn parse(line: &str) -> Option<WorkerLine> {
        if line == "ready" {
            return Some(WorkerLine::Ready);
        }
        if let Some(text) = line.strip_prefix("metrics ") {
            return serde_json::from_str(text).ok().map(WorkerLine::Metrics);
        }
        let (images, busy_micros) = line.strip_prefix("worked ")?.split_once(' ')?;
        let busy = Duration::from_micros(busy_micros.parse().ok()?);
        Some(WorkerLine::Worked(Worked { images: images.parse().ok()?, busy }))
    }
}

impl fmt::Display for WorkerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerLine::Ready => f.write_str("ready"),
            WorkerLine::Worked(Worked { images, busy }) => write!(f, "worked {images} {}", busy.as_micros()),
            WorkerLine::Metrics(text) => write!(f, "metrics {}", serde_json::Value::from(text.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip() {
        let worked = WorkerLine::Worked(Worked { images: 250, busy: Duration::from_micros(1_300_500) });
        let metrics = WorkerLine::Metrics("a{b=\"c\"} 1\nd 2\n".to_owned());
        let lines = [
            (WorkerLine::Ready, "ready"),
            (worked, "worked 250 1300500"),
            (metrics, r#"metrics "a{b=\"c\"} 1\nd 2\n""#),
        ];
        for (line, text) in lines {
            assert_eq!((line.to_string().as_str(), WorkerLine::parse(text)), (text, Some(line)));
        }
        for nothing in
            ["", "ready ", "worked", "worked 1", "worked 1 -2", "worked 1 2 3", "reworked 1 2", "metrics", "metrics x"]
        {
            assert_eq!(WorkerLine::parse(nothing), None, "{nothing}");
        }
    }
}
