//! Scaling policies: the same flags for every command that has one.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::parse::{percent, positive_duration};
use crate::config;
use crate::scaling_policy::{Policy, StepPolicy, TargetPolicy};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// One worker more above a threshold, one less below another: the two alarms of the legacy system
    Step,
    /// As many workers as keep the latency of the last image in the queue acceptable
    Target,
}

#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// `target`: acceptable latency, from request to answer
    #[arg(long, env = "IMGCLS_SLO", default_value = "10s", value_parser = positive_duration)]
    pub slo: Duration,
    /// `target`: how far the number of workers may deviate, in percent, before it changes
    #[arg(long, env = "IMGCLS_TOLERANCE", default_value = "10", value_parser = percent)]
    pub tolerance: u32,
    /// `target`: how long fewer workers must be enough before any is removed [default: 5 minutes; for worker
    /// processes 30 s]
    #[arg(long, env = "IMGCLS_SCALE_IN_STABILIZATION", value_parser = config::duration)]
    pub scale_in_stabilization: Option<Duration>,
    /// `step`: add a worker when more images than this are waiting
    #[arg(long, env = "IMGCLS_SCALE_OUT_ABOVE", default_value_t = 25)]
    pub scale_out_above: u64,
    /// `step`: time between two additions of a worker [default: 1 minute, as the alarm of the legacy system; for
    /// worker processes 1 s, since one starts in less than a second]
    #[arg(long, env = "IMGCLS_SCALE_OUT_PERIOD", value_parser = config::duration)]
    pub scale_out_period: Option<Duration>,
    /// `step`: remove a worker when fewer images than this are waiting or being classified
    #[arg(long, env = "IMGCLS_SCALE_IN_BELOW", default_value_t = 2)]
    pub scale_in_below: u64,
    /// `step`: time between two removals of a worker, and between an addition and a removal
    #[arg(long, env = "IMGCLS_SCALE_IN_PERIOD", default_value = "60s", value_parser = config::duration)]
    pub scale_in_period: Duration,
}

/// Defaults that depend on how long a worker takes to start.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub scale_out_period: Duration,
    pub scale_in_stabilization: Duration,
}

impl Defaults {
    /// The defaults for instances.
    pub const INSTANCES: Defaults = Defaults {
        scale_out_period: StepPolicy::LEGACY.scale_out_period,
        scale_in_stabilization: TargetPolicy::DEFAULT_SCALE_IN_STABILIZATION,
    };
}

impl PolicyArgs {
    /// The target policy has no service time yet, see [`Policy::with_service_time`], and one session a worker.
    pub fn policy(&self, kind: PolicyKind, defaults: Defaults) -> Policy {
        match kind {
            PolicyKind::Step => Policy::Step(StepPolicy {
                scale_out_above: self.scale_out_above,
                scale_out_period: self.scale_out_period.unwrap_or(defaults.scale_out_period),
                scale_in_below: self.scale_in_below,
                scale_in_period: self.scale_in_period,
            }),
            PolicyKind::Target => Policy::Target(TargetPolicy {
                acceptable_latency: self.slo,
                service_time: Duration::ZERO,
                concurrency: 1,
                tolerance_percent: self.tolerance,
                scale_in_stabilization: self.scale_in_stabilization.unwrap_or(defaults.scale_in_stabilization),
            }),
        }
    }
}
