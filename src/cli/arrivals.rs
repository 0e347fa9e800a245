//! Arrival times of requests: the same flags for the load that is sent and the load that is simulated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::parse::positive_duration;
use super::usage::usage;
use crate::config;
use crate::workload::{Arrivals, Bursts, Day, MAX_ARRIVALS, MAX_RUN_TIME, Stage, Stages, Trace};

/// A shorter day would be a burst.
const SHORTEST_DAY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct ArrivalArgs {
    /// Number of requests [default: all within --duration, in the trace or in a single burst; else `loadgen` 100,
    /// `simulate` those of 10 minutes]
    #[arg(long, short = 'n', alias = "num_request", env = "IMGCLS_NUM_REQUEST", value_parser = clap::value_parser!(u64).range(1..))]
    pub num_request: Option<u64>,
    /// Open loop: requests per second, sent on time whether answers come or not; latency counts from the intended
    /// start. With `burst` the rate between bursts, with `day` the mean of the day
    #[arg(long, env = "IMGCLS_RATE", value_parser = rate)]
    pub rate: Option<f64>,
    /// Open loop: distribution of the starts
    #[arg(long, env = "IMGCLS_ARRIVALS", default_value = "poisson")]
    pub arrivals: ArrivalsArg,
    /// No request starts later than this; without --rate the load ends after this time
    #[arg(long, env = "IMGCLS_DURATION", value_parser = config::duration)]
    pub duration: Option<Duration>,
    /// `burst`: requests per second in a burst; the first begins at once
    #[arg(long, env = "IMGCLS_BURST_RATE", value_parser = rate)]
    pub burst_rate: Option<f64>,
    /// `burst`: length of each burst
    #[arg(long, env = "IMGCLS_BURST_LENGTH", value_parser = config::duration)]
    pub burst_length: Option<Duration>,
    /// `burst`: time between the starts of two bursts [default: a single burst]
    #[arg(long, env = "IMGCLS_BURST_EVERY", value_parser = config::duration)]
    pub burst_every: Option<Duration>,
    /// `day`: length of a day, from midnight to midnight
    #[arg(long, env = "IMGCLS_DAY_LENGTH", default_value = "24h", value_parser = config::duration)]
    pub day_length: Duration,
    /// Open loop in stages, one after the other, with Poisson arrivals: LENGTH:RATE/s, or LENGTH:FROM..TO/s for a rate that
    /// changes, such as 30s:50/s and 1m:50..200/s; may be repeated
    #[arg(long = "stage", env = "IMGCLS_STAGE", value_delimiter = ',', value_parser = stage, conflicts_with_all = ["rate", "trace"])]
    pub stages: Vec<Stage>,
    /// `trace`: file with one line per request, its offset in seconds, or with lines `second,count`
    #[arg(long, env = "IMGCLS_TRACE")]
    pub trace: Option<PathBuf>,
    /// Seed of the random arrivals; two runs with one seed have the same arrivals
    #[arg(long, env = "IMGCLS_SEED", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArrivalsArg {
    Constant,
    Poisson,
    Burst,
    Day,
    Trace,
}

/// The part of endless arrivals that is used if neither --num-request nor --duration is given.
pub enum Unbounded {
    Requests(u64),
    Duration(Duration),
}

impl ArrivalArgs {
    /// The file of recorded arrivals, for [`ArrivalArgs::arrivals`]. `None` if the arrivals are computed.
    ///
    /// # Errors
    /// A [`super::UsageError`] if there is a file for other arrivals, or none for recorded ones.
    pub fn trace_file(&self, command: &'static str) -> anyhow::Result<Option<&Path>> {
        match (self.arrivals, &self.trace) {
            (ArrivalsArg::Trace, Some(path)) => Ok(Some(path)),
            (ArrivalsArg::Trace, None) => Err(usage(command, "--arrivals trace needs --trace FILE")),
            (_, Some(_)) => Err(usage(command, "--trace is for --arrivals trace")),
            (_, None) => Ok(None),
        }
    }

