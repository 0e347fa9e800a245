//! `imgcls simulate`: simulates how a fleet serves a load under a scaling policy, and what that costs. `imgcls plan`, in
//! `plan`, searches for the fleet that meets a goal.
//!
//! The model is [`discrete_events`](crate::scaling_policy::discrete_events), and the prices are in
//! [`cost`](crate::scaling_policy::cost). This command reads the files, runs every variant under the same arrivals and
//! writes the results: `report` as text and JSON, `timeline` as CSV, `plot` as a chart.

mod columns;
mod config;
mod measured;
mod plan;
mod plot;
mod report;
mod simulated;
mod timeline;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

pub use self::config::{Config, Service, Variant};
pub use self::plan::{Candidate, PlanConfig, PlanPolicy, PlanService, plan};

use self::measured::Measured;
use self::report::Report;
use self::simulated::{Common, Simulated};
use crate::scaling_policy::cost::Prices;
use crate::scaling_policy::discrete_events::{Scenario, ServiceTime, simulate};
use crate::telemetry::output;

/// Simulates every variant under the same arrivals and prints the report on standard output.
///
/// # Errors
/// If a file cannot be read or written, or its content is invalid.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let common = common(config)?;
    let overlay = config.overlay.as_deref().map(measured::overlay).transpose()?;
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
        plot::write(file, &simulated, overlay.as_ref())?;
    }
    let report = Report::new(config, &common, &simulated);
    let text = if config.json { report.to_json() } else { report::render(&report) };
    output::print(&text).context("cannot print the report")
}

fn common(config: &Config) -> anyhow::Result<Common> {
    let prices = read_prices(config.prices.as_deref())?;
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

/// Reads the price file, or takes the built-in prices if no file is given.
fn read_prices(path: Option<&Path>) -> anyhow::Result<Prices> {
    let Some(path) = path else { return Ok(Prices::built_in()) };
    let context = || format!("cannot read the prices {}", path.display());
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
    let started = Instant::now();
    let count = usize::try_from(config.num_request).unwrap_or(usize::MAX);
    let run = simulate(&scenario, config.arrivals.offsets(config.seed).take(count));
    Simulated { variant, heading: None, run, wall: started.elapsed() }
}
