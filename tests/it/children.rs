//! Tests with many processes: this test binary starts itself again to run one test, which acts as a worker.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const DATA_DIR: &str = "IMGCLS_TEST_DATA_DIR";
/// The prefix of each line of a worker, since the test harness prints lines of its own.
const MARK: &str = "worker: ";

/// Another process, which runs the test with the given full name. Killed when dropped.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(test: &str, data_dir: &Path) -> Worker {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(DATA_DIR, data_dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Worker { child, stdin, stdout }
    }

    /// The next line of the worker. Returns `None` once it has ended.
    pub fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).expect("text") == 0 {
                return None;
            }
            // A killed process may have written half a line, which does not count.
            if let Some((_, text)) = line.strip_suffix('\n').and_then(|line| line.split_once(MARK)) {
                return Some(text.to_owned());
            }
        }
    }

    pub fn expect_line(&mut self, expected: &str) {
        assert_eq!(self.line().as_deref(), Some(expected));
    }

    /// Closes its standard input, which ends [`wait_for_go`].
    pub fn go(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal, by its name such as `STOP`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(done.expect("kill").success(), "cannot signal {}", self.child.id());
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
    }

    /// The lines until it ends.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.line()).collect()
    }

    pub fn expect_success(mut self) {
        self.go();
        assert!(self.child.wait().expect("ended").success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The data directory of a worker. Returns `None` when the test harness runs the test, which then does nothing.
pub fn data_dir() -> Option<PathBuf> {
    std::env::var_os(DATA_DIR).map(PathBuf::from)
}

pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").and_then(|()| out.flush()).expect("written to the parent");
}

/// Waits until the parent calls [`Worker::go`].
pub fn wait_for_go() {
    let _ = std::io::stdin().lines().count();
}
