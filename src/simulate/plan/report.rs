//! The report of a plan: the same figures as text for people and as JSON for programs.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::money::{Choice, Cost};
use super::search::{Latency, Load, Machine};
use crate::scaling_policy::Bounds;
use crate::scaling_policy::cost::Prices;
use crate::scaling_policy::discrete_events::ServiceTime;
use crate::simulate::report::{PricesUsed, arrivals_text, time};

/// Fleets that the text shows, besides the cheapest of each policy.
const SHOWN: usize = 12;

/// The JSON form is a stable interface: names carry their units, and missing values are null.
#[derive(Debug, Serialize)]
pub(super) struct PlanReport {
    pub arrivals: &'static str,
    #[serde(skip)]
    pub load_text: String,
    pub seed: u64,
    pub requests: u64,
    /// The time that `cost.total` is for.
    pub span_seconds: f64,
    pub goals: Vec<String>,
    /// On a machine of speed 1.
    pub service_time_seconds: f64,
    pub overhead_seconds: f64,
    pub prices: PricesUsed,
    pub spot_share: f64,
    pub web_instances: u32,
    pub web_instance_type: String,
    /// Those that meet the goals first, the cheapest first.
    pub fleets: Vec<FleetReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct FleetReport {
    /// The policy as the user wrote it, or `fixed`.
    pub policy: String,
    pub instance_type: String,
    #[serde(skip)]
    bounds: Bounds,
    pub min: u32,
    pub max: u32,
    pub sessions_per_worker: u32,
    /// On this machine.
    pub service_time_seconds: f64,
    pub meets_goals: bool,
    /// The number of images that were not completed.
    pub incomplete: u64,
    pub latency_ms: Option<LatencyMs>,
    pub most_workers: u32,
    pub worker_hours: f64,
    /// The share of the paid session time that was spent on images.
    pub utilization: f64,
    pub cost: Cost,
}

#[derive(Debug, Serialize)]
pub(super) struct LatencyMs {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl PlanReport {
    pub(super) fn new(load: &Load<'_>, prices: &Prices, service_time: ServiceTime, choices: &[Choice<'_>]) -> Self {
        let config = load.config;
        let requests = load.offsets.len() as u64;
        PlanReport {
            arrivals: config.arrivals.as_str(),
            load_text: format!(
                "{requests} requests within {}, {}, seed {}",
                time(load.span),
                arrivals_text(&config.arrivals),
                config.seed
            ),
            seed: config.seed,
            requests,
            span_seconds: load.span.as_secs_f64(),
            goals: config.goals.iter().map(ToString::to_string).collect(),
            service_time_seconds: service_time.mean().as_secs_f64(),
            overhead_seconds: load.overhead.as_secs_f64(),
            prices: PricesUsed::of(prices),
            spot_share: config.spot_share,
            web_instances: config.web.0,
            web_instance_type: config.web.1.clone(),
            fleets: choices.iter().map(FleetReport::new).collect(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers; this is a bug") + "\n"
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a String takes everything; this is a bug");
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "{}", self.load_text)?;
        let service = time(Duration::from_secs_f64(self.service_time_seconds));
        writeln!(out, "goal: {}; an image takes a session {service}", self.goals.join(", "))?;
        let spot =
            if self.spot_share > 0.0 { format!(", {:.0} % Spot", self.spot_share * 100.0) } else { String::new() };
        writeln!(
            out,
            "prices of {} for {} in {}{spot}; machines with 8 GB and a public address; web tier: {} × {}",
            self.prices.date, self.prices.region, self.prices.currency, self.web_instances, self.web_instance_type
        )?;
        writeln!(out)?;
        self.write_table(out)?;
        writeln!(out)?;
        match self.fleets.first().filter(|best| best.meets_goals) {
            Some(best) => writeln!(
                out,
                "cheapest: {} under {}, {:.2} {} a month",
                best.machines(),
                best.policy,
                best.cost.month,
                self.prices.currency
            )?,
            None => writeln!(out, "no fleet meets the goal: raise --up-to, or lower the goal or the load")?,
        }
        writeln!(out, "Not in the price: alarms, dashboard, data transfer; see `imgcls provision plan`.")
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let shown = self.shown();
        let width = |of: &dyn Fn(&FleetReport) -> usize| shown.iter().map(|fleet| of(fleet)).max().unwrap_or(0);
        let policy_width = width(&|fleet| fleet.policy.len()).max(6);
        let fleet_width = width(&|fleet| fleet.machines().chars().count()).max(8);
        writeln!(
            out,
            "{:<5} {:<policy_width$}  {:<fleet_width$}  {:>12} {:>12} {:>8} {:>12} {:>14}",
            "goal", "policy", "machines", "latency p50", "p99", "busy", "a month", "million images"
        )?;
        for fleet in shown {
            let latency = |pick: fn(&LatencyMs) -> f64| {
                let latency = fleet.latency_ms.as_ref().map(pick);
                latency.map_or("-".to_owned(), |ms| time(Duration::from_secs_f64(ms / 1e3)))
            };
            writeln!(
                out,
                "{:<5} {:<policy_width$}  {:<fleet_width$}  {:>12} {:>12} {:>6.0} % {:>12.2} {:>14}",
                if fleet.meets_goals { "met" } else { "MISS" },
                fleet.policy,
                fleet.machines(),
                latency(|it| it.p50),
                latency(|it| it.p99),
                fleet.utilization * 100.0,
                fleet.cost.month,
                fleet.cost.per_million_images.map_or("-".to_owned(), |it| format!("{it:.2}")),
            )?;
        }
        Ok(())
    }

    /// The cheapest fleet of each policy, then the cheapest others.
    fn shown(&self) -> Vec<&FleetReport> {
        let mut shown: Vec<&FleetReport> = Vec::new();
        for fleet in &self.fleets {
            if shown.iter().all(|other| other.policy != fleet.policy) {
                shown.push(fleet);
            }
        }
        let others = self.fleets.iter().filter(|fleet| !shown.iter().any(|it| std::ptr::eq(*it, *fleet)));
        let others: Vec<&FleetReport> = others.filter(|fleet| fleet.meets_goals).take(SHOWN).collect();
        shown.extend(others);
        shown
    }
}

impl FleetReport {
    fn new(choice: &Choice<'_>) -> Self {
        let fleet = choice.fleet;
        let Machine { sessions, service_time } = choice.machine;
        let bounds = fleet.variant.bounds;
        FleetReport {
            policy: fleet.variant.name.clone(),
            instance_type: choice.instance_type.clone(),
            bounds,
            min: bounds.min(),
            max: bounds.max(),
            sessions_per_worker: sessions,
            service_time_seconds: service_time.mean().as_secs_f64(),
            meets_goals: fleet.meets_goals,
            incomplete: fleet.arrivals - fleet.completed,
            latency_ms: fleet.latency.map(LatencyMs::from),
            most_workers: fleet.most_workers,
            worker_hours: choice.worker_hours,
            utilization: fleet.utilization,
            cost: choice.cost,
        }
    }

    /// The number of machines and their type.
    fn machines(&self) -> String {
        super::machines(self.bounds, &self.instance_type)
    }
}

impl From<Latency> for LatencyMs {
    fn from(latency: Latency) -> Self {
        let ms = |latency: Duration| (latency.as_secs_f64() * 1e6).round() / 1e3;
        LatencyMs {
            mean: ms(latency.mean),
            p50: ms(latency.p50),
            p90: ms(latency.p90),
            p99: ms(latency.p99),
            max: ms(latency.max),
        }
    }
}
