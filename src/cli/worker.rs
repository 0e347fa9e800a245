//! `imgcls worker`.

use std::net::SocketAddr;

use clap::Args;

use super::model_sync::ModelSyncArgs;
use super::parse::{listen_address, positive};
use super::processing::ProcessingArgs;
use super::shared::SharedArgs;
use crate::config::{Backend, Names};
use crate::model::Tuning;
use crate::{model_sync, protocol, worker};

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub processing: ProcessingArgs,
    #[command(flatten)]
    pub model_sync: ModelSyncArgs,
    /// Sessions of the model side by side [default: as `imgcls tune` found, else one per core]
    #[arg(long, env = "IMGCLS_SESSIONS", value_parser = positive)]
    pub sessions: Option<usize>,
    #[command(flatten)]
    pub group: GroupArg,
    /// Serve /healthz, /readyz and /metrics at this address
    #[arg(long, env = "IMGCLS_ADMIN_LISTEN", value_name = "ADDRESS", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,
    /// Drain when standard input closes, and print `ready` on standard output: for a supervisor of workers
    #[arg(long, env = "IMGCLS_DRAIN_ON_STDIN_CLOSE")]
    pub drain_on_stdin_close: bool,
}

/// The group of instances that the workers belong to.
#[derive(Debug, Args)]
pub struct GroupArg {
    /// AWS: the Auto Scaling group of the workers [default: apptierAutoscaling, of another stack
    /// <STACK>-apptierAutoscaling]
    #[arg(long, env = "IMGCLS_AUTO_SCALING_GROUP")]
    pub auto_scaling_group: Option<String>,
}

impl GroupArg {
    pub(super) fn name(&self, stack: &str) -> String {
        self.auto_scaling_group.clone().unwrap_or_else(|| protocol::worker_group(stack))
    }
}

impl WorkerArgs {
    /// The models that this machine downloads.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn model_sync(&self, backend: &Backend, names: &Names) -> anyhow::Result<Option<model_sync::Config>> {
        self.model_sync.config("worker", &self.processing.model.names, backend, names)
    }

    /// `tuning` is the result of `imgcls tune` for the first model.
    pub fn config(&self, backend: Backend, names: Names, tuning: Option<Tuning>) -> worker::Config {
        let processing = &self.processing;
        worker::Config {
            batching: processing.batch.batching(&backend),
            backend,
            names,
            read_buckets: self.shared.read_buckets.clone(),
            limits: processing.limits.limits(1),
            models: processing.model.choices(),
            max_model_bytes: processing.model_run.max_model_bytes(1),
            cache: processing.cache.config(processing.model.choice().cache_dir.as_ref()),
            shadow: processing.model_run.shadow(&processing.model),
            visibility_timeout: self.shared.visibility_timeout,
            max_lease: processing.lease.max_lease,
            max_receive_count: self.shared.max_receive_count,
            sessions: self.sessions.or(tuning.map(|tuning| tuning.sessions)),
            max_batch_delay: processing.batch.max_batch_delay,
            auto_scaling_group: self.group.name(&self.shared.stack),
            admin_listen: self.admin_listen,
            drain_on_stdin_close: self.drain_on_stdin_close,
        }
    }
}
