//! A simulated variant, as the outputs show it.

use std::time::Duration;

use super::config::Variant;
use crate::scaling_policy::cost::{InstancePrice, Prices};
use crate::scaling_policy::discrete_events::{Run, ServiceTime};

/// The settings that all variants share, with the figures from files.
pub(super) struct Common {
    pub(super) prices: Prices,
    pub(super) instance: InstancePrice,
    pub(super) service_time: ServiceTime,
    pub(super) sessions: u32,
    pub(super) overhead: Duration,
}

/// The result of one variant.
pub(super) struct Simulated {
    pub(super) variant: Variant,
    /// The heading in reports and charts; `None` is the name of the policy.
    pub(super) heading: Option<String>,
    pub(super) run: Run,
    /// How long the simulation took in real time.
    pub(super) wall: Duration,
}
