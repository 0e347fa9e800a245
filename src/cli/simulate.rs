//! `imgcls simulate`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::arrivals::{ArrivalArgs, Unbounded};
use super::parse::{percent, positive_duration, visibility_timeout};
use super::policy::{Defaults, PolicyArgs, PolicyKind};
use super::usage::usage;
use crate::config;
use crate::plot::PlotFile;
use crate::scaling_policy::Bounds;
use crate::simulate::{self, Variant};
use crate::workload::Trace;

/// The simulated time unless a flag limits it.
const DEFAULT_DURATION: Duration = Duration::from_mins(10);
/// The shortest period of a metric.
const SHORTEST_METRIC_PERIOD: Duration = Duration::from_millis(100);
/// The largest number of workers. It is more than any account may have, and each worker takes memory.
pub(super) const MOST_WORKERS: u32 = 10_000;

const DEFAULT_INSTANCE_TYPE: &str = "c6i.large";

#[derive(Debug, Args)]
#[command(after_help = "Several policies: --policy step --policy target. A policy may have settings of its own after \
    its name: --policy step:metric-period=60s,metric-delay=60s --policy target:slo=5s,max=8. Keys: slo, tolerance, \
    scale-in-stabilization, scale-out-above, scale-out-period, scale-in-below, scale-in-period, min, max, boot-time, \
    metric-period, metric-delay.\n\
    Exit codes: 0 done, 1 a file cannot be read or written, 2 usage.")]
pub struct SimulateArgs {
    #[command(flatten)]
    pub arrivals: ArrivalArgs,
    /// Policy, `step` or `target`; may be repeated to compare policies, see below
    #[arg(long = "policy", env = "IMGCLS_POLICY", default_value = "step", value_parser = |text: &str| text.parse::<PolicySpec>())]
    pub policies: Vec<PolicySpec>,
    #[command(flatten)]
    pub scaling: PolicyArgs,
    /// Minimum number of workers; they are ready at the start
    #[arg(long, env = "IMGCLS_MIN", default_value_t = 0)]
    pub min: u32,
    /// Maximum number of workers
    #[arg(long, env = "IMGCLS_MAX", default_value_t = 4)]
    pub max: u32,
    /// Mean time that one session of a worker takes for an image
    #[arg(long, env = "IMGCLS_SERVICE_TIME", value_parser = positive_duration)]
    pub service_time: Option<Duration>,
    /// 99th percentile of that time [default: every image takes the mean]
    #[arg(long, env = "IMGCLS_SERVICE_TIME_P99", value_parser = positive_duration)]
    pub service_time_p99: Option<Duration>,
    /// Service time and overhead from a report of `loadgen --json`: a closed loop that kept all workers busy
    #[arg(long, env = "IMGCLS_FROM_LOADGEN", conflicts_with_all = ["service_time", "service_time_p99"])]
    pub from_loadgen: Option<PathBuf>,
    /// Number of busy workers in that report, each with as many sessions as are simulated
    #[arg(long, env = "IMGCLS_MEASURED_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub measured_workers: u32,
    /// Time that each image takes besides queue and service: HTTP, store, reply [default: 0s, or that of --from-loadgen]
    #[arg(long, env = "IMGCLS_OVERHEAD", value_parser = config::duration)]
    pub overhead: Option<Duration>,
    /// Sessions of the model side by side in a worker [default: one per vCPU of the instance type]
    #[arg(long, env = "IMGCLS_SESSIONS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sessions: Option<u32>,
    /// Time from requesting a worker until it is ready
    #[arg(long, env = "IMGCLS_BOOT_TIME", default_value = "60s", value_parser = config::duration)]
    pub boot_time: Duration,
    /// How often the depth of the queue is measured: every 10 s by `imgcls autoscale`, every 60 s by CloudWatch
    #[arg(long, env = "IMGCLS_METRIC_PERIOD", default_value = "10s", value_parser = config::duration)]
    pub metric_period: Duration,
    /// Delay until the policy sees a measurement: a minute with CloudWatch, up to 15 after a time without messages
    #[arg(long, env = "IMGCLS_METRIC_DELAY", default_value = "0s", value_parser = config::duration)]
    pub metric_delay: Duration,
    /// How long the messages of a dead worker stay invisible
    #[arg(long, env = "IMGCLS_VISIBILITY_TIMEOUT", default_value = "30s", value_parser = visibility_timeout)]
    pub visibility_timeout: Duration,
    /// Mean number of crashes and Spot interruptions of each worker per hour
    #[arg(long, env = "IMGCLS_DEATHS_PER_HOUR", default_value_t = 0.0, value_parser = deaths)]
    pub deaths_per_hour: f64,
    /// Instance type of a worker, for its price and its vCPUs [default: c6i.large]
    #[arg(long, env = "IMGCLS_INSTANCE_TYPE")]
    pub instance_type: Option<String>,
    /// Share of the workers that are Spot, in percent
    #[arg(long, env = "IMGCLS_SPOT_SHARE", default_value = "0", value_parser = percent)]
    pub spot_share: u32,
    /// A TOML file of prices [default: dated prices of us-east-1 in the binary]
    #[arg(long, env = "IMGCLS_PRICES")]
    pub prices: Option<PathBuf>,
    /// Print the result as JSON on standard output
    #[arg(long, env = "IMGCLS_JSON")]
    pub json: bool,
    /// Write the timeline to this file, one line per second and policy
    #[arg(long, env = "IMGCLS_CSV")]
    pub csv: Option<PathBuf>,
    /// Plot arrivals, queue, workers and latency over time to this file, .svg or .png
    #[arg(long, env = "IMGCLS_PLOT", value_parser = |text: &str| text.parse::<PlotFile>())]
    pub plot: Option<PlotFile>,
    /// A report of `loadgen --json` with the same arrivals, whose answers and latencies are drawn as dots into --plot
    #[arg(long, env = "IMGCLS_OVERLAY", requires = "plot")]
    pub overlay: Option<PathBuf>,
}

