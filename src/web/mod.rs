//! The web tier: HTTP requests in, answers out.
//!
//! The path of a request: [`serve`] (connection) → [`gate`] (checks) → [`routes`] (address) → [`submit`] → [`upload`]
//! (bytes) → [`jobs`] (submit, wait) ← [`replies`] (the inbox) through [`pending`] (the waiting callers by id). [`results`] reads and
//! writes the results of jobs, [`error`] has the error responses.
//!
//! The resources of one client are bounded: by number in [`connections`], by memory in [`budget`], by time in [`stream`] and
//! [`upload`].
//!
//! [`query`] and [`prefer`] have the options of a request, [`models`] the models that it may choose, [`idempotency`] the job
//! of a request that is repeated. [`openapi`] is the table of all operations, from which the router and the description of the
//! interface are made.
//!
//! [`assets`] and [`pages`] have the pages, [`html`] the answers to browsers without a script, [`events`] the streams of a job's progress,
//! [`fleet`] the state of the service, [`thumbnail`] small copies of images.
//!
//! [`dialects`] are the addresses and formats of other servers, for clients that speak those.
//! [`auth`] decides by the key of a request whether it may pass.
//!
//! Before a request is read, [`admission`] decides whether its answer would come in time; [`withdrawal`] withdraws the
//! job of a client that left before it got the id.
//!
//! [`batches`] are many images in one request. [`job_list`] lists the jobs of a key.
//!
//! [`callbacks`] calls the receivers of clients when their jobs and batches have ended.
//!
//! No job is kept in memory: any web process can answer for any id, because the transport has stored its state.

mod accept;
mod admission;
mod answer;
mod assets;
mod auth;
pub(crate) mod batches;
mod budget;
mod callbacks;
mod cors;
mod dialects;
mod error;
mod events;
mod fleet;
mod html;
mod http;
mod idempotency;
mod job_list;
mod jobs;
mod listeners;
mod metrics;
mod models;
mod observe;
mod openapi;
mod pages;
mod pending;
mod prefer;
mod query;
mod queue_state;
mod readiness;
mod replies;
mod results;
mod routes;
mod site;
mod submit;
mod thumbnail;
mod upload;
mod withdrawal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::admission::Fleet;
use self::admission::{Admission, AdmissionLimits};
use self::auth::Auth;
pub use self::auth::{Access, RateLimit};
use self::batches::Batches;
use self::budget::Budget;
use self::callbacks::Callbacks;
pub use self::cors::CorsOrigin;
use self::http::{Connections, HostPolicy, RequestGuard, ServeRules, Tls};
pub use self::http::{TlsFiles, listen};
use self::jobs::Jobs;
pub use self::jobs::Wire;
use self::listeners::Listeners;
use self::metrics::METRICS;
use self::models::Models;
use self::observe::AccessLog;
use self::pending::Pending;
use self::queue_state::QueueState;
use self::readiness::Readiness;
use self::replies::Replies;
use self::results::Results;
use self::site::Site;
use self::upload::{ReadBuckets, UploadRules};
use crate::config::{Backend, Cidr, Names};
use crate::keys::WebhookSecrets;
use crate::model::{Limits, ModelChoice};
use crate::outbound::{Allowed, Caller};
use crate::protocol::RETENTION_MARGIN;
use crate::service_manager;
pub use crate::transport::InboxMode as ResultQueueMode;
use crate::transport::{self, ServiceOptions, Space, Transport};

/// How long a drain lets callers wait for their results. Then they get the address of the result instead.
const WAIT_AT_DRAIN: Duration = Duration::from_secs(3);
/// How long connections may take to send these last answers.
const CUT_OFF_AFTER: Duration = Duration::from_secs(1);
/// How long closing the inbox may take, after all connections have ended.
const LAST_STEPS_TIMEOUT: Duration = Duration::from_secs(4);
/// Memory for images that are being sent to clients.
const IMAGE_READ_BYTES: u64 = 64 << 20;
/// How long withdrawing the jobs of clients that left may take during a drain.
const WITHDRAW_AT_DRAIN: Duration = Duration::from_secs(1);

