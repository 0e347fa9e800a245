//! The figures of the runs, side by side.

use std::time::Duration;

use serde::Serialize;

use super::phrases::{arrivals_text, policy_text, time};
use crate::scaling_policy::cost::{CallsPerImage, Prices};
use crate::scaling_policy::discrete_events::{Run, Second, SecondLatency, ServiceTime};
use crate::scaling_policy::{Policy, StepPolicy, TargetPolicy};
use crate::simulate::columns::columns;
use crate::simulate::config::{Config, Variant};
use crate::simulate::simulated::{Common, Simulated};

/// Used if no policy has an acceptable latency.
const DEFAULT_SLO: Duration = TargetPolicy::DEFAULT_ACCEPTABLE_LATENCY;

/// The JSON form is a stable interface: names carry their units, and missing values are null.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) arrivals: &'static str,
    #[serde(skip)]
    pub(super) arrivals_text: String,
    pub(super) seed: u64,
    pub(super) requests: u64,
    pub(super) service_time_seconds: f64,
    #[serde(skip)]
    pub(super) service_text: String,
    pub(super) sessions_per_worker: u32,
    pub(super) overhead_seconds: f64,
    pub(super) deaths_per_worker_hour: f64,
    pub(super) visibility_timeout_seconds: f64,
    pub(super) instance_type: String,
    pub(super) spot_share: f64,
    pub(super) instance_hour: f64,
    pub(super) prices: PricesUsed,
    /// The latency limit of `share_within`.
    pub(super) slo_seconds: f64,
    /// How long all runs took in real time.
    pub(super) wall_seconds: f64,
    pub(super) runs: Vec<RunReport>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PricesUsed {
    pub(crate) date: String,
    pub(crate) region: String,
    pub(crate) currency: String,
}

#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    /// The policy as the user wrote it.
    pub(super) policy: String,
    #[serde(skip)]
    pub(super) column: String,
    #[serde(skip)]
    pub(super) text: String,
    settings: Settings,
    pub(super) completed: u64,
    /// When the last image was completed; null if some were not.
    pub(super) drained_at_seconds: Option<f64>,
    pub(super) latency_ms: Option<LatencyMs>,
    /// The share of all requests that were answered within `slo_seconds`.
    pub(super) share_within: Option<f64>,
    pub(super) most_visible: u64,
    pub(super) most_workers: u32,
    pub(super) workers_started: u64,
    pub(super) worker_deaths: u64,
    pub(super) redelivered: u64,
    pub(super) worker_hours: f64,
    pub(super) billed_hours: f64,
    /// The share of the paid session time that was spent on images.
    pub(super) utilization: f64,
    pub(super) cost: Cost,
    pub(super) wall_seconds: f64,
    timeline: Timeline,
}

/// The settings of a run; `step` or `target` is null.
#[derive(Debug, Serialize)]
struct Settings {
    min: u32,
    max: u32,
    boot_time_seconds: f64,
    metric_period_seconds: f64,
    metric_delay_seconds: f64,
    step: Option<StepSettings>,
    target: Option<TargetSettings>,
}

#[derive(Debug, Serialize)]
pub(super) struct StepSettings {
    scale_out: Alarm,
    scale_in: Alarm,
}

/// Scales out above the threshold, in below it.
#[derive(Debug, Serialize)]
struct Alarm {
    threshold: u64,
    period_seconds: f64,
}

