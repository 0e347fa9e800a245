//! `imgcls serve-web`.

use clap::{Args, ValueEnum};

use super::http::HttpArgs;
use super::limits::LimitArgs;
use super::model::{LabelSetArg, ModelNamesArgs};
use super::model_sync::ModelSyncArgs;
use super::retention::RetentionArgs;
use super::shared::SharedArgs;
use super::usage::usage;
use crate::config::{Backend, Names};
use crate::scaling_policy::cost::Prices;
use crate::{model_sync, web};

#[derive(Debug, Args)]
pub struct ServeWebArgs {
    #[command(flatten)]
    pub shared: SharedArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub retention: RetentionArgs,
    #[command(flatten)]
    pub model: ModelNamesArgs,
    #[command(flatten)]
    pub labels: LabelSetArg,
    #[command(flatten)]
    pub model_sync: ModelSyncArgs,
    /// Format of messages to workers: v1, or that of the legacy system, for its workers; then images travel inside the
    /// messages, whose size the queue limits, and answers are labels without scores
    #[arg(long, env = "IMGCLS_WIRE", default_value = "v1")]
    pub wire: WireArg,
    /// Queue that workers reply to: one of this process, or the result queue, shared by all web processes
    /// [default: own, or shared with --wire legacy and without permission to create queues]
    #[arg(long, env = "IMGCLS_RESULT_QUEUE_MODE")]
    pub result_queue_mode: Option<ResultQueueModeArg>,
    /// EC2 instance type of the workers: the state of the service then says what 1,000 images cost, at the dated on-demand
    /// prices in the binary, which are those of us-east-1; no other region has a figure
    #[arg(long, env = "IMGCLS_WORKER_INSTANCE_TYPE", value_name = "TYPE")]
    pub worker_instance_type: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WireArg {
    V1,
    #[value(alias = "seed")]
    Legacy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResultQueueModeArg {
    Own,
    Shared,
}

impl ServeWebArgs {
    /// The models whose descriptions this machine downloads.
    ///
    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn model_sync(&self, backend: &Backend, names: &Names) -> anyhow::Result<Option<model_sync::Config>> {
        self.model_sync.config("serve-web", &self.model, backend, names)
    }

    /// # Errors
    /// A [`super::UsageError`] if the flags contradict each other.
    pub fn config(&self, backend: Backend, names: Names) -> anyhow::Result<web::Config> {
        self.http.auth.check("serve-web", self.http.address())?;
        let (wire, result_queue_mode) = match (self.wire, self.result_queue_mode) {
            (WireArg::Legacy, Some(ResultQueueModeArg::Own)) => {
                return Err(usage(
                    "serve-web",
                    "with --wire legacy replies arrive in the shared result queue: leave --result-queue-mode out",
                ));
            }
            (WireArg::Legacy, _) => (web::Wire::Legacy, web::ResultQueueMode::Shared),
            (WireArg::V1, Some(ResultQueueModeArg::Shared)) => (web::Wire::V1, web::ResultQueueMode::Shared),
            (WireArg::V1, _) => (web::Wire::V1, web::ResultQueueMode::Own),
        };
        if self.wire == WireArg::Legacy && self.model.models.len() > 1 {
            let message = "with --wire legacy requests cannot name a model: give one --model, that of the workers";
            return Err(usage("serve-web", message));
        }
        let machine_hour = self.machine_hour(&backend);
        let web = self.http.config(&self.shared, &self.limits, backend, names, self.model.choices(&self.labels));
        Ok(web::Config { wire, result_queue_mode, machine_hour, ..web })
    }

    /// Returns the price of an hour of a machine with workers, if there is one of its type in its region.
    fn machine_hour(&self, backend: &Backend) -> Option<web::MachineHour> {
        let name = self.worker_instance_type.as_deref()?;
        let prices = Prices::built_in();
        let region = backend.aws()?.region?;
        let instance = prices.instance(name).ok().filter(|_| region == prices.region)?;
        Some(web::MachineHour { price: prices.instance_hour(instance, 0.0, 0.0), currency: prices.currency.clone() })
    }
}
