//! Reads the depth of the request queue for the control loops.

use std::time::Duration;

use tokio::time::timeout;

use crate::transport::{Depth, Transport, TransportError};

/// Time limit of a reading. The loop has to remain able to restart and to drain workers meanwhile.
const DEPTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the depth of a queue. Logs the first of several failures, and the first success after them.
#[derive(Default)]
pub(super) struct DepthReader {
    failing: bool,
}

impl DepthReader {
    pub(super) async fn read(&mut self, queue: &dyn Transport) -> Option<Depth> {
        let read = match timeout(DEPTH_TIMEOUT, queue.depth()).await {
            Ok(read) => read,
            Err(_) => Err(TransportError::Unavailable(format!("no answer within {DEPTH_TIMEOUT:?}"))),
        };
        match read {
            Ok(depth) => {
                if self.failing {
                    tracing::info!(queue = queue.name(), "the queue can be read again");
                }
                self.failing = false;
                Some(depth)
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(queue = queue.name(), %error, "cannot read the queue: no worker is taken away");
                }
                self.failing = true;
                None
            }
        }
    }
}
