//! Worker processes on this machine.
//!
//! A worker is a direct child in a process group of its own, so that Ctrl-C at the terminal reaches its parent alone,
//! which ends it in order. Three pipes are the whole protocol between the two:
//!
//! - **stdin** is never written to. The worker drains and exits when it closes, and it closes whatever happens to this
//!   process: no worker outlives its parent, not even one that was killed. That needs the write end to be nowhere else;
//!   the standard library opens pipes close-on-exec, so that no later child inherits it.
//! - **stdout** brings [`WorkerLine`]s: that it is ready, and how much it did.
//! - **stderr** is this process's own: the logs of all workers come out in one place.
//!
//! Each worker has a [`Keeper`], a task that starts it, starts it again when it dies, ends it, and waits for it. Messages
//! that it held when it died are released, so that the others get them at once.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{anyhow, bail};
use futures::FutureExt as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::protocol::{Worked, WorkerLine};
use crate::shutdown::CancellationToken;
use crate::transport::{ReceivingProcess, Transport};

/// How long a worker that was asked to end may take, before it is killed. What it had not finished comes again after
/// its visibility timeout. A worker takes 5 s and a moment to release the rest; with the 4 s of the web tier before it,
/// `up` ends within ten.
pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(5_500);
/// How long a worker may load and warm up its model.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// How long it is tried to release what a dead worker held, before the next one is started.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(6);
/// The same where everything ends.
const RELEASE_TIMEOUT_AT_END: Duration = Duration::from_millis(300);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// Where no worker was ever ready, this many deaths in a row are not bad luck.
const MAX_FAILED_STARTS: u32 = 5;
/// The exit code for wrong usage: the next start would end with it as well.
const EXIT_USAGE: i32 = 2;

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    pub program: PathBuf,
    /// All settings: a worker gets none of this process's `IMGCLS_` variables, which would set what its arguments
    /// leave alone, such as one address for all of them to listen at.
    pub arguments: Vec<OsString>,
}

/// The log filter is no setting of the worker but of whoever reads the logs.
const PASSED_VARIABLE: &str = "IMGCLS_LOG";

impl WorkerCommand {
    fn start(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            // The net under the keeper: a panic or an aborted task leaves no child behind.
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("IMGCLS_") && name != PASSED_VARIABLE {
                command.env_remove(name);
            }
        }
        command.spawn()
    }
}

/// Worker processes, as many as [`Pool::resize`] said last.
pub struct Pool {
    command: Arc<WorkerCommand>,
    drain_timeout: Duration,
    /// One for each wanted worker; cancelled, its keeper drains the worker and ends.
    wanted: Vec<CancellationToken>,
    keepers: JoinSet<anyhow::Result<()>>,
    readiness: Readiness,
    pace: Pace,
    /// Where the workers receive from: what a dead one held is released there.
    requests: Option<Arc<dyn Transport>>,
    /// Cancelled when workers that drain are to be killed.
    give_up: CancellationToken,
    refused: Arc<AtomicU64>,
}

impl Pool {
    /// An empty pool. `ready` will hold how many workers are ready; `drain_timeout` is [`DRAIN_TIMEOUT`] but in tests.
    pub fn new(command: WorkerCommand, drain_timeout: Duration, ready: watch::Sender<usize>) -> Self {
        Pool {
            command: Arc::new(command),
            drain_timeout,
            wanted: Vec::new(),
            keepers: JoinSet::new(),
            readiness: Readiness { count: ready, ever: Arc::default() },
            pace: Pace::default(),
            requests: None,
            give_up: CancellationToken::new(),
            refused: Arc::default(),
        }
    }

    /// What a worker that died had received becomes visible in `requests` at once.
    #[must_use]
    pub fn releasing(self, requests: Arc<dyn Transport>) -> Self {
        Pool { requests: Some(requests), ..self }
    }

    /// Workers that still drain when `give_up` is cancelled are killed.
    #[must_use]
    pub fn killed_by(self, give_up: CancellationToken) -> Self {
        Pool { give_up, ..self }
    }

    /// What a worker took for an image while it worked, of late; None where none has worked yet.
    pub fn service_time(&self) -> Option<Duration> {
        self.pace.service_time()
    }