    /// Returns `None` for a closed loop, when no flag gives a rate. `trace` is the content of the file of
    /// [`ArrivalArgs::trace_file`], if that names one.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn arrivals(&self, command: &'static str, trace: Option<Trace>) -> anyhow::Result<Option<Arrivals>> {
        let wrong = |message: &str| Err(usage(command, message));
        if let Some(trace) = trace {
            return Ok(Some(Arrivals::Trace(trace)));
        }
        if !self.stages.is_empty() {
            if self.arrivals != ArrivalsArg::Poisson {
                return wrong("--stage is for --arrivals poisson");
            }
            return Ok(Some(Arrivals::Stages(Stages::new(&self.stages))));
        }
        Ok(Some(match self.arrivals {
            ArrivalsArg::Constant => match self.rate {
                Some(rate) => Arrivals::Constant { rate },
                None => return Ok(None),
            },
            ArrivalsArg::Poisson => match self.rate {
                Some(rate) => Arrivals::Poisson { rate },
                None => return Ok(None),
            },
            ArrivalsArg::Burst => match (self.burst_rate, self.burst_length) {
                (Some(burst_rate), Some(length)) if self.burst_every.is_none_or(|every| every > length) => {
                    Arrivals::Burst(Bursts {
                        rate: self.rate.unwrap_or(0.0),
                        burst_rate,
                        length,
                        every: self.burst_every,
                    })
                }
                (Some(_), Some(_)) => return wrong("--burst-every must be longer than --burst-length"),
                _ => return wrong("--arrivals burst needs --burst-rate and --burst-length"),
            },
            ArrivalsArg::Day => match self.rate {
                Some(_) if self.day_length < SHORTEST_DAY => return wrong("--day-length must be at least 10s"),
                Some(rate) => Arrivals::Day(Day { rate, length: self.day_length }),
                None => return wrong("--arrivals day needs --rate, the mean of the day"),
            },
            ArrivalsArg::Trace => return wrong("--arrivals trace needs --trace FILE"),
        }))
    }

    /// The number of requests of an open loop.
    ///
    /// # Errors
    /// One line if there is none, or more than a run can hold.
    pub fn count(&self, arrivals: &Arrivals, unbounded: Unbounded) -> anyhow::Result<u64> {
        let (num_request, duration) = match (self.num_request, self.duration, unbounded) {
            (None, None, _) if arrivals.is_finite() => (MAX_ARRIVALS, Duration::MAX),
            (None, None, Unbounded::Requests(num_request)) => (num_request, Duration::MAX),
            (None, None, Unbounded::Duration(duration)) => (MAX_ARRIVALS, duration),
            (num_request, duration, _) => (num_request.unwrap_or(MAX_ARRIVALS), duration.unwrap_or(Duration::MAX)),
        };
        match arrivals.count_within(num_request.saturating_add(1), duration, self.seed) {
            0 => bail!("no request starts within {duration:?}: raise --duration or --rate"),
            count if num_request >= MAX_ARRIVALS && count >= MAX_ARRIVALS => {
                bail!("more than {MAX_ARRIVALS} requests: lower --rate, --duration or --num-request")
            }
            count => Ok(count.min(num_request)),
        }
    }

    /// The number of requests of a closed loop. With a duration alone there is no limit, since the next request starts when
    /// an answer arrives.
    pub fn closed_loop_count(&self, default: u64) -> u64 {
        self.num_request.unwrap_or(if self.duration.is_some() { u64::MAX } else { default })
    }
}

/// A stage, as `30s:50/s` or `1m:50..200/s`.
fn stage(text: &str) -> Result<Stage, String> {
    let example = "give LENGTH:RATE/s or LENGTH:FROM..TO/s, such as 30s:50/s";
    let (length, rates) = text.split_once(':').ok_or(example)?;
    let length = positive_duration(length)?;
    if length > MAX_RUN_TIME {
        return Err(format!("a stage lasts {} days at most", MAX_RUN_TIME.as_secs() / 86_400));
    }
    let rates = rates.trim().strip_suffix("/s").unwrap_or(rates).trim();
    let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
    let part = |text: &str| match text.trim().parse::<f64>() {
        Ok(rate) if (0.0..=1e6).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is not a rate from 0 to 1000000: {example}")),
    };
    Ok(Stage { length, from: part(from)?, to: part(to)? })
}

/// One generator cannot send more than a million requests per second on time.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("give requests per second, above 0 and at most 1000000".to_owned()),
    }
}
