//! A worker process.
//!
//! A worker is a direct child in a process group of its own, so that Ctrl-C at the terminal only reaches its parent,
//! which drains it. Parent and worker communicate through three pipes:
//!
//! - **stdin** is never written to. The worker drains and exits when it closes, and it closes however the parent ends.
//!   So no worker outlives its parent, even if the parent is killed. This requires that no other process holds the
//!   write end: the standard library opens pipes close-on-exec, so that later children do not inherit it.
//! - **stdout** carries [`WorkerLine`]s: the ready line, and reports of the work done and of the metrics.
//! - **stderr** is inherited: the logs of all workers appear in one place.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

use super::service_time::ServiceTime;
use crate::protocol::WorkerLine;
use crate::service_manager;
use crate::shutdown::CancellationToken;
use crate::telemetry::metrics::ChildMetrics;

/// How long the last lines of a process that has ended are read. They are in the pipe already, which ends after them
/// unless another process has inherited it.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(100);

/// The command that starts a worker.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// Path of the program.
    pub program: PathBuf,
    /// All settings that may be seen. A worker does not inherit `IMGCLS_` variables, since they could set what the
    /// arguments leave open, for example the same listening address for all workers.
    pub arguments: Vec<OsString>,
    /// Settings that are secret, as variables: everybody on a machine sees command lines.
    pub variables: Vec<(OsString, OsString)>,
}

/// The log filter is inherited: it concerns the reader of the logs.
const INHERITED_VARIABLE: &str = "IMGCLS_LOG";

impl WorkerCommand {
    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            // If the supervisor panics or is aborted, no child remains.
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("IMGCLS_") && name != INHERITED_VARIABLE {
                command.env_remove(name);
            }
        }
        // A worker would report for its supervisor.
        for name in service_manager::VARIABLES {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.spawn()
    }
}

/// A worker process and this process's ends of its pipes.
pub(super) struct Process {
    child: Child,
    /// Taken out of `child`, whose `wait` would close it and thereby ask the worker to drain.
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    metrics: ChildMetrics,
}

impl Process {
    pub(super) fn start(command: &WorkerCommand) -> std::io::Result<Self> {
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        Ok(Process { child, stdin, stdout, metrics: ChildMetrics::new() })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the worker is ready. Returns the exit status if the process ends before.
    pub(super) async fn ready(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let Process { child, stdout, .. } = self;
        tokio::select! {
            () = read_until_ready(stdout) => Ok(None),
            status = child.wait() => status.map(Some),
        }
    }

    /// Waits until the process has ended. Records its reports meanwhile, and reads all other output too, so that the
    /// worker never blocks on a full pipe.
    pub(super) async fn wait_and_record(&mut self, service_time: &ServiceTime) -> std::io::Result<ExitStatus> {
        let Process { child, stdout, metrics, .. } = self;
        let status = tokio::select! {
            status = child.wait() => status,
            () = async {
                record_reports(stdout, service_time, metrics).await;
                std::future::pending::<()>().await;
            } => unreachable!("it never ends; this is a bug"),
        };
        let _ = timeout(LAST_LINES_TIMEOUT, record_reports(stdout, service_time, metrics)).await;
        status
    }

    /// Asks the worker to finish what it holds, and kills it after `limit`, or when `kill` is cancelled.
    pub(super) async fn drain(
        mut self,
        limit: Duration,
        kill: &CancellationToken,
        service_time: &ServiceTime,
    ) -> std::io::Result<()> {
        drop(self.stdin.take());
        let too_late = async {
            tokio::select! {
                () = sleep(limit) => {}
                () = kill.cancelled() => {}
            }
        };
        let status = tokio::select! {
            status = self.wait_and_record(service_time) => Some(status?),
            () = too_late => None,
        };
        match status {
            Some(status) if status.success() => {}
            Some(status) => tracing::warn!(%status, "a worker failed while it was draining"),
            None => {
                tracing::warn!(timeout_ms = limit.as_millis() as u64, "a worker did not drain in time; killing it");
                self.kill().await?;
            }
        }
        Ok(())
    }

    /// Kills the worker's process group, and waits until the worker has ended.
    pub(super) async fn kill(&mut self) -> std::io::Result<()> {
        // A process that was waited for has no id; its number may belong to another process by now.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            kill_process_group(pid, Signal::KILL)?;
        }
        self.child.wait().await.map(drop)
    }
}

/// Returns at the ready line. If the output ends without it, the exit status is what counts, so this never returns
/// then.
async fn read_until_ready(stdout: &mut Lines<BufReader<ChildStdout>>) {
    while let Ok(Some(line)) = stdout.next_line().await {
        if WorkerLine::parse(&line) == Some(WorkerLine::Ready) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Records the reports of a worker until its output ends.
async fn record_reports(
    stdout: &mut Lines<BufReader<ChildStdout>>,
    service_time: &ServiceTime,
    metrics: &ChildMetrics,
) {
    while let Ok(Some(line)) = stdout.next_line().await {
        match WorkerLine::parse(&line) {
            Some(WorkerLine::Worked(worked)) => service_time.add(worked),
            Some(WorkerLine::Metrics(text)) => metrics.record(&text),
            Some(WorkerLine::Ready) | None => {}
        }
    }
}
