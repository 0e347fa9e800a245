//! The worker processes that `up` and `autoscale` run on this machine.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, Args};

use super::parse::positive_duration;
use super::policy::{Defaults, PolicyArgs, PolicyKind};
use super::processing::ProcessingArgs;
use super::shared::SharedArgs;
use super::usage::usage;
use super::worker::WorkerArgs;
use crate::config::{Backend, Document};
use crate::model::{self, TunedChoice, Tuning};
use crate::scaling_policy::Bounds;
use crate::{autoscaler, up};

/// A process starts in less than a second, an instance in minutes.
const LOCAL_POLICY: Defaults =
    Defaults { scale_out_period: Duration::from_secs(1), scale_in_stabilization: Duration::from_secs(30) };

/// Flags of `worker` that its supervisor never passes on, with the reason.
pub const NOT_PASSED_TO_WORKERS: [(&str, &str); 6] = [
    ("config", "the values of the file are passed as flags"),
    ("region", "workers on AWS are instances"),
    ("endpoint-url", "workers on AWS are instances"),
    ("auto-scaling-group", "processes belong to no group"),
    ("sync-models", "the models are on this machine"),
    ("admin-listen", "several workers cannot listen at one address"),
];

/// How many worker processes run.
#[derive(Debug, Args)]
pub struct WorkersArgs {
    /// Fewest worker processes; with 0 the first image waits until a worker has loaded the model
    #[arg(long, env = "IMGCLS_MIN_WORKERS", default_value_t = 1)]
    pub min_workers: u32,
    /// Most worker processes [default: the number of sessions that `imgcls tune` found, else one per core]
    #[arg(long, env = "IMGCLS_MAX_WORKERS")]
    pub max_workers: Option<u32>,
    /// How their number follows the queue: one at a time at thresholds, or as many as an acceptable latency needs
    #[arg(long, env = "IMGCLS_POLICY", default_value = "step")]
    pub policy: PolicyKind,
    #[command(flatten)]
    pub scaling: PolicyArgs,
    /// `target`: time that a worker takes for an image [default: as worker processes measure it while they
    /// work]
    #[arg(long, env = "IMGCLS_SERVICE_TIME", value_parser = positive_duration)]
    pub service_time: Option<Duration>,
}

impl WorkersArgs {
    fn config(
        &self,
        command: &'static str,
        backend: &Backend,
        tuning: Option<&Tuning>,
    ) -> anyhow::Result<autoscaler::Config> {
        let most = tuning.map_or_else(model::cores, |tuning| tuning.sessions) as u32;
        let max_workers = self.max_workers.unwrap_or_else(|| most.max(self.min_workers));
        let bounds = Bounds::new(self.min_workers, max_workers)
            .map_err(|error| usage(command, format!("{error}: see --min-workers and --max-workers")))?;
        Ok(autoscaler::Config {
            policy: self.scaling.policy(self.policy, LOCAL_POLICY),
            bounds,
            service_time: self.service_time,
            interval: autoscaler::reading_interval(backend),
        })
    }
}

/// The settings of a command that starts workers on this machine.
#[derive(Debug, Args)]
pub struct SupervisorArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub processing: ProcessingArgs,
    #[command(flatten)]
    pub workers: WorkersArgs,
}

impl SupervisorArgs {
    /// The data directory, the same for every process wherever it runs.
    ///
    /// # Errors
    /// If the current directory is needed and cannot be read.
    pub(super) fn data_dir(&self) -> anyhow::Result<PathBuf> {
        std::path::absolute(&self.shared.data_dir).context("--data-dir")
    }

    /// Each worker process gets every setting of `settings` that `worker` has too, and what only its supervisor knows.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub(super) fn worker_processes(
        &self,
        command: &'static str,
        backend: Backend,
        settings: &Document,
        model: &TunedChoice,
    ) -> anyhow::Result<up::Workers> {
        let TunedChoice { choice, tuning } = model;
        let autoscale = self.workers.config(command, &backend, tuning.as_ref())?;
        let names = self.shared.names().with_local_defaults();
        let limits = self.processing.limits.limits(autoscale.bounds.max());
        let max_model_bytes = self.processing.model_run.max_model_bytes(autoscale.bounds.max());
        let mut decided: Vec<(&str, OsString)> = vec![
            ("backend", backend.name().into()),
            ("data-dir", self.data_dir()?.into()),
            ("request-queue", names.request_queue.clone().into()),
            ("result-queue", names.result_queue.clone().into()),
            ("input-bucket", names.input_bucket.clone().into()),
            ("output-bucket", names.output_bucket.clone().into()),
            ("max-decode-bytes", limits.max_decode_bytes.to_string().into()),
            ("model-memory", max_model_bytes.to_string().into()),
            ("sessions", "1".into()),
            ("drain-on-stdin-close", "true".into()),
        ];
        // Variant and threads that `imgcls tune` found are those of one model, and each worker reads them for each of its
        // models.
        decided.extend(choice.cache_dir.as_ref().map(|folder| ("cache-dir", folder.into())));
        decided.extend(choice.models_dir.as_ref().map(|folder| ("models-dir", folder.into())));
        let WorkerSettings { arguments, variables } = worker_settings(settings, &decided);
        Ok(up::Workers {
            backend,
            names,
            visibility_timeout: self.shared.visibility_timeout,
            max_receive_count: self.shared.max_receive_count,
            arguments,
            variables,
            autoscale,
        })
    }
}

/// All settings of a worker.
struct WorkerSettings {
    arguments: Vec<OsString>,
    /// Those that are secret.
    variables: Vec<(OsString, OsString)>,
}

/// The settings of a worker, complete, so that neither the environment nor a file changes them. A value of `decided`
/// takes precedence over that of `settings`.
fn worker_settings(settings: &Document, decided: &[(&str, OsString)]) -> WorkerSettings {
    let worker = WorkerArgs::augment_args(clap::Command::new("worker"));
    let (mut arguments, mut variables) = (vec![OsString::from("worker")], Vec::new());
    for flag in worker.get_arguments() {
        let Some(name) = flag.get_long() else { continue };
        if NOT_PASSED_TO_WORKERS.iter().any(|(left_out, _)| *left_out == name) {
            continue;
        }
        let values = match decided.iter().find(|(decided, _)| *decided == name) {
            Some((_, value)) => std::slice::from_ref(value),
            None => settings.get(name).map_or(&[][..], |setting| &setting.values),
        };
        if flag.is_hide_env_values_set() {
            let variable = flag.get_env().map(OsStr::to_owned);
            variables.extend(variable.zip(values.last().cloned()));
            continue;
        }
        let is_switch = matches!(flag.get_action(), ArgAction::SetTrue);
        for value in values {
            let mut argument = OsString::from(format!("--{name}"));
            match (is_switch, value == "true") {
                (true, false) => continue,
                (true, true) => {}
                (false, _) => {
                    argument.push("=");
                    argument.push(value);
                }
            }
            arguments.push(argument);
        }
    }
    WorkerSettings { arguments, variables }
}
