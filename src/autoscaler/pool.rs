//! The pool of worker processes on this machine.
//!
//! Each worker has a supervisor, a task that starts it, restarts it when it dies, drains it and waits for it. Messages
//! that a worker held when it died are released, so that other workers receive them at once.

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{anyhow, bail};
use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::metrics::METRICS;
use super::process::{Process, WorkerCommand};
use super::service_time::ServiceTime;
use crate::retry::Schedule;
use crate::shutdown::CancellationToken;
use crate::transport::{ReceivingProcess, Transport};

/// Longest time that a worker may drain before it is killed. A killed worker's messages are redelivered after their
/// visibility timeout. A worker drains for 5 s and then releases its messages; with the 4 s of the web tier before
/// that, `up` ends within 10 s.
pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(5_500);
/// Longest time that a worker may load and warm up its model.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// Time limit for releasing the messages of a dead worker before the next one is started.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(6);
/// Time limit for releasing them while the whole process ends.
const RELEASE_TIMEOUT_AT_SHUTDOWN: Duration = Duration::from_millis(300);
/// Delays between failed starts. The first failure is retried at once.
const RESTART_DELAYS: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(2));
/// Time limit for reading the queue before the pool fails.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// The pool fails after this many failed starts in a row, if no worker has ever become ready and the queue can be read.
const MAX_FAILED_STARTS: u32 = 5;
/// The exit code for wrong usage. Another start would end with it as well.
const EXIT_USAGE: i32 = 2;

/// A pool of worker processes, of the size that was set last by [`WorkerPool::resize`].
pub struct WorkerPool {
    command: Arc<WorkerCommand>,
    drain_timeout: Duration,
    /// One token for each wanted worker. Its supervisor drains the worker when the token is cancelled.
    wanted: Vec<CancellationToken>,
    supervisors: JoinSet<anyhow::Result<()>>,
    readiness: Readiness,
    service_time: ServiceTime,
    /// The queue in which the messages of a dead worker are released.
    requests: Option<Arc<dyn Transport>>,
    /// Cancelled when draining workers are to be killed.
    kill: CancellationToken,
    refused: Arc<AtomicU64>,
}

impl WorkerPool {
    /// An empty pool. `ready` will hold the number of ready workers. Only tests use another timeout than
    /// [`DRAIN_TIMEOUT`].
    pub fn new(command: WorkerCommand, drain_timeout: Duration, ready: watch::Sender<usize>) -> Self {
        WorkerPool {
            command: Arc::new(command),
            drain_timeout,
            wanted: Vec::new(),
            supervisors: JoinSet::new(),
            readiness: Readiness { count: ready, ever: Arc::default() },
            service_time: ServiceTime::default(),
            requests: None,
            kill: CancellationToken::new(),
            refused: Arc::default(),
        }
    }

    /// Makes the messages of a dead worker visible in `requests` at once.
    #[must_use]
    pub fn releasing(self, requests: Arc<dyn Transport>) -> Self {
        WorkerPool { requests: Some(requests), ..self }
    }

    /// Kills workers that are still draining when `kill` is cancelled.
    #[must_use]
    pub fn killed_by(self, kill: CancellationToken) -> Self {
        WorkerPool { kill, ..self }
    }

    /// The measured service time, which later reports of the workers update.
    pub fn service_time(&self) -> ServiceTime {
        self.service_time.clone()
    }

