//! What a worker says to the process that started it, on standard output, a line each: that it is ready, and then each
//! second in which it worked how much it did. Other lines mean nothing.

use std::fmt;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerLine {
    /// It takes messages.
    Ready,
    Worked(Worked),
}

/// Images that a worker was done with since the last line, and how long it was busy with them: the time of all its
/// sessions together by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Worked {
    pub images: u64,
    /// To the microsecond.
    pub busy: Duration,
}

impl Worked {
    /// How long an image takes whoever was busy, a session or a whole worker; none where there was no image.
    pub fn service_time(self) -> Option<Duration> {
        (self.images > 0).then(|| self.busy.div_f64(self.images as f64))
    }
}

impl WorkerLine {
    /// None for a line that means nothing.
    pub fn parse(line: &str) -> Option<WorkerLine> {
        if line == "ready" {
            return Some(WorkerLine::Ready);
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let worked = WorkerLine::Worked(Worked { images: 250, busy: Duration::from_micros(1_300_500) });
        for (line, text) in [(WorkerLine::Ready, "ready"), (worked, "worked 250 1300500")] {
            assert_eq!((line.to_string().as_str(), WorkerLine::parse(text)), (text, Some(line)));
        }
        for nothing in ["", "ready ", "worked", "worked 1", "worked 1 -2", "worked 1 2 3", "reworked 1 2"] {
            assert_eq!(WorkerLine::parse(nothing), None, "{nothing}");
        }
    }
}
