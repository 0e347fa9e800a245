//! What the runs mean, side by side: text for people, JSON for programs, from the same figures.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::{Common, Config, LONGEST, Simulated, Variant};
use crate::scaling::cost::CallsPerImage;
use crate::scaling::simulate::{Run, Second, SecondLatency, ServiceTime};
use crate::scaling::{Policy, StepPolicy, TargetPolicy};
use crate::workload::{Arrivals, Bursts, Day};

/// Where no policy names an acceptable latency.
const USUAL_SLO: Duration = TargetPolicy::DEFAULT_ACCEPTABLE_LATENCY;
const LABEL_CELLS: usize = 24;
const LEAST_CELLS: usize = 12;

/// Its JSON is a stable interface: names carry their units, what there is not is null.
#[derive(Debug, Serialize)]
pub struct Report {
    arrivals: &'static str,
    #[serde(skip)]
    arrivals_text: String,
    seed: u64,
    requests: u64,
    service_time_seconds: f64,
    #[serde(skip)]
    service_text: String,
    sessions_per_worker: u32,
    overhead_seconds: f64,
    deaths_per_worker_hour: f64,
    visibility_timeout_seconds: f64,
    instance_type: String,
    spot_share: f64,
    instance_hour: f64,
    prices: PricesUsed,
    /// The latency that `share_within` is of.
    slo_seconds: f64,
    /// Of all runs together: how long they took on a real clock.
    wall_seconds: f64,
    runs: Vec<RunReport>,
}

#[derive(Debug, Serialize)]
struct PricesUsed {
    date: String,
    region: String,
    currency: String,
}

#[derive(Debug, Serialize)]
struct RunReport {
    /// As the policy was asked for.
    policy: String,
    #[serde(skip)]
    column: String,
    #[serde(skip)]
    text: String,
    settings: Settings,
    completed: u64,
    /// When the last image was done; null where some were not.
    drained_at_seconds: Option<f64>,
    latency_ms: Option<LatencyMs>,
    /// Of all requests.
    share_within: Option<f64>,
    most_visible: u64,
    most_workers: u32,
    workers_started: u64,
    worker_deaths: u64,
    redelivered: u64,
    worker_hours: f64,
    billed_hours: f64,
    /// Share of the time of all workers in which they worked.
    utilization: f64,
    cost: Cost,
    wall_seconds: f64,
    timeline: Timeline,
}

/// What decided, whatever the policy is; null where it does not ask for it.
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
struct StepSettings {
    scale_out_above: u64,
    scale_out_period_seconds: f64,
    scale_in_below: u64,
    scale_in_period_seconds: f64,
}

#[derive(Debug, Serialize)]
struct TargetSettings {
    slo_seconds: f64,
    backlog_per_worker: f64,
    tolerance_percent: u32,
    scale_in_stabilization_seconds: f64,
}

#[derive(Debug, Serialize)]
struct LatencyMs {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// In the currency of the prices.
#[derive(Debug, Serialize)]
struct Cost {
    workers: f64,
    /// Calls of the queue and the store, none of them shared.
    calls: f64,
    total: f64,
    per_thousand_images: Option<f64>,
}

/// One entry a second in each column.
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
    pub fn new(config: &Config, common: &Common, simulated: &[Simulated]) -> Self {
        let slo = simulated.iter().find_map(|it| slo(&it.variant.policy)).unwrap_or(USUAL_SLO);
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
            prices: PricesUsed {
                date: common.prices.date.clone(),
                region: common.prices.region.clone(),
                currency: common.prices.currency.clone(),
            },
            slo_seconds: slo.as_secs_f64(),
            wall_seconds: simulated.iter().map(|it| it.wall.as_secs_f64()).sum(),
            runs: simulated
                .iter()
                .zip(columns)
                .map(|(it, column)| RunReport::new(config, common, it, column, slo))
                .collect(),
        }
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers; this is a bug") + "\n"
    }

    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a String takes everything; this is a bug");
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let currency = &self.prices.currency;
        writeln!(out, "{} requests, {}, seed {}", self.requests, self.arrivals_text, self.seed)?;
        let sessions = if self.sessions_per_worker == 1 { "session" } else { "sessions" };
        writeln!(
            out,
            "a worker: {} with {} {sessions}, {} an image each",
            self.instance_type, self.sessions_per_worker, self.service_text
        )?;
        writeln!(
            out,
            "prices of {} for {}: {:.4} {currency} an hour of a worker{}",
            self.prices.date,
            self.prices.region,
            self.instance_hour,
            if self.spot_share > 0.0 { format!(", {:.0} % Spot", self.spot_share * 100.0) } else { String::new() }
        )?;
        writeln!(out)?;
        for run in &self.runs {
            writeln!(out, "{:<10}  {}", run.column, run.text)?;
        }
        writeln!(out)?;
        self.write_table(out)
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let cells = self.runs.iter().map(|run| run.column.len()).max().unwrap_or(0).max(LEAST_CELLS);
        let mut row = |label: &str, value: &dyn Fn(&RunReport) -> String| {
            write!(out, "{label:<LABEL_CELLS$}")?;
            for run in &self.runs {
                write!(out, "  {:>cells$}", value(run))?;
            }
            writeln!(out)
        };
        let latency = |pick: fn(&LatencyMs) -> f64| {
            move |run: &RunReport| run.latency_ms.as_ref().map_or("-".to_owned(), |it| milliseconds(pick(it)))
        };
        let currency = &self.prices.currency;
        row("", &|run| run.column.clone())?;
        row("done", &|run| run.completed.to_string())?;
        row("last one after", &|run| run.drained_at_seconds.map_or(undone(), |it| time(Duration::from_secs_f64(it))))?;
        row("latency p50", &latency(|it| it.p50))?;
        row("latency p90", &latency(|it| it.p90))?;
        row("latency p99", &latency(|it| it.p99))?;
        row("latency max", &latency(|it| it.max))?;
        row(&format!("within {}", time(Duration::from_secs_f64(self.slo_seconds))), &|run| percent(run.share_within))?;
        row("most waiting", &|run| run.most_visible.to_string())?;
        row("most workers", &|run| run.most_workers.to_string())?;
        row("workers started", &|run| run.workers_started.to_string())?;
        if self.deaths_per_worker_hour > 0.0 {
            row("workers died", &|run| run.worker_deaths.to_string())?;
            row("images delivered again", &|run| run.redelivered.to_string())?;
        }
        row("worker hours", &|run| format!("{:.2}", run.worker_hours))?;
        row("busy", &|run| percent(Some(run.utilization)))?;
        row(&format!("workers, {currency}"), &|run| format!("{:.4}", run.cost.workers))?;
        row(&format!("queue and store, {currency}"), &|run| format!("{:.4}", run.cost.calls))?;
        row(&format!("1000 images, {currency}"), &|run| {
            run.cost.per_thousand_images.map_or("-".to_owned(), |it| format!("{it:.4}"))
        })
    }
}

