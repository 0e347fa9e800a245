//! Settings of the web tier.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::auth::AuthArgs;
use super::limits::LimitArgs;
use super::parse::{listen_address, positive, positive_duration};
use super::shared::SharedArgs;
use crate::config::{self, Backend, Names};
use crate::model::ModelChoice;
use crate::outbound::{Allowed, AllowedPlace};
use crate::transport::Space;
use crate::web;

#[derive(Debug, Args)]
pub struct HttpArgs {
    /// Address of the web tier: ADDRESS:PORT, localhost:PORT, or :PORT for every address of this machine; with port 0 a
    /// free port is taken and logged
    #[arg(long, env = "IMGCLS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Port of the web tier [default: that of --listen]
    #[arg(long, env = "IMGCLS_PORT")]
    pub port: Option<u16>,
    /// How long an accepted image may take before it fails as `expired`
    #[arg(long, env = "IMGCLS_JOB_TTL", default_value = "1h", value_parser = config::duration)]
    pub job_ttl: Duration,
    /// How long `POST /` waits for its answer before it returns 504
    #[arg(long, env = "IMGCLS_SYNC_TIMEOUT", default_value = "600s", value_parser = config::duration)]
    pub sync_timeout: Duration,
    /// Most connections at a time; beyond it the one that is idle longest is closed, and a client gets 503 if none is
    /// idle. Several requests at a time on one connection of HTTP/2 count like connections [default: 1024, or what the limit of open files allows]
    #[arg(long, env = "IMGCLS_MAX_CONNECTIONS", value_parser = positive)]
    pub max_connections: Option<usize>,
    /// Most connections of one client address at a time; not applied to this machine's own addresses and to
    /// --trusted-proxy
    #[arg(long, env = "IMGCLS_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256, value_parser = positive)]
    pub max_connections_per_address: usize,
    /// A proxy, or a range of them (10.0.0.0/8), whose X-Forwarded-For names the client for limits per address; may be
    /// repeated
    #[arg(long = "trusted-proxy", env = "IMGCLS_TRUSTED_PROXY", value_delimiter = ',', value_parser = |text: &str| text.parse::<config::Cidr>())]
    pub trusted_proxies: Vec<config::Cidr>,
    /// A host name that requests may be for, as a reverse proxy passes it on; may be repeated. On a loopback address
    /// other names than this machine's own are refused (421); on other addresses only once a name is given
    #[arg(long = "allowed-host", env = "IMGCLS_ALLOWED_HOST", value_delimiter = ',', value_parser = config::host_name)]
    pub allowed_hosts: Vec<String>,
    /// An origin (https://app.example) whose pages may send requests and read the answers, or * for any; may be repeated
    #[arg(long = "cors-origin", env = "IMGCLS_CORS_ORIGIN", value_delimiter = ',', value_parser = |text: &str| text.parse::<web::CorsOrigin>())]
    pub cors_origins: Vec<web::CorsOrigin>,
    /// Most bytes of uploads in memory at a time, counted as they arrive; beyond it the newest uploads get 503 with
    /// Retry-After
    #[arg(long, env = "IMGCLS_MAX_BUFFERED_BYTES", default_value = "256MiB", value_parser = config::bytes)]
    pub max_buffered_bytes: u64,
    /// Most images in the queue, waiting or being classified, before clients get 503 with Retry-After
    #[arg(long, env = "IMGCLS_MAX_QUEUE_DEPTH", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_queue_depth: u64,
    /// How long a client may take to send its headers, or idle between requests; 2 s when connections are scarce
    #[arg(long, env = "IMGCLS_IDLE_TIMEOUT", default_value = "60s", value_parser = config::duration)]
    pub idle_timeout: Duration,
    /// Longest pause within an upload; after 10 s it must also have arrived at 1 KiB/s on average
    #[arg(long, env = "IMGCLS_BODY_TIMEOUT", default_value = "20s", value_parser = config::duration)]
    pub body_timeout: Duration,
    /// How long a client may read nothing of its answer, or less than 1 KiB/s, before it is disconnected
    #[arg(long, env = "IMGCLS_WRITE_TIMEOUT", default_value = "20s", value_parser = positive_duration)]
    pub write_timeout: Duration,
    /// How long a drain keeps the port open with /readyz at 503, so that a load balancer stops sending first
    #[arg(long, env = "IMGCLS_DRAIN_DELAY", default_value = "0s", value_parser = config::duration)]
    pub drain_delay: Duration,
    /// Send images up to this size inside the message as well, which saves the worker a read from the store
    #[arg(long, env = "IMGCLS_INLINE_BYTES", default_value = "0", value_parser = config::bytes)]
    pub inline_bytes: u64,
    /// Call an address that a client names in callback_url when its job or batch has ended; the calls are signed, and
    /// repeated for a day
    #[arg(long, env = "IMGCLS_ALLOW_CALLBACKS")]
    pub allow_callbacks: bool,
    /// Fetch images that clients name by URL
    #[arg(long, env = "IMGCLS_ALLOW_IMAGE_URLS")]
    pub allow_image_urls: bool,
    /// A host (hooks.example) or a network (10.1.0.0/16) that callbacks and images by URL may reach although it is not
    /// public; may be repeated [default: public addresses only, at the ports 443, 80, 8080 and 8443]
    #[arg(long = "allow-calls-to", env = "IMGCLS_ALLOW_CALLS_TO", value_name = "PLACE", value_delimiter = ',', value_parser = |text: &str| text.parse::<AllowedPlace>())]
    pub allow_calls_to: Vec<AllowedPlace>,
    /// Log a line for each request: client, method, path, status, time and sizes
    #[arg(long, env = "IMGCLS_ACCESS_LOG")]
    pub access_log: bool,
    #[command(flatten)]
    pub auth: AuthArgs,
}

impl HttpArgs {
    /// The address to listen at.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.listen.ip(), self.port.unwrap_or(self.listen.port()))
    }

    /// The web tier with our own wire format and a reply queue of its own.
    pub(super) fn config(
        &self,
        shared: &SharedArgs,
        limits: &LimitArgs,
        backend: Backend,
        names: Names,
        models: Vec<ModelChoice>,
    ) -> web::Config {
        web::Config {
            backend,
            stack: shared.stack.clone(),
            names,
            read_buckets: shared.read_buckets.clone(),
            models,
            limits: limits.limits(1),
            wire: web::Wire::V1,
            result_queue_mode: web::ResultQueueMode::Own,
            job_ttl: self.job_ttl,
            sync_timeout: self.sync_timeout,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            trusted_proxies: self.trusted_proxies.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            cors_origins: self.cors_origins.clone(),
            max_buffered_bytes: self.max_buffered_bytes,
            max_queue_depth: self.max_queue_depth,
            idle_timeout: self.idle_timeout,
            body_timeout: self.body_timeout,
            write_timeout: self.write_timeout,
            drain_delay: self.drain_delay,
            inline_bytes: usize::try_from(self.inline_bytes).unwrap_or(usize::MAX),
            max_receive_count: shared.max_receive_count,
            visibility_timeout: shared.visibility_timeout,
            space: Space::unbounded(),
            access: self.auth.access(),
            calls: web::CallsOut {
                callbacks: self.allow_callbacks,
                image_urls: self.allow_image_urls,
                allowed: Allowed(self.allow_calls_to.clone()),
            },
            access_log: self.access_log,
            machine_hour: None,
        }
    }
}
