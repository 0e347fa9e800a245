//! Reports the work of the sessions to the process that started this worker, which decides on the number of workers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::protocol::{Worked, WorkerLine};
use crate::telemetry::output;

const EVERY: Duration = Duration::from_secs(1);

/// The sum of the work of all sessions since the last report.
#[derive(Debug, Default)]
pub(crate) struct Statistics(Mutex<Worked>);

impl Statistics {
    pub(crate) fn add(&self, worked: Worked) {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sum.images += worked.images;
        sum.busy += worked.busy;
    }

    fn take(&self) -> Worked {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reports the work of each second on standard output, until `stop`. A second without work is not reported.
    pub(crate) async fn report(&self, sessions: u32, stop: CancellationToken) {
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