impl RunReport {
    fn new(config: &Config, common: &Common, simulated: &Simulated, column: String, slo: Duration) -> Self {
        let Simulated { variant, run, wall } = simulated;
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
            scale_out_above: step.scale_out_above,
            scale_out_period_seconds: step.scale_out_period.as_secs_f64(),
            scale_in_below: step.scale_in_below,
            scale_in_period_seconds: step.scale_in_period.as_secs_f64(),
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
        let calls = common.prices.images(&CallsPerImage::ALONE, run.arrivals);
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

/// The head of each column: the policy's name, numbered where it stands more than once.
pub fn columns(simulated: &[Simulated]) -> Vec<String> {
    let name = |it: &Simulated| it.variant.policy.as_str();
    let columns = simulated.iter().enumerate().map(|(place, it)| {
        let same = |other: &&Simulated| name(other) == name(it);
        match simulated.iter().filter(same).count() {
            1 => name(it).to_owned(),
            _ => format!("{} {}", name(it), simulated[..=place].iter().filter(same).count()),
        }
    });
    columns.collect()
}

fn slo(policy: &Policy) -> Option<Duration> {
    match policy {
        Policy::Step(_) => None,
        Policy::Target(target) => Some(target.acceptable_latency),
    }
}

fn policy_text(variant: &Variant) -> String {
    let rule = match variant.policy {
        Policy::Step(step) => format!(
            "one more above {} waiting, every {}; one less below {}, every {}",
            step.scale_out_above,
            time(step.scale_out_period),
            step.scale_in_below,
            time(step.scale_in_period)
        ),
        Policy::Target(target) => format!(
            "{} acceptable, {:.1} images a worker, {} % tolerance; less after {}",
            time(target.acceptable_latency),
            target.backlog_per_worker(),
            target.tolerance_percent,
            time(target.scale_in_stabilization)
        ),
    };
    let late = match variant.metric_delay {
        Duration::ZERO => String::new(),
        delay => format!(", {} late", time(delay)),
    };
    format!(
        "{rule}; {} to {} workers, ready after {}; queue seen every {}{late}",
        variant.bounds.min(),
        variant.bounds.max(),
        time(variant.boot_time),
        time(variant.metric_period)
    )
}

fn arrivals_text(arrivals: &Arrivals) -> String {
    match arrivals {
        Arrivals::Constant { rate } => format!("{rate}/s, evenly"),
        Arrivals::Poisson { rate } => format!("{rate}/s, Poisson"),
        Arrivals::Burst(Bursts { rate, burst_rate, length, every }) => {
            let every = every.map_or("once".to_owned(), |every| format!("every {}", time(every)));
            format!("{rate}/s, and {burst_rate}/s for {} {every}", time(*length))
        }
        Arrivals::Day(Day { rate, length }) => format!("{rate}/s over a day of {}, a fifth at midnight", time(*length)),
        Arrivals::Trace(_) => "by a trace".to_owned(),
    }
}

fn undone() -> String {
    format!("over {} days", LONGEST.as_secs() / 86_400)
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn hours(duration: Duration) -> f64 {
    duration.as_secs_f64() / 3600.0
}

/// To the microsecond, the resolution of the virtual clock.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn milliseconds(ms: f64) -> String {
    time(Duration::from_secs_f64(ms / 1e3))
}

/// A duration with the two units that matter.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let whole = seconds.round() as u64;
    match seconds {
        ..0.9995 => format!("{} ms", round(seconds * 1e3)),
        ..59.95 => format!("{} s", round(seconds)),
        ..3599.5 if whole.is_multiple_of(60) => format!("{} min", whole / 60),
        ..3599.5 => format!("{} min {} s", whole / 60, whole % 60),
        _ if (whole / 60).is_multiple_of(60) => format!("{} h", whole / 3600),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Three digits, without zeros that say nothing.
fn round(value: f64) -> String {
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_say_them() {
        let texts = [0.0, 0.004_2, 0.999_4, 0.9996, 1.0, 12.34, 59.96, 60.0, 90.4, 3600.0, 5400.0, 90_000.0]
            .map(|seconds| time(Duration::from_secs_f64(seconds)));
        let expected = [
            "0 ms",
            "4.2 ms",
            "999 ms",
            "1 s",
            "1 s",
            "12.3 s",
            "1 min",
            "1 min",
            "1 min 30 s",
            "1 h",
            "1 h 30 min",
            "25 h",
        ];
        assert_eq!(texts, expected);
    }
}
