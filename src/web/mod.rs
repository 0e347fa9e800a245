//! The web tier: HTTP in, answers out.

use std::time::Duration;

use crate::config::{Backend, Limits, Names};

#[derive(Debug, Clone)]
pub struct Config {
    pub backend: Backend,
    pub names: Names,
    pub limits: Limits,
    pub job_ttl: Duration,
    /// How long `POST /` waits for its answer.
    pub sync_timeout: Duration,
    /// Connections at a time; more wait in the listen queue.
    pub max_connections: usize,
    /// Bytes of image bodies held at a time; more are answered 503.
    pub max_buffered_bytes: u64,
    /// Images up to this size also travel inside the message.
    pub inline_bytes: usize,
    pub max_receive_count: u32,
    pub visibility_timeout: Duration,
}

/// Stub.
pub async fn run(
    _listener: tokio::net::TcpListener,
    _config: Config,
    _workers_ready: Option<tokio::sync::watch::Receiver<usize>>,
    shutdown: crate::shutdown::CancellationToken,
) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    Ok(())
}
