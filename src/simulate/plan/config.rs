//! The settings of a plan.

use std::path::PathBuf;
use std::time::Duration;

use crate::loadgen::Threshold;
use crate::plot::PlotFile;
use crate::scaling_policy::discrete_events::ServiceTime;
use crate::simulate::Variant;
use crate::workload::Arrivals;

/// The load, the goal, and the fleets to choose from.
#[derive(Debug, Clone)]
pub struct PlanConfig {
    /// When requests arrive.
    pub arrivals: Arrivals,
    /// How many requests arrive.
    pub num_request: u64,
    /// Seed of the random arrivals, service times and deaths.
    pub seed: u64,
    /// The length of the load, which is what the money is for; `None` ends it with the last arrival.
    pub duration: Option<Duration>,
    /// How long a session takes for an image on a machine of speed 1.
    pub service: PlanService,
    /// Added to every latency; `None` takes it from the measurement, or zero without one.
    pub overhead: Option<Duration>,
    /// Conditions on latencies that a fleet has to meet; at least one.
    pub goals: Vec<Threshold>,
    /// Instance types to choose from; empty chooses from all of this processor whose price is known.
    pub candidates: Vec<Candidate>,
    /// Sessions of each worker; `None` is one for each vCPU of the instance type.
    pub sessions: Option<u32>,
    /// The policies, without bounds, which the plan finds; empty tries those that suit the goal.
    pub policies: Vec<PlanPolicy>,
    /// The least and the most workers that a plan may have.
    pub workers: (u32, u32),
    /// How long the messages of a dead worker stay invisible.
    pub visibility_timeout: Duration,
    /// Mean rate of crashes and Spot interruptions.
    pub deaths_per_worker_hour: f64,
    /// The share of Spot instances, 0 to 1.
    pub spot_share: f64,
    /// The machines of the web tier: how many, and of which type.
    pub web: (u32, String),
    /// A price file; `None` takes the built-in prices.
    pub prices: Option<PathBuf>,
    /// Print the report as JSON.
    pub json: bool,
    /// Write the settings of the cheapest fleet to this file, for `provision --config`.
    pub stack_file: Option<PathBuf>,
    /// Draw the cheapest fleet of each policy to this chart.
    pub plot: Option<PlotFile>,
    /// A report of the load generator that is drawn over the simulated lines.
    pub overlay: Option<PathBuf>,
}

/// How long a session takes for an image.
#[derive(Debug, Clone)]
pub enum PlanService {
    /// The user gave it.
    Given(ServiceTime),
    /// It is taken from a report of the load generator.
    Measured {
        /// The report, as JSON.
        report: PathBuf,
        /// How many sessions, of all workers together, were busy during that measurement.
        busy_sessions: u32,
    },
}

/// An instance type to choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name, such as `c7i.large`.
    pub instance_type: String,
    /// How fast one of its vCPUs is, relative to the machine that was measured.
    pub speed: f64,
}

/// A policy whose bounds the plan finds.
#[derive(Debug, Clone)]
pub struct PlanPolicy {
    /// The policy with its name and everything but the bounds, which are ignored.
    pub variant: Variant,
    /// The number of workers never changes: the minimum and the maximum are one number.
    pub is_fixed: bool,
}