    /// A counter of requests that were refused because there are too few workers. The web tier adds to it; the control
    /// loop reads it.
    pub fn refused(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.refused)
    }

    /// The number of wanted workers: those that are ready, starting or being restarted, but not those that are
    /// draining.
    pub fn size(&self) -> u32 {
        u32::try_from(self.wanted.len()).unwrap_or(u32::MAX)
    }

    /// Starts or drains workers until `desired` are wanted, without waiting for either.
    pub fn resize(&mut self, desired: u32) {
        while self.size() < desired {
            let drain = CancellationToken::new();
            let supervisor = Supervisor {
                command: self.command.clone(),
                drain_timeout: self.drain_timeout,
                readiness: self.readiness.clone(),
                service_time: self.service_time.clone(),
                requests: self.requests.clone(),
                kill: self.kill.clone(),
                drain: drain.clone(),
            };
            self.wanted.push(drain);
            self.supervisors.spawn(supervisor.run());
        }
        while self.size() > desired {
            // The newest worker goes first: the caches of older ones are warmer.
            self.wanted.pop().expect("size() > desired >= 0").cancel();
        }
        METRICS.wanted.set(i64::from(desired));
    }

    /// Resolves with the reason when a worker cannot be kept running, and never otherwise. Cancel-safe.
    pub async fn failure(&mut self) -> anyhow::Error {
        loop {
            match self.supervisors.join_next().await {
                Some(Ok(Ok(()))) => {} // It was drained.
                Some(Ok(Err(error))) => return error,
                Some(Err(panic)) => {
                    return anyhow!(panic).context("the supervisor of a worker panicked; this is a bug");
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Drains all workers at the same time, and waits until all have ended.
    pub async fn drain(mut self) {
        self.resize(0);
        while let Some(ended) = self.supervisors.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).flatten() {
                tracing::warn!("a worker failed while all were draining: {error:#}");
            }
        }
    }
}

/// Counts the ready workers.
#[derive(Clone)]
struct Readiness {
    count: watch::Sender<usize>,
    /// True once any worker has been ready.
    ever: Arc<AtomicBool>,
}

/// Counts one ready worker until it is dropped.
struct ReadyGuard(watch::Sender<usize>);

impl Readiness {
    fn enter(&self) -> ReadyGuard {
        self.ever.store(true, Ordering::Relaxed);
        self.count.send_modify(|count| *count += 1);
        METRICS.ready.inc();
        ReadyGuard(self.count.clone())
    }

    fn ever(&self) -> bool {
        self.ever.load(Ordering::Relaxed)
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
        METRICS.ready.dec();
    }
}

/// Keeps one worker running until it is drained.
struct Supervisor {
    command: Arc<WorkerCommand>,
    drain_timeout: Duration,
    readiness: Readiness,
    service_time: ServiceTime,
    requests: Option<Arc<dyn Transport>>,
    kill: CancellationToken,
    drain: CancellationToken,
}

/// The end of one worker process.
enum Exit {
    Drained,
    DiedReady(ExitStatus),
    FailedStart { reason: String, wrong_usage: bool },
}

impl Supervisor {
    /// # Errors
    /// Another start would not help. The worker itself has logged the reason.
    async fn run(self) -> anyhow::Result<()> {
        let mut failed_starts = 0;
        loop {
            match self.run_once().await? {
                Exit::Drained => return Ok(()),
                Exit::DiedReady(status) => {
                    failed_starts = 0;
                    METRICS.restarts.with_label_values(&["died"]).inc();
                    tracing::warn!(%status, "a worker died; restarting it");
                }
                Exit::FailedStart { reason, wrong_usage: true } => {
                    bail!("a worker rejects its settings, for the reason that it logged above: {reason}")
                }
                Exit::FailedStart { reason, wrong_usage: false } => {
                    failed_starts += 1;
                    if failed_starts >= MAX_FAILED_STARTS && !self.readiness.ever() && self.can_read_queue().await {
                        bail!(
                            "{failed_starts} starts failed and none succeeded, for the reason logged above: {reason}"
                        );
                    }
                    let delay = restart_delay(failed_starts);
                    METRICS.restarts.with_label_values(&["failed_start"]).inc();
                    let delay_ms = delay.as_millis() as u64;
                    tracing::warn!(reason, failed_starts, delay_ms, "a worker failed to start; restarting it");
                    tokio::select! {
                        () = sleep(delay) => {}
                        () = self.drain.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    /// Runs one process from start to end, and releases its messages.
    async fn run_once(&self) -> anyhow::Result<Exit> {
        let process = match Process::start(&self.command) {
            Ok(process) => process,
            Err(error) => {
                let reason = format!("cannot start {}: {error}", self.command.program.display());
                return Ok(Exit::FailedStart { reason, wrong_usage: false });
            }
        };
        let receiver = process.pid().map(ReceivingProcess::of);
        let end = self.watch(process).await?;
        self.release(receiver).await;
        Ok(end)
    }

    /// Returns false while no worker could start whatever its settings are, because the queue is away.
    async fn can_read_queue(&self) -> bool {
        let Some(requests) = &self.requests else { return true };
        tokio::select! {
            read = timeout(READ_TIMEOUT, requests.depth()) => matches!(read, Ok(Ok(_))),
            () = self.drain.cancelled() => false,
        }
    }

    async fn release(&self, receiver: Option<ReceivingProcess>) {
        let (Some(requests), Some(receiver)) = (&self.requests, receiver) else { return };
        let too_late = async {
            let at_shutdown = self.kill.cancelled().then(|()| sleep(RELEASE_TIMEOUT_AT_SHUTDOWN));
            tokio::select! {
                () = sleep(RELEASE_TIMEOUT) => {}
                () = at_shutdown => {}
            }
        };
        let error = tokio::select! {
            released = requests.release_held_by(receiver) => match released {
                Ok(()) => return,
                Err(error) => error.to_string(),
            },
            () = too_late => "no answer in time".to_owned(),
        };
        tracing::warn!(
            pid = receiver.pid,
            error,
            "cannot release the messages of a worker that ended; they are redelivered after their visibility timeout"
        );
    }

    /// Waits until the process has ended, and drains it when asked to.
    async fn watch(&self, mut process: Process) -> anyhow::Result<Exit> {
        let died = tokio::select! {
            died = process.ready() => died?,
            () = self.drain.cancelled() => return self.drain_process(process).await,
            () = sleep(START_TIMEOUT) => {
                process.kill().await?;
                let reason = format!("it was not ready within {START_TIMEOUT:?} and was killed");
                return Ok(Exit::FailedStart { reason, wrong_usage: false });
            }
        };
        if let Some(status) = died {
            let wrong_usage = status.code() == Some(EXIT_USAGE);
            return Ok(Exit::FailedStart { reason: format!("it died before it was ready ({status})"), wrong_usage });
        }
        let ready = self.readiness.enter();
        tokio::select! {
            status = process.wait_and_record(&self.service_time) => Ok(Exit::DiedReady(status?)),
            () = self.drain.cancelled() => {
                drop(ready);
                self.drain_process(process).await
            }
        }
    }

    async fn drain_process(&self, process: Process) -> anyhow::Result<Exit> {
        process.drain(self.drain_timeout, &self.kill, &self.service_time).await?;
        Ok(Exit::Drained)
    }
}

/// The delay before the next start, after a number of failed starts in a row. The first failure is retried at once.
fn restart_delay(failed_starts: u32) -> Duration {
    match failed_starts {
        0 | 1 => Duration::ZERO,
        more => RESTART_DELAYS.delay_after(more - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_repeated_failure_delays_a_restart() {
        let millis: Vec<u128> = (0..9).map(|failed| restart_delay(failed).as_millis()).collect();
        assert_eq!(millis, [0, 0, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(restart_delay(u32::MAX), RESTART_DELAYS.longest);
    }
}
