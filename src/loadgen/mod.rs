//! `imgcls loadgen`: load, measure, check answers, report.
//!
//! `target` and `pictures` say what is sent where; `dialect` makes requests of it and reads answers; `client` sends
//! one over a kept connection; `driver` sends them all, in a closed or an open loop, into a `measurement`; `expect`
//! judges answers; `report` works out the figures, holds them against each `threshold`, and shows them.

mod client;
mod dialect;
mod driver;
mod expect;
mod failure;
mod measurement;
mod pictures;
mod progress;
mod report;
mod target;
mod threshold;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

pub use self::target::{Api, BaseUrl};
pub use self::threshold::Threshold;
pub use crate::workload::Arrivals;

use self::client::{Client, Target};
use self::dialect::Dialect;
use self::driver::{Load, Observer, Pace};
use self::expect::Expectations;
use self::failure::Failure;
use self::pictures::Picture;
use self::report::Report;
use crate::telemetry::{self, output};

/// How long the first connection may take; the others are part of their requests.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So many names of skipped files are said; the rest is a number.
const SKIPPED_SHOWN: usize = 3;

/// What to send, how fast, and what to hold the answers against.
#[derive(Debug, Clone)]
pub struct Config {
    /// Base URL of a web tier, `http://host:port/`; a path other than `/` is posted to as it is.
    pub url: BaseUrl,
    pub api: Api,
    pub num_request: u64,
    /// Closed loop: requests in flight. Open loop: the most that may be in flight.
    pub concurrency: usize,
    /// None: pictures carried in the binary.
    pub image_folder: Option<PathBuf>,
    /// None: a closed loop. Some: an open one, of no more arrivals than `num_request`.
    pub arrivals: Option<Arrivals>,
    pub seed: u64,
    /// CSV with columns `file` and `class_index` or `label`.
    pub expect: Option<PathBuf>,
    pub thresholds: Vec<Threshold>,
    pub timeout: Duration,
    pub json: bool,
    /// The original's two lines for each image.
    pub verbose: bool,
}

/// How a run ended, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The flags contradict each other; said on standard error, nothing was sent.
    Usage,
    ThresholdMissed,
    /// A request failed, or the run was interrupted before its end.
    Failed,
    Passed,
}

impl Outcome {
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Passed => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
            Outcome::ThresholdMissed => 99,
        }
    }
}

/// Sends the load and prints the report on standard output. When `shutdown` is cancelled nothing more is sent, answers
/// are waited for briefly, and what was measured is reported.
///
/// # Errors
/// Where there is nothing to send, nothing to hold it against, or nobody to send it to.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<Outcome> {
    if let Some(contradiction) = contradiction(&config) {
        telemetry::stderr_line(&format!("error: {contradiction}"));
        return Ok(Outcome::Usage);
    }
    let pictures = pictures(&config)?;
    let expectations = expectations(&config, &pictures)?;
    let dialect = Dialect::new(config.api, &config.url, config.timeout)?;
    let prepared = pictures.into_iter().map(|picture| {
        let request = dialect.prepare(&picture);
        (picture.name, request)
    });
    let load = Load::new(prepared.collect(), expectations, observer(&config));

    let addresses = resolve(&config.url).await?;
    let target = Arc::new(Target { dialect, addresses, timeout: config.timeout });
    let first = first_client(&config, &target).await?;
    let pace = match &config.arrivals {
        None => Pace::Closed,
        Some(arrivals) => Pace::Open(Box::new(arrivals.offsets(config.seed))),
    };
    let size = (config.num_request, config.concurrency);
    let work = driver::drive(&load, &target, first, size, pace, &shutdown);
    let driven = progress::watched(&load, config.num_request, config.verbose, work).await;

    let report = Report::new(&config, &driven, |picture| load.pictures[picture].0.clone());
    output::print(&if config.json { report.to_json() } else { report.to_text() }).context("cannot print the report")?;
    Ok(if report.threshold_missed() {
        Outcome::ThresholdMissed
    } else if report.requests.failed > 0 || report.interrupted {
        Outcome::Failed
    } else {
        Outcome::Passed
    })
}

/// Flags that make no sense together, each of them fine alone.
fn contradiction(config: &Config) -> Option<String> {
    let unexpected = config.thresholds.iter().find(|it| config.expect.is_none() && it.metric.needs_expectations());
    if let Some(threshold) = unexpected {
        return Some(format!(
            "the threshold '{threshold}' needs --expect CSV, the answers to hold the results against"
        ));
    }
    let top5 = config.thresholds.iter().find(|it| config.api == Api::Original && it.metric == threshold::Metric::Top5);
    top5.map(|threshold| {
        format!("the threshold '{threshold}' cannot be measured: the original's API answers one label")
    })
}

fn pictures(config: &Config) -> anyhow::Result<Vec<Picture>> {
    let Some(folder) = &config.image_folder else { return Ok(pictures::samples()) };
    let found = pictures::folder(folder, config.num_request)?;
    let skipped = &found.skipped;
    if !skipped.is_empty() {
        let names: Vec<_> = skipped.iter().take(SKIPPED_SHOWN).map(|name| failure::printable(name)).collect();
        let more = if skipped.len() > SKIPPED_SHOWN { ", …" } else { "" };
        telemetry::stderr_line(&format!(
            "{} files of {} are not images and are not sent: {}{more}",
            skipped.len(),
            folder.display(),
            names.join(", ")
        ));
    }
    Ok(found.pictures)
}

fn expectations(config: &Config, pictures: &[Picture]) -> anyhow::Result<Expectations> {
    let Some(path) = &config.expect else { return Ok(Expectations::default()) };
    let expectations = Expectations::read(path, pictures.iter().map(|picture| picture.name.as_str()))?;
    anyhow::ensure!(
        config.api == Api::V1 || !expectations.lack_labels(),
        "{} needs a column `label`: the original's API answers labels, not class indices",
        path.display()
    );
    Ok(expectations)
}

fn observer(config: &Config) -> Box<dyn Observer> {
    if config.verbose { Box::new(progress::Verbose { to_stderr: config.json }) } else { Box::new(progress::Silent) }
}

async fn resolve(url: &BaseUrl) -> anyhow::Result<Vec<SocketAddr>> {
    let context = || format!("cannot find the host {:?} of {url}; is its name right?", url.host);
    let addresses = tokio::net::lookup_host((url.host.as_str(), url.port)).await.with_context(context)?;
    Ok(addresses.collect())
}

/// Where nobody listens, one line says so instead of as many failures as there are requests.
async fn first_client(config: &Config, target: &Arc<Target>) -> anyhow::Result<Client> {
    let mut client = Client::new(target.clone(), 0);
    let limit = FIRST_CONNECT_TIMEOUT.min(config.timeout);
    let reason = match tokio::time::timeout(limit, client.connect()).await {
        Ok(Ok(())) => return Ok(client),
        Ok(Err(error)) => Failure::connect(&error).to_string(),
        Err(_elapsed) => format!("no answer within {} s", limit.as_secs_f64()),
    };
    anyhow::bail!("cannot connect to {}: {reason}; is \"imgcls up\" running?", config.url)
}