/// Connections of the operators' address.
const OPERATORS_CONNECTIONS: usize = 64;

/// Settings of the web tier.
#[derive(Debug, Clone)]
pub struct Config {
    /// The backend that holds jobs and results.
    pub backend: Backend,
    /// The stack that this process belongs to.
    pub stack: String,
    /// The names of the queues and buckets.
    pub names: Names,
    /// Buckets that the images of a batch may be named in.
    pub read_buckets: Vec<String>,
    /// The models that requests may choose, the first of which is that of requests that name none; at least one.
    pub models: Vec<ModelChoice>,
    /// Limits on images, checked before anything is decoded.
    pub limits: Limits,
    /// The format of the messages to workers.
    pub wire: Wire,
    /// Always shared with [`Wire::Legacy`], because legacy workers know only one queue.
    pub result_queue_mode: ResultQueueMode,
    /// How long a job may wait. Workers do not classify it after that.
    pub job_ttl: Duration,
    /// How long `POST /` waits for its answer.
    pub sync_timeout: Duration,
    /// Concurrent connections. Further ones are refused, or replace an idle one. `None` means 1024, or what the limit of open files
    /// allows.
    pub max_connections: Option<usize>,
    /// Connections of one client at a time, except from this machine and from `trusted_proxies`.
    pub max_connections_per_address: usize,
    /// The proxies whose `X-Forwarded-For` names the client.
    pub trusted_proxies: Vec<Cidr>,
    /// Host names that requests may have, beside addresses and names of this machine.
    pub allowed_hosts: Vec<String>,
    /// Pages of these origins may send requests and read the answers.
    pub cors_origins: Vec<CorsOrigin>,
    /// Bytes of image bodies in memory. Requests beyond that are answered with 503.
    pub max_buffered_bytes: u64,
    /// Jobs in the queue, visible or in flight, beyond which no job is accepted.
    pub max_queue_depth: u64,
    /// How long a client may take for its headers or idle between requests.
    pub idle_timeout: Duration,
    /// Longest pause between two pieces of a body.
    pub body_timeout: Duration,
    /// How long a client may stop reading its answer.
    pub write_timeout: Duration,
    /// How long the port stays open after a drain has begun, so that a load balancer notices the drain.
    pub drain_delay: Duration,
    /// Images up to this size also travel inside the message.
    pub inline_bytes: usize,
    /// How often a message is received before it becomes a dead letter.
    pub max_receive_count: u32,
    /// How long a received message is invisible to other workers.
    pub visibility_timeout: Duration,
    /// Admits images as long as there is space for them.
    pub space: Space,
    /// The calls that this process makes to addresses that clients name.
    pub calls: CallsOut,
    /// The rules for clients: keys, limits, TLS.
    pub access: Access,
    /// Log a line for each request.
    pub access_log: bool,
    /// The price of an hour of one machine with workers, if that is known.
    pub machine_hour: Option<MachineHour>,
}

/// The price of an hour of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineHour {
    /// The amount.
    pub price: f64,
    /// The currency, such as `USD`.
    pub currency: String,
}

/// The calls of a web tier to addresses that its clients name. By default there are none.
#[derive(Debug, Clone, Default)]
pub struct CallsOut {
    /// Call the receivers of clients when their jobs have ended.
    pub callbacks: bool,
    /// Fetch images by URL.
    pub image_urls: bool,
    /// Hosts and networks that may be called although they are not public.
    pub allowed: Allowed,
}

