//! Whether this process should be given work.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Queue};
use crate::readiness;
use crate::store::{self, ObjectStore, Space};

pub struct Readiness {
    pub requests: Arc<dyn Queue>,
    pub input: Arc<dyn ObjectStore>,
    pub output: Arc<dyn ObjectStore>,
    /// Of `up`: how many of its workers are ready. None: workers are somebody else's.
    pub workers_ready: Option<watch::Receiver<usize>>,
    /// Where it is full, images are refused.
    pub space: Space,
    pub shutdown: CancellationToken,
}

impl Readiness {
    /// # Errors
    /// Why not, in a sentence.
    pub async fn check(&self) -> Result<(), String> {
        if self.shutdown.is_cancelled() {
            return Err("draining".to_owned());
        }
        if self.workers_ready.as_ref().is_some_and(|ready| *ready.borrow() == 0) {
            return Err("no worker is ready yet".to_owned());
        }
        if let Some(no_space) = self.space.refusal() {
            return Err(no_space.to_string());
        }
        let probes = vec![queue::probe(&*self.requests), store::probe(&*self.input), store::probe(&*self.output)];
        readiness::all_answer(probes).await
    }

    /// What an operator should know although all is well.
    pub fn warning(&self) -> Option<String> {
        self.space.state()?.warning()
    }
}
