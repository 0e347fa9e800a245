//! The worker: one delivery → one result.
//!
//! Three stages, connected by bounded channels:
//!
//! ```text
//! prepare: receive → fetch
//! infer:   a batch → decode → infer, one thread for each session
//! publish: result → reply → deletion of the message
//! ```
//!
//! A stage ends when the one before it has ended and its channel is empty: draining is closing the first. Between
//! two stages travels a [`lease::Lease`], the right to complete one message; it is renewed while anyone holds it.

mod admin;
mod alone;
mod batch_policy;
mod batch_queue;
mod cached;
mod infer;
mod job;
mod last_faults;
mod lease;
mod metrics;
mod model_memory;
mod models;
mod prepare;
mod publish;
mod retrying;
mod seat;
mod session_load;
mod shadow;
mod stages;
mod statistics;
mod swap;
mod thread;
mod watchdog;

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use futures::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::admin::Readiness;
use self::alone::Alone;
pub use self::batch_policy::Batching;
use self::batch_queue::BatchQueue;
use self::job::Rules;
use self::last_faults::LastFaults;
use self::lease::Keeper;
use self::models::{Models, Versions};
use self::prepare::Intake;
use self::publish::Publisher;
use self::session_load::SessionLoad;
use self::shadow::ShadowShare;
use self::stages::Finished;
use self::thread::WorkerThread;
pub(crate) use self::watchdog::{Slot, Watchdog};
use crate::config::{Backend, Names};
use crate::instance::Instance;
use crate::model::{self, Limits, ModelChoice};
use crate::protocol::WorkerLine;
use crate::result_cache::{CacheConfig, ResultCache};
use crate::service_manager;
use crate::telemetry::output;
use crate::transport::{self, ServiceOptions, Transport};

/// How long a drain may take before what is left is released. `up` drains its web tier (4 s) and then its workers,
/// all within the 10 s that supervisors commonly allow.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of a worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend that holds jobs and results.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// The buckets of others whose objects messages may name. None of them is the output bucket.
    pub read_buckets: Vec<String>,
    /// Limits on images, checked before anything is decoded.
    pub limits: Limits,
    /// The models to classify with, as the settings name them. The first classifies images of requests that name none.
    pub models: Vec<ModelChoice>,
    /// The most memory in bytes that the models may take.
    pub max_model_bytes: u64,
    /// Keeps answers, so that an image that comes again is not classified again.
    pub cache: Option<CacheConfig>,
    /// A model that is compared with the first one.
    pub shadow: Option<Shadow>,
    /// How long a received message stays with this worker. It is renewed at a third of that.
    pub visibility_timeout: Duration,
    /// How long a lease may be renewed in all until its image is classified.
    pub max_lease: Duration,
    /// A message received more often than this is dead-lettered by the worker.
    pub max_receive_count: u32,
    /// Inference threads, each with a session of every model. `None` means one for each core.
    pub sessions: Option<usize>,
    /// How images are grouped for an inference, and how many are taken ahead.
    pub batching: Batching,
    /// How long an image may wait for others to join its batch.
    pub max_batch_delay: Duration,
    /// The Auto Scaling group of this worker, when it is an EC2 instance.
    pub auto_scaling_group: String,
    /// Serves /healthz, /readyz and /metrics.
    pub admin_listen: Option<SocketAddr>,
    /// Drain when standard input closes, so that no worker outlives its `up`.
    pub drain_on_stdin_close: bool,
}

impl Config {
    /// # Errors
    /// If results would be taken for images.
    fn check_read_buckets(&self) -> anyhow::Result<()> {
        let output = &self.names.output_bucket;
        anyhow::ensure!(
            !self.read_buckets.contains(output),
            "--read-bucket {output} is the bucket of results: each result would be classified too; name another bucket"
        );
        Ok(())
    }
}

/// A model that classifies a share of the images after the first model has answered.
#[derive(Debug, Clone)]
pub struct Shadow {
    /// The model.
    pub model: ModelChoice,
    /// Its share of the images that the first model classifies, 0 to 1.
    pub share: f64,
}

/// Works until `shutdown`, then drains.
///
/// # Errors
/// At start, when the model, the transport or the admin address cannot be used; later, when a stage ends early.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    if config.drain_on_stdin_close {
        drain_when_stdin_closes(shutdown.clone())?;
    }
    let readiness = watch::Sender::new(Readiness::Starting);
    let stop_admin = CancellationToken::new();
    let mut admin = JoinSet::new();
    if let Some(address) = config.admin_listen {
        let listener = bind(address).await?;
        tracing::info!(address = %listener.local_addr()?, "admin");
        admin.spawn(admin::serve(listener, readiness.subscribe(), stop_admin.clone()));
    }
    let worked = work(&config, started, &readiness, shutdown).await;
    stop_admin.cancel();
    while admin.join_next().await.is_some() {}
    worked
}

