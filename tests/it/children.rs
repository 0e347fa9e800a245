//! Tests with many processes: this test binary starts itself again, running one test that is a worker.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const DATA_DIR: &str = "IMGCLS_TEST_DATA_DIR";
/// Before each line that a worker says: the test harness prints lines of its own.
const MARK: &str = "worker: ";

/// Another process that runs the worker of that (full) test name. Killed when dropped.
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

    /// The next line that the worker says; none once it has ended.
    pub fn line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).expect("text") == 0 {
                return None;
            }
            // A killed process may have said half a line: that does not count as said.
            if let Some((_, said)) = line.strip_suffix('\n').and_then(|line| line.split_once(MARK)) {
                return Some(said.to_owned());
            }
        }
    }

    pub fn expect_line(&mut self, expected: &str) {
        assert_eq!(self.line().as_deref(), Some(expected));
    }

    /// Closes its standard input, which it waits for.
    pub fn go(&mut self) {
        self.stdin = None;
    }

    /// A signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(done.expect("kill").success(), "cannot signal {}", self.child.id());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
    }

    /// All that it still says.
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

/// In a worker: its data directory. None where the test harness runs it as a test, which then does nothing.
pub fn data_dir() -> Option<PathBuf> {
    std::env::var_os(DATA_DIR).map(PathBuf::from)
}

pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{text}").and_then(|()| out.flush()).expect("told the parent");
}

/// Until the parent says [`Worker::go`].
pub fn wait_for_go() {
    let _ = std::io::stdin().lines().count();
}
