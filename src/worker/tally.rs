//! How much the sessions did, told to whoever started this worker: it decides by it how many workers there should be.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::protocol::{Worked, WorkerLine};
use crate::telemetry::output;

const EVERY: Duration = Duration::from_secs(1);

/// What all sessions did since it was taken last.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Worked>);

impl Tally {
    pub fn add(&self, worked: Worked) {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sum.images += worked.images;
        sum.busy += worked.busy;
    }

    fn take(&self) -> Worked {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says each second on standard output what was done, where anything was, until `stop`.
    pub async fn say(&self, sessions: u32, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let Worked { images, busy } = self.take();
            if images > 0 {
                let worked = Worked { images, busy: busy / sessions.max(1) };
                output::announce(&WorkerLine::Worked(worked).to_string());
            }
        }
    }
}
