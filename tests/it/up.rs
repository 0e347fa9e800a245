//! `imgcls up` as a whole, with real workers: it needs the model and ONNX Runtime, which `scripts/setup` brings.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use clap::Parser as _;
use imgcls::cli::{self, Cli};
use imgcls::up::worker_arguments;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// Far beyond what any step takes; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running `imgcls up`, at a free port and in a directory of its own.
struct Up {
    process: Child,
    address: String,
    _data_dir: TempDir,
}

fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

impl Up {
    /// Waits until it says where the page is.
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Up {
        let data_dir = tempfile::tempdir().expect("a directory");
        let mut process =
            command(data_dir.path(), arguments).envs(environment.iter().copied()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.strip_prefix("open http://").and_then(|rest| rest.strip_suffix("/\n"));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Up { process, address, _data_dir: data_dir }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn workers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }
}

impl Drop for Up {
    /// Of a test that failed halfway; its workers end by themselves.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The living children of a process: those that are waiting to be waited for do not count.
pub fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("a Linux system").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |number: &i32| {
        // `<pid> (<name>) <state> <parent> …`; the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, its_parent) = (fields.next(), fields.next());
        state != Some("Z") && its_parent == Some(parent.as_raw_nonzero().to_string().as_str())
    };
    numbers.filter(is_child).filter_map(Pid::from_raw).collect()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn all_gone(pids: &[Pid]) {
    until("every worker is gone", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
}

#[test]
fn a_killed_worker_is_replaced_and_sigterm_ends_all_in_time() {
    let mut up = Up::start(&["--min-workers", "2"], &[]);
    assert!(up.get("/readyz").starts_with("HTTP/1.1 200"), "{}", up.get("/readyz"));
    until("two workers live", || up.workers().len() == 2);
    let first = up.workers();
    kill_process(first[0], Signal::KILL).expect("it lives");
    until("it is replaced", || up.workers().len() == 2 && !up.workers().contains(&first[0]));
    until("it is ready", || up.get("/readyz").starts_with("HTTP/1.1 200"));

    let last = up.workers();
    let asked = Instant::now();
    kill_process(up.pid(), Signal::TERM).expect("it lives");
    let status = up.process.wait().expect("ours");
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    for pid in first.into_iter().chain(last) {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
}

#[test]
fn workers_end_when_up_is_killed_and_had_only_the_settings_it_gave_them() {
    // Two workers that both listened there would not both start.
    let set = [("IMGCLS_ADMIN_LISTEN", "127.0.0.1:1"), ("IMGCLS_LOG", "info"), ("AWS_REGION", "us-east-1")];
    let mut up = Up::start(&["--min-workers", "2"], &set);
    until("two workers live", || up.workers().len() == 2);
    let workers = up.workers();
    for pid in &workers {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).expect("it lives");
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(environment.contains("IMGCLS_LOG=info"), "{environment}");
        assert!(!environment.contains("IMGCLS_ADMIN_LISTEN"), "{environment}");
    }
    up.process.kill().expect("it lives");
    up.process.wait().expect("ours");
    all_gone(&workers);
}

#[test]
fn workers_that_cannot_start_end_up_with_one_line() {
    let data_dir = tempfile::tempdir().expect("a directory");
    let Output { status, stderr, .. } =
        command(data_dir.path(), &["--model", "nonesuch"]).stderr(Stdio::piped()).output().expect("it starts");
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("5 starts failed"), "{said}");
    assert!(said.contains("nonesuch"), "{said}");
}

#[tokio::test]
async fn the_command_line_of_a_worker_says_all_that_up_was_told() {
    let lines = [
        "imgcls up",
        "imgcls up --stack team-a --data-dir some/where --visibility-timeout 1500ms --max-receive-count 3 \
         --max-upload-bytes 1MiB --max-pixels 1000 --model m --variant int8 --ort-dylib /x/y.so --intra-threads 2 \
         --cache-dir /c --max-batch-size 4 --max-batch-delay 2ms --log-format json --decode-timeout 3s \
         --max-decode-bytes 256MiB --max-lease 90s",
        "imgcls up --request-queue q --result-queue r --input-bucket in-1 --output-bucket out-1",
    ];
    for line in lines {
        let cli::Command::Up(up) = Cli::parse_from(line.split_whitespace()).command else { panic!("{line}") };
        let config = up.config().await.expect("a valid line");
        let arguments = worker_arguments(&config.workers.worker, config.workers.log_format);
        let line: Vec<_> = std::iter::once("imgcls".into()).chain(arguments).collect();
        let cli::Command::Worker(worker) = Cli::try_parse_from(&line).expect("a valid line").command else {
            panic!("{line:?}")
        };
        let (backend, _) = worker.shared.backend();
        let names = worker.shared.names(&backend).await.expect("names that need nobody");
        let parsed = worker.config(backend, names);
        assert_eq!(format!("{parsed:?}"), format!("{:?}", config.workers.worker), "{line:?}");
        assert_eq!(worker.shared.log_format, config.workers.log_format);
        assert_eq!(parsed.sessions, Some(1));
        assert!(line.windows(2).any(|pair| pair[0] == "--data-dir" && Path::new(&pair[1]).is_absolute()));
    }
}

#[test]
fn the_target_policy_brings_all_needed_workers_at_once_and_takes_them_away_after_its_window() {
    let data_dir = tempfile::tempdir().expect("a directory");
    let log = data_dir.path().join("log");
    let flags = ["--policy", "target", "--service-time", "1s", "--slo", "2s", "--scale-in-stabilization", "1s"];
    let bounds = ["--min-workers", "0", "--max-workers", "2"];
    let mut process = command(&data_dir.path().join("data"), &[&flags[..], &bounds[..]].concat())
        .stderr(fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let url = line.trim().strip_prefix("open ").expect("an address").to_owned();
    let sent = Command::new(env!("CARGO_BIN_EXE_imgcls"))
        .args(["loadgen", "--url", &url, "--num-request", "40", "--concurrency", "40"])
        .output()
        .expect("it starts");
    let said = || fs::read_to_string(&log).expect("a log");
    // Two messages are a worker's share, so forty are the work of more than there may be; then of none.
    until("two came and went", || said().contains("from=0 to=2") && said().contains("to=0 reason=0 waiting"));
    kill_process(Pid::from_child(&process), Signal::TERM).expect("it lives");
    assert_eq!(process.wait().expect("ours").code(), Some(0));
    assert_eq!(sent.status.code(), Some(0), "{sent:?}\n{}", said());
}
