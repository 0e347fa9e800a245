//! How many workers there should be: (policy, bounds, state, observation, now) → decision.
//!
//! Everything here is pure: no I/O and no clock. Time is a `Duration` since an arbitrary start that the caller chooses, so
//! a test or a simulation replays a day in a millisecond.
//!
//! Every policy guarantees:
//!
//! - The decision is within [`Bounds`]. A fleet below the minimum grows to the minimum at once.
//! - If there is no worker and at least one message, visible or in flight, one worker is started at once, without waiting
//!   for the end of a period.
//! - The last worker is kept while a message is in flight.
//! - A missing or stale depth changes nothing. It must not be read as an empty queue, because that would remove the workers
//!   exactly when the queue is in trouble.

pub mod cost;
pub(crate) mod discrete_events;

mod decision;
#[cfg(test)]
mod replay;
mod step;
mod target;

use std::time::Duration;

pub use self::decision::{Bounds, Decision, Observation, QueueDepth, Reason};
pub use self::step::StepPolicy;
pub use self::target::TargetPolicy;

/// A [`QueueDepth`] that is older than this counts as missing.
pub(crate) const MAX_DEPTH_AGE: Duration = Duration::from_secs(5);

/// The rule by which the number of workers follows the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// One worker more above a threshold, one less below another: the two alarms of the legacy system.
    Step(StepPolicy),
    /// As many workers as keep the last message in the queue within an acceptable latency.
    Target(TargetPolicy),
}

impl Policy {
    /// The same policy with a measured service time. The step policy does not use it.
    #[must_use]
    pub fn with_service_time(self, service_time: Duration) -> Policy {
        match self {
            Policy::Step(_) => self,
            Policy::Target(target) => Policy::Target(TargetPolicy { service_time, ..target }),
        }
    }

    /// The same policy for workers that process `concurrency` images in parallel. The step policy does not use it.
    #[must_use]
    pub fn with_concurrency(self, concurrency: u32) -> Policy {
        match self {
            Policy::Step(_) => self,
            Policy::Target(target) => Policy::Target(TargetPolicy { concurrency, ..target }),
        }
    }

    /// The name of the policy as the flags spell it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Policy::Step(_) => "step",
            Policy::Target(_) => "target",
        }
    }
}

/// The memory of a policy. Starts as the default; pass the returned state to the next call of [`decide`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    step: step::Periods,
    target: target::Window,
}

/// Returns the decision and the state to pass in with the next observation. Defined for every input. `now` should not
/// decrease; if it does, the only effect is that a period ends later.
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
