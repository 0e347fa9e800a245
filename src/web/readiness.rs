//! Whether this process should be given work.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::store::ObjectStore;

/// A probe that takes longer than this is a failed one.
const PATIENCE: Duration = Duration::from_secs(2);
/// A key that nothing writes: reading it asks the store whether it answers.
const PROBE_KEY: &str = "images/readiness-probe";

pub struct Readiness {
    pub requests: Arc<dyn Queue>,
    pub input: Arc<dyn ObjectStore>,
    /// Of `up`: how many of its workers are ready. None: workers are somebody else's.
    pub workers_ready: Option<watch::Receiver<usize>>,
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
        let probe = async {
            self.requests.attributes().await.map_err(|error| error.to_string())?;
            self.input.head(PROBE_KEY).await.map_err(|error| error.to_string())?;
            Ok(())
        };
        tokio::time::timeout(PATIENCE, probe).await.unwrap_or_else(|_| Err("queue or store did not answer".to_owned()))
    }
}
