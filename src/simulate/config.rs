//! The settings of a simulation.

use std::path::PathBuf;
use std::time::Duration;

use crate::plot::PlotFile;
use crate::scaling_policy::discrete_events::ServiceTime;
use crate::scaling_policy::{Bounds, Policy};
use crate::workload::Arrivals;

/// The load, the workers and the policies to compare.
#[derive(Debug, Clone)]
pub struct Config {
    /// When requests arrive.
    pub arrivals: Arrivals,
    /// How many requests arrive.
    pub num_request: u64,
    /// Seed of the random arrivals, service times and deaths.
    pub seed: u64,
    /// How long a session takes for an image.
    pub service: Service,
    /// Added to every latency; `None` takes it from the measurement, or zero without one.
    pub overhead: Option<Duration>,
    /// Sessions of each worker; `None` is one for each vCPU of the instance type.
    pub sessions: Option<u32>,
    /// How long the messages of a dead worker stay invisible.
    pub visibility_timeout: Duration,
    /// Mean rate of crashes and Spot interruptions.
    pub deaths_per_worker_hour: f64,
    /// The instance type of the workers.
    pub instance_type: String,
    /// The share of Spot instances, 0 to 1.
    pub spot_share: f64,
    /// A price file; `None` takes the built-in prices.
    pub prices: Option<PathBuf>,
    /// The variants to compare; at least one.
    pub variants: Vec<Variant>,
    /// Print the report as JSON.
    pub json: bool,
    /// Write the timeline to this CSV file.
    pub csv: Option<PathBuf>,
    /// Write the timeline to this chart.
    pub plot: Option<PlotFile>,
    /// A report of the load generator that is drawn over the simulated lines.
    pub overlay: Option<PathBuf>,
}

/// How long a session takes for an image.
#[derive(Debug, Clone)]
pub enum Service {
    /// The user gave it.
    Given(ServiceTime),
    /// It is taken from a report of the load generator.
    Measured {
        /// The report, as JSON.
        report: PathBuf,
        /// How many workers were busy during that measurement.
        busy_workers: u32,
    },
}

impl Service {
    /// # Errors
    /// If no distribution has this mean and this 99th percentile.
    pub fn given(mean: Duration, p99: Option<Duration>) -> Result<Service, String> {
        let time = p99.map_or(Ok(ServiceTime::Constant(mean)), |p99| ServiceTime::with_p99(mean, p99))?;
        Ok(Service::Given(time))
    }
}

/// A policy with the settings that decide how fast it can act.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The policy as the user wrote it.
    pub name: String,
    /// The service time of a target policy is filled in later.
    pub policy: Policy,
    /// The minimum and maximum number of workers.
    pub bounds: Bounds,
    /// The time from the launch of a worker until it is ready.
    pub boot_time: Duration,
    /// How often the queue is measured.
    pub metric_period: Duration,
    /// The delay after which a measurement reaches the policy.
    pub metric_delay: Duration,
}
