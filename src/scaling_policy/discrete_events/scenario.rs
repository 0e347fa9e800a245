//! The input of a simulation: everything except the arrivals.

use std::time::Duration;

use super::service_time::ServiceTime;
use crate::scaling_policy::{Bounds, Policy};

/// A run ends after this time even if messages are left.
pub(crate) const MAX_RUN_TIME: Duration = Duration::from_hours(7 * 24);

/// One fleet under one policy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) policy: Policy,
    /// The run starts with the minimum number of workers, all of them ready.
    pub(crate) bounds: Bounds,
    /// How long a session takes for an image.
    pub(crate) service_time: ServiceTime,
    /// Sessions that run in parallel in each worker; at least 1.
    pub(crate) sessions: u32,
    pub(crate) boot_time: Duration,
    /// Above 0.
    pub(crate) metric_period: Duration,
    pub(crate) metric_delay: Duration,
    pub(crate) visibility_timeout: Duration,
    /// Mean rate of crashes and Spot interruptions.
    pub(crate) deaths_per_worker_hour: f64,
    /// A constant that is added to every latency.
    pub(crate) overhead: Duration,
    /// Seed of the random service times and deaths.
    pub(crate) seed: u64,
}
