//! Measures how many requests per second the load generator sends with one core to a server that does no work, and
//! checks that it shows a stall of the server.
//!
//! Run with `cargo bench --bench loadgen`. If `wrk` is on the PATH, it is measured in alternation with the same body
//! and connections, and the ratio is printed. The rate of a core is requests per CPU second of the client (user and
//! system), because the server uses the rest of the machine. The exit code is 1 if a target is missed: 15,000 requests
//! per core, half of wrk's requests per second, and a p99.9 of at least 900 ms when the server, in its own process, is
//! stopped (SIGSTOP) for 1 s of 20 s at 1,000 requests per second.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a benchmark prints its measurements")]

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;

/// Targets: requests per second of one core, and the ratio to the requests per second of wrk.
const MIN_PER_CORE: f64 = 15_000.0;
const MIN_RATIO_TO_WRK: f64 = 0.5;
const ROUNDS: usize = 3;
const NUM_REQUEST: u64 = 100_000;
const CONNECTIONS: &str = "100";
const WRK_SECONDS: &str = "5";
/// The load during the stall: the number of requests and their rate.
const STALLED_NUM_REQUEST: u64 = 20_000;
const STALLED_RATE: &str = "1000";
const STALL_BEGINS_AFTER: Duration = Duration::from_secs(8);
const STALL: Duration = Duration::from_secs(1);
const MIN_STALLED_P99_9_MS: f64 = 900.0;
/// If this variable is set, the program is the server until standard input closes.
const IS_SERVER: &str = "IMGCLS_BENCH_IS_SERVER";
/// The size of the sample images of the legacy system.
const SMALL_IMAGE_BYTES: usize = 2_000;
/// Linux counts CPU time in hundredths of a second in /proc.
const TICKS_PER_SECOND: f64 = 100.0;

const ANSWER: &str = r#"{"v":1,"id":"01970000-0000-7000-8000-000000000000","filename":"small.jpg","status":"succeeded","predictions":[{"class_index":281,"label":"tabby, tabby cat","score":0.61},{"class_index":282,"label":"tiger cat","score":0.21},{"class_index":285,"label":"Egyptian cat","score":0.11},{"class_index":287,"label":"lynx, catamount","score":0.02},{"class_index":283,"label":"Persian cat","score":0.01}],"model":{"name":"null","version":"1","digest":"sha256:0"},"timings_ms":{"queued":0.1,"fetched":0.1,"decoded":0.1,"inferred":0.1,"total":0.4},"attempt":1,"worker":"null"}"#;

fn main() -> ExitCode {
    if std::env::var_os(IS_SERVER).is_some() {
        println!("{}", null_server());
        let _ = std::io::stdin().lines().count();
        return ExitCode::SUCCESS;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let mut image = b"\xff\xd8\xff\xe0".to_vec();
    image.resize(SMALL_IMAGE_BYTES, b'x');
    let small = folder.path().join("small.jpg");
    std::fs::write(&small, image).expect("written");
    let server = null_server();
    let images = folder.path().display().to_string();

    loadgen("closed loop, built-in images (29 KB)", server, &[]);
    for (rate, num_request) in [("5000", "25000"), ("20000", "100000")] {
        let open_loop = ["--image-folder", &images, "--rate", rate, "--num-request", num_request];
        loadgen(&format!("open loop, 2 KB images, {rate}/s"), server, &open_loop);
    }
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let ours = loadgen("closed loop, 2 KB images", server, &["--image-folder", &images]);
            (ours, wrk(server, folder.path(), &small))
        })
        .collect();
    let fast = judge(&rounds);
    let stall_is_shown = shows_a_stall(&images);
    if fast && stall_is_shown { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The speed of one command.
struct Speed {
    per_core: f64,
    per_second: f64,
}

/// Prints the medians and returns true if the targets are met.
fn judge(rounds: &[(Speed, Option<Speed>)]) -> bool {
    let per_core = median(rounds.iter().map(|(ours, _)| ours.per_core));
    let enough = per_core >= MIN_PER_CORE;
    println!("loadgen: {per_core:.0} requests/s per core; the target is {MIN_PER_CORE}: {}", reached(enough));
    let compared: Vec<_> = rounds.iter().filter_map(|(ours, wrk)| Some((ours, wrk.as_ref()?))).collect();
    if compared.is_empty() {
        println!("loadgen / wrk: not compared; wrk is not on the PATH (Debian, Ubuntu: apt-get install wrk)");
        return enough;
    }
    let by_cpu = median(compared.iter().map(|(ours, wrk)| ours.per_core / wrk.per_core));
    let ratio = median(compared.iter().map(|(ours, wrk)| ours.per_second / wrk.per_second));
    let fast = ratio >= MIN_RATIO_TO_WRK;
    println!(
        "loadgen / wrk: {ratio:.2} of requests/s, {by_cpu:.2} of requests per CPU second; the target is {MIN_RATIO_TO_WRK}: {}",
        reached(fast)
    );
    enough && fast
}

fn reached(holds: bool) -> &'static str {
    if holds { "reached" } else { "MISSED" }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn loadgen(what: &str, server: SocketAddr, more: &[&str]) -> Speed {
    let num_request = NUM_REQUEST.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    command.args(["loadgen", "--json", "--concurrency", CONNECTIONS, "--url", &format!("http://{server}/")]);
    if !more.contains(&"--num-request") {
        command.args(["--num-request", &num_request]);
    }
    let (output, cpu, wall) = measured(command.args(more));
    let report: serde_json::Value = serde_json::from_str(&output).expect("a report");
    let ok = report["requests"]["ok"].as_f64().expect("a number");
    assert_eq!(report["requests"]["failed"], 0, "{output}");
    let speed = line(what, ok, cpu, wall);
    println!(
        "    latency p50 {} ms, p99 {} ms, max {} ms; longest lag {} ms",
        report["latency_ms"]["p50"],
        report["latency_ms"]["p99"],
        report["latency_ms"]["max"],
        report["generator"]["longest_lag_ms"]
    );
    speed
}

/// Stops the server for a second under an open loop, and returns true if the report shows it.
fn shows_a_stall(images: &str) -> bool {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let mut server =
        command.env(IS_SERVER, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server");
    let mut address = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut address).expect("its address");

    let num_request = STALLED_NUM_REQUEST.to_string();
    let mut load = Command::new(env!("CARGO_BIN_EXE_imgcls"));
    load.args(["loadgen", "--json", "--image-folder", images, "--concurrency", CONNECTIONS]);
    load.args(["--rate", STALLED_RATE, "--num-request", &num_request, "--url", &format!("http://{}/", address.trim())]);
    let load = load.stdout(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(STALL_BEGINS_AFTER);
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::STOP).expect("stopped");
    std::thread::sleep(STALL);
    kill_process(pid, Signal::CONT).expect("goes on");
    let output = load.wait_with_output().expect("it ends");
    drop(server.stdin.take());
    server.wait().expect("it ends");

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["requests"]["ok"], STALLED_NUM_REQUEST, "{report}");
    let p99_9 = report["latency_ms"]["p99_9"].as_f64().expect("of so many requests there is one");
    let is_shown = p99_9 >= MIN_STALLED_P99_9_MS;
    println!(
        "server stopped for {} s of {} s: p50 {} ms, p99.9 {p99_9} ms; the target is {MIN_STALLED_P99_9_MS}: {}",
        STALL.as_secs(),
        report["wall_seconds"],
        report["latency_ms"]["p50"],
        reached(is_shown)
    );
    is_shown
}

