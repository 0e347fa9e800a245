//! `imgcls loadgen`: sends load, measures, checks the answers and reports.
//!
//! `target` and `images` say what is sent where. `dialect` makes the requests of an API and reads its answers. `client`
//! sends one request over a kept-alive connection. `driver` sends all of them, in a closed or an open loop, and records
//! into a `measurement`, with its `timeline`. `expect` judges the answers, by `names` if a list of them was given, and
//! `answers` writes them down. `report` computes the figures, checks each `threshold`, counts the points of a `rubric`, and
//! shows them; `push` sends them to Prometheus. `search` repeats this at several rates.

mod answers;
mod client;
mod config;
mod connect;
mod dialect;
mod driver;
mod expect;
mod failure;
mod fetch;
mod images;
mod measurement;
mod names;
mod progress;
mod push;
mod report;
mod rubric;
mod search;
mod target;
mod threshold;
mod timeline;
mod trace_file;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

pub use self::config::{Config, Key};
pub(crate) use self::fetch::{Call, fetch};
pub use self::target::{Api, BaseUrl};
pub(crate) use self::threshold::LatencyMetric;
pub use self::threshold::Threshold;
pub use self::trace_file::read_trace;
pub use crate::workload::Arrivals;

use self::answers::AnswerTable;
use self::client::{Client, Target};
use self::connect::Connector;
use self::dialect::{Dialect, Prepared};
use self::driver::{Load, Observer, Pace, Size};
use self::expect::Expectations;
use self::failure::Failure;
use self::images::Image;
use self::names::Names;
use self::progress::Goal;
use self::report::Report;
use self::search::Search;
use crate::telemetry::{self, output};

/// Timeout of the first connection. The time of the others is part of their requests.
const FIRST_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many names of skipped files are printed.
const MAX_SKIPPED_NAMES: usize = 3;

/// The outcome of a run, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The flags contradict each other. The reason was printed on standard error and nothing was sent.
    Usage,
    /// A threshold was missed.
    ThresholdMissed,
    /// A request failed, or the run was interrupted.
    Failed,
    /// Every request was answered and every threshold was met.
    Passed,
}

impl Outcome {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Passed => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
            Outcome::ThresholdMissed => 99,
        }
    }
}

