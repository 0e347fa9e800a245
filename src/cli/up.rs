//! `imgcls up`.

use clap::Args;

use super::http::HttpArgs;
use super::retention::RetentionArgs;
use super::usage::usage;
use super::workers::SupervisorArgs;
use crate::config::{Backend, BackendKind, Document, Setting};
use crate::model::TunedChoice;
use crate::up;

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub supervisor: SupervisorArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
}

impl UpArgs {
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn config(&self, settings: &Document, model: &TunedChoice) -> anyhow::Result<up::Config> {
        let shared = &self.supervisor.shared;
        let aws_setting = match shared.backend {
            Some(BackendKind::Local) | None => shared.aws_flag().or(shared.nats_url.as_ref().map(|_| "--nats-url")),
            Some(_) => Some("--backend"),
        };
        if let Some(flag) = aws_setting {
            let source = settings.get(&flag[2..]).map_or(flag.to_owned(), Setting::source_text);
            let message =
                format!("{source}: `up` always runs on this machine; on AWS or NATS run `serve-web` and `worker`");
            return Err(usage("up", message));
        }
        self.http.auth.check("up", self.http.address())?;
        let processing = &self.supervisor.processing;
        let backend = Backend::Local { data_dir: self.supervisor.data_dir()? };
        let names = shared.names().with_local_defaults();
        let models = processing.model.choices();
        Ok(up::Config {
            web: self.http.config(shared, &processing.limits, backend.clone(), names.clone(), models),
            retention: self.retention.config(backend.clone(), names),
            workers: self.supervisor.worker_processes("up", backend, settings, model)?,
        })
    }
}