/// Returns `None` if wrk is not installed.
fn wrk(server: SocketAddr, folder: &Path, image: &Path) -> Option<Speed> {
    // A subfolder, so that loadgen does not send it.
    let scripts = folder.join("wrk");
    std::fs::create_dir_all(&scripts).expect("made");
    let script = scripts.join("post.lua");
    let lua = format!(
        "local f = io.open('{}', 'rb')\nwrk.body = f:read('*a')\nf:close()\nwrk.method = 'POST'\n\
         wrk.headers['Content-Type'] = 'image/jpeg'\n",
        image.display()
    );
    std::fs::File::create(&script).and_then(|mut file| file.write_all(lua.as_bytes())).expect("written");
    if Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return None;
    }
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", CONNECTIONS, "-d", &format!("{WRK_SECONDS}s"), "-s"]);
    let (output, cpu, wall) = measured(command.arg(&script).arg(format!("http://{server}/v1/classify?wait=30")));
    let requests = output.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests: f64 = requests.expect("wrk says how many requests it made").0.parse().expect("a number");
    Some(line("wrk, one thread, 2 KB images, answers not read", requests, cpu, wall))
}

fn line(what: &str, requests: f64, cpu: Duration, wall: Duration) -> Speed {
    let (per_core, per_second) = (requests / cpu.as_secs_f64(), requests / wall.as_secs_f64());
    println!("{what}: {per_core:.0} requests per CPU second, {per_second:.0} requests/s");
    Speed { per_core, per_second }
}

/// Standard output, CPU time and wall time of a command.
fn measured(command: &mut Command) -> (String, Duration, Duration) {
    let (cpu_before, began) = (children_cpu(), Instant::now());
    let output = command.stderr(Stdio::inherit()).output().expect("it starts");
    assert!(output.status.success(), "{:?}: {}", command, output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    (text, children_cpu().saturating_sub(cpu_before), began.elapsed())
}

/// User and system time of all terminated child processes: fields 16 and 17 of /proc/self/stat.
fn children_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit_once(')').expect("the name is in brackets").1;
    let ticks: f64 =
        after_name.split_whitespace().skip(13).take(2).map(|it| it.parse::<f64>().expect("a number")).sum();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Starts a server on its own thread that reads each request to its end and answers it.
fn null_server() -> SocketAddr {
    let (address, bound) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            address.send(listener.local_addr().expect("bound")).expect("the receiver waits");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        });
    });
    bound.recv().expect("the server starts")
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    while let Some(Ok(_frame)) = request.body_mut().frame().await {}
    let mut response = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