/// Serves on `listener` until `shutdown`, then drains: waiting callers get their result or its address.
///
/// `fleet` is the workers of `up`. `None` when another process starts the workers.
///
/// # Errors
/// The transport cannot be used at the start, or this process cannot go on with it later.
pub async fn run(
    listener: TcpListener,
    config: Config,
    fleet: Option<Fleet>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    keep_freed_memory();
    // With a fleet the service is ready once a worker is.
    let is_alone = fleet.is_none();
    let models = Arc::new(Models::new(config.models.clone())?);
    let max_connections = connection_limit(&config);
    let address = listener.local_addr()?;
    let transport = transport::open(&config.backend, &config.names).await?;
    transport.prepare(service_options(&config)).await?;
    let retention = transport.retention().await?;
    let auth = open_auth(&config, address).await?;
    let tls = config.access.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let operators = config.access.admin_listen.map(listen_for_operators).transpose()?;
    let pending = Pending::default();
    let signature = format!("web-{}", std::process::id());
    let results = Arc::new(Results { transport: Arc::clone(&transport), signature });
    let workers_ready = fleet.as_ref().filter(|fleet| fleet.is_awaited).map(|fleet| fleet.ready.clone());
    let limits = AdmissionLimits { max_queue_depth: config.max_queue_depth, max_connections };
    let admission = Arc::new(Admission::new(Arc::clone(&transport), limits, fleet, config.machine_hour.is_some()));
    let (withdrawals, withdrawn) = withdrawal::channel();
    let inbox = transport.open_inbox(config.result_queue_mode, &config.stack).await.context("no reply queue")?;
    let queues = Arc::new(QueueState::new(transport.depth_interval()));
    let replies = Arc::new(Replies {
        inbox,
        queues: Arc::clone(&queues),
        pending: pending.clone(),
        results: Arc::clone(&results),
        admission: Arc::clone(&admission),
    });
    let give_up = CancellationToken::new();
    let caller = caller(&config.calls);
    let callbacks = open_callbacks(&config, caller.as_ref(), &*transport).await?;
    let uploads = upload_rules(&config, caller, Arc::clone(&transport));
    let guard = request_guard(address, &config);
    let site = Site {
        jobs: Jobs {
            wire: config.wire,
            transport: Arc::clone(&transport),
            results,
            pending,
            replies: Arc::clone(&replies),
            job_ttl: config.job_ttl.min(retention.saturating_sub(RETENTION_MARGIN)),
            bulk_ttl: retention.saturating_sub(RETENTION_MARGIN),
            inline_bytes: config.inline_bytes,
            admission: Arc::clone(&admission),
            withdrawals,
            give_up: give_up.clone(),
            space: config.space.clone(),
        },
        batches: Batches { transport: Arc::clone(&transport), input_bucket: config.names.input_bucket.clone() },
        callbacks,
        read_buckets: config.read_buckets,
        models,
        uploads,
        image_reads: Budget::new(IMAGE_READ_BYTES, METRICS.read_memory.clone()),
        listeners: Listeners::new(max_connections),
        sync_timeout: config.sync_timeout,
        machine_hour: config.machine_hour,
        thumbnails: thumbnail::Thumbnails::new(config.limits),
        index: assets::IndexPage::new(config.limits.max_upload_bytes, config.calls.image_urls),
        readiness: Readiness {
            transport: Arc::clone(&transport),
            workers_ready,
            space: config.space,
            shutdown: shutdown.clone(),
            queues,
        },
    };
    let connections = Connections::new(max_connections, config.max_connections_per_address, config.trusted_proxies);
    let rules = ServeRules { idle_timeout: config.idle_timeout, write_timeout: config.write_timeout };
    let (stop_replies, stop_load) = (CancellationToken::new(), CancellationToken::new());
    let (of_task, stop) = (Arc::clone(&admission), stop_load.clone());
    let reading = tokio::spawn(async move { of_task.run(stop).await });
    let withdrawing = tokio::spawn(withdrawn.run(Arc::clone(&transport), stop_load.clone()));
    let receiving = tokio::spawn(Arc::clone(&replies).run(stop_replies.clone()));
    let following = tokio::spawn(follow(Arc::clone(&auth), tls.clone(), stop_load.clone()));
    tracing::info!(%address, replies = replies.reply_to(), max_connections, "web tier listens");
    if is_alone {
        service_manager::ready();
    }

    let stop = CancellationToken::new();
    let (site, guard) = (Arc::new(site), Arc::new(guard));
    let for_operators = serve_operators(operators, routes::operators_router(Arc::clone(&site)), rules, stop.clone());
    let calling = tokio::spawn(callbacks::run(Arc::clone(&site), stop.clone()));
    let stop_calls = stop.clone();
    let router = routes::router(site, guard, auth, cors::layer(&config.cors_origins), AccessLog(config.access_log));
    let for_clients = http::serve(listener, router, rules, Arc::new(connections), tls, stop.clone());
    let serving = async {
        tokio::join!(for_clients, for_operators);
    };
    let drain = drain(shutdown, config.drain_delay, stop, give_up);
    let failure = serve_until_drained(serving, drain, &*transport).await;
    stop_load.cancel();
    stop_calls.cancel();
    end_load_tasks(reading, withdrawing).await?;
    calling.await.context("the sending of callbacks ended early")?;
    following.await.context("the reading of keys and certificates ended early")?;
    stop_replies.cancel();
    end_replies(receiving).await?;
    failure.map_or(Ok(()), |failure| Err(anyhow!(failure)))
}

