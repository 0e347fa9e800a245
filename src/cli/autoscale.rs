//! `imgcls autoscale`.

use std::time::Duration;

use clap::Args;

use super::parse::positive_duration;
use super::policy::Defaults;
use super::usage::usage;
use super::worker::GroupArg;
use super::workers::SupervisorArgs;
use crate::config::{Backend, Document, Setting};
use crate::model::TunedChoice;
use crate::scaling_policy::Policy;
use crate::{autoscaler, up};

#[derive(Debug, Args)]
#[command(
    after_help = "With the backends local and nats this command starts and ends `imgcls worker` processes on this \
    machine, from --min-workers to --max-workers of them, and passes its settings on to them. With nats it may run on \
    any number of machines: each follows the depth of the whole queue.\n\
    On AWS the group itself has the smallest and largest number of workers. Its policies change its size, \
    as `imgcls provision` made them; this loop starts it from zero within seconds and publishes the backlog that \
    --policy target follows. Any number of these loops may run."
)]
pub struct AutoscaleArgs {
    #[command(flatten)]
    pub supervisor: SupervisorArgs,
    #[command(flatten)]
    pub group: GroupArg,
    /// AWS: always resize the group, not only from zero; then the group needs no policies
    #[arg(long, env = "IMGCLS_DIRECT")]
    pub direct: bool,
    /// AWS: how often queue and group are read; twice as often while there is no worker
    #[arg(long, env = "IMGCLS_INTERVAL", default_value = "10s", value_parser = positive_duration)]
    pub interval: Duration,
}

impl AutoscaleArgs {
    /// The loop over an Auto Scaling group on AWS.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn group_config(&self, backend: Backend) -> anyhow::Result<autoscaler::aws::Config> {
        let SupervisorArgs { shared, workers, .. } = &self.supervisor;
        let policy = workers.scaling.policy(workers.policy, Defaults::INSTANCES);
        if matches!(policy, Policy::Target(_)) && workers.service_time.is_none() {
            return Err(usage(
                "autoscale",
                "--policy target needs --service-time: the time that a worker takes for an image, as `imgcls loadgen` \
                 measures it (0.01s on one core, for example)",
            ));
        }
        Ok(autoscaler::aws::Config {
            backend,
            request_queue: shared.names().with_local_defaults().request_queue,
            stack: shared.stack.clone(),
            group: self.group.name(&shared.stack),
            policy,
            service_time: workers.service_time,
            direct: self.direct,
            interval: self.interval,
        })
    }

    /// The loop over worker processes on this machine.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other or the backend.
    pub fn process_config(
        &self,
        backend: Backend,
        settings: &Document,
        model: &TunedChoice,
    ) -> anyhow::Result<up::Workers> {
        let of_group = [("auto-scaling-group", self.group.auto_scaling_group.is_some()), ("direct", self.direct)];
        if let Some((flag, _)) = of_group.into_iter().find(|(_, is_given)| *is_given) {
            let source = settings.get(flag).map_or_else(|| format!("--{flag}"), Setting::source_text);
            let backend = backend.name();
            let message = format!(
                "{source}: Auto Scaling groups are resized with --backend aws alone; with {backend} the workers are \
                 processes on this machine, see --max-workers"
            );
            return Err(usage("autoscale", message));
        }
        self.supervisor.worker_processes("autoscale", backend, settings, model)
    }
}
