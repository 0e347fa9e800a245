//! How many workers there should be: (policy, bounds, state, observation, now) → decision. No I/O, no clock: time is
//! a `Duration` since whatever moment the caller counts from, so a test or a simulation replays a day in a millisecond.
//!
//! What holds under every policy:
//!
//! - The decision stays within [`Bounds`]; fewer workers than the minimum are made up at once.
//! - No worker and at least one message, waiting or in flight: one worker at once, without waiting for a period.
//! - A message in flight is work: the last worker stays while one is.
//! - A depth that is missing or old decides nothing. Blindness must not read as an empty queue, which would take the
//!   workers away exactly when the queue is in trouble.

pub mod cost;
#[cfg(test)]
mod replay;
pub mod simulate;
mod step;
mod target;

use std::fmt;
use std::time::Duration;

pub use step::StepPolicy;
pub use target::TargetPolicy;

/// Older than this a [`QueueDepth`] counts as missing.
pub const MAX_DEPTH_AGE: Duration = Duration::from_secs(5);

/// How the number of workers follows the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// One more above a threshold, one less below another: the original's two alarms.
    Step(StepPolicy),
    /// As many as keep the last message within an acceptable latency.
    Target(TargetPolicy),
}

impl Policy {
    /// The same policy where a worker was found to take this long for an image. The step policy does not ask.
    #[must_use]
    pub fn with_service_time(self, service_time: Duration) -> Policy {
        match self {
            Policy::Step(_) => self,
            Policy::Target(target) => Policy::Target(TargetPolicy { service_time, ..target }),
        }
    }

    /// The same policy where a worker has so many images in work side by side. The step policy does not ask.
    #[must_use]
    pub fn with_concurrency(self, concurrency: u32) -> Policy {
        match self {
            Policy::Step(_) => self,
            Policy::Target(target) => Policy::Target(TargetPolicy { concurrency, ..target }),
        }
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Policy::Step(_) => "step",
            Policy::Target(_) => "target",
        }
    }
}

/// Fewest and most workers; the fewest is never more than the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    min: u32,
    max: u32,
}

impl Bounds {
    /// # Errors
    /// Where the minimum is above the maximum, or the maximum is zero: then nothing would ever be classified.
    pub fn new(min: u32, max: u32) -> Result<Self, String> {
        if max == 0 {
            return Err("the most workers must be at least 1".to_owned());
        }
        if min > max {
            return Err(format!("the fewest workers ({min}) are more than the most ({max})"));
        }
        Ok(Bounds { min, max })
    }

    pub fn min(self) -> u32 {
        self.min
    }

    pub fn max(self) -> u32 {
        self.max
    }
}

/// What the caller sees of workers and queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Workers that are wanted and there, or on their way: ready, starting, being replaced. Not those that drain.
    pub workers: u32,
    /// The newest reading of the queue; None where there was none yet.
    pub depth: Option<QueueDepth>,
}

/// One reading of the request queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// When it was read.
    pub at: Duration,
    pub visible: u64,
    pub in_flight: u64,
}

impl QueueDepth {
    /// Messages that are not done.
    fn work(&self) -> u64 {
        self.visible.saturating_add(self.in_flight)
    }
}

/// What a policy remembers from one decision to the next. It starts as the default and is handed back each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    step: step::Periods,
    target: target::Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How many workers there should be.
    pub desired: u32,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    BelowMin,
    AboveMax,
    /// Nothing is known of the queue, so nothing changes.
    DepthUnknown,
    WorkButNoWorker {
        work: u64,
    },
    ScaleOut {
        visible: u64,
        above: u64,
    },
    /// As [`Reason::ScaleOut`], but there are as many workers as may be.
    AtMax {
        visible: u64,
        above: u64,
    },
    ScaleIn {
        work: u64,
        below: u64,
    },
    /// The target policy wants more workers: the work is for `needed`.
    TargetOut {
        work: u64,
        needed: u64,
    },
    /// As [`Reason::TargetOut`], but there are as many workers as may be.
    TargetAtMax {
        work: u64,
        needed: u64,
    },
    /// Fewer have sufficed for long enough.
    TargetIn {
        work: u64,
        needed: u64,
    },
    /// Fewer suffice, but not for long enough yet: nothing changes.
    TargetInLater {
        work: u64,
        needed: u64,
    },
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

/// The decision, and the state to hand in with the next observation. Defined for every input; `now` should not go
/// back, and if it does nothing worse happens than a period that ends later.
pub fn decide(
    policy: &Policy,
    bounds: Bounds,
    state: State,
    observation: &Observation,
    now: Duration,
) -> (State, Decision) {
    let depth = observation.depth.filter(|depth| now.saturating_sub(depth.at) <= MAX_DEPTH_AGE);
    let workers = observation.workers;
    let mut state = state;
    let (desired, reason) = match policy {
        Policy::Step(step) => step.decide(bounds, &mut state.step, workers, depth, now),
        Policy::Target(target) => target.decide(bounds, &mut state.target, workers, depth),
    };
    (state, Decision { desired, reason })
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
