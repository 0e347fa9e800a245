//! `imgcls up`: everything on this machine. The web tier runs in this process, the workers in child processes. Queue and
//! images are in the data directory, so that a worker started by hand can join.

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::autoscaler::{DRAIN_TIMEOUT, WorkerCommand, WorkerPool};
use crate::config::{Backend, Names};
use crate::shutdown::CancellationToken;
use crate::telemetry::output;
use crate::transport::{self, ServiceOptions, Transport};
use crate::{autoscaler, retention, service_manager, web};

/// Settings of a local service: a web tier and its workers.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings of the web tier.
    pub web: web::Config,
    /// How long images and results are kept.
    pub retention: retention::Config,
    /// Workers on the same backend and names as `web`.
    pub workers: Workers,
}

/// The worker processes of a local service.
#[derive(Debug, Clone)]
pub struct Workers {
    /// The backend that the workers use.
    pub backend: Backend,
    /// The names of the queues and buckets.
    pub names: Names,
    /// How long a received message is invisible to other workers.
    pub visibility_timeout: Duration,
    /// How often a message is received before it becomes a dead letter.
    pub max_receive_count: u32,
    /// The command line of each worker, without the program. With `variables` it is complete: a worker gets no setting
    /// from elsewhere.
    pub arguments: Vec<OsString>,
    /// The settings of each worker that are secret, as variables.
    pub variables: Vec<(OsString, OsString)>,
    /// How many workers run, and when that changes.
    pub autoscale: autoscaler::Config,
}

/// Serves on `listener` until `shutdown`. Then the web tier ends first, since clients that wait for an answer need the
/// workers, and the workers after it.
///
/// # Errors
/// If the data directory cannot be used, or a tier fails; the other tier has drained by then.
pub async fn run(listener: TcpListener, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(backend = %config.web.backend, %address, "up");

    let (ready, workers_ready) = watch::channel(0);
    let give_up = CancellationToken::new();
    let fleet = Fleet::open(config.workers, ready, give_up.clone()).await?;
    let scheme = if config.web.access.tls.is_some() { "https" } else { "http" };
    let page = format!("{scheme}://{}/", reachable(address));
    let longest_drain = config.web.drain_delay + LONGEST_DRAIN;

    let (stop_web, stop_workers) = (shutdown.child_token(), CancellationToken::new());
    let wants_worker = fleet.config.bounds.min() > 0;
    let service_time = fleet.pool.service_time();
    let seen = web::Fleet {
        ready: workers_ready.clone(),
        // A fleet that may be empty starts its first worker when an image arrives, so it is ready without one.
        is_awaited: wants_worker,
        service_time: Box::new(move || service_time.recent()),
        refused: fleet.pool.refused(),
    };
    let web = async {
        let ended = serve_web(listener, config.web, config.retention, Some(seen), stop_web.clone()).await;
        stop_workers.cancel();
        ended
    };
    let workers = async {
        let ended = fleet.run(stop_workers.clone()).await;
        stop_web.cancel();
        ended
    };
    let kill_late_workers = async {
        shutdown.cancelled().await;
        tokio::time::sleep(longest_drain).await;
        give_up.cancel();
        std::future::pending::<Infallible>().await
    };
    let all = async { tokio::join!(web, workers, announce(page, wants_worker, workers_ready.clone())) };
    let (web, workers, ()) = tokio::select! {
        ended = all => ended,
        never = kill_late_workers => match never {},
    };
    workers.and(web)
}

/// Runs the web tier, and beside it the loop that deletes old data. `fleet` is that of [`web::run`].
///
/// # Errors
/// As [`web::run`].
pub async fn serve_web(
    listener: TcpListener,
    mut web: web::Config,
    retention: retention::Config,
    fleet: Option<web::Fleet>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(retention) = retention::open(&retention).await? else {
        return web::run(listener, web, fleet, shutdown).await;
    };
    web.space = retention.space();
    let stop = CancellationToken::new();
    let mut bounding = tokio::spawn(retention.run(stop.clone()));
    let ended = web::run(listener, web, fleet, shutdown).await;
    stop.cancel();
    match tokio::time::timeout(RETENTION_DRAIN_TIMEOUT, &mut bounding).await {
        Ok(bounded) => bounded.context("the loop that deletes old data ended early")?,
        // The loop may be interrupted at any point.
        Err(_) => bounding.abort(),
    }
    ended
}

/// Runs the workers alone: `imgcls autoscale` on this machine, for web tiers in other processes or on other machines.
///
/// # Errors
/// If the queues cannot be used at start, or the workers fail for a reason that a restart does not repair.
pub async fn run_workers(workers: Workers, shutdown: CancellationToken) -> anyhow::Result<()> {
    let fleet = Fleet::open(workers, watch::channel(0).0, CancellationToken::new()).await?;
    let autoscaler::Config { policy, bounds, .. } = &fleet.config;
    tracing::info!(
        queue = fleet.transport.name(),
        policy = policy.as_str(),
        min = bounds.min(),
        max = bounds.max(),
        "ready"
    );
    fleet.run(shutdown).await
}

/// Time from the request to end until workers that have not drained are killed. Supervisors commonly allow 10 s, and the
/// threads of the local backend may need another two.
const LONGEST_DRAIN: Duration = Duration::from_millis(7_500);

/// How long a web tier that has ended waits for the loop that deletes old data.
const RETENTION_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

struct Fleet {
    config: autoscaler::Config,
    transport: Arc<dyn Transport>,
    pool: WorkerPool,
}

impl Fleet {
    async fn open(workers: Workers, ready: watch::Sender<usize>, give_up: CancellationToken) -> anyhow::Result<Fleet> {
        let Workers { backend, names, visibility_timeout, max_receive_count, arguments, variables, autoscale } =
            workers;
        let command = WorkerCommand {
            program: std::env::current_exe()
                .context("cannot find the file of this program, to start workers from it")?,
            arguments,
            variables,
        };
        let transport = transport::open(&backend, &names).await?;
        transport.prepare(ServiceOptions { visibility_timeout, max_receive_count }).await?;
        let pool = WorkerPool::new(command, DRAIN_TIMEOUT, ready).releasing(Arc::clone(&transport)).killed_by(give_up);
        Ok(Fleet { config: autoscale, transport, pool })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let failure = self.transport.failure();
        autoscaler::run(self.config, self.transport.as_ref(), failure, self.pool, shutdown).await
    }
}

/// Prints the address of the page once a worker is ready, and tells the service manager.
async fn announce(page: String, wants_worker: bool, mut workers_ready: watch::Receiver<usize>) {
    let fewest = usize::from(wants_worker);
    if workers_ready.wait_for(|ready| *ready >= fewest).await.is_ok() {
        output::announce(&format!("open {page}"));
        service_manager::ready();
    }
}

/// The address for a browser: a listener at the unspecified address is reached at the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_announced_at_an_address_that_a_browser_can_reach() {
        let text = |address: &str| reachable(address.parse().expect("address of the test")).to_string();
        assert_eq!(text("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(text("[::]:80"), "[::1]:80");
        assert_eq!(text("192.0.2.7:80"), "192.0.2.7:80");
    }
}