    /// How long images take, as it is measured from now on.
    pub fn pace(&self) -> Pace {
        self.pace.clone()
    }

    /// A counter of requests that were refused because the workers are too few. Who refuses adds to it; the loop that
    /// decides on their number reads it.
    pub fn refused(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.refused)
    }

    /// Workers that are wanted: ready, starting or being replaced, but not draining.
    pub fn size(&self) -> u32 {
        u32::try_from(self.wanted.len()).unwrap_or(u32::MAX)
    }

    /// Starts or drains workers until `desired` are wanted, without waiting for either.
    pub fn resize(&mut self, desired: u32) {
        while self.size() < desired {
            let leave = CancellationToken::new();
            let keeper = Keeper {
                command: self.command.clone(),
                drain_timeout: self.drain_timeout,
                readiness: self.readiness.clone(),
                pace: self.pace.clone(),
                requests: self.requests.clone(),
                give_up: self.give_up.clone(),
                leave: leave.clone(),
            };
            self.wanted.push(leave);
            self.keepers.spawn(keeper.keep());
        }
        while self.size() > desired {
            // The newest goes: what an older one has in its caches is warmer.
            self.wanted.pop().expect("size() > desired >= 0").cancel();
        }
    }

    /// Resolves when a worker cannot be kept running, and why; never otherwise. May be dropped and called again.
    pub async fn failure(&mut self) -> anyhow::Error {
        loop {
            match self.keepers.join_next().await {
                Some(Ok(Ok(()))) => {} // drained, as asked
                Some(Ok(Err(error))) => return error,
                Some(Err(panic)) => return anyhow!(panic).context("a worker's keeper panicked; this is a bug"),
                None => std::future::pending().await,
            }
        }
    }

    /// Ends all workers at the same time, and waits until none is left.
    pub async fn drain(mut self) {
        self.resize(0);
        while let Some(ended) = self.keepers.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).flatten() {
                tracing::warn!("a worker failed while all were ending: {error:#}");
            }
        }
    }
}

/// How many workers are ready, told to whoever watches.
#[derive(Clone)]
struct Readiness {
    count: watch::Sender<usize>,
    ever: Arc<AtomicBool>,
}

/// One ready worker, counted for as long as this lives.
struct Ready(watch::Sender<usize>);

impl Readiness {
    fn enter(&self) -> Ready {
        self.ever.store(true, Ordering::Relaxed);
        self.count.send_modify(|count| *count += 1);
        Ready(self.count.clone())
    }

    fn ever(&self) -> bool {
        self.ever.load(Ordering::Relaxed)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// How long images take, by what all workers said.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    /// Over many images, for the number of workers, which is not to follow every change.
    long: Worked,
    /// The last seconds of work, oldest first, for the estimate of a caller's wait.
    recent: VecDeque<Worked>,
}

impl Pace {
    /// What is older than about so many images is forgotten: other images take another time.
    const MEMORY: u64 = 1000;
    /// For the recent service time, what lies before this much work is forgotten, and before so many reports.
    const RECENT: Duration = Duration::from_secs(3);
    const RECENT_REPORTS: usize = 64;

    fn add(&self, worked: Worked) {
        let mut sums = self.sums();
        let Sums { long, recent } = &mut *sums;
        long.images = long.images.saturating_add(worked.images);
        long.busy = long.busy.saturating_add(worked.busy);
        while long.images > 2 * Self::MEMORY {
            long.images /= 2;
            long.busy /= 2;
        }
        recent.push_back(worked);
        while recent.len() > Self::RECENT_REPORTS || sum(recent.iter().skip(1)).busy >= Self::RECENT {
            recent.pop_front();
        }
    }

    /// What a worker needed for an image over its last seconds of work; None where none has worked yet.
    pub fn recent_service_time(&self) -> Option<Duration> {
        sum(self.sums().recent.iter()).service_time()
    }

