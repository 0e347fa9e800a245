//! A log that cannot be written affects nothing else, and a reader of standard output that goes away is not an error.

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use imgcls::telemetry;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::harness::{DEADLINE, free_port, imgcls, label_of, request, test_image, until};
use crate::up::children;

const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A running `imgcls up`, killed at the end of the test.
struct Up {
    process: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Up {
    fn start(program: Command, stderr: impl Into<Stdio>) -> Up {
        let directory = tempfile::tempdir().unwrap();
        let mut command = program;
        command.args(["up", "--backend", "local", "--listen", "127.0.0.1:0", "--data-dir"]).arg(directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).env("IMGCLS_LOG", "debug");
        let mut process = command.spawn().unwrap();
        // The command keeps the descriptors of the child open.
        drop(command);
        let line = first_line(process.stdout.take().unwrap()).unwrap_or_else(|| {
            let _ = process.kill();
            panic!("`up` ended or did not serve in time: {:?}", process.wait())
        });
        let address = line.trim().strip_prefix("open http://").and_then(|rest| rest.strip_suffix('/'));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).parse().unwrap();
        Up { process, address, _directory: directory }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Checks that an image is classified, that SIGTERM ends the process with exit code 0 in time, and that no worker
    /// is left.
    fn assert_works_and_drains(mut self) {
        let answer = request(self.address, "POST", "/v1/classify?wait=60", &[], &test_image("rocket.jpg")).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["predictions"][0]["label"], label_of("rocket.jpg"));
        let workers = children(self.pid());
        assert!(!workers.is_empty());

        let signalled = Instant::now();
        kill_process(self.pid(), Signal::TERM).unwrap();
        let status = until("the end of `up`", || self.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(signalled.elapsed() < DRAIN_LIMIT, "{:?}", signalled.elapsed());
        for worker in workers {
            assert!(test_kill_process(worker).is_err(), "worker {worker:?} is left");
        }
    }
}

impl Drop for Up {
    /// Ends the process of a test that failed half-way.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the first line, or `None` when there is none in time.
fn first_line(output: ChildStdout) -> Option<String> {
    let (sender, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        sender.send(read.ok().filter(|bytes| *bytes > 0).map(|_| line))
    });
    line.recv_timeout(DEADLINE).ok().flatten()
}

/// Returns both ends of a pipe that is full to the last byte.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    for size in [4096, 1] {
        while writer.write(&[b'.'; 4096][..size]).is_ok() {}
    }
    // Child processes share this flag.
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[test]
fn up_works_and_drains_without_a_standard_error() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(imgcls().get_program());
    Up::start(shell, Stdio::inherit()).assert_works_and_drains();
}

#[test]
fn up_works_and_drains_with_a_log_on_a_full_disk() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    Up::start(imgcls(), full).assert_works_and_drains();
}

#[test]
fn up_works_and_drains_when_the_reader_of_its_log_goes_away() {
    let (reader, writer) = std::io::pipe().unwrap();
    let head = std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        line
    });
    let up = Up::start(imgcls(), writer);
    assert!(head.join().unwrap().contains("up"));
    up.assert_works_and_drains();
}

#[test]
fn up_works_and_drains_when_nobody_reads_its_log() {
    let (reader, writer) = full_pipe();
    Up::start(imgcls(), writer).assert_works_and_drains();
    drop(reader);
}

#[test]
fn worker_drains_when_its_parent_does_not_read_its_output() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = full_pipe();
    let log = directory.path().join("log");
    let mut command = imgcls();
    command.args(["worker", "--backend", "local", "--drain-on-stdin-close", "--data-dir"]).arg(directory.path());
    command.stdin(Stdio::piped()).stdout(writer).stderr(File::create(&log).unwrap());
    let mut worker = command.spawn().unwrap();
    drop(command);
    until("the worker is ready", || std::fs::read_to_string(&log).unwrap().contains(" ready ").then_some(()));
    drop(worker.stdin.take());
    let end = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = worker.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = worker.kill();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0), "{status}");
    drop(reader);
}

#[test]
fn lost_log_lines_are_counted_once_the_log_can_be_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("log");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Opens for reading without waiting for a writer.
    let open = || {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        let reader = File::options().read(true).custom_flags(nonblocking).open(&fifo).unwrap();
        fcntl_setfl(&reader, fcntl_getfl(&reader).unwrap() - OFlags::NONBLOCK).unwrap();
        BufReader::new(reader)
    };
    let mut reader = open();
    let writer = File::options().write(true).open(&fifo).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = imgcls();
    command.args(["serve-web", "--backend", "local", "--listen", &address.to_string(), "--data-dir"]);
    command.arg(directory.path().join("data")).env("IMGCLS_LOG", "trace").stderr(writer);
    let mut web = command.spawn().unwrap();
    drop(command);
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);

    // Each request logs lines that cannot be written.
    let is_served = || request(address, "GET", "/healthz", &[], b"").ok().filter(|answer| answer.status == 200);
    until("the web tier", is_served);
    let mut lines = open().lines();
    until("another request", is_served);
    let report = lines.find_map(|line| line.ok().filter(|line| line.contains("log lines were lost"))).unwrap();
    assert!(report.contains(" WARN ") && report.contains("Broken pipe"), "{report}");
    let number = report.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap();
    assert!(number > 0, "{report}");
    let _ = web.kill();
    let _ = web.wait();
}

#[test]
fn command_whose_reader_goes_away_ends_without_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let image = format!("{}/tests/pictures/cat.jpg", env!("CARGO_MANIFEST_DIR"));
    let data_dir = directory.path().to_str().unwrap();
    let lines: [&[&str]; 5] = [
        &["classify", &image, &image, &image],
        &["simulate", "--rate", "5", "--service-time", "1s", "--num-request", "100"],
        &["queue", "depth", "--backend", "local", "--data-dir", data_dir],
        &["--help"],
        &["--version"],
    ];
    for line in lines {
        let mut command = imgcls();
        command.args(line).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{line:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{line:?}: {stderr}");
    }
}

#[test]
fn exit_codes_are_the_same_when_the_reason_cannot_be_written() {
    for (line, code) in [(&["worker", "--model", "nonesuch"][..], 1), (&["worker", "--sessions", "none"], 2)] {
        let directory = tempfile::tempdir().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = imgcls();
        command.args(line).args(["--backend", "local", "--data-dir"]).arg(directory.path());
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{line:?}");
    }
}

/// Set in the child process that panics.
const PANICS: &str = "IMGCLS_TEST_PANICS";

#[test]
fn panic_of_a_thread_is_logged_like_any_other_event() {
    if std::env::var_os(PANICS).is_some() {
        telemetry::init(telemetry::LogFormat::Json);
        let thread = std::thread::Builder::new().name("session".to_owned()).spawn(|| panic!("out of cheese"));
        assert!(thread.unwrap().join().is_err());
        telemetry::flush(DEADLINE);
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "log_faults::panic_of_a_thread_is_logged_like_any_other_event", "--nocapture"]);
    let output = command.env(PANICS, "1").env_remove("RUST_BACKTRACE").env_remove("IMGCLS_LOG").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let event: serde_json::Value = stderr.lines().find_map(|line| serde_json::from_str(line).ok()).expect(&stderr);
    assert_eq!((&event["level"], &event["thread"]), (&"ERROR".into(), &"session".into()), "{stderr}");
    assert_eq!(event["message"], "a thread panicked: out of cheese", "{stderr}");
    assert!(event["location"].as_str().unwrap().contains("log_faults.rs"), "{stderr}");
}
