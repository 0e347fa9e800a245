//! The memory that the models of a worker may take, and the model that is compared with the first one.

use clap::Args;

use super::model::ServiceModelArgs;
use crate::{config, model, worker};

#[derive(Debug, Args)]
pub struct ModelRunArgs {
    /// Memory that the models of one worker may take together, while versions are switched also the next one [default:
    /// half of the available memory, shared by the workers that `up` may start; at least 256MiB]
    #[arg(long, env = "IMGCLS_MODEL_MEMORY", value_parser = config::bytes)]
    pub model_memory: Option<u64>,
    /// A further model, which classifies a share of the images after they were answered: the log and /metrics of a worker
    /// say how often it agrees with the first one
    #[arg(long, env = "IMGCLS_SHADOW", value_name = "MODEL")]
    pub shadow: Option<String>,
    /// The share of the images that the model of --shadow gets, 0 to 1
    #[arg(long, env = "IMGCLS_SHADOW_SHARE", default_value = "0.1", value_parser = share)]
    pub shadow_share: f64,
}

impl ModelRunArgs {
    /// The limit of one of `workers` processes that share the memory of this machine, in bytes.
    pub(super) fn max_model_bytes(&self, workers: u32) -> u64 {
        self.model_memory.unwrap_or_else(|| model::default_model_bytes(workers))
    }

    pub(super) fn shadow(&self, served: &ServiceModelArgs) -> Option<worker::Shadow> {
        let model = served.run.choice(Some(self.shadow.as_ref()?), &served.names.models_dir);
        Some(worker::Shadow { model, share: self.shadow_share })
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number between 0 and 1".to_owned()),
    }
}
