//! When requests start: the same flags for the load that is sent and the load that is simulated.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::usage;
use crate::config;
use crate::workload::{Arrivals, Bursts, Day, MAX_ARRIVALS, Trace};

/// A day that passes faster than this is a burst.
const SHORTEST_DAY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct ArrivalArgs {
    /// How many requests [default: all within --duration or in the trace; else `loadgen` 100, `simulate` 10 minutes]
    #[arg(long, alias = "num_request", env = "IMGCLS_NUM_REQUEST", value_parser = clap::value_parser!(u64).range(1..))]
    pub num_request: Option<u64>,
    /// Open loop: requests a second, started on time whether answers come or not; latency counts from the intended
    /// start. With `burst` the rate between bursts, with `day` the mean of the day
    #[arg(long, env = "IMGCLS_RATE", value_parser = rate)]
    pub rate: Option<f64>,
    /// Open loop: how the starts are spread
    #[arg(long, env = "IMGCLS_ARRIVALS", default_value = "poisson")]
    pub arrivals: ArrivalsArg,
    /// Open loop: no request starts later than this
    #[arg(long, env = "IMGCLS_DURATION", value_parser = config::duration)]
    pub duration: Option<Duration>,
    /// `burst`: requests a second in a burst; the first begins at once
    #[arg(long, env = "IMGCLS_BURST_RATE", value_parser = rate)]
    pub burst_rate: Option<f64>,
    /// `burst`: how long each lasts
    #[arg(long, env = "IMGCLS_BURST_LENGTH", value_parser = config::duration)]
    pub burst_length: Option<Duration>,
    /// `burst`: from one beginning to the next [default: a single burst]
    #[arg(long, env = "IMGCLS_BURST_EVERY", value_parser = config::duration)]
    pub burst_every: Option<Duration>,
    /// `day`: how long a day takes, from midnight to midnight
    #[arg(long, env = "IMGCLS_DAY_LENGTH", default_value = "24h", value_parser = config::duration)]
    pub day_length: Duration,
    /// `trace`: file with a line for each request, its offset in seconds, or lines `second,count`
    #[arg(long, env = "IMGCLS_TRACE")]
    pub trace: Option<PathBuf>,
    /// Seed of the arrivals, so that two runs see the same
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

/// What to take of arrivals without end where neither --num-request nor --duration says it.
pub enum Unbounded {
    Requests(u64),
    Duration(Duration),
}

impl ArrivalArgs {
    /// None where nothing says how fast: a closed loop.
    ///
    /// # Errors
    /// A [`clap::Error`] where the flags contradict each other; one line where a trace cannot be read.
    pub fn arrivals(&self, command: &str) -> anyhow::Result<Option<Arrivals>> {
        let wrong = |message: &str| Err(usage(command, message));
        if self.arrivals != ArrivalsArg::Trace && self.trace.is_some() {
            return wrong("--trace is for --arrivals trace");
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
            ArrivalsArg::Trace => match &self.trace {
                Some(path) => Arrivals::Trace(read_trace(path)?),
                None => return wrong("--arrivals trace needs --trace FILE"),
            },
        }))
    }

    /// How many requests an open loop has.
    ///
    /// # Errors
    /// One line where there is none, or more than a run can hold.
    pub fn count(&self, arrivals: &Arrivals, unbounded: Unbounded) -> anyhow::Result<u64> {
        let is_trace = matches!(arrivals, Arrivals::Trace(_));
        let (num_request, duration) = match (self.num_request, self.duration, unbounded) {
            (None, None, _) if is_trace => (MAX_ARRIVALS, Duration::MAX),
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

    /// How many requests a closed loop has, where it is said.
    ///
    /// # Errors
    /// A [`clap::Error`]: a closed loop starts the next request when an answer comes, so only their number bounds it.
    pub fn closed_loop_count(&self, command: &str) -> anyhow::Result<Option<u64>> {
        match self.duration {
            Some(_) => Err(usage(command, "--duration needs --rate: without it, say --num-request")),
            None => Ok(self.num_request),
        }
    }
}

fn read_trace(path: &std::path::Path) -> anyhow::Result<Trace> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the trace {}", path.display()))?;
    Trace::parse(&text).map_err(anyhow::Error::msg).with_context(|| format!("the trace {}", path.display()))
}

/// Requests a second; beyond a million one generator cannot keep its times.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("requests a second, above 0 and at most 1000000".to_owned()),
    }
}