fn connection_limit(config: &Config) -> usize {
    // A request can also hold a connection to the backend.
    let files_each = if config.backend.calls_hold_connections() { 2 } else { 1 };
    http::max_connections(config.max_connections, http::raise_limit(), files_each)
}

fn service_options(config: &Config) -> ServiceOptions {
    ServiceOptions { visibility_timeout: config.visibility_timeout, max_receive_count: config.max_receive_count }
}

async fn open_auth(config: &Config, address: SocketAddr) -> anyhow::Result<Arc<Auth>> {
    let max_upload_bytes = config.limits.max_upload_bytes;
    let auth = Auth::open(&config.access, address, &config.backend, &config.names, max_upload_bytes).await?;
    Ok(Arc::new(auth))
}

/// Follows the changes of keys and of the certificate, until `stop`.
async fn follow(auth: Arc<Auth>, tls: Option<Arc<Tls>>, stop: CancellationToken) {
    let of_tls = async {
        match tls {
            Some(tls) => tls.follow(&stop).await,
            None => stop.cancelled().await,
        }
    };
    tokio::join!(auth.follow_keys(&stop), of_tls);
}

fn listen_for_operators(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = listen(address).with_context(|| {
        format!("cannot listen on {address}; stop what listens there or choose another --admin-listen")
    })?;
    tracing::info!(address = %listener.local_addr()?, "operators' address");
    Ok(listener)
}

/// Serves the routes of operators at an address of their own, if there is one.
async fn serve_operators(
    listener: Option<TcpListener>,
    router: axum::Router,
    rules: ServeRules,
    stop: CancellationToken,
) {
    let Some(listener) = listener else { return };
    let connections = Connections::new(OPERATORS_CONNECTIONS, OPERATORS_CONNECTIONS, Vec::new());
    http::serve(listener, router, rules, Arc::new(connections), None, stop).await;
}

/// The client of calls to addresses that clients name, if there are any.
fn caller(calls: &CallsOut) -> Option<Arc<Caller>> {
    (calls.callbacks || calls.image_urls).then(|| Arc::new(Caller::new(calls.allowed.clone())))
}

