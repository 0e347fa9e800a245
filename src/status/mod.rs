//! `imgcls status` and `imgcls top`: the state of a service, once or live in the terminal.
//!
//! The state comes from two places: the web tier's `/readyz` and `/metrics` ([`service`]), and the backend with its queues,
//! and locally the data directory ([`backend`]). Each part that cannot be read says why, and the others are shown
//! nevertheless. Nothing is received from a queue and nothing is changed.

mod backend;
mod exposition;
mod report;
mod screen;
mod service;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio_util::sync::CancellationToken;

pub use self::report::{Disk, LastError, Queue, Report, Service, Throughput, Workers};
use self::screen::Screen;
use crate::config::{Backend, Names};
use crate::loadgen::BaseUrl;
use crate::telemetry::output;
use crate::transport::local::LocalData;
use crate::transport::{self, Transport};

/// Settings of one `imgcls status` or `imgcls top`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend of the service.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// The address of a web tier; `None` shows the backend alone.
    pub url: Option<BaseUrl>,
    /// A key with the scope `admin`, for `/metrics` of a listener that needs one.
    pub key: Option<String>,
    /// The time between two readings, over which rates are measured.
    pub interval: Duration,
}

/// The sources of the state.
struct Sources {
    config: Config,
    transport: std::sync::Arc<dyn Transport>,
    /// `None` if the data is not on this machine.
    data: Option<LocalData>,
}

/// Prints the state once. Returns false if the service is not ready.
///
/// # Errors
/// The data directory does not exist, or the backend cannot be opened. The name may be mistyped, so nothing is created.
pub async fn run(config: Config, json: bool, shutdown: CancellationToken) -> anyhow::Result<bool> {
    let sources = Sources::open(config).await?;
    let earlier = sources.service().await;
    if earlier.as_ref().is_some_and(service::Reading::has_metrics) {
        // Rates need two readings.
        shutdown.run_until_cancelled(tokio::time::sleep(sources.config.interval)).await;
    }
    let report = sources.read(earlier.as_ref()).await.0;
    let text = if json { serde_json::to_string(&report)? + "\n" } else { report::render(&report) };
    output::print(&text).context("cannot print the state")?;
    Ok(report.is_ready())
}

/// Shows the state again and again, `count` times at most, until `shutdown`.
///
/// # Errors
/// As [`run`].
pub async fn watch(config: Config, count: Option<u64>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let sources = Sources::open(config).await?;
    let mut screen = Screen::open()?;
    let mut earlier = sources.service().await;
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        let pause = tokio::time::sleep(sources.config.interval);
        if shown > 0 || earlier.as_ref().is_some_and(service::Reading::has_metrics) {
            let Some(()) = shutdown.run_until_cancelled(pause).await else { break };
        }
        let Some((report, reading)) = shutdown.run_until_cancelled(sources.read(earlier.as_ref())).await else { break };
        screen.show(&report)?;
        earlier = reading;
        shown += 1;
    }
    Ok(())
}

impl Sources {
    async fn open(config: Config) -> anyhow::Result<Sources> {
        let mut data = None;
        if let Some(folder) = config.backend.data_dir() {
            ensure!(
                folder.is_dir(),
                "there is no data directory {}: nothing ran there; see --data-dir",
                folder.display()
            );
            data = Some(LocalData::open(folder, config.names.clone())?);
        }
        let transport = transport::open(&config.backend, &config.names).await?;
        Ok(Sources { config, transport, data })
    }

    /// Asks the web tier, if there is an address.
    async fn service(&self) -> Option<service::Reading> {
        let url = self.config.url.as_ref()?;
        Some(service::read(url, self.config.key.as_deref()).await)
    }

    /// Reads all sources at the same time. The reading of the service is that from which the next rates begin.
    async fn read(&self, earlier: Option<&service::Reading>) -> (Report, Option<service::Reading>) {
        let disk = async {
            match &self.data {
                Some(data) => (backend::disk(data).await, backend::last_errors(data).await),
                None => (None, None),
            }
        };
        let (now, queues, (disk, last_errors)) = tokio::join!(self.service(), backend::queues(&*self.transport), disk);
        let url = self.config.url.as_ref().map(ToString::to_string).unwrap_or_default();
        let rates = earlier.zip(now.as_ref()).and_then(|(earlier, now)| service::throughput(earlier, now));
        let report = Report {
            service: now.as_ref().map(|now| now.service(url)),
            backend: self.config.backend.to_string(),
            workers: now.as_ref().and_then(service::Reading::workers),
            throughput: rates,
            queues,
            disk,
            last_errors,
        };
        (report, now)
    }
}
