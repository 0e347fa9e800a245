//! The input and output of a decision.

use std::fmt;
use std::time::Duration;

/// The minimum and maximum number of workers. The minimum never exceeds the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    min: u32,
    max: u32,
}

impl Bounds {
    /// # Errors
    /// If the minimum exceeds the maximum, or the maximum is zero: nothing would ever be classified.
    pub fn new(min: u32, max: u32) -> Result<Self, String> {
        if max == 0 {
            return Err("the maximum number of workers must be at least 1".to_owned());
        }
        if min > max {
            return Err(format!("the minimum number of workers ({min}) exceeds the maximum ({max})"));
        }
        Ok(Bounds { min, max })
    }

    /// The minimum number of workers.
    pub fn min(self) -> u32 {
        self.min
    }

    /// The maximum number of workers; at least 1.
    pub fn max(self) -> u32 {
        self.max
    }
}

/// The state of the workers and the queue, as far as the caller knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Workers that are ready, starting or being replaced. Draining workers do not count.
    pub workers: u32,
    /// The newest reading of the queue; `None` before the first one.
    pub depth: Option<QueueDepth>,
}

/// One reading of the request queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// When the depth was read.
    pub at: Duration,
    /// Messages that wait for a worker.
    pub visible: u64,
    /// Messages that a worker has received and not yet completed.
    pub in_flight: u64,
}

impl QueueDepth {
    /// The number of messages that are not completed.
    pub(super) fn work(&self) -> u64 {
        self.visible.saturating_add(self.in_flight)
    }
}

/// The result of [`decide`](super::decide).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How many workers there should be.
    pub desired: u32,
    /// Why.
    pub reason: Reason,
}

/// Why a decision was made; displayed in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the figures that the displayed reason quotes")]
pub enum Reason {
    /// There are fewer workers than the minimum.
    BelowMin,
    /// There are more workers than the maximum.
    AboveMax,
    /// The depth of the queue is not known, so nothing changes.
    DepthUnknown,
    /// There are messages and no worker.
    WorkButNoWorker { work: u64 },
    /// The step policy adds a worker.
    ScaleOut { visible: u64, above: u64 },
    /// The step policy would add a worker, but the maximum is reached.
    AtMax { visible: u64, above: u64 },
    /// The step policy removes a worker.
    ScaleIn { work: u64, below: u64 },
    /// The target policy adds workers until there are `needed`.
    TargetOut { work: u64, needed: u64 },
    /// The target policy would add workers, but the maximum is reached.
    TargetAtMax { work: u64, needed: u64 },
    /// The target policy removes workers, because fewer have sufficed for the whole stabilization window.
    TargetIn { work: u64, needed: u64 },
    /// Fewer workers suffice, but the stabilization window is not over: nothing changes.
    TargetInLater { work: u64, needed: u64 },
    /// The number of workers is right.
    Steady,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::BelowMin => write!(f, "fewer workers than the minimum"),
            Reason::AboveMax => write!(f, "more workers than the maximum"),
            Reason::DepthUnknown => write!(f, "the depth of the queue is not known"),
            Reason::WorkButNoWorker { work } => write!(f, "no worker and {work} to do"),
            Reason::ScaleOut { visible, above } => write!(f, "{visible} waiting, more than {above}"),
            Reason::AtMax { visible, above } => {
                write!(f, "{visible} waiting, more than {above}, but no more workers are allowed")
            }
            Reason::ScaleIn { work, below } => write!(f, "{work} waiting or in flight, fewer than {below}"),
            Reason::TargetOut { work, needed } | Reason::TargetIn { work, needed } => {
                write!(f, "{work} waiting or in flight, work for {needed}")
            }
            Reason::TargetAtMax { work, needed } => {
                write!(f, "{work} waiting or in flight, work for {needed}, but no more workers are allowed")
            }
            Reason::TargetInLater { work, needed } => {
                write!(f, "{work} waiting or in flight, work for {needed}; fewer once that has lasted")
            }
            Reason::Steady => write!(f, "steady"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_allow_no_worker_are_refused() {
        assert!(Bounds::new(0, 0).is_err() && Bounds::new(3, 2).is_err());
        assert_eq!(Bounds::new(0, 1).map(|bounds| (bounds.min(), bounds.max())), Ok((0, 1)));
    }
}
