//! `imgcls worker`.

use std::net::SocketAddr;

use clap::Args;

use super::limits::{BatchArgs, LeaseArgs, LimitArgs};
use super::model::ServiceModelArgs;
use super::model_sync::ModelSyncArgs;
use super::parse::positive;
use super::shared::SharedArgs;
use crate::config::{Backend, Names};
use crate::model::TunedChoice;
use crate::{model_sync, protocol, worker};

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub model: ServiceModelArgs,
    #[command(flatten)]
    pub model_sync: ModelSyncArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
    /// Sessions of the model side by side [default: as `imgcls tune` found, else one per core]
    #[arg(long, env = "IMGCLS_SESSIONS", value_parser = positive)]
    pub sessions: Option<usize>,
    #[command(flatten)]
    pub group: GroupArg,
    /// Serve /healthz, /readyz and /metrics at this address
    #[arg(long, env = "IMGCLS_ADMIN_LISTEN")]
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
        self.model_sync.config("worker", &self.model.names, backend, names)
    }

    pub fn config(&self, backend: Backend, names: Names, model: TunedChoice) -> worker::Config {
        let TunedChoice { choice, tuning } = model;
        worker::Config {
            max_batch_size: self.batch.max_batch_size(&backend, tuning.as_ref()),
            backend,
            names,
            limits: self.limits.limits(1),
            model: choice,
            visibility_timeout: self.shared.visibility_timeout,
            max_lease: self.lease.max_lease,
            max_receive_count: self.shared.max_receive_count,
            sessions: self.sessions.or(tuning.map(|tuning| tuning.sessions)),
            max_batch_delay: self.batch.max_batch_delay,
            auto_scaling_group: self.group.name(&self.shared.stack),
            admin_listen: self.admin_listen,
            drain_on_stdin_close: self.drain_on_stdin_close,
        }
    }
}
