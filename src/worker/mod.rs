//! The app tier: one delivery → one result.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Backend, Limits, Names};
use crate::model::ModelChoice;

#[derive(Debug, Clone)]
pub struct Config {
    pub backend: Backend,
    pub names: Names,
    pub limits: Limits,
    pub model: ModelChoice,
    /// How long a received message stays with this worker unless renewed (at a third of it).
    pub visibility_timeout: Duration,
    /// A message received more often than this is dead-lettered by the worker.
    pub max_receive_count: u32,
    /// Sessions of the model side by side. None: one a core.
    pub sessions: Option<usize>,
    pub max_batch_size: usize,
    pub max_batch_delay: Duration,
    /// Serves /healthz, /readyz and /metrics.
    pub admin_listen: Option<SocketAddr>,
    /// Drain when standard input closes: how a worker outlives no `up`.
    pub drain_on_stdin_close: bool,
}

/// Stub.
pub async fn run(_config: Config, shutdown: crate::shutdown::CancellationToken) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    Ok(())
}
