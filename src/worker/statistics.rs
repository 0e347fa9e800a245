//! Reports the work of the sessions to the process that started this worker, which decides on the number of workers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::protocol::{Worked, WorkerLine};
use crate::telemetry::{metrics, output};

const EVERY: Duration = Duration::from_secs(1);
/// A worker without work reports its metrics once in this many intervals: also a message that it released counts.
const IDLE_INTERVALS: u32 = 5;

/// The sum of the work of all sessions since the last report.
#[derive(Debug, Default)]
pub(crate) struct Statistics(Mutex<Worked>);

/// Reports the metrics of this process on standard output.
pub(crate) fn report_metrics() {
    output::announce(&WorkerLine::Metrics(metrics::report()).to_string());
}

impl Statistics {
    pub(crate) fn add(&self, worked: Worked) {
        let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sum.images += worked.images;
        sum.busy += worked.busy;
    }

    fn take(&self) -> Worked {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reports the work of each second and the metrics on standard output, until `stop`. A second without work is not
    /// reported, and the metrics more rarely then.
    pub(crate) async fn report(&self, sessions: u32, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        let mut idle_intervals = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let Worked { images, busy } = self.take();
            idle_intervals = if images > 0 { 0 } else { (idle_intervals + 1) % IDLE_INTERVALS };
            if images > 0 {
                let worked = Worked { images, busy: busy / sessions.max(1) };
                output::announce(&WorkerLine::Worked(worked).to_string());
            }
            if idle_intervals == 0 {
                report_metrics();
            }
        }
    }
}