/// Sends the load and prints the report on standard output. When `shutdown` is cancelled, no more requests are sent,
/// outstanding answers are awaited briefly, and the results so far are reported.
///
/// # Errors
/// If there is no image to send, an input file is invalid, or the target cannot be reached.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<Outcome> {
    let rubric = config.rubric.as_deref().map(rubric::read).transpose()?.unwrap_or_default();
    if let Some(contradiction) = contradiction(&config, &rubric) {
        telemetry::stderr_line(&format!("error: {contradiction}"));
        return Ok(Outcome::Usage);
    }
    let images = images(&config)?;
    let expectations = expectations(&config, &images)?;
    let mut dialect = Dialect::new(config.api, &config.url, config.timeout, &config.headers)?;
    dialect.authorization = config.key.as_ref().map(Key::authorization).transpose()?;
    let prepared = images.into_iter().map(|image| {
        let request = dialect.prepare(&image);
        (image.name, request)
    });
    let prepared: Vec<_> = prepared.collect();

    let addresses = resolve(&config.url).await?;
    let connector = Connector::new(&config.url)?;
    let target = Arc::new(Target { dialect, connector, addresses, timeout: config.timeout });
    let first = first_client(&config, &target).await?;
    if !config.find_rate.is_empty() {
        return find_rate(&config, &target, prepared, &shutdown).await;
    }
    let table = config.answers.as_deref().map(AnswerTable::create).transpose()?.map(Arc::new);
    let load = Load::new(prepared, expectations, observers(&config, table.as_ref()));
    let pace = match &config.arrivals {
        None => Pace::Closed,
        Some(arrivals) => Pace::Open(Box::new(arrivals.offsets(config.seed))),
    };
    let duration = config.duration.filter(|_| config.arrivals.is_none());
    let size = Size { num_request: config.num_request, concurrency: config.concurrency, duration };
    let work = driver::drive(&load, &target, first, size, pace, &shutdown);
    let goal = Goal { num_request: config.num_request, duration };
    let result = progress::watched(&load, goal, config.live && !config.verbose, work).await;

    let report = Report::new(&config, &result, &rubric, |image| load.images[image].0.clone());
    let text = if config.json { report.to_json() } else { report::render(&report) };
    output::print(&text).context("cannot print the report")?;
    if let Some(path) = &config.html {
        std::fs::write(path, report::page(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let (Some(table), Some(path)) = (table, &config.answers) {
        table.finish().with_context(|| format!("cannot write the table {}", path.display()))?;
    }
    if let Some(gateway) = &config.push_gateway {
        push::push(gateway, &report).await?;
    }
    Ok(if report.threshold_missed() {
        Outcome::ThresholdMissed
    } else if report.requests.failed > 0 || report.interrupted {
        Outcome::Failed
    } else {
        Outcome::Passed
    })
}

/// Searches for the highest rate, and prints the report.
async fn find_rate(
    config: &Config,
    target: &Arc<Target>,
    images: Vec<(String, Prepared)>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let report = Search { config, target, images, shutdown }.run().await;
    let text = if config.json { report.to_json() } else { report.to_text() };
    output::print(&text).context("cannot print the report")?;
    Ok(match report.rate_per_second {
        _ if report.interrupted => Outcome::Failed,
        Some(_) => Outcome::Passed,
        None => Outcome::ThresholdMissed,
    })
}

/// Returns an error text if flags that are valid alone contradict each other.
fn contradiction(config: &Config, rubric: &[rubric::Item]) -> Option<String> {
    let of_rubric = || rubric.iter().map(|item| &item.condition);
    let conditions = || config.thresholds.iter().chain(&config.find_rate).chain(of_rubric());
    let unexpected = conditions().find(|it| config.expect.is_none() && it.metric.needs_expectations());
    if let Some(threshold) = unexpected {
        return Some(format!("the threshold '{threshold}' needs the expected answers: give --expect CSV"));
    }
    let top5 = conditions().find(|it| config.api == Api::Legacy && it.metric == threshold::Metric::Top5);
    top5.map(|threshold| {
        format!("the threshold '{threshold}' cannot be measured: the API of the legacy system returns only one label")
    })
}

fn images(config: &Config) -> anyhow::Result<Vec<Image>> {
    let Some(folder) = &config.image_folder else { return Ok(images::samples()) };
    let found = images::folder(folder, config.num_request)?;
    let skipped = &found.skipped;
    if !skipped.is_empty() {
        let names: Vec<_> = skipped.iter().take(MAX_SKIPPED_NAMES).map(|name| failure::printable(name)).collect();
        let more = if skipped.len() > MAX_SKIPPED_NAMES { ", …" } else { "" };
        telemetry::stderr_line(&format!(
            "{} files of {} are not images and are not sent: {}{more}",
            skipped.len(),
            folder.display(),
            names.join(", ")
        ));
    }
    Ok(found.images)
}

fn expectations(config: &Config, images: &[Image]) -> anyhow::Result<Expectations> {
    let Some(path) = &config.expect else { return Ok(Expectations::default()) };
    let names = config.names.as_deref().map(Names::read).transpose()?.unwrap_or_default();
    let expectations = Expectations::read(path, images.iter().map(|image| image.name.as_str()), names)?;
    anyhow::ensure!(
        config.api == Api::V1 || config.names.is_some() || !expectations.lack_labels(),
        "{} needs a column `label`, or --names: the API of the legacy system returns labels, not class indices",
        path.display()
    );
    Ok(expectations)
}

fn observers(config: &Config, table: Option<&Arc<AnswerTable>>) -> Vec<Arc<dyn Observer>> {
    let mut observers: Vec<Arc<dyn Observer>> = Vec::new();
    if config.verbose {
        observers.push(Arc::new(progress::Verbose { to_stderr: config.json }));
    }
    if let Some(table) = table {
        observers.push(table.clone());
    }
    observers
}

async fn resolve(url: &BaseUrl) -> anyhow::Result<Vec<SocketAddr>> {
    let context = || format!("cannot resolve the host {:?} of {url}; check its name", url.host);
    let addresses = tokio::net::lookup_host((url.host.as_str(), url.port)).await.with_context(context)?;
    Ok(addresses.collect())
}

/// Connects before any request is sent, so that an unreachable target is one error and not one failure per request.
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
