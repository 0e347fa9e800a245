//! `imgcls plan`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::arrivals::{ArrivalArgs, ArrivalsArg, Unbounded};
use super::parse::{percent, positive_duration, visibility_timeout};
use super::policy::{Defaults, PolicyArgs, PolicyKind};
use super::simulate::{MOST_WORKERS, PolicySpec, Settings, deaths};
use super::usage::usage;
use crate::plot::PlotFile;
use crate::scaling_policy::discrete_events::ServiceTime;
use crate::scaling_policy::{Bounds, Policy, StepPolicy, TargetPolicy};
use crate::simulate::{self, Candidate, PlanPolicy, PlanService, Variant};
use crate::workload::Trace;
use crate::{config, loadgen};

/// The load that is planned for, unless a flag limits it or it is a day.
const DEFAULT_DURATION: Duration = Duration::from_hours(1);
/// CloudWatch has a depth of the queue every minute, about a minute late.
const CLOUDWATCH: Duration = Duration::from_mins(1);
/// `imgcls autoscale` reads the queue itself.
const AUTOSCALE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(
    after_help = "The policies `fixed` (a constant number of workers), `step` and `target` are compared unless --compare names some. \
    A policy may have settings after its name, as in `imgcls simulate`: --compare target:slo=5s. `step` sees the queue as CloudWatch \
    shows it, `target` as `imgcls autoscale` does.\n\
    Exit codes: 0 a fleet meets the goal, 99 none does, 1 a file cannot be read or written, 2 usage."
)]
pub struct PlanArgs {
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// Latency that a fleet has to keep, such as 'p99<2s'; may be repeated. Metrics: p50, p99 (any percentile), mean, max
    #[arg(long = "goal", env = "IMGCLS_GOAL", required = true, value_delimiter = ',', value_parser = goal)]
    pub goals: Vec<loadgen::Threshold>,
    /// Mean time that one session takes for an image, on the machine that was measured
    #[arg(long, env = "IMGCLS_SERVICE_TIME", value_parser = positive_duration)]
    pub service_time: Option<Duration>,
    /// 99th percentile of that time [default: every image takes the mean]
    #[arg(long, env = "IMGCLS_SERVICE_TIME_P99", value_parser = positive_duration)]
    pub service_time_p99: Option<Duration>,
    /// Service time and overhead from a report of `loadgen --json`: a closed loop that kept all sessions busy
    #[arg(long, env = "IMGCLS_FROM_LOADGEN", conflicts_with_all = ["service_time", "service_time_p99"], requires = "measured_sessions")]
    pub from_loadgen: Option<PathBuf>,
    /// Number of sessions that were busy in that report, of all workers together
    #[arg(long, env = "IMGCLS_MEASURED_SESSIONS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub measured_sessions: Option<u32>,
    /// Time that each image takes besides queue and service: HTTP, store, reply [default: 0s, or that of --from-loadgen]
    #[arg(long, env = "IMGCLS_OVERHEAD", value_parser = config::duration)]
    pub overhead: Option<Duration>,
    /// Instance type to choose from, TYPE or TYPE=SPEED, where SPEED is that of one of its vCPUs relative to the machine that
    /// was measured; may be repeated [default: all types of this processor with a price that are not burstable]
    #[arg(long = "instance-type", env = "IMGCLS_INSTANCE_TYPE", value_delimiter = ',', value_parser = candidate)]
    pub instance_types: Vec<Candidate>,
    /// Sessions of the model side by side in a worker [default: one per vCPU of the instance type]
    #[arg(long, env = "IMGCLS_SESSIONS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sessions: Option<u32>,
    /// Policy to compare, `step` or `target`; may be repeated, see below
    #[arg(long = "compare", env = "IMGCLS_COMPARE", value_name = "POLICY", value_parser = |text: &str| text.parse::<PolicySpec>())]
    pub policies: Vec<PolicySpec>,
    /// Fewest workers that a plan may have at any time
    #[arg(long, env = "IMGCLS_MIN", default_value_t = 0)]
    pub min: u32,
    /// Most workers that a plan may have
    #[arg(long, env = "IMGCLS_UP_TO", default_value_t = 100, value_name = "WORKERS")]
    pub up_to: u32,
    /// Time from requesting a worker until it is ready
    #[arg(long, env = "IMGCLS_BOOT_TIME", default_value = "60s", value_parser = config::duration)]
    pub boot_time: Duration,
    /// How long the messages of a dead worker stay invisible
    #[arg(long, env = "IMGCLS_VISIBILITY_TIMEOUT", default_value = "30s", value_parser = visibility_timeout)]
    pub visibility_timeout: Duration,
    /// Mean number of crashes and Spot interruptions of each worker per hour
    #[arg(long, env = "IMGCLS_DEATHS_PER_HOUR", default_value_t = 0.0, value_parser = deaths)]
    pub deaths_per_hour: f64,
    /// Share of the workers that are Spot, in percent
    #[arg(long, env = "IMGCLS_SPOT_SHARE", default_value = "0", value_parser = percent)]
    pub spot_share: u32,
    /// Number of machines of the web tier, which the plan prices and does not size
    #[arg(long, env = "IMGCLS_WEB_INSTANCES", default_value_t = 1)]
    pub web_instances: u32,
    /// Instance type of the web tier [default: t3.small, for arm64 t4g.small]
    #[arg(long, env = "IMGCLS_WEB_INSTANCE_TYPE")]
    pub web_instance_type: Option<String>,
    /// A TOML file of prices [default: dated prices of us-east-1 in the binary]
    #[arg(long, env = "IMGCLS_PRICES")]
    pub prices: Option<PathBuf>,
    /// Write the cheapest fleet to this file, for `imgcls provision --config`
    #[arg(long, env = "IMGCLS_OUT")]
    pub out: Option<PathBuf>,
    /// Plot the cheapest fleet of each policy over time to this file, .svg or .png
    #[arg(long, env = "IMGCLS_PLOT", value_parser = |text: &str| text.parse::<PlotFile>())]
    pub plot: Option<PlotFile>,
    /// A report of `loadgen --json` with the same arrivals, whose answers and latencies are drawn as dots into --plot
    #[arg(long, env = "IMGCLS_OVERLAY", requires = "plot")]
    pub overlay: Option<PathBuf>,
    /// Print the result as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
}

