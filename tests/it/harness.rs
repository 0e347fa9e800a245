//! Helpers that the tests share. They start processes of the real binary and speak plain HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use imgcls::protocol::{self, ClassifyRequest, ImageRef, WIRE_VERSION};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// A timeout that only a failing test reaches, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn imgcls() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    for (name, _) in std::env::vars() {
        if name.starts_with("IMGCLS_") || name.starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    // The tests neither use nor change the cache and models directories of the user who runs them.
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env("XDG_DATA_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

pub fn test_image(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the label of an image in `tests/pictures`, which `imgcls classify` finds without a queue.
pub fn label_of(name: &str) -> String {
    let path = format!("{}/tests/pictures/{name}", env!("CARGO_MANIFEST_DIR"));
    let output = imgcls().args(["classify", "--json", &path]).output().unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    line["predictions"][0]["label"].as_str().unwrap().to_owned()
}

/// A process of the program, killed when dropped. Its log is printed when the test fails.
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn start(mut command: Command, log: &Path) -> Process {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command.stdout(Stdio::null()).stdin(Stdio::null()).stderr(file).spawn().unwrap();
        Process { child, log: log.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status().unwrap();
        assert!(done.success(), "cannot signal {}", self.id());
    }

    /// The peak of its resident memory.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    /// Waits until the process ends, and returns its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "process {} has not ended; log:\n{}", self.id(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The address of a worker that was started with `--admin-listen 127.0.0.1:0`.
    pub fn admin_address(&self) -> SocketAddr {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("admin address=")).expect("a worker with --admin-listen");
        line.rsplit("address=").next().unwrap().trim().parse().unwrap()
    }

    pub fn wait_for_log(&self, text: &str) {
        until(&format!("{text:?} in {}", self.log.display()), || self.log().contains(text).then_some(()));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.id(), self.log());
        }
    }
}

/// Polls a condition until it holds.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns a port that was free a moment ago, for processes that are restarted at the same address.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A web tier and workers on one data directory, or on the backend that the flags name.
pub struct Service {
    pub dir: tempfile::TempDir,
    backend: Backend,
    pub address: SocketAddr,
    pub web: Process,
    pub workers: Vec<Process>,
    /// More web tiers with the flags of `web`.
    pub other_webs: Vec<Process>,
    web_flags: Vec<String>,
    worker_flags: Vec<String>,
    started: usize,
}

