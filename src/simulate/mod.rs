//! `imgcls simulate`: what a fleet under a policy does with a load, before anybody pays for it.
//!
//! The thinking is in [`scaling::simulate`] and [`scaling::cost`]; here the arrivals come from [`workload`], figures
//! from files, and what came of it goes out: `report` as text and JSON, `timeline` as CSV, `plot` as a picture.

mod measured;
mod plot;
mod report;
mod timeline;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

pub use self::plot::PlotFile;

use self::measured::Measured;
use crate::scaling::cost::{InstancePrice, Prices};
use crate::scaling::simulate::{LONGEST, Run, Scenario, ServiceTime, simulate};
use crate::scaling::{Bounds, Policy};
use crate::telemetry::output;
use crate::workload::Arrivals;

#[derive(Debug, Clone)]
pub struct Config {
    pub arrivals: Arrivals,
    pub num_request: u64,
    pub seed: u64,
    pub service: Service,
    /// None: as measured, else none.
    pub overhead: Option<Duration>,
    /// None: one a vCPU of the instance type.
    pub sessions: Option<u32>,
    pub visibility_timeout: Duration,
    pub deaths_per_worker_hour: f64,
    pub instance_type: String,
    /// 0 to 1.
    pub spot_share: f64,
    /// None: those carried in the binary.
    pub prices: Option<PathBuf>,
    /// What is laid side by side; at least one.
    pub variants: Vec<Variant>,
    pub json: bool,
    pub csv: Option<PathBuf>,
    pub plot: Option<PlotFile>,
}

/// How long a session takes for an image.
#[derive(Debug, Clone)]
pub enum Service {
    Given(ServiceTime),
    /// By a report of the load generator.
    Measured {
        report: PathBuf,
        busy_workers: u32,
    },
}

impl Service {
    /// # Errors
    /// Where no distribution has this mean and this 99th percentile.
    pub fn given(mean: Duration, p99: Option<Duration>) -> Result<Service, String> {
        let time = p99.map_or(Ok(ServiceTime::Constant(mean)), |p99| ServiceTime::with_p99(mean, p99))?;
        Ok(Service::Given(time))
    }
}

/// One policy and what decides how fast it can act.
#[derive(Debug, Clone)]
pub struct Variant {
    /// As the user wrote it.
    pub name: String,
    /// The service time of a target policy is filled in.
    pub policy: Policy,
    pub bounds: Bounds,
    pub boot_time: Duration,
    pub metric_period: Duration,
    pub metric_delay: Duration,
}

/// All that the variants have in common, with the figures from files.
struct Common {
    prices: Prices,
    instance: InstancePrice,
    service_time: ServiceTime,
    sessions: u32,
    overhead: Duration,
}

/// What came of one variant.
struct Simulated {
    variant: Variant,
    run: Run,
    wall: Duration,
}

/// Simulates every variant under the same arrivals and prints the report on standard output.
///
/// # Errors
/// Where a file cannot be read or written, or does not hold what it should.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let common = common(config)?;
    let mut simulated: Vec<Simulated> =
        config.variants.iter().map(|variant| simulate_variant(config, &common, variant)).collect();
    let end = simulated.iter().map(|it| it.run.ended_at()).max().unwrap_or_default();
    for it in &mut simulated {
        it.run.extend_to(end);
    }
    if let Some(path) = &config.csv {
        timeline::write(path, &simulated)?;
    }
    if let Some(file) = &config.plot {
        plot::write(file, &simulated)?;
    }
    let report = report::Report::new(config, &common, &simulated);
    output::print(&if config.json { report.to_json() } else { report.to_text() }).context("cannot print the report")
}

fn common(config: &Config) -> anyhow::Result<Common> {
    let prices = prices(config.prices.as_deref())?;
    let instance = prices.instance(&config.instance_type).map_err(anyhow::Error::msg)?.clone();
    let sessions = config.sessions.unwrap_or(instance.vcpus);
    let (service_time, measured_overhead) = match &config.service {
        Service::Given(time) => (*time, Duration::ZERO),
        Service::Measured { report, busy_workers } => {
            let Measured { service_time, overhead } = measured::read(report, busy_workers.saturating_mul(sessions))?;
            (ServiceTime::Constant(service_time), overhead)
        }
    };
    let overhead = config.overhead.unwrap_or(measured_overhead);
    Ok(Common { prices, instance, service_time, sessions, overhead })
}

/// The prices of a file, or those carried in the binary.
fn prices(path: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = path else { return Ok(Prices::built_in()) };
    let context = || format!("the prices {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    Prices::parse(&text).map_err(anyhow::Error::msg).with_context(context)
}

fn simulate_variant(config: &Config, common: &Common, variant: &Variant) -> Simulated {
    let worker_service_time = common.service_time.mean() / common.sessions;
    let policy = variant.policy.with_service_time(worker_service_time).with_concurrency(common.sessions);
    let variant = Variant { policy, ..variant.clone() };
    let scenario = Scenario {
        policy: variant.policy,
        bounds: variant.bounds,
        service_time: common.service_time,
        sessions: common.sessions,
        boot_time: variant.boot_time,
        metric_period: variant.metric_period,
        metric_delay: variant.metric_delay,
        visibility_timeout: config.visibility_timeout,
        deaths_per_worker_hour: config.deaths_per_worker_hour,
        overhead: common.overhead,
        seed: config.seed,
    };
    let began = Instant::now();
    let count = usize::try_from(config.num_request).unwrap_or(usize::MAX);
    let run = simulate(&scenario, config.arrivals.offsets(config.seed).take(count));
    Simulated { variant, run, wall: began.elapsed() }
}