impl PlanArgs {
    /// `trace` is the content of the file that `arrivals` names, if any.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other; one line if no request or too many would start.
    pub fn config(&self, trace: Option<Trace>) -> anyhow::Result<simulate::PlanConfig> {
        let Some(arrivals) = self.arrivals.arrivals("plan", trace)? else {
            return Err(usage("plan", "give --rate, the requests per second that arrive"));
        };
        if self.up_to == 0 || self.min > self.up_to || self.up_to > MOST_WORKERS {
            return Err(usage("plan", format!("--up-to is 1 to {MOST_WORKERS}, and --min at most --up-to")));
        }
        let unbounded = match self.arrivals.arrivals {
            ArrivalsArg::Day => self.arrivals.day_length,
            _ => DEFAULT_DURATION,
        };
        let is_unbounded =
            self.arrivals.num_request.is_none() && self.arrivals.duration.is_none() && !arrivals.is_finite();
        let by_default = if std::env::consts::ARCH == "aarch64" { "t4g.small" } else { "t3.small" };
        Ok(simulate::PlanConfig {
            num_request: self.arrivals.count(&arrivals, Unbounded::Duration(unbounded))?,
            arrivals,
            seed: self.arrivals.seed,
            duration: if is_unbounded { Some(unbounded) } else { self.arrivals.duration },
            service: self.service()?,
            overhead: self.overhead,
            goals: self.goals.clone(),
            candidates: self.instance_types.clone(),
            sessions: self.sessions,
            policies: self.policies()?,
            workers: (self.min, self.up_to),
            visibility_timeout: self.visibility_timeout,
            deaths_per_worker_hour: self.deaths_per_hour,
            spot_share: f64::from(self.spot_share) / 100.0,
            web: (self.web_instances, self.web_instance_type.clone().unwrap_or_else(|| by_default.to_owned())),
            prices: self.prices.clone(),
            json: self.json,
            stack_file: self.out.clone(),
            plot: self.plot.clone(),
            overlay: self.overlay.clone(),
        })
    }

    fn service(&self) -> anyhow::Result<PlanService> {
        match (&self.from_loadgen, self.measured_sessions, self.service_time) {
            (Some(report), Some(busy_sessions), _) => {
                Ok(PlanService::Measured { report: report.clone(), busy_sessions })
            }
            (_, _, Some(mean)) => {
                let with_p99 = |p99| ServiceTime::with_p99(mean, p99);
                let time = self.service_time_p99.map_or(Ok(ServiceTime::Constant(mean)), with_p99);
                time.map(PlanService::Given).map_err(|error| usage("plan", format!("--service-time-p99: {error}")))
            }
            _ => Err(usage(
                "plan",
                "give --service-time, the time that an image takes, or --from-loadgen with a report and --measured-sessions",
            )),
        }
    }

