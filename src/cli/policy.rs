//! How the number of workers follows the queue: the same flags wherever a policy decides.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config;
use crate::scaling_policy::{Policy, StepPolicy, TargetPolicy};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyKind {
    /// One worker more above a threshold, one less below another: the original's two alarms
    Step,
    /// As many as keep the last image in the queue within an acceptable latency
    Target,
}

#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// `target`: acceptable latency, from sent to answered
    #[arg(long, env = "IMGCLS_SLO", default_value = "10s", value_parser = super::positive_duration)]
    pub slo: Duration,
    /// `target`: how far off the number of workers may be, in percent of them, before anything changes
    #[arg(long, env = "IMGCLS_TOLERANCE", default_value = "10", value_parser = percent)]
    pub tolerance: u32,
    /// `target`: how long fewer workers have to suffice before any is taken away [default: 5 minutes; `up` 30 s]
    #[arg(long, env = "IMGCLS_SCALE_IN_STABILIZATION", value_parser = config::duration)]
    pub scale_in_stabilization: Option<Duration>,
    /// `step`: more images waiting than this: one worker more
    #[arg(long, env = "IMGCLS_SCALE_OUT_ABOVE", default_value_t = 25)]
    pub scale_out_above: u64,
    /// `step`: how often to look whether a worker is to be added, one at a time [default: 1 minute, as the original's
    /// alarm; `up` 1 s, since a process starts in less than a second]
    #[arg(long, env = "IMGCLS_SCALE_OUT_PERIOD", value_parser = config::duration)]
    pub scale_out_period: Option<Duration>,
    /// `step`: fewer images waiting or in work than this: one worker less
    #[arg(long, env = "IMGCLS_SCALE_IN_BELOW", default_value_t = 2)]
    pub scale_in_below: u64,
    /// `step`: how often to look whether a worker is to be ended, one at a time, and how long after the last was added
    #[arg(long, env = "IMGCLS_SCALE_IN_PERIOD", default_value = "60s", value_parser = config::duration)]
    pub scale_in_period: Duration,
}

/// What depends on how long a worker takes to come.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub scale_out_period: Duration,
    pub scale_in_stabilization: Duration,
}

impl Defaults {
    /// Where workers are instances.
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

/// `10` or `10%`.
pub fn percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).trim().parse() {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err("a percentage from 0 to 100".to_owned()),
    }
}