/// Reads what callbacks need, so that a server that cannot send them does not accept them.
async fn open_callbacks(
    config: &Config,
    caller: Option<&Arc<Caller>>,
    transport: &dyn Transport,
) -> anyhow::Result<Option<Callbacks>> {
    let Some(caller) = caller.filter(|_| config.calls.callbacks) else { return Ok(None) };
    let queue = config.names.callback_queue();
    let advice = || format!("--allow-callbacks needs the queue {queue:?}: create it, and let the web tier use it");
    transport.prepare_callbacks().await.with_context(advice)?;
    let documents = Box::pin(transport::open_key_documents(&config.backend, &config.names)).await?;
    let secrets = WebhookSecrets::open(&*documents).await;
    let secrets = secrets.context("no secret for callbacks; `imgcls keys webhook-secret` makes it")?;
    Ok(Some(Callbacks::new(Arc::clone(caller), secrets)))
}

fn upload_rules(config: &Config, caller: Option<Arc<Caller>>, transport: Arc<dyn Transport>) -> UploadRules {
    UploadRules {
        caller: caller.filter(|_| config.calls.image_urls),
        buckets: ReadBuckets { names: config.read_buckets.clone(), transport },
        max_upload_bytes: config.limits.max_upload_bytes,
        body_timeout: config.body_timeout,
        budget: Budget::new(config.max_buffered_bytes, METRICS.upload_memory.clone()),
    }
}

fn request_guard(address: SocketAddr, config: &Config) -> RequestGuard {
    let is_loopback = address.ip().to_canonical().is_loopback();
    RequestGuard {
        hosts: HostPolicy {
            is_loopback,
            allowed_hosts: config.allowed_hosts.clone(),
            cors_origins: config.cors_origins.clone(),
        },
        max_upload_bytes: config.limits.max_upload_bytes,
    }
}

/// Waits until all connections have ended, the drain has taken too long, or the transport has failed. Returns the failure
/// of the transport.
async fn serve_until_drained(
    serving: impl Future<Output = ()>,
    drain: impl Future<Output = ()>,
    transport: &dyn Transport,
) -> Option<String> {
    tokio::select! {
        () = serving => None,
        () = drain => {
            tracing::warn!("not drained in time; open connections are cut off");
            None
        }
        failure = transport.failure() => Some(failure),
    }
}

/// Runs from the shutdown until open connections are closed. Cancels `stop` to accept no more connections, and later
/// `give_up` to answer waiting callers without their results.
async fn drain(
    shutdown: CancellationToken,
    drain_delay: Duration,
    stop: CancellationToken,
    give_up: CancellationToken,
) {
    shutdown.cancelled().await;
    // From now on `/readyz` answers that this process drains.
    tokio::time::sleep(drain_delay).await;
    stop.cancel();
    tokio::time::sleep(WAIT_AT_DRAIN).await;
    give_up.cancel();
    tokio::time::sleep(CUT_OFF_AFTER).await;
}

/// Waits for the tasks of admission and withdrawal, which were asked to stop.
async fn end_load_tasks(reading: JoinHandle<()>, withdrawing: JoinHandle<()>) -> anyhow::Result<()> {
    let (read, withdrew) = tokio::join!(reading, tokio::time::timeout(WITHDRAW_AT_DRAIN, withdrawing));
    read.context("the reading of the queue's depth ended early")?;
    // A job that was not withdrawn in time is classified although its client has left.
    withdrew.unwrap_or(Ok(())).context("the withdrawal of jobs ended early")
}

/// Waits for the loop of replies, which was asked to stop.
async fn end_replies(receiving: JoinHandle<()>) -> anyhow::Result<()> {
    match tokio::time::timeout(LAST_STEPS_TIMEOUT, receiving).await {
        Ok(ended) => ended.context("the reply loop ended early"),
        Err(_) => {
            tracing::warn!("the inbox was not closed in time; another web process deletes its queue within two hours");
            Ok(())
        }
    }
}

/// Lets glibc keep 2 MiB of freed memory. By default it returns memory at the end of a heap to the system once that is more
/// than twice the largest block that was mapped separately and freed, at first 128 KiB. That would happen after nearly every
/// image, and the next one would get the same pages back, with one page fault each. Other allocators are not affected.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}
