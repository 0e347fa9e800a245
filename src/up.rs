//! `imgcls up`: everything on this machine. The web tier runs in this process, the workers in child processes, and
//! the queue and the images lie in the data directory, where a worker started by hand finds them too.

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::autoscale::local::{DRAIN_TIMEOUT, Pool, WorkerCommand};
use crate::config::{Backend, Limits, Names};
use crate::model::ModelChoice;
use crate::shutdown::CancellationToken;
use crate::telemetry::{LogFormat, output};
use crate::transport::{self, ServiceOptions, Transport};
use crate::{autoscale, retention, web, worker};

#[derive(Debug, Clone)]
pub struct Config {
    pub web: web::Config,
    pub retention: retention::Config,
    /// On the same backend and names as `web`.
    pub workers: Workers,
}

/// The worker processes of a local service.
#[derive(Debug, Clone)]
pub struct Workers {
    /// What each runs with.
    pub worker: worker::Config,
    pub autoscale: autoscale::Config,
    pub log_format: LogFormat,
}

/// Serves on `listener` until `shutdown`; then the web tier ends first, since whoever waits for an answer still needs
/// the workers, and the workers after it.
///
/// # Errors
/// Where the data directory cannot be used, or one of the tiers fails; the other has drained by then.
pub async fn run(listener: TcpListener, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(backend = ?config.web.backend, %address, "up");

    let (ready, workers_ready) = watch::channel(0);
    let give_up = CancellationToken::new();
    let fleet = Fleet::open(config.workers, ready, give_up.clone()).await?;
    let longest_drain = config.web.drain_delay + LONGEST_DRAIN;

    let (stop_web, stop_workers) = (shutdown.child_token(), CancellationToken::new());
    let wants_worker = fleet.config.bounds.min() > 0;
    let pace = fleet.pool.pace();
    let seen = web::Fleet {
        ready: workers_ready.clone(),
        // A fleet that may be empty starts its first worker when an image comes: it is ready without one.
        is_awaited: wants_worker,
        service_time: Box::new(move || pace.recent_service_time()),
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
    let all = async { tokio::join!(web, workers, announce(address, wants_worker, workers_ready.clone())) };
    let (web, workers, ()) = tokio::select! {
        ended = all => ended,
        never = kill_late_workers => match never {},
    };
    workers.and(web)
}

/// The web tier, and beside it the loop that bounds what is kept. `fleet`: as of [`web::run`].
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
        Ok(bounded) => bounded.context("the loop that bounds what is kept ended early")?,
        // It may be cut off anywhere.
        Err(_) => bounding.abort(),
    }
    ended
}

/// The workers alone: `imgcls autoscale` on this machine, beside a web tier that runs elsewhere.
///
/// # Errors
/// As [`run`].
pub async fn run_workers(workers: Workers, shutdown: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(backend = ?workers.worker.backend, "autoscale");
    let fleet = Fleet::open(workers, watch::channel(0).0, CancellationToken::new()).await?;
    fleet.run(shutdown).await
}

/// From the request to end until workers that have not drained are killed: supervisors commonly allow 10 s, and the
/// threads of the local backend may need another two.
const LONGEST_DRAIN: Duration = Duration::from_millis(7_500);

/// How long the end of a web tier waits for the loop that bounds what is kept.
const RETENTION_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

struct Fleet {
    config: autoscale::Config,
    transport: Arc<dyn Transport>,
    pool: Pool,
}

impl Fleet {
    async fn open(workers: Workers, ready: watch::Sender<usize>, give_up: CancellationToken) -> anyhow::Result<Fleet> {
        let Workers { worker, autoscale, log_format } = workers;
        let command = WorkerCommand {
            program: std::env::current_exe().context("cannot find this program itself, to start workers with")?,
            arguments: worker_arguments(&worker, log_format),
        };
        let transport = transport::open(&worker.backend, &worker.names).await?;
        let (visibility_timeout, max_receive_count) = (worker.visibility_timeout, worker.max_receive_count);
        transport.prepare(ServiceOptions { visibility_timeout, max_receive_count }).await?;
        let pool = Pool::new(command, DRAIN_TIMEOUT, ready).releasing(Arc::clone(&transport)).killed_by(give_up);
        Ok(Fleet { config: autoscale, transport, pool })
    }