/// A policy with settings that take precedence over the flags: `target:slo=5s,max=8`.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    pub(super) text: String,
    pub(super) kind: PolicyKind,
    pub(super) overrides: Vec<(String, String)>,
}

impl FromStr for PolicySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let kind = match name {
            "step" => PolicyKind::Step,
            "target" => PolicyKind::Target,
            _ => return Err("a policy is `step` or `target`, or one of them with settings: `target:slo=5s`".to_owned()),
        };
        let settings = settings.split(',').filter(|setting| !setting.is_empty());
        let overrides = settings.map(|setting| match setting.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("{setting:?} is not a setting such as slo=5s")),
        });
        let spec = PolicySpec { text: text.to_owned(), kind, overrides: overrides.collect::<Result<_, _>>()? };
        // This only checks that the settings can be read: the flags that they override are not known yet.
        spec.overrides.iter().try_for_each(|(key, value)| Settings::any().set(key, value))?;
        Ok(spec)
    }
}

/// Settings that may differ between policies.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) scaling: PolicyArgs,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) boot_time: Duration,
    pub(super) metric_period: Duration,
    pub(super) metric_delay: Duration,
}

impl Settings {
    /// Settings that all have a value. The defaults of the flags are not known here.
    pub(super) fn any() -> Settings {
        let some = Duration::from_secs(1);
        let scaling = PolicyArgs {
            slo: some,
            tolerance: 0,
            scale_in_stabilization: None,
            scale_out_above: 0,
            scale_out_period: None,
            scale_in_below: 0,
            scale_in_period: some,
        };
        Settings { scaling, min: 0, max: 1, boot_time: some, metric_period: some, metric_delay: some }
    }

