//! The web tier: HTTP in, answers out.
//!
//! A request's way: [`serve`] (connection) → [`routes`] (address) → [`upload`] (bytes) → [`jobs`] (store, queue, wait)
//! ← [`replies`] (the reply queue) through [`pending`] (who waits for which id). [`results`] reads and writes the ends of
//! jobs, [`error`] says every refusal.
//!
//! Before a request is read, [`admission`] decides whether its answer would come in time; [`withdrawal`] drops the job of a
//! client that left before it was told an id.
//!
//! Nothing here remembers a job: any web process answers for any id, from the stores alone.

mod admission;
mod assets;
mod error;
mod jobs;
mod metrics;
mod pending;
mod readiness;
mod replies;
mod results;
mod routes;
mod serve;
mod upload;
mod withdrawal;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::admission::Fleet;
use self::admission::{Gate, GateLimits};
pub use self::jobs::Wire;
use self::jobs::{Jobs, MessageLimit};
use self::pending::Pending;
use self::readiness::Readiness;
use self::replies::Replies;
pub use self::replies::ResultQueueMode;
use self::results::Results;
use self::routes::Site;
use self::serve::ServeRules;
use self::upload::{Budget, UploadRules};
use crate::config::{Backend, Limits, Names};
use crate::queue::{self, ServiceQueues};
use crate::store;

/// How long a drain lets callers wait for their answers; then they are told where to ask.
const WAIT_AT_DRAIN: Duration = Duration::from_secs(3);
/// And then, how long connections may take to carry that away.
const CUT_OFF_AFTER: Duration = Duration::from_secs(1);
/// How long a drain may take to withdraw the jobs of clients that left.
const WITHDRAW_AT_DRAIN: Duration = Duration::from_secs(1);
/// A message is never kept by the queue to the very end of its retention.
const RETENTION_MARGIN: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Config {
    pub backend: Backend,
    /// The stack that this belongs to.
    pub stack: String,
    pub names: Names,
    pub limits: Limits,
    pub wire: Wire,
    /// With [`Wire::Seed`] always shared: the original's workers know one queue.
    pub result_queue_mode: ResultQueueMode,
    pub job_ttl: Duration,
    /// How long `POST /` waits for its answer.
    pub sync_timeout: Duration,
    /// Connections at a time; more wait in the listen queue.
    pub max_connections: usize,
    /// Bytes of image bodies held at a time; more are answered 503.
    pub max_buffered_bytes: u64,
    /// Jobs in the queue, waiting or in work, beyond which nothing is accepted.
    pub max_queue_depth: u64,
    /// How long a client may take for its headers or idle between requests.
    pub idle_timeout: Duration,
    /// Longest pause between two pieces of a body.
    pub body_timeout: Duration,
    /// Images up to this size also travel inside the message.
    pub inline_bytes: usize,
    pub max_receive_count: u32,
    pub visibility_timeout: Duration,
}

/// Serves on `listener` until `shutdown`, then drains: what waits gets its answer or is told where to ask for it.
///
/// `fleet`: the workers of `up`; None where the workers are somebody else's.
///
/// # Errors
/// At start, where queue or store cannot be used.
pub async fn run(
    listener: TcpListener,
    config: Config,
    fleet: Option<Fleet>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    keep_freed_memory();
    let queues = queue::open(&config.backend).await?;
    let names = &config.names;
    let service =
        ServiceQueues::open_or_create(&*queues, names, config.visibility_timeout, config.max_receive_count).await?;
    let attributes = service.requests.attributes().await?;
    let input = store::open(&config.backend, &names.input_bucket).await?;
    let output = store::open(&config.backend, &names.output_bucket).await?;
    let pending = Pending::default();
    let results = Arc::new(Results { output: Arc::clone(&output), signature: format!("web-{}", std::process::id()) });
    let workers_ready = fleet.as_ref().filter(|fleet| fleet.is_awaited).map(|fleet| fleet.ready.clone());
    let limits = GateLimits { max_queue_depth: config.max_queue_depth, max_connections: config.max_connections };
    let gate = Arc::new(Gate::new(Arc::clone(&service.requests), limits, fleet));
    let (withdrawals, withdrawn) = withdrawal::channel();
    let replies = Replies::open(
        queues,
        Arc::clone(&service.results),
        config.result_queue_mode,
        pending.clone(),
        Arc::clone(&results),
        Arc::clone(&gate),
        config.stack.clone(),
    );
    let replies = Arc::new(replies.await.context("no reply queue")?);
    let give_up = CancellationToken::new();
    let (marked_input, marked_output) = (Arc::clone(&input), Arc::clone(&output));
    let site = Site {
        jobs: Jobs {
            wire: config.wire,
            requests: Arc::clone(&service.requests),
            input: Arc::clone(&input),
            results,
            pending,
            replies: Arc::clone(&replies),
            job_ttl: config.job_ttl.min(attributes.retention.saturating_sub(RETENTION_MARGIN)),
            inline_bytes: config.inline_bytes,
            limit: MessageLimit::new(attributes.max_message_bytes),
            gate: Arc::clone(&gate),
            withdrawals,
            give_up: give_up.clone(),
        },
        uploads: UploadRules {
            max_upload_bytes: config.limits.max_upload_bytes,
            body_timeout: config.body_timeout,
            budget: Budget::new(config.max_buffered_bytes),
        },
        sync_timeout: config.sync_timeout,
        readiness: Readiness { requests: service.requests, input, output, workers_ready, shutdown: shutdown.clone() },
    };
    let rules = ServeRules { max_connections: config.max_connections, idle_timeout: config.idle_timeout };
    let (stop_replies, stop_load) = (CancellationToken::new(), CancellationToken::new());
    let gate_task = Arc::clone(&gate);
    let stop = stop_load.clone();
    let looking = tokio::spawn(async move { gate_task.run(stop).await });
    let withdrawing = tokio::spawn(withdrawn.run(marked_input, marked_output, stop_load.clone()));
    let receiving = tokio::spawn(Arc::clone(&replies).run(stop_replies.clone()));
    tracing::info!(address = %listener.local_addr()?, replies = replies.reply_to(), "web tier listens");

    let serving = serve::serve(listener, routes::router(Arc::new(site)), rules, shutdown.clone());
    let patience = async {
        shutdown.cancelled().await;
        tokio::time::sleep(WAIT_AT_DRAIN).await;
        give_up.cancel();
        tokio::time::sleep(CUT_OFF_AFTER).await;
    };
    tokio::select! {
        () = serving => {}
        () = patience => tracing::warn!("not drained in time; open connections are cut off"),
    }
    stop_load.cancel();
    let (looked, withdrew) = tokio::join!(looking, tokio::time::timeout(WITHDRAW_AT_DRAIN, withdrawing));
    looked.context("the reading of the queue's depth ended early")?;
    // What was not withdrawn in time is classified for nobody.
    withdrew.unwrap_or(Ok(())).context("the withdrawal of jobs ended early")?;
    stop_replies.cancel();
    receiving.await.context("the reply loop ended early")
}

/// Bodies come and go. glibc gives memory at the end of a heap back to the system once it is more than twice the largest
/// block that was mapped by itself and freed, at first 128 KiB: the end of nearly every image, whose successor would take
/// the same pages again, one page fault each. From here on it keeps 2 MiB. Other allocators notice nothing.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}