#[derive(Debug, Serialize)]
struct TargetSettings {
    slo_seconds: f64,
    backlog_per_worker: f64,
    tolerance_percent: u32,
    scale_in_stabilization_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct LatencyMs {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// Costs in the currency of the prices.
#[derive(Debug, Serialize)]
pub(super) struct Cost {
    pub(super) workers: f64,
    /// Calls of queue and store, without batching.
    pub(super) calls: f64,
    pub(super) total: f64,
    pub(super) per_thousand_images: Option<f64>,
}

/// Each column has one entry for each second.
#[derive(Debug, Serialize)]
struct Timeline {
    arrivals: Vec<u32>,
    completed: Vec<u32>,
    visible: Vec<u32>,
    in_flight: Vec<u32>,
    booting: Vec<u32>,
    ready: Vec<u32>,
    draining: Vec<u32>,
    p50_ms: Vec<Option<f64>>,
    p90_ms: Vec<Option<f64>>,
    p99_ms: Vec<Option<f64>>,
}

impl Report {
    pub(crate) fn new(config: &Config, common: &Common, simulated: &[Simulated]) -> Self {
        let slo = simulated.iter().find_map(|it| slo(&it.variant.policy)).unwrap_or(DEFAULT_SLO);
        let columns = columns(simulated);
        let mean = common.service_time.mean();
        let spread = match common.service_time {
            ServiceTime::Constant(_) => "",
            ServiceTime::LogNormal(_) => " in the mean",
        };
        Report {
            arrivals: config.arrivals.as_str(),
            arrivals_text: arrivals_text(&config.arrivals),
            seed: config.seed,
            requests: config.num_request,
            service_time_seconds: mean.as_secs_f64(),
            service_text: format!("{}{spread}", time(mean)),
            sessions_per_worker: common.sessions,
            overhead_seconds: common.overhead.as_secs_f64(),
            deaths_per_worker_hour: config.deaths_per_worker_hour,
            visibility_timeout_seconds: config.visibility_timeout.as_secs_f64(),
            instance_type: config.instance_type.clone(),
            spot_share: config.spot_share,
            instance_hour: common.prices.instance_hour(&common.instance, config.spot_share, 0.0),
            prices: PricesUsed::of(&common.prices),
            slo_seconds: slo.as_secs_f64(),
            wall_seconds: simulated.iter().map(|it| it.wall.as_secs_f64()).sum(),
            runs: simulated
                .iter()
                .zip(columns)
                .map(|(it, column)| RunReport::new(config, common, it, column, slo))
                .collect(),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers; this is a bug") + "\n"
    }
}

impl PricesUsed {
    pub(crate) fn of(prices: &Prices) -> Self {
        PricesUsed { date: prices.date.clone(), region: prices.region.clone(), currency: prices.currency.clone() }
    }
}

impl RunReport {
    fn new(config: &Config, common: &Common, simulated: &Simulated, column: String, slo: Duration) -> Self {
        let Simulated { variant, run, wall, .. } = simulated;
        RunReport {
            policy: variant.name.clone(),
            column,
            text: policy_text(variant),
            settings: Settings::new(variant),
            completed: run.completed(),
            drained_at_seconds: run.drained_at.map(|at| at.as_secs_f64()),
            latency_ms: LatencyMs::new(run),
            share_within: run.share_within(slo),
            most_visible: run.most_visible,
            most_workers: run.most_workers,
            workers_started: run.launched,
            worker_deaths: run.deaths,
            redelivered: run.redelivered,
            worker_hours: hours(run.worker_time),
            billed_hours: hours(run.billed_time),
            utilization: run.utilization(),
            cost: Cost::new(config, common, run),
            wall_seconds: wall.as_secs_f64(),
            timeline: Timeline::new(&run.timeline),
        }
    }
}

impl Settings {
    fn new(variant: &Variant) -> Self {
        let (step, target) = match variant.policy {
            Policy::Step(step) => (Some(StepSettings::new(&step)), None),
            Policy::Target(target) => (None, Some(TargetSettings::new(&target))),
        };
        Settings {
            min: variant.bounds.min(),
            max: variant.bounds.max(),
            boot_time_seconds: variant.boot_time.as_secs_f64(),
            metric_period_seconds: variant.metric_period.as_secs_f64(),
            metric_delay_seconds: variant.metric_delay.as_secs_f64(),
            step,
            target,
        }
    }
}

impl StepSettings {
    fn new(step: &StepPolicy) -> Self {
        StepSettings {
            scale_out: Alarm { threshold: step.scale_out_above, period_seconds: step.scale_out_period.as_secs_f64() },
            scale_in: Alarm { threshold: step.scale_in_below, period_seconds: step.scale_in_period.as_secs_f64() },
        }
    }
}

impl TargetSettings {
    fn new(target: &TargetPolicy) -> Self {
        TargetSettings {
            slo_seconds: target.acceptable_latency.as_secs_f64(),
            backlog_per_worker: target.backlog_per_worker(),
            tolerance_percent: target.tolerance_percent,
            scale_in_stabilization_seconds: target.scale_in_stabilization.as_secs_f64(),
        }
    }
}

impl LatencyMs {
    fn new(run: &Run) -> Option<Self> {
        let ms = |quantile| run.latency(quantile).map(ms);
        Some(LatencyMs {
            mean: self::ms(run.mean_latency()?),
            p50: ms(0.5)?,
            p90: ms(0.9)?,
            p99: ms(0.99)?,
            max: ms(1.0)?,
        })
    }
}

impl Cost {
    fn new(config: &Config, common: &Common, run: &Run) -> Self {
        let hour = common.prices.instance_hour(&common.instance, config.spot_share, run.utilization());
        let workers = hours(run.billed_time) * hour;
        let calls = common.prices.images(&CallsPerImage::UNBATCHED, run.arrivals);
        let total = workers + calls;
        let completed = run.completed();
        let per_thousand_images = (completed > 0).then(|| total / completed as f64 * 1000.0);
        Cost { workers, calls, total, per_thousand_images }
    }
}

impl Timeline {
    fn new(seconds: &[Second]) -> Self {
        let counts = |of: fn(&Second) -> u32| seconds.iter().map(of).collect();
        let latencies =
            |of: fn(&SecondLatency) -> Duration| seconds.iter().map(|it| it.latency.map(|it| ms(of(&it)))).collect();
        Timeline {
            arrivals: counts(|it| it.arrivals),
            completed: counts(|it| it.completed),
            visible: counts(|it| it.visible),
            in_flight: counts(|it| it.in_flight),
            booting: counts(|it| it.booting),
            ready: counts(|it| it.ready),
            draining: counts(|it| it.draining),
            p50_ms: latencies(|it| it.p50),
            p90_ms: latencies(|it| it.p90),
            p99_ms: latencies(|it| it.p99),
        }
    }
}

fn slo(policy: &Policy) -> Option<Duration> {
    match policy {
        Policy::Step(_) => None,
        Policy::Target(target) => Some(target.acceptable_latency),
    }
}

fn hours(duration: Duration) -> f64 {
    duration.as_secs_f64() / 3600.0
}

/// Rounded to a microsecond, the resolution of virtual time.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
