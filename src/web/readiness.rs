//! Decides if this process should be given work.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::queue_state::QueueState;
use crate::transport::{Space, Transport};

pub(crate) struct Readiness {
    pub transport: Arc<dyn Transport>,
    /// How many workers of `up` are ready. `None` when the workers are not started by this process.
    pub workers_ready: Option<watch::Receiver<usize>>,
    /// When it is full, images are refused.
    pub space: Space,
    pub shutdown: CancellationToken,
    pub queues: Arc<QueueState>,
}

impl Readiness {
    /// # Errors
    /// The reason why this process is not ready, in one line.
    pub(crate) async fn check(&self) -> Result<(), String> {
        if self.shutdown.is_cancelled() {
            return Err("draining".to_owned());
        }
        if self.workers_ready.as_ref().is_some_and(|ready| *ready.borrow() == 0) {
            return Err("no worker is ready yet".to_owned());
        }
        if let Some(no_space) = self.space.refusal() {
            return Err(no_space.to_string());
        }
        self.transport.check().await
    }

    /// Returns warnings for operators that do not make this process unready.
    pub(crate) async fn warnings(&self) -> Vec<String> {
        self.queues.update(&*self.transport).await;
        let space = self.space.state().and_then(|state| state.warning());
        space.into_iter().chain(self.queues.warning()).collect()
    }
}