    async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        autoscale::run(self.config, self.transport.as_ref(), self.pool, shutdown).await
    }
}

/// Says where the page is once something answers there.
async fn announce(address: SocketAddr, wants_worker: bool, mut workers_ready: watch::Receiver<usize>) {
    let fewest = usize::from(wants_worker);
    if workers_ready.wait_for(|ready| *ready >= fewest).await.is_ok() {
        output::tell(&format!("open http://{}/", reachable(address)));
    }
}

/// The address to type where the one listened at means all of this machine's.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The command line that makes a worker of exactly this configuration, whatever the environment says. Taken apart by
/// name, so that a setting of the worker that is not passed on does not compile.
pub fn worker_arguments(config: &worker::Config, log_format: LogFormat) -> Vec<OsString> {
    let worker::Config {
        backend,
        names: Names { request_queue, result_queue, input_bucket, output_bucket },
        limits: Limits { max_upload_bytes, max_pixels, decode_timeout, max_decode_bytes },
        model: ModelChoice { model, variant, ort_dylib, intra_threads, cache_dir },
        visibility_timeout,
        max_lease,
        max_receive_count,
        sessions,
        max_batch_size,
        max_batch_delay,
        auto_scaling_group,
        admin_listen,
        drain_on_stdin_close,
    } = config;
    let seconds = |duration: &Duration| duration.as_secs_f64().to_string();
    let mut arguments: Vec<OsString> = vec!["worker".into()];
    let mut flag = |name: &str, value: OsString| arguments.extend([OsString::from(name), value]);
    let (data_dir, region, endpoint_url) = match backend {
        Backend::Local { data_dir } => (Some(data_dir), None, None),
        Backend::Aws { region, endpoint_url } => (None, region.as_ref(), endpoint_url.as_ref()),
        Backend::Named { .. } => (None, None, None),
    };
    flag("--backend", if data_dir.is_some() { "local" } else { "aws" }.into());
    flag("--request-queue", request_queue.into());
    flag("--result-queue", result_queue.into());
    flag("--input-bucket", input_bucket.into());
    flag("--output-bucket", output_bucket.into());
    flag("--visibility-timeout", seconds(visibility_timeout).into());
    flag("--max-receive-count", max_receive_count.to_string().into());
    flag("--max-upload-bytes", max_upload_bytes.to_string().into());
    flag("--max-pixels", max_pixels.to_string().into());
    flag("--decode-timeout", seconds(decode_timeout).into());
    flag("--max-decode-bytes", max_decode_bytes.to_string().into());
    flag("--max-lease", seconds(max_lease).into());
    flag("--max-batch-size", max_batch_size.to_string().into());
    flag("--max-batch-delay", seconds(max_batch_delay).into());
    flag("--auto-scaling-group", auto_scaling_group.into());
    flag("--log-format", log_format.as_str().into());
    let optional = [
        ("--data-dir", data_dir.map(OsString::from)),
        ("--region", region.map(OsString::from)),
        ("--endpoint-url", endpoint_url.map(OsString::from)),
        ("--model", model.as_ref().map(OsString::from)),
        ("--variant", variant.as_ref().map(OsString::from)),
        ("--ort-dylib", ort_dylib.as_ref().map(OsString::from)),
        ("--intra-threads", intra_threads.map(|threads| threads.to_string().into())),
        ("--cache-dir", cache_dir.as_ref().map(OsString::from)),
        ("--sessions", sessions.map(|sessions| sessions.to_string().into())),
        ("--admin-listen", admin_listen.map(|address| address.to_string().into())),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            flag(name, value);
        }
    }
    if *drain_on_stdin_close {
        arguments.push("--drain-on-stdin-close".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_announced_at_an_address_that_a_browser_reaches() {
        let text = |address: &str| reachable(address.parse().expect("address of the test")).to_string();
        assert_eq!(text("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(text("[::]:80"), "[::1]:80");
        assert_eq!(text("192.0.2.7:80"), "192.0.2.7:80");
    }
}
