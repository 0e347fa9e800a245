//! `imgcls up` with real workers. The tests need the model and ONNX Runtime, which `scripts/setup` installs.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use imgcls::cli::{Cli, Command as CliCommand, Invocation, NOT_PASSED_TO_WORKERS, SupervisorArgs};
use imgcls::config::Source;
use imgcls::model::TunedChoice;
use imgcls::up::Workers;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{self, count_results, imgcls, label_of, request, test_image};

/// Far longer than any step takes; only a failing test waits that long.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A running `imgcls up` with a free port.
struct Up {
    process: Child,
    address: SocketAddr,
    /// Its data directory, unless the test keeps that.
    _data_dir: Option<TempDir>,
}

fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Waits until `up` prints the address of the page.
fn start_on(data_dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Child, SocketAddr) {
    let mut process = command(data_dir, arguments).envs(environment.iter().copied()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.strip_prefix("open http://").and_then(|rest| rest.strip_suffix("/\n"));
    let address = address.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"));
    (process, address)
}

impl Up {
    /// Starts `up` with a data directory of its own.
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Up {
        let data_dir = tempfile::tempdir().expect("a directory");
        let (process, address) = start_on(data_dir.path(), arguments, environment);
        Up { process, address, _data_dir: Some(data_dir) }
    }

    /// Starts `up` with the directory of another, or of one that ended.
    fn start_beside(data_dir: &Path, arguments: &[&str]) -> Up {
        let (process, address) = start_on(data_dir, arguments, &[]);
        Up { process, address, _data_dir: None }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn workers(&self) -> Vec<Pid> {
        children(self.pid())
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }
}

impl Drop for Up {
    /// Ends `up` when a test fails; the workers end by themselves.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The live children of a process, without zombies.
pub fn children(parent: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("a Linux system").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |number: &i32| {
        // `<pid> (<name>) <state> <parent> …`; the name may contain any character.
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
        assert!(started.elapsed() < TIMEOUT, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_until_ended(pids: &[Pid]) {
    until("every worker has ended", || pids.iter().all(|pid| test_kill_process(*pid).is_err()));
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
    let started = Instant::now();
    kill_process(up.pid(), Signal::TERM).expect("it lives");
    let status = up.process.wait().expect("ours");
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    for pid in first.into_iter().chain(last) {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
}

#[test]
fn workers_end_when_up_is_killed_and_have_only_the_settings_that_up_gave_them() {
    // If the variable reached the workers, both would listen on this address, and one of them would not start.
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
    wait_until_ended(&workers);
}

#[test]
fn up_ends_with_one_line_when_its_workers_cannot_start() {
    let data_dir = tempfile::tempdir().expect("a directory");
    let Output { status, stderr, .. } =
        command(data_dir.path(), &["--model", "nonesuch"]).stderr(Stdio::piped()).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(last.contains("5 starts failed"), "{stderr}");
    assert!(stderr.contains("nonesuch"), "{stderr}");
}

/// Submits images to these addresses in turn, and returns each job with its image.
fn submit(addresses: &[SocketAddr], jobs: usize) -> Vec<(String, &'static str)> {
    let images = IMAGES.map(|name| (name, test_image(name)));
    let submitted = (0..jobs).map(|job| {
        let (name, image) = &images[job % images.len()];
        let answer = request(addresses[job % addresses.len()], "POST", "/v1/jobs", &[], image).expect("an answer");
        assert_eq!(answer.status, 202, "{}", answer.text());
        (answer.json()["id"].as_str().expect("an id").to_owned(), *name)
    });
    submitted.collect()
}

const IMAGES: [&str; 3] = ["rocket.jpg", "cat.jpg", "rgb.png"];

#[test]
fn two_services_on_one_data_directory_are_one_and_outlive_each_other() {
    let data_dir = tempfile::tempdir().expect("a directory");
    let flags = ["--min-workers", "1", "--max-workers", "1", "--visibility-timeout", "2s"];
    let mut first = Up::start_beside(data_dir.path(), &flags);
    let second = Up::start_beside(data_dir.path(), &flags);
    let both = [first.address, second.address];
    let labels = IMAGES.map(|name| (name, label_of(name)));
    let label = |name: &str| labels.iter().find(|(image, _)| *image == name).expect("an image").1.as_str();
    for (address, name) in both.into_iter().zip(IMAGES) {
        let answer = request(address, "POST", "/v1/classify", &[], &test_image(name)).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["predictions"][0]["label"], label(name));
    }

    let mut jobs = submit(&both, 60);
    let workers = first.workers();
    first.process.kill().expect("it lives");
    for worker in workers {
        // It may have drained and ended already.
        let _ = kill_process(worker, Signal::KILL);
    }
    first.process.wait().expect("ours");
    jobs.extend(submit(&[second.address], 30));
    let finished = |address: SocketAddr, id: &str| {
        let path = format!("/v1/jobs/{id}?wait=10");
        harness::until("the outcome of a job", || {
            let job = request(address, "GET", &path, &[], b"").expect("an answer").json();
            job["status"].as_str().is_some_and(|status| status != "queued").then_some(job)
        })
    };
    for (id, name) in &jobs {
        let job = finished(second.address, id);
        assert_eq!(job["status"], "succeeded", "{job}");
        assert_eq!(job["predictions"][0]["label"], label(name), "{id} has the answer to another job");
    }
    let database = rusqlite::Connection::open(data_dir.path().join("imgcls.sqlite3")).expect("a database");
    assert_eq!(count_results(&database), jobs.len() + both.len());
    let depth = imgcls().args(["queue", "depth", "--json", "--data-dir"]).arg(data_dir.path()).output();
    let depth: Value = serde_json::from_slice(&depth.expect("it starts").stdout).expect("JSON");
    let queues = depth["queues"].as_array().expect("queues").iter().filter(|queue| queue["role"] != "replies");
    let left = queues.map(|queue| queue["visible"].as_u64().unwrap_or(0) + queue["in_flight"].as_u64().unwrap_or(0));
    assert_eq!(left.sum::<u64>(), 0, "{depth}");

    // Another one in its place gives the same answers.
    let third = Up::start_beside(data_dir.path(), &flags);
    let (id, name) = &jobs[0];
    assert_eq!(finished(third.address, id)["predictions"][0]["label"], label(name));
}

#[test]
fn two_services_of_other_names_on_one_data_directory_delete_by_their_own_times() {
    let data_dir = tempfile::tempdir().expect("a directory");
    let first = Up::start_beside(data_dir.path(), &["--keep-images", "1h", "--keep-results", "1h"]);
    let flags = ["--stack", "other", "--keep-images", "1s", "--keep-results", "1s"];
    let other = Up::start_beside(data_dir.path(), &flags);
    let database = rusqlite::Connection::open(data_dir.path().join("imgcls.sqlite3")).expect("a database");
    let objects_of = |bucket: &str| -> usize {
        let sql = "SELECT count(*) FROM objects WHERE bucket = ?1";
        database.query_row(sql, [bucket], |row| row.get(0)).expect("a number")
    };
    for address in [first.address, other.address] {
        let answer = request(address, "POST", "/v1/classify", &[], &test_image("cat.jpg")).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    until("the other service has deleted its data", || objects_of("other-input") + objects_of("other-output") == 0);
    assert_eq!((objects_of("input"), objects_of("output")), (1, 1), "the first keeps its data for an hour");
}

/// Values of worker settings that its supervisor has too. One that is not listed is tested with its default.
const SAMPLES: [(&str, &str); 33] = [
    ("data-dir", "some/where"),
    ("nats-url", "nats://ann:s3cret@h"),
    ("nats-credentials", "/x/user.creds"),
    ("nats-ca", "/x/ca.pem"),
    ("nats-replicas", "3"),
    ("stack", "team-a"),
    ("request-queue", "q"),
    ("result-queue", "r"),
    ("input-bucket", "in-1"),
    ("output-bucket", "out-1"),
    ("read-bucket", "archive"),
    ("visibility-timeout", "1500ms"),
    ("max-receive-count", "3"),
    ("log-format", "json"),
    ("model", "m"),
    ("models-dir", "/m"),
    ("model-memory", "1GiB"),
    ("shadow", "s"),
    ("variant", "int8"),
    ("label-set", "original"),
    ("ort-dylib", "/x/y.so"),
    ("intra-threads", "2"),
    ("cache-dir", "/c"),
    ("cache", "true"),
    ("cache-bytes", "1MiB"),
    ("max-upload-bytes", "1MiB"),
    ("max-pixels", "1000"),
    ("decode-timeout", "3s"),
    ("max-decode-bytes", "256MiB"),
    ("max-batch-size", "4"),
    ("max-batch-delay", "2ms"),
    ("max-lease", "90s"),
    ("drain-on-stdin-close", "true"),
];
/// Settings that the supervisor decides itself, or passes on in another form.
const DECIDED: [&str; 5] = ["data-dir", "max-decode-bytes", "model-memory", "sessions", "drain-on-stdin-close"];
/// The setting that selects another backend, which `up` refuses.
const REFUSED_BY_UP: &str = "nats-url";

fn read(arguments: impl IntoIterator<Item = OsString>) -> Invocation {
    let line = std::iter::once("imgcls".into()).chain(arguments);
    Cli::read(&line.collect::<Vec<_>>()).expect("a valid command line")
}

/// The workers that `up` or `autoscale` runs with these flags.
fn workers(command: &str, flags: impl IntoIterator<Item = String>) -> Workers {
    let Invocation { command, settings, .. } =
        read(std::iter::once(command.to_owned()).chain(flags).map(OsString::from));
    let tuned =
        |supervisor: &SupervisorArgs| TunedChoice { choice: supervisor.processing.model.choice(), tuning: None };
    match command {
        CliCommand::Up(up) => up.config(&settings, &tuned(&up.supervisor)).map(|config| config.workers),
        CliCommand::Autoscale(autoscale) => {
            let (backend, _) = autoscale.supervisor.shared.backend(&settings);
            autoscale.process_config(backend, &settings, &tuned(&autoscale.supervisor))
        }
        other => panic!("{other:?} runs no workers"),
    }
    .expect("a valid configuration")
}

#[test]
fn up_passes_every_setting_of_a_worker_on() {
    every_setting_is_passed_on("up", "local", |name| name != REFUSED_BY_UP);
}

#[test]
fn autoscale_passes_every_setting_of_a_worker_on_and_secrets_as_variables() {
    let workers = every_setting_is_passed_on("autoscale", "nats", |_| true);
    assert_eq!(workers.variables, [("IMGCLS_NATS_URL".into(), "nats://ann:s3cret@h".into())]);
    assert!(workers.arguments.iter().all(|argument| !argument.to_string_lossy().contains("s3cret")));
}

fn every_setting_is_passed_on(supervisor: &str, backend: &str, is_accepted: impl Fn(&str) -> bool) -> Workers {
    let all = read(["worker".into()]).settings;
    let its_own = read([supervisor.into()]).settings;
    let is_passed =
        |name: &str| is_accepted(name) && NOT_PASSED_TO_WORKERS.iter().all(|(left_out, _)| *left_out != name);
    let sample = |name: &str| -> String {
        if name == "backend" {
            return backend.to_owned();
        }
        let listed = SAMPLES.iter().find(|(sample, _)| *sample == name).map(|(_, value)| (*value).to_owned());
        let default = || all.get(name)?.values.first()?.clone().into_string().ok();
        listed.or_else(default).unwrap_or_else(|| panic!("list a sample of --{name}"))
    };
    let shared = all.settings.iter().filter(|setting| is_passed(&setting.name) && its_own.get(&setting.name).is_some());
    let flags = shared.map(|setting| match sample(&setting.name).as_str() {
        "true" => format!("--{}", setting.name),
        value => format!("--{}={value}", setting.name),
    });
    let workers = workers(supervisor, flags);
    let passed = read(workers.arguments.clone()).settings;
    for setting in all.settings.iter().filter(|setting| is_passed(&setting.name) && !setting.is_secret) {
        let name = setting.name.as_str();
        let passed = passed.get(name).expect("a setting of `worker`");
        assert_eq!(passed.source, Source::Flag, "`{supervisor}` does not pass --{name} on to its workers");
        if !DECIDED.contains(&name) {
            assert_eq!(passed.values, [OsString::from(sample(name))], "--{name}");
        }
    }
    assert_eq!(passed.get("sessions").expect("it").values, ["1"]);
    assert_eq!(passed.get("max-decode-bytes").expect("it").values, ["268435456"]);
    assert!(Path::new(&passed.get("data-dir").expect("it").values[0]).is_absolute());
    workers
}

#[test]
fn settings_without_a_value_are_left_to_the_worker() {
    let passed = read(workers("up", []).arguments).settings;
    for (name, value) in [("model", None), ("max-batch-size", None), ("request-queue", Some("web-app-image-transport"))]
    {
        let values = &passed.get(name).expect("a setting of `worker`").values;
        assert_eq!(values.first().and_then(|value| value.to_str()), value, "--{name}");
    }
    for (name, _) in NOT_PASSED_TO_WORKERS {
        assert!(!passed.get(name).is_some_and(|setting| setting.source == Source::Flag), "--{name}");
    }
}

#[test]
fn the_target_policy_starts_all_needed_workers_at_once_and_removes_them_after_its_window() {
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
    let log_text = || fs::read_to_string(&log).expect("a log");
    // One worker may have a backlog of two messages, so forty need more workers than are allowed. Afterwards none is needed.
    until("two workers started and ended", || {
        log_text().contains("from=0 to=2") && log_text().contains("to=0 reason=0 waiting")
    });
    kill_process(Pid::from_child(&process), Signal::TERM).expect("it lives");
    assert_eq!(process.wait().expect("ours").code(), Some(0));
    assert_eq!(sent.status.code(), Some(0), "{sent:?}\n{}", log_text());
}