async fn work(
    config: &Config,
    started: Instant,
    readiness: &watch::Sender<Readiness>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.check_read_buckets()?;
    let (served, shadow) = (config.models.clone(), config.shadow.as_ref().map(|shadow| shadow.model.clone()));
    let loading = tokio::task::spawn_blocking(move || Versions::load(&served, shadow.as_ref()));
    let (loaded, instance) = tokio::join!(loading, Instance::find(&config.backend, &config.auto_scaling_group));
    let versions = loaded??;
    if let Some(notice) = instance.notice().await {
        // A supervisor that does not know this starts the worker again after it drained.
        tracing::info!(notice = notice.as_str(), "this instance is to end; nothing is received");
        readiness.send_replace(Readiness::Draining);
        shutdown.cancelled().await;
        return Ok(());
    }
    let transport = transport::open(&config.backend, &config.names).await?;
    transport.prepare(config.service_options()).await?;
    let pipeline = Pipeline::open(config, versions, Arc::clone(&transport), &shutdown).await?;
    pipeline.log_ready(started);
    let Pipeline { keeper, shared, session_count, .. } = &pipeline;
    let (keeper, watchdog, statistics) = (keeper.clone(), Arc::clone(&shared.watchdog), Arc::clone(&shared.statistics));
    let sessions = *session_count as u32;

    let stop_renewing = CancellationToken::new();
    let renewing = tokio::spawn(keeper.clone().renew(stop_renewing.clone()));
    let watching = Watch::start(instance, keeper.held_count(), shutdown.clone());
    let mut stages = pipeline.start(&shutdown);
    stages.spawn(end_at_failure(Arc::clone(&transport), shutdown.clone()));
    if config.drain_on_stdin_close {
        // Ignores errors: a parent that does not read must not block the worker, and one that died closes standard input too.
        output::announce(&WorkerLine::Ready.to_string());
        statistics::report_metrics();
        let stop = shutdown.clone();
        stages.spawn(async move { statistics.report(sessions, stop).await }.map(Ok));
    }
    readiness.send_replace(Readiness::Ready(transport));

    let outcome = supervise(&mut stages, &keeper, &stop_renewing, readiness, &shutdown).await;
    stop_renewing.cancel();
    renewing.await.context("the renewal of leases ended early")?;
    watching.end().await?;
    if config.drain_on_stdin_close {
        // The last images were completed after the last report.
        statistics::report_metrics();
    }
    outcome.and_then(|()| report_end(&watchdog))
}

/// The three stages, before they start.
struct Pipeline {
    models: Arc<Models>,
    session_count: usize,
    /// The inference threads, and that of the shadow model.
    threads: Vec<WorkerThread>,
    shared: infer::Shared,
    keeper: Keeper,
    intake: Intake,
    publisher: Publisher,
    finished: mpsc::Receiver<Vec<Finished>>,
}

