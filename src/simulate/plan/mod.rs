//! `imgcls plan`: which fleet meets a goal under a load, and what it costs.
//!
//! `search` simulates fleets on every kind of machine under every policy, and keeps the smallest that meets the `goal`.
//! `money` prices them. `report` compares them, and `stack_file` writes the cheapest one for `imgcls provision`.

mod config;
mod goal;
mod money;
mod report;
mod search;
mod stack_file;

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

pub use self::config::{Candidate, PlanConfig, PlanPolicy, PlanService};

use self::money::{Choice, Money};
use self::report::PlanReport;
use self::search::{Fleet, Load, Machine};
use super::measured::{self, Measured};
use super::simulated::Simulated;
use super::{plot, read_prices};
use crate::scaling_policy::Bounds;
use crate::scaling_policy::cost::{InstancePrice, Prices};
use crate::scaling_policy::discrete_events::ServiceTime;
use crate::telemetry::output;

/// Finds the fleets and prints the report on standard output. Returns false if no fleet meets the goals.
///
/// # Errors
/// If a file cannot be read or written, or its content is invalid.
pub fn plan(config: &PlanConfig) -> anyhow::Result<bool> {
    let prices = read_prices(config.prices.as_deref())?;
    let overlay = config.overlay.as_deref().map(measured::overlay).transpose()?;
    let (service_time, measured_overhead) = service(&config.service)?;
    let offsets: Vec<Duration> =
        config.arrivals.offsets(config.seed).take(usize::try_from(config.num_request).unwrap_or(usize::MAX)).collect();
    let overhead = config.overhead.unwrap_or(measured_overhead);
    let load = Load { config, span: span(config.duration, &offsets), offsets: &offsets, overhead };

    let types = types(config, &prices)?;
    let machine = |(candidate, instance): &(Candidate, &InstancePrice)| Machine {
        sessions: config.sessions.unwrap_or(instance.vcpus),
        service_time: service_time.at_speed(candidate.speed),
    };
    let mut kinds: Vec<Machine> = Vec::new();
    for kind in types.iter().map(machine) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let simulated = simulated(&load, &kinds);
    let money = Money::new(config, &prices, load.span)?;
    let mut choices: Vec<Choice<'_>> = Vec::new();
    for of_type in &types {
        let (machine, (candidate, instance)) = (machine(of_type), of_type);
        let at = kinds.iter().position(|kind| *kind == machine).expect("added above; this is a bug");
        let fleets = simulated[at].iter();
        choices.extend(fleets.map(|fleet| money.choice(&candidate.instance_type, instance, machine, fleet)));
    }
    choices.sort_by(|a, b| b.fleet.meets_goals.cmp(&a.fleet.meets_goals).then(a.cost.total.total_cmp(&b.cost.total)));

    let report = PlanReport::new(&load, &prices, service_time, &choices);
    let best = choices.first().filter(|best| best.fleet.meets_goals);
    if let (Some(path), Some(best)) = (&config.stack_file, best) {
        let text = stack_file::text(&report, best, config);
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(file) = &config.plot {
        plot::write(file, &drawn(&load, &choices), overlay.as_ref())?;
    }
    let text = if config.json { report.to_json() } else { report.to_text() };
    output::print(&text).context("cannot print the plan")?;
    Ok(best.is_some())
}

fn service(service: &PlanService) -> anyhow::Result<(ServiceTime, Duration)> {
    Ok(match service {
        PlanService::Given(time) => (*time, Duration::ZERO),
        PlanService::Measured { report, busy_sessions } => {
            let Measured { service_time, overhead } = measured::read(report, *busy_sessions)?;
            (ServiceTime::Constant(service_time), overhead)
        }
    })
}

/// The time that the load takes: as long as the user said, or until the second after the last arrival.
fn span(duration: Option<Duration>, offsets: &[Duration]) -> Duration {
    let last = offsets.last().copied().unwrap_or_default();
    match duration {
        Some(duration) if duration >= last => duration,
        _ => Duration::from_secs(last.as_secs() + 1),
    }
}

/// The instance types to choose from, each with its price.
///
/// # Errors
/// One line if the price of one is not known.
fn types<'a>(config: &PlanConfig, prices: &'a Prices) -> anyhow::Result<Vec<(Candidate, &'a InstancePrice)>> {
    if config.candidates.is_empty() {
        // `provision` takes the bundle of this program, and a burstable type cannot work all the time.
        let cpu = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x86_64" };
        let suitable = prices.instances().filter(|(_, price)| price.cpu == cpu && price.baseline.is_none());
        let types: Vec<_> =
            suitable.map(|(name, price)| (Candidate { instance_type: name.to_owned(), speed: 1.0 }, price)).collect();
        anyhow::ensure!(!types.is_empty(), "the prices have no type for {cpu}: give --instance-type");
        return Ok(types);
    }
    let priced = config.candidates.iter().map(|candidate| {
        Ok((candidate.clone(), prices.instance(&candidate.instance_type).map_err(anyhow::Error::msg)?))
    });
    priced.collect()
}

/// The fleets of each kind of machine, in their order. The kinds are simulated on all cores.
fn simulated(load: &Load<'_>, machines: &[Machine]) -> Vec<Vec<Fleet>> {
    let found: Vec<Mutex<Vec<Fleet>>> = machines.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(machines.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(machine), Some(found)) = (machines.get(at), found.get(at)) else { return };
                    let fleets = search::fleets(load, *machine, &load.config.policies);
                    *found.lock().unwrap_or_else(PoisonError::into_inner) = fleets;
                }
            });
        }
    });
    found.into_iter().map(|fleets| fleets.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// A number of machines and their type, for people.
fn machines(bounds: Bounds, instance_type: &str) -> String {
    match (bounds.min(), bounds.max()) {
        (min, max) if min == max => format!("{max} × {instance_type}"),
        (min, max) => format!("{min} to {max} × {instance_type}"),
    }
}

/// The cheapest fleet of each policy, simulated again for the chart.
fn drawn(load: &Load<'_>, choices: &[Choice<'_>]) -> Vec<Simulated> {
    let mut drawn: Vec<Simulated> = Vec::new();
    for Choice { instance_type, machine, fleet, .. } in choices {
        let variant = fleet.variant.clone();
        if drawn.iter().all(|other| other.variant.name != variant.name) {
            let run = search::run(load, *machine, &variant);
            let heading = Some(format!("{}: {}", variant.name, machines(variant.bounds, instance_type)));
            drawn.push(Simulated { variant, heading, run, wall: Duration::ZERO });
        }
    }
    let end = drawn.iter().map(|it| it.run.ended_at()).max().unwrap_or_default();
    for it in &mut drawn {
        it.run.extend_to(end);
    }
    drawn
}