    /// The policies to compare, each without bounds.
    fn policies(&self) -> anyhow::Result<Vec<PlanPolicy>> {
        let fixed = PlanPolicy {
            variant: Variant {
                name: "fixed".to_owned(),
                policy: Policy::Step(StepPolicy::LEGACY),
                bounds: Bounds::new(1, 1).expect("one worker; this is a bug"),
                boot_time: self.boot_time,
                metric_period: AUTOSCALE,
                metric_delay: Duration::ZERO,
            },
            is_fixed: true,
        };
        let mut policies = vec![fixed];
        let specs = if self.policies.is_empty() { self.usual_policies() } else { self.policies.clone() };
        for spec in specs {
            policies.push(self.policy(&spec)?);
        }
        Ok(policies)
    }

    /// The backlog that a worker may have is a part of the latency that is allowed, since images also wait while workers
    /// start.
    fn usual_policies(&self) -> Vec<PolicySpec> {
        let limit = self.limit();
        let texts = [limit, limit / 2, limit / 4].map(|slo| format!("target:slo={}", seconds(slo)));
        let texts = std::iter::once("step".to_owned()).chain(texts);
        texts.map(|text| text.parse().expect("a policy of this command; this is a bug")).collect()
    }

    /// The shortest latency that a goal limits.
    fn limit(&self) -> Duration {
        let limits = self.goals.iter().filter_map(loadgen::Threshold::latency_limit);
        limits.min().unwrap_or(TargetPolicy::DEFAULT_ACCEPTABLE_LATENCY).max(Duration::from_millis(1))
    }

    fn policy(&self, spec: &PolicySpec) -> anyhow::Result<PlanPolicy> {
        let wrong = |message: String| usage("plan", message);
        let by_cloudwatch = spec.kind == PolicyKind::Step;
        let mut settings = Settings {
            scaling: PolicyArgs {
                slo: self.limit(),
                tolerance: TargetPolicy::DEFAULT_TOLERANCE_PERCENT,
                scale_in_stabilization: None,
                scale_out_above: StepPolicy::LEGACY.scale_out_above,
                scale_out_period: None,
                scale_in_below: StepPolicy::LEGACY.scale_in_below,
                scale_in_period: StepPolicy::LEGACY.scale_in_period,
            },
            boot_time: self.boot_time,
            metric_period: if by_cloudwatch { CLOUDWATCH } else { AUTOSCALE },
            metric_delay: if by_cloudwatch { CLOUDWATCH } else { Duration::ZERO },
            ..Settings::any()
        };
        for (key, value) in &spec.overrides {
            if key == "min" || key == "max" {
                let flag = if key == "max" { "up-to" } else { "min" };
                return Err(wrong(format!("`imgcls plan` finds {key} itself; limit it with --{flag}")));
            }
            settings.set(key, value).map_err(wrong)?;
        }
        settings.check_period().map_err(wrong)?;
        let variant = Variant {
            name: spec.text.clone(),
            policy: settings.scaling.policy(spec.kind, Defaults::INSTANCES),
            bounds: Bounds::new(1, 1).expect("one worker; this is a bug"),
            boot_time: settings.boot_time,
            metric_period: settings.metric_period,
            metric_delay: settings.metric_delay,
        };
        Ok(PlanPolicy { variant, is_fixed: false })
    }
}

/// A duration as flags take it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// A condition that a larger fleet can meet.
fn goal(text: &str) -> Result<loadgen::Threshold, String> {
    let goal: loadgen::Threshold = text.parse()?;
    match goal.latency_limit() {
        Some(limit) if !limit.is_zero() => Ok(goal),
        _ => Err("a goal limits a latency, such as p99<2s or mean<=500ms".to_owned()),
    }
}

/// An instance type, `c7i.large`, or with its speed, `c7g.large=1.2`.
fn candidate(text: &str) -> Result<Candidate, String> {
    let (name, speed) = text.split_once('=').unwrap_or((text, "1"));
    match speed.trim().parse::<f64>() {
        Ok(speed) if (0.01..=100.0).contains(&speed) => Ok(Candidate { instance_type: name.trim().to_owned(), speed }),
        _ => Err(format!("{speed:?} is not a speed from 0.01 to 100: give TYPE=SPEED, such as c7g.large=1.2")),
    }
}