impl Pipeline {
    /// Opens the sessions of the models, and connects the stages.
    async fn open(
        config: &Config,
        versions: Versions,
        transport: Arc<dyn Transport>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Pipeline> {
        let rules = Arc::new(Rules {
            input_bucket: config.names.input_bucket.clone(),
            read_buckets: config.read_buckets.clone(),
            max_receive_count: config.max_receive_count,
            worker: worker_name(),
        });
        let session_count = config.sessions.unwrap_or_else(model::cores);
        let max_bytes = config.max_model_bytes;
        let opening = tokio::task::spawn_blocking(move || versions.open(session_count, max_bytes));
        let models = Arc::new(opening.await??);
        let load = Arc::new(SessionLoad::new(config.batching, session_count, &models.tuned()));
        let (fetched, batches) = BatchQueue::new(config.max_batch_delay, Arc::clone(&load));
        let (finished_tx, finished) = mpsc::channel(2 * session_count);
        let shared = infer::Shared {
            models: Arc::clone(&models),
            shadow_share: config.shadow.as_ref().map(|shadow| ShadowShare(shadow.share)),
            limits: config.limits,
            rules: Arc::clone(&rules),
            statistics: Arc::default(),
            batches: Arc::new(batches),
            watchdog: Arc::new(Watchdog::new(config.limits.decode_timeout)),
            finished: finished_tx.clone(),
        };
        let mut threads = infer::start(session_count, &shared)?;
        let mut shadow_queue = None;
        if let Some(model) = models.shadow() {
            let (queue, thread) = shadow::start(Arc::clone(model), config.limits, shutdown.clone())?;
            threads.push(thread);
            shadow_queue = Some(queue);
        }
        let last_faults = Arc::new(LastFaults::default());
        let keeper =
            Keeper::new(Arc::clone(&transport), config.visibility_timeout, config.max_lease, Arc::clone(&last_faults));
        let intake = Intake {
            transport: Arc::clone(&transport),
            limits: config.limits,
            rules,
            cache: config.cache.as_ref().map(ResultCache::open),
            models: Arc::clone(&models),
            keeper: keeper.clone(),
            last_faults: Arc::clone(&last_faults),
            visibility_timeout: config.visibility_timeout,
            interactive_permits: Arc::new(Semaphore::new(load.most_ahead())),
            bulk_permits: Arc::new(Semaphore::new(load.most_ahead())),
            alone: Alone::default(),
            load,
            fetched,
            finished: finished_tx,
        };
        let publisher = Publisher { transport, keeper: keeper.clone(), last_faults, shadow: shadow_queue };
        Ok(Pipeline { models, session_count, threads, shared, keeper, intake, publisher, finished })
    }

    /// Starts the stages. Each ends when the one before it has ended and its channel is empty.
    fn start(self, shutdown: &CancellationToken) -> JoinSet<anyhow::Result<()>> {
        let mut stages = JoinSet::new();
        stages.spawn(self.intake.run(shutdown.clone()).map(Ok));
        for thread in self.threads {
            stages.spawn(thread.join());
        }
        stages.spawn(self.publisher.run(self.finished).map(Ok));
        stages.spawn(self.shared.end_stuck(shutdown.clone()).map(Ok));
        stages.spawn(swap::follow(self.models, shutdown.clone()));
        stages
    }

    fn log_ready(&self, started: Instant) {
        tracing::info!(
            model = self.models.summary(),
            worker = self.shared.rules.worker,
            sessions = self.session_count,
            jpeg = model::JPEG_DECODER,
            after_ms = started.elapsed().as_millis() as u64,
            "ready"
        );
        service_manager::ready();
    }
}

impl Config {
    fn service_options(&self) -> ServiceOptions {
        let &Config { visibility_timeout, max_receive_count, .. } = self;
        ServiceOptions { visibility_timeout, max_receive_count }
    }
}

/// # Errors
/// When a decoder is stuck: its thread ends only with this process.
fn report_end(watchdog: &Watchdog<infer::Held>) -> anyhow::Result<()> {
    if watchdog.has_found_one() {
        bail!("a decoder did not stop within its time, and its thread cannot be ended without this process");
    }
    tracing::info!("drained");
    Ok(())
}

/// Ends with an error when this process cannot go on with its transport.
async fn end_at_failure(transport: Arc<dyn Transport>, stop: CancellationToken) -> anyhow::Result<()> {
    match stop.run_until_cancelled(transport.failure()).await {
        Some(failure) => Err(anyhow!(failure)),
        None => Ok(()),
    }
}

/// Drains when this instance is to end, and protects it from scale-in while it works.
struct Watch {
    stop: CancellationToken,
    task: JoinHandle<Instance>,
}

impl Watch {
    fn start(instance: Instance, held: watch::Receiver<usize>, shutdown: CancellationToken) -> Watch {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let drain_when_noticed = async {
                if let Some(notice) = stopped.run_until_cancelled(instance.until_noticed()).await {
                    tracing::info!(notice = notice.as_str(), "this instance is to end; draining");
                    shutdown.cancel();
                }
            };
            tokio::join!(drain_when_noticed, instance.protect_while_busy(held, stopped.clone()));
            instance
        });
        Watch { stop, task }
    }

    /// Reports that nothing is held any more: a group that waits for that may go on.
    async fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await.context("the watch over this instance ended early")?.drained().await;
        Ok(())
    }
}

/// Waits for the stages. Before the shutdown none may end; after it all have to end in time.
async fn supervise(
    stages: &mut JoinSet<anyhow::Result<()>>,
    keeper: &Keeper,
    stop_renewing: &CancellationToken,
    readiness: &watch::Sender<Readiness>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = stages.join_next() => {
            if !shutdown.is_cancelled() {
                if let Some(ended) = ended {
                    ended.context("a stage of the worker panicked")?.context("a stage of the worker failed")?;
                }
                bail!("a stage of the worker ended early; this is a bug");
            }
        }
    }
    readiness.send_replace(Readiness::Draining);
    let all_ended = async {
        while let Some(ended) = stages.join_next().await {
            ended.context("a stage of the worker panicked")?.context("a stage of the worker failed")?;
        }
        Ok(())
    };
    if let Ok(ended) = tokio::time::timeout(DRAIN_TIMEOUT, all_ended).await {
        return ended;
    }
    // A renewal after the release would hide the messages again.
    stop_renewing.cancel();
    let held = keeper.held();
    stages.abort_all();
    match tokio::time::timeout(RELEASE_TIMEOUT, keeper.release_all(&held)).await {
        Ok(Ok(())) => tracing::warn!(count = held.len(), "not drained in time; messages released"),
        Ok(Err(error)) => tracing::warn!(%error, "not drained in time; messages come again by themselves"),
        Err(_) => tracing::warn!("not drained in time; messages come again by themselves"),
    }
    Ok(())
}

/// Cancels `shutdown` when the other end of standard input is closed, for whatever reason.
fn drain_when_stdin_closes(shutdown: CancellationToken) -> anyhow::Result<()> {
    // Ends with standard input or with the process; a read cannot be interrupted, so nothing waits for it.
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut ignored = [0; 64];
            while !matches!(std::io::stdin().read(&mut ignored), Ok(0) | Err(_)) {}
            tracing::info!("standard input closed; draining");
            shutdown.cancel();
        })
        .context("cannot watch standard input")?;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another --admin-listen"))
}

/// Host and process, so that an operator knows where to look. Nothing of it is secret.
fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "host" } else { host.trim() };
    format!("{host}-{}", std::process::id())
}
