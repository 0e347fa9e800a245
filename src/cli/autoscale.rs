//! `imgcls autoscale`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::limits::{BatchArgs, LeaseArgs, LimitArgs};
use super::model::ServiceModelArgs;
use super::model_run::ModelRunArgs;
use super::parse::positive_duration;
use super::policy::Defaults;
use super::shared::SharedArgs;
use super::usage::usage;
use super::worker::GroupArg;
use super::workers::{Supervisor, WorkersArgs};
use crate::config::{Backend, Document};
use crate::model::TunedChoice;
use crate::scaling_policy::Policy;
use crate::{autoscaler, up};

#[derive(Debug, Args)]
#[command(
    after_help = "On AWS the group itself has the smallest and largest number of workers. Its policies change its size, \
    as `imgcls provision` made them; this loop starts it from zero within seconds and publishes the backlog that \
    --policy target follows. Any number of these loops may run."
)]
pub struct AutoscaleArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub group: GroupArg,
    /// AWS: always resize the group, not only from zero; then the group needs no policies
    #[arg(long, env = "IMGCLS_DIRECT")]
    pub direct: bool,
    /// AWS: how often queue and group are read; twice as often while there is no worker
    #[arg(long, env = "IMGCLS_INTERVAL", default_value = "10s", value_parser = positive_duration)]
    pub interval: Duration,
    #[command(flatten)]
    pub workers: WorkersArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub model: ServiceModelArgs,
    #[command(flatten)]
    pub model_run: ModelRunArgs,
    #[command(flatten)]
    pub batch: BatchArgs,
    #[command(flatten)]
    pub lease: LeaseArgs,
}

impl AutoscaleArgs {
    /// The loop over an Auto Scaling group on AWS.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn group_config(&self, backend: Backend) -> anyhow::Result<autoscaler::aws::Config> {
        let policy = self.workers.scaling.policy(self.workers.policy, Defaults::INSTANCES);
        if matches!(policy, Policy::Target(_)) && self.workers.service_time.is_none() {
            return Err(usage(
                "autoscale",
                "--policy target needs --service-time: the time that a worker takes for an image, as `imgcls loadgen` \
                 measures it (0.01s on one core, for example)",
            ));
        }
        Ok(autoscaler::aws::Config {
            backend,
            request_queue: self.shared.names().with_local_defaults().request_queue,
            stack: self.shared.stack.clone(),
            group: self.group.name(&self.shared.stack),
            policy,
            service_time: self.workers.service_time,
            direct: self.direct,
            interval: self.interval,
        })
    }

    /// The loop over worker processes on this machine.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn process_config(&self, settings: &Document, model: &TunedChoice) -> anyhow::Result<up::Workers> {
        let data_dir = std::path::absolute(&self.shared.data_dir).context("--data-dir")?;
        let supervisor = Supervisor {
            command: "autoscale",
            shared: &self.shared,
            limits: &self.limits,
            model_run: &self.model_run,
            workers: &self.workers,
        };
        supervisor.workers(settings, &data_dir, self.shared.names().with_local_defaults(), model)
    }
}
