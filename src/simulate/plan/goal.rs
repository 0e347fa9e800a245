//! The goals of a plan, as conditions on the latencies of a run.

use std::time::Duration;

use crate::loadgen::{LatencyMetric, Threshold};
use crate::scaling_policy::discrete_events::Run;

/// Returns true if the run meets the goal. An image that was not completed has no latency, so such a run meets none.
pub(super) fn holds(goal: &Threshold, run: &Run) -> bool {
    let latency = match goal.latency() {
        Some(LatencyMetric::Min) => run.latency(0.0),
        Some(LatencyMetric::Mean) => run.mean_latency(),
        Some(LatencyMetric::Max) => run.latency(1.0),
        Some(LatencyMetric::Quantile(quantile)) => run.latency(quantile),
        None => None,
    };
    run.completed() == run.arrivals && goal.holds(latency.map(|latency| latency.as_secs_f64() * 1e3))
}

/// The share of the images that the goal gives a limit, and the limit. `None` if it limits the mean.
pub(super) fn share_and_limit(goal: &Threshold) -> Option<(f64, Duration)> {
    let limit = goal.latency_limit()?;
    match goal.latency()? {
        LatencyMetric::Quantile(quantile) => Some((quantile, limit)),
        LatencyMetric::Max => Some((1.0, limit)),
        LatencyMetric::Min | LatencyMetric::Mean => None,
    }
}