/// Flags and variables that name the queues and objects to each process.
struct Backend {
    flags: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Service {
    pub fn start(worker_count: usize, web_flags: &[&str], worker_flags: &[&str]) -> Service {
        Service::start_in(tempfile::tempdir().unwrap(), worker_count, web_flags, worker_flags)
    }

    /// The same with an existing data directory, which is `data` in `dir`.
    pub fn start_in(dir: tempfile::TempDir, worker_count: usize, web_flags: &[&str], worker_flags: &[&str]) -> Service {
        let backend = Backend { flags: vec!["--backend".to_owned(), "local".to_owned()], environment: Vec::new() };
        Service::start_with(dir, backend, worker_count, web_flags, worker_flags)
    }

    pub fn start_on(
        backend_flags: &[&str],
        environment: Vec<(String, String)>,
        worker_count: usize,
        web_flags: &[&str],
        worker_flags: &[&str],
    ) -> Service {
        let backend = Backend { flags: owned(backend_flags), environment };
        Service::start_with(tempfile::tempdir().unwrap(), backend, worker_count, web_flags, worker_flags)
    }

    fn start_with(
        dir: tempfile::TempDir,
        backend: Backend,
        worker_count: usize,
        web_flags: &[&str],
        worker_flags: &[&str],
    ) -> Service {
        let address = free_address();
        let (web_flags, worker_flags) = (owned(web_flags), owned(worker_flags));
        let web = start_web(dir.path(), &backend, address, &web_flags);
        let (workers, other_webs) = (Vec::new(), Vec::new());
        let mut service =
            Service { dir, backend, address, web, workers, other_webs, web_flags, worker_flags, started: 0 };
        service.wait_until_serving();
        for _ in 0..worker_count {
            service.add_worker();
        }
        service
    }

    /// Sets the environment of the processes that are started from now on, on AWS.
    pub fn start_next_with(&mut self, environment: Vec<(String, String)>) {
        self.backend.environment = environment;
    }

    /// Starts another web tier, and returns its address.
    pub fn add_web(&mut self) -> SocketAddr {
        let address = free_address();
        self.other_webs.push(start_web(self.dir.path(), &self.backend, address, &self.web_flags));
        until_serving(address);
        address
    }

    pub fn add_worker(&mut self) {
        let worker = self.spawn_worker();
        worker.wait_for_log("ready");
        self.workers.push(worker);
    }

    /// Starts a worker without waiting until it is ready.
    pub fn spawn_worker(&mut self) -> Process {
        self.started += 1;
        let mut command = imgcls();
        command.args(["worker", "--sessions", "1", "--data-dir"]).arg(self.data_dir());
        self.backend.configure(&mut command);
        command.args(&self.worker_flags);
        Process::start(command, &self.dir.path().join(format!("worker-{}.log", self.started)))
    }

    /// Kills the web tier with SIGKILL and starts another at the same address.
    pub fn restart_web(&mut self) {
        self.web.kill();
        self.web = start_web(self.dir.path(), &self.backend, self.address, &self.web_flags);
        self.wait_until_serving();
    }

    pub fn wait_until_serving(&self) {
        until_serving(self.address);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A connection to the database of the local backend.
    pub fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.data_dir().join("imgcls.sqlite3")).unwrap()
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_request(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Response> {
        request(self.address, method, path, headers, body)
    }

    /// Submits an image with a file name, and returns the id without waiting for the result.
    pub fn submit(&self, name: &str, image: &[u8]) -> String {
        let disposition = format!("attachment; filename=\"{name}\"");
        let response = self.request("POST", "/v1/jobs", &[("Content-Disposition", &disposition)], image);
        assert_eq!(response.status, 202, "{}", response.text());
        response.json()["id"].as_str().unwrap().to_owned()
    }

    /// The keys of all images in the local store.
    pub fn images(&self) -> Vec<String> {
        let database = self.database();
        let mut select = database.prepare("SELECT key FROM objects WHERE bucket = 'input' ORDER BY key").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Waits until a job is complete, and returns it.
    pub fn finished(&self, id: &str) -> Value {
        until(&format!("the outcome of {id}"), || {
            let job = self.request("GET", &format!("/v1/jobs/{id}?wait=10"), &[], b"").json();
            // A problem document has a number as status: the web tier does not know the job (yet).
            job["status"].as_str().is_some_and(|status| status != "queued").then_some(job)
        })
    }
}

/// The number of stored results; there is one per job, since the key is unique.
pub fn count_results(database: &rusqlite::Connection) -> usize {
    let sql = "SELECT count(*) FROM objects WHERE bucket = 'output' AND key GLOB 'results/*'";
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// The stored result of a job.
pub fn result_text(database: &rusqlite::Connection, id: &str) -> String {
    let sql = "SELECT CAST(body AS TEXT) FROM objects WHERE bucket = 'output' AND key = ?1";
    database.query_row(sql, [format!("results/{id}.json")], |row| row.get(0)).unwrap()
}

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn until_serving(address: SocketAddr) {
    until("the web tier", || request(address, "GET", "/healthz", &[], b"").ok().filter(|r| r.status == 200));
}

impl Backend {
    fn configure(&self, command: &mut Command) {
        command.args(&self.flags).envs(self.environment.iter().map(|(name, value)| (name, value)));
    }
}

fn start_web(dir: &Path, backend: &Backend, address: SocketAddr, flags: &[String]) -> Process {
    let mut command = imgcls();
    command.args(["serve-web", "--listen", &address.to_string(), "--data-dir"]).arg(dir.join("data"));
    backend.configure(&mut command);
    command.args(flags);
    Process::start(command, &dir.join("web.log"))
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The value of a line of `/metrics`, such as `name{label="value"}`; 0 if there is no such line.
pub fn metric(address: SocketAddr, line: &str) -> f64 {
    let text = request(address, "GET", "/metrics", &[], b"").unwrap().text();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// The labels and values of every line of `/metrics` with this name.
pub fn metrics(address: SocketAddr, name: &str) -> Vec<(String, f64)> {
    let text = request(address, "GET", "/metrics", &[], b"").unwrap().text();
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap())).collect()
}

/// Sends one request on a connection of its own, byte for byte as given.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    use std::fmt::Write as _;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(head.as_bytes())?;
    // A server that refuses early may close before everything is sent; its answer can be read nevertheless.
    let _ = stream.write_all(body);
    read_response(&mut BufReader::new(stream))
}

pub fn read_response(reader: &mut BufReader<TcpStream>) -> std::io::Result<Response> {
    let broken = |text: &str| std::io::Error::other(format!("not an HTTP answer: {text:?}"));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| broken(&line))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim_start().to_owned()));
    }
    let mut body = Vec::new();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match length.and_then(|(_, length)| length.parse::<usize>().ok()) {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        None => {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok(Response { status, headers, body })
}

/// A multipart form with one file.
pub fn form(field: &str, filename: &str, bytes: &[u8]) -> (String, Vec<u8>) {
    let boundary = "----imgcls-test-boundary";
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{filename}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// A request that was submitted now and names no image. A test replaces the fields that it is about.
pub fn classify_request(id: Uuid) -> ClassifyRequest {
    let submitted_at = Timestamp::now();
    ClassifyRequest {
        v: WIRE_VERSION,
        id,
        filename: String::new(),
        content_type: None,
        image: None,
        image_data: None,
        top_k: 5,
        model: None,
        batch: None,
        submitted_at,
        expires_at: submitted_at + Duration::from_secs(3_600),
        reply_to: None,
        traceparent: None,
    }
}

/// The place of the image of a job on the local backend.
pub fn stored_image(id: Uuid) -> ImageRef {
    ImageRef { bucket: "input".to_owned(), key: protocol::image_key(id) }
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