    /// # Errors
    /// One line if there is no such setting, or the value is wrong.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse().map_err(|_| "not a whole number".to_owned());
        let workers = || value.parse().map_err(|_| "not a whole number".to_owned());
        let duration = || config::duration(value);
        let set = match key {
            "slo" => positive_duration(value).map(|it| self.scaling.slo = it),
            "tolerance" => percent(value).map(|it| self.scaling.tolerance = it),
            "scale-in-stabilization" => duration().map(|it| self.scaling.scale_in_stabilization = Some(it)),
            "scale-out-above" => number().map(|it| self.scaling.scale_out_above = it),
            "scale-out-period" => duration().map(|it| self.scaling.scale_out_period = Some(it)),
            "scale-in-below" => number().map(|it| self.scaling.scale_in_below = it),
            "scale-in-period" => duration().map(|it| self.scaling.scale_in_period = it),
            "min" => workers().map(|it| self.min = it),
            "max" => workers().map(|it| self.max = it),
            "boot-time" => duration().map(|it| self.boot_time = it),
            "metric-period" => duration().map(|it| self.metric_period = it),
            "metric-delay" => duration().map(|it| self.metric_delay = it),
            _ => return Err(format!("a policy has no setting {key:?}; see imgcls simulate --help")),
        };
        set.map_err(|error| format!("{key}={value}: {error}"))
    }
}

impl Settings {
    /// # Errors
    /// One line if the queue would be measured too often.
    pub(super) fn check_period(&self) -> Result<(), String> {
        if self.metric_period < SHORTEST_METRIC_PERIOD {
            return Err(format!("--metric-period must be at least {SHORTEST_METRIC_PERIOD:?}"));
        }
        Ok(())
    }
}

impl SimulateArgs {
    /// `trace` is the content of the file that `arrivals` names, if any.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other; one line if no request or too many would start.
    pub fn config(&self, trace: Option<Trace>) -> anyhow::Result<simulate::Config> {
        let Some(arrivals) = self.arrivals.arrivals("simulate", trace)? else {
            return Err(usage("simulate", "give --rate, the requests per second that arrive"));
        };
        let service = match (&self.from_loadgen, self.service_time) {
            (Some(path), _) => {
                simulate::Service::Measured { report: path.clone(), busy_workers: self.measured_workers }
            }
            (None, Some(mean)) => simulate::Service::given(mean, self.service_time_p99)
                .map_err(|error| usage("simulate", format!("--service-time-p99: {error}")))?,
            (None, None) => {
                let message = "give --service-time, the time that an image takes, or --from-loadgen with a report";
                return Err(usage("simulate", message));
            }
        };
        Ok(simulate::Config {
            num_request: self.arrivals.count(&arrivals, Unbounded::Duration(DEFAULT_DURATION))?,
            arrivals,
            seed: self.arrivals.seed,
            service,
            overhead: self.overhead,
            sessions: self.sessions,
            visibility_timeout: self.visibility_timeout,
            deaths_per_worker_hour: self.deaths_per_hour,
            instance_type: self.instance_type.clone().unwrap_or_else(|| DEFAULT_INSTANCE_TYPE.to_owned()),
            spot_share: f64::from(self.spot_share) / 100.0,
            prices: self.prices.clone(),
            variants: self.policies.iter().map(|spec| self.variant(spec)).collect::<Result<_, _>>()?,
            json: self.json,
            csv: self.csv.clone(),
            plot: self.plot.clone(),
            overlay: self.overlay.clone(),
        })
    }

    fn variant(&self, spec: &PolicySpec) -> anyhow::Result<Variant> {
        let wrong = |message: String| usage("simulate", message);
        let mut settings = Settings {
            scaling: self.scaling.clone(),
            min: self.min,
            max: self.max,
            boot_time: self.boot_time,
            metric_period: self.metric_period,
            metric_delay: self.metric_delay,
        };
        spec.overrides.iter().try_for_each(|(key, value)| settings.set(key, value)).map_err(wrong)?;
        settings.check_period().map_err(wrong)?;
        if settings.max > MOST_WORKERS {
            return Err(wrong(format!("--max may be {MOST_WORKERS} at most")));
        }
        let bounds =
            Bounds::new(settings.min, settings.max).map_err(|error| wrong(format!("{error}: see --min and --max")))?;
        Ok(Variant {
            name: spec.text.clone(),
            policy: settings.scaling.policy(spec.kind, Defaults::INSTANCES),
            bounds,
            boot_time: settings.boot_time,
            metric_period: settings.metric_period,
            metric_delay: settings.metric_delay,
        })
    }
}

pub(super) fn deaths(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(deaths) if (0.0..=3600.0).contains(&deaths) => Ok(deaths),
        _ => Err("give deaths per hour, from 0 to 3600".to_owned()),
    }
}
