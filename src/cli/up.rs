//! `imgcls up`.

use anyhow::Context as _;
use clap::Args;

use super::http::HttpArgs;
use super::limits::{BatchArgs, LeaseArgs, LimitArgs};
use super::model::ServiceModelArgs;
use super::model_run::ModelRunArgs;
use super::retention::RetentionArgs;
use super::shared::{BackendArg, SharedArgs};
use super::usage::usage;
use super::workers::{Supervisor, WorkersArgs};
use crate::config::{Backend, Document, Setting};
use crate::model::TunedChoice;
use crate::up;

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
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
    #[command(flatten)]
    pub workers: WorkersArgs,
}

impl UpArgs {
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn config(&self, settings: &Document, model: &TunedChoice) -> anyhow::Result<up::Config> {
        let aws_setting = match self.shared.backend {
            Some(BackendArg::Aws) => Some("--backend"),
            Some(BackendArg::Local) | None => self.shared.aws_flag(),
        };
        if let Some(flag) = aws_setting {
            let source = settings.get(&flag[2..]).map_or(flag.to_owned(), Setting::source_text);
            let message = format!("{source}: `up` always runs on this machine; on AWS run `serve-web` and `worker`");
            return Err(usage("up", message));
        }
        self.http.auth.check("up", self.http.listen)?;
        let data_dir = std::path::absolute(&self.shared.data_dir).context("--data-dir")?;
        let backend = Backend::Local { data_dir: data_dir.clone() };
        let names = self.shared.names().with_local_defaults();
        let supervisor = Supervisor {
            command: "up",
            shared: &self.shared,
            limits: &self.limits,
            model_run: &self.model_run,
            workers: &self.workers,
        };
        Ok(up::Config {
            web: self.http.config(&self.shared, &self.limits, backend.clone(), names.clone(), self.model.choices()),
            retention: self.retention.config(backend, names.clone()),
            workers: supervisor.workers(settings, &data_dir, names, model)?,
        })
    }
}