    fn service_time(&self) -> Option<Duration> {
        self.sums().long.service_time()
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum<'a>(reports: impl Iterator<Item = &'a Worked>) -> Worked {
    reports.fold(Worked::default(), |sum, worked| Worked {
        images: sum.images.saturating_add(worked.images),
        busy: sum.busy.saturating_add(worked.busy),
    })
}

/// Keeps one worker running until it is asked to leave.
struct Keeper {
    command: Arc<WorkerCommand>,
    drain_timeout: Duration,
    readiness: Readiness,
    pace: Pace,
    requests: Option<Arc<dyn Transport>>,
    give_up: CancellationToken,
    leave: CancellationToken,
}

/// How one life of a worker ended.
enum End {
    Drained,
    DiedReady(ExitStatus),
    FailedStart { why: String, wrong_usage: bool },
}

impl Keeper {
    /// # Errors
    /// Where starting it once more would not help; the worker itself has said why on standard error.
    async fn keep(self) -> anyhow::Result<()> {
        let mut failed_starts = 0;
        loop {
            match self.live().await? {
                End::Drained => return Ok(()),
                End::DiedReady(status) => {
                    failed_starts = 0;
                    tracing::warn!(%status, "a worker died; starting it again");
                }
                End::FailedStart { why, wrong_usage: true } => {
                    bail!("a worker refuses its settings, for the reason it gave above: {why}")
                }
                End::FailedStart { why, wrong_usage: false } => {
                    failed_starts += 1;
                    if failed_starts >= MAX_FAILED_STARTS && !self.readiness.ever() {
                        bail!("{failed_starts} starts failed and none succeeded, for the reason given above: {why}");
                    }
                    let backoff = backoff(failed_starts);
                    tracing::warn!(why, failed_starts, ?backoff, "a worker failed to start; starting it again");
                    tokio::select! {
                        () = sleep(backoff) => {}
                        () = self.leave.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    /// From start to end of one process. What it held is released.
    async fn live(&self) -> anyhow::Result<End> {
        let process = match Process::start(&self.command) {
            Ok(process) => process,
            Err(error) => {
                let why = format!("cannot start {}: {error}", self.command.program.display());
                return Ok(End::FailedStart { why, wrong_usage: false });
            }
        };
        let receiver = process.child.id().map(ReceivingProcess::of);
        let end = self.watch(process).await?;
        self.release(receiver).await;
        Ok(end)
    }

    async fn release(&self, receiver: Option<ReceivingProcess>) {
        let (Some(requests), Some(receiver)) = (&self.requests, receiver) else { return };
        let too_late = async {
            let at_end = self.give_up.cancelled().then(|()| sleep(RELEASE_TIMEOUT_AT_END));
            tokio::select! {
                () = sleep(RELEASE_TIMEOUT) => {}
                () = at_end => {}
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
            "cannot release the messages of a worker that ended; each comes again after its visibility timeout"
        );
    }

    /// Until it has ended and was waited for.
    async fn watch(&self, mut process: Process) -> anyhow::Result<End> {
        tokio::select! {
            () = said_ready(&mut process.stdout) => {}
            status = process.child.wait() => {
                let status = status?;
                let wrong_usage = status.code() == Some(EXIT_USAGE);
                return Ok(End::FailedStart { why: format!("it died before it was ready ({status})"), wrong_usage });
            }
            () = self.leave.cancelled() => return self.drain(process).await,
            () = sleep(START_TIMEOUT) => {
                process.kill().await?;
                let why = format!("it was not ready within {START_TIMEOUT:?} and was killed");
                return Ok(End::FailedStart { why, wrong_usage: false });
            }
        }
        let ready = self.readiness.enter();
        tokio::select! {
            status = process.child.wait() => Ok(End::DiedReady(status?)),
            never = listen(&mut process.stdout, &self.pace) => match never {},
            () = self.leave.cancelled() => {
                drop(ready);
                self.drain(process).await
            }
        }
    }

    async fn drain(&self, process: Process) -> anyhow::Result<End> {
        process.drain(self.drain_timeout, &self.give_up, &self.pace).await
    }
}

/// A worker process and our ends of its pipes.
struct Process {
    child: Child,
    /// Taken out of `child`, whose `wait` closes what it finds there and so would ask every worker to end.
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(command: &WorkerCommand) -> std::io::Result<Self> {
        let mut child = command.start()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Ok(Process { child, stdin, stdout })
    }

    /// Asks the worker to finish what it holds; kills it where that takes too long.
    async fn drain(mut self, limit: Duration, give_up: &CancellationToken, pace: &Pace) -> anyhow::Result<End> {
        drop(self.stdin.take());
        let too_late = async {
            tokio::select! {
                () = sleep(limit) => {}
                () = give_up.cancelled() => {}
            }
        };
        tokio::select! {
            status = self.child.wait() => {
                let status = status?;
                if !status.success() {
                    tracing::warn!(%status, "a worker failed while it was ending");
                }
            }
            never = listen(&mut self.stdout, pace) => match never {},
            () = too_late => {
                tracing::warn!(timeout = ?limit, "a worker did not end in time; killing it");
                self.kill().await?;
            }
        }
        Ok(End::Drained)
    }

    /// Kills the worker and what it may have started, and waits for it.
    async fn kill(&mut self) -> std::io::Result<()> {
        // No id: it was waited for already, and the number may belong to a stranger by now.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            kill_process_group(pid, Signal::KILL)?;
        }
        self.child.wait().await.map(drop)
    }
}

/// Ends at the ready line. Output that ends without it says nothing: the exit status will.
async fn said_ready(stdout: &mut Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(line)) = stdout.next_line().await {
        if WorkerLine::parse(&line) == Some(WorkerLine::Ready) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Takes down what the worker says; and reads on whatever it says, so that it does not stop at a full pipe.
async fn listen(stdout: &mut Lines<BufReader<ChildStdout>>, pace: &Pace) -> Infallible {
    while let Ok(Some(line)) = stdout.next_line().await {
        if let Some(WorkerLine::Worked(worked)) = WorkerLine::parse(&line) {
            pace.add(worked);
        }
    }
    std::future::pending().await
}

/// How long to wait before the next start, after this many deaths before ready in a row: the first is followed at once.
fn backoff(failed_starts: u32) -> Duration {
    match failed_starts {
        0 | 1 => Duration::ZERO,
        more => MIN_BACKOFF.saturating_mul(1 << (more - 2).min(16)).min(MAX_BACKOFF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_late_and_unknown_before_any_work() {
        let pace = Pace::default();
        assert_eq!(pace.service_time(), None);
        pace.add(Worked { images: 10, busy: Duration::from_secs(1) });
        assert_eq!(pace.service_time(), Some(Duration::from_millis(100)));
        (0..20).for_each(|_| pace.add(Worked { images: 1000, busy: Duration::from_secs(10) }));
        let millis = pace.service_time().map(|time| time.as_millis());
        assert_eq!(millis, Some(10));
        pace.add(Worked { images: u64::MAX, busy: Duration::MAX });
        assert!(pace.service_time().is_some());
    }

    #[test]
    fn recent_service_time_follows_a_change_within_seconds_of_work() {
        let pace = Pace::default();
        assert_eq!(pace.recent_service_time(), None);
        (0..60).for_each(|_| pace.add(Worked { images: 100, busy: Duration::from_secs(1) }));
        let millis = || pace.recent_service_time().expect("has worked").as_millis();
        assert_eq!(millis(), 10);
        (0..3).for_each(|_| pace.add(Worked { images: 1, busy: Duration::from_secs(1) }));
        assert_eq!(millis(), 1_000, "three images of a second");
        pace.add(Worked { images: 1, busy: Duration::from_secs(10) });
        assert_eq!(millis(), 10_000, "one of ten seconds");
        (0..3).for_each(|_| pace.add(Worked { images: 100, busy: Duration::from_secs(1) }));
        assert_eq!(millis(), 10, "three seconds of small ones");
        (0..10_000).for_each(|_| pace.add(Worked { images: 1, busy: Duration::ZERO }));
        assert_eq!(millis(), 0);
    }

    #[test]
    fn only_repeated_failure_backs_off() {
        let millis: Vec<u128> = (0..9).map(|failed| backoff(failed).as_millis()).collect();
        assert_eq!(millis, [0, 0, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
    }
}
