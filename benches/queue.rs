//! What the local backend does on this machine: `cargo bench --bench queue`.
//!
//! Four processes share one queue file; this program starts itself again for each, with its role in the environment.
//! `TMPDIR` chooses the disk.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::join_all;
use imgcls::queue::{MAX_BATCH, Outgoing, Queue, QueueAttributes, Queues as _, ReceiveOptions, SqliteQueues};
use imgcls::store::{ObjectStore, PutOptions, SqliteStore};

const ROLE: &str = "IMGCLS_BENCH_ROLE";
const DATA_DIR: &str = "IMGCLS_BENCH_DATA_DIR";
const QUEUE: &str = "bench";

const PROCESSES: usize = 4;
const MESSAGES: usize = 10_000;
const MESSAGE_BYTES: usize = 600;
/// Sends under way at a time in each process.
const SENDERS: usize = 16;
const WAKES: usize = 500;
const IDLE: Duration = Duration::from_secs(5);
const OBJECTS: usize = 500;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match std::env::var(ROLE) {
        Ok(role) => runtime.block_on(child(&role, Path::new(&std::env::var(DATA_DIR).expect("a data directory")))),
        Err(_) => runtime.block_on(report()),
    }
}

async fn report() {
    println!("{:<58} {:>12} {:>12} {:>12}", "local queue", "messages/s", "", "");
    for (role, name) in [("singly", "one by one, 16 at a time"), ("batches", "in batches of ten")] {
        let rate = throughput(role).await;
        println!("{:<58} {rate:>12.0}", format!("{PROCESSES} processes send, receive, ack {MESSAGES}, sent {name}"));
    }
    println!("\n{:<58} {:>12} {:>12} {:>12}", "wake of a receive in another process", "p50 ms", "p99 ms", "max ms");
    let (from_call, from_return) = wakes().await;
    print_quantiles("from the call of send", from_call);
    print_quantiles("from the return of send (it is on disk)", from_return);
    println!("\n{:<58} {:>12}", "a process that waits in receive", "% of a core");
    println!("{:<58} {:>12.3}", format!("idle for {} s", IDLE.as_secs()), idle().await);
    println!("\n{:<58} {:>12} {:>12} {:>12}", "local store", "wall ms", "cpu ms", "per second");
    for size in [600, 92_000] {
        for concurrency in [1, 16] {
            objects(size, concurrency).await;
        }
    }
}

async fn child(role: &str, data_dir: &Path) {
    let queue = open(data_dir).await;
    match role {
        "singly" => exchange(queue, 1).await,
        "batches" => exchange(queue, MAX_BATCH).await,
        "wake" | "idle" => receive_times(queue).await,
        other => panic!("no role {other:?}"),
    }
}

async fn open(data_dir: &Path) -> Arc<dyn Queue> {
    let queues = SqliteQueues::open(data_dir).expect("the queues");
    queues.create(QUEUE, &QueueAttributes::default()).await.expect("the queue")
}

// Throughput.

/// Messages a second from the start to the last ack.
async fn throughput(role: &str) -> f64 {
    let directory = tempfile::tempdir().expect("a directory");
    open(directory.path()).await;
    let mut children: Vec<Worker> = (0..PROCESSES).map(|_| Worker::start(role, directory.path())).collect();
    for child in &mut children {
        child.expect_line("ready");
    }
    let start = nanos();
    children.iter_mut().for_each(Worker::go);
    let ends: Vec<(usize, u64)> = children.iter_mut().map(Worker::acked).collect();
    let acked: usize = ends.iter().map(|(acked, _)| acked).sum();
    assert_eq!(acked, MESSAGES, "each message is received once");
    let end = ends.iter().map(|(_, last_ack)| *last_ack).max().unwrap_or(start);
    MESSAGES as f64 / Duration::from_nanos(end - start).as_secs_f64()
}

/// Sends its share and at the same time receives whatever comes.
async fn exchange(queue: Arc<dyn Queue>, batch: usize) {
    say("ready");
    wait_for_go();
    let senders = (0..SENDERS).map(|sender| {
        let queue = Arc::clone(&queue);
        let calls = MESSAGES / PROCESSES / batch;
        let share = calls / SENDERS + usize::from(sender < calls % SENDERS);
        tokio::spawn(async move {
            for _ in 0..share {
                let messages = vec![Outgoing::new("x".repeat(MESSAGE_BYTES)); batch];
                let answers = queue.send(&messages).await.expect("sent");
                assert!(answers.iter().all(Result::is_ok));
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let (mut acked, mut last_ack) = (0, nanos());
    loop {
        let deliveries = queue.receive(options(Duration::from_secs(1))).await.expect("received");
        if deliveries.is_empty() {
            break;
        }
        let receipts: Vec<_> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
        queue.ack(&receipts).await.expect("acked");
        acked += receipts.len();
        last_ack = nanos();
    }
    join_all(senders).await.into_iter().for_each(|sender| sender.expect("sent its share"));
    say(&format!("{acked} {last_ack}"));
}

// Waking.

/// From the call and from the return of each send to its receipt in another process, milliseconds.
async fn wakes() -> (Vec<f64>, Vec<f64>) {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = open(directory.path()).await;
    let mut receiver = Worker::start("wake", directory.path());
    receiver.expect_line("ready");
    receiver.go();
    let (mut from_call, mut from_return) = (Vec::new(), Vec::new());
    for _ in 0..WAKES {
        // Long enough that the receiver waits again.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let called = nanos();
        queue.send(&[Outgoing::new("x".repeat(MESSAGE_BYTES))]).await.expect("sent");
        let returned = nanos();
        let received: u64 = receiver.line().parse().expect("a time");
        from_call.push(received.saturating_sub(called) as f64 / 1e6);
        from_return.push(received.saturating_sub(returned) as f64 / 1e6);
    }
    (from_call, from_return)
}

async fn receive_times(queue: Arc<dyn Queue>) {
    say("ready");
    wait_for_go();
    loop {
        let deliveries = queue.receive(options(Duration::from_secs(20))).await.expect("received");
        let received = nanos();
        for delivery in deliveries {
            say(&received.to_string());
            queue.ack(&[delivery.receipt]).await.expect("acked");
        }
    }
}

async fn idle() -> f64 {
    let directory = tempfile::tempdir().expect("a directory");
    open(directory.path()).await;
    let mut receiver = Worker::start("idle", directory.path());
    receiver.expect_line("ready");
    receiver.go();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = cpu(&receiver.child.id().to_string());
    tokio::time::sleep(IDLE).await;
    let used = cpu(&receiver.child.id().to_string()).saturating_sub(before);
    100.0 * used.as_secs_f64() / IDLE.as_secs_f64()
}

// The store.

async fn objects(size: usize, concurrency: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqliteStore::open(directory.path(), "bench").expect("a store");
    let body = Bytes::from(vec![7; size]);
    let plain = PutOptions::default();
    let once = PutOptions { if_none_match: true, ..plain };
    let label = |what: &str| format!("{what} of {size} bytes, {concurrency} at a time");
    let put = |options: PutOptions, prefix: &'static str| {
        let (store, body) = (&store, &body);
        move |index: usize| {
            let body = body.clone();
            async move {
                let _ = store.put(&format!("{prefix}/{index}"), body, options).await.expect("put");
            }
        }
    };
    measure(&label("put"), concurrency, put(plain, "images")).await;
    measure(&label("put if none"), concurrency, put(once, "results")).await;
    let store = &store;
    measure(&label("get"), concurrency, move |index: usize| async move {
        store.get(&format!("images/{index}"), 1 << 20).await.expect("got").expect("is there");
    })
    .await;
}

async fn measure<F: Future<Output = ()>>(label: &str, concurrency: usize, operation: impl Fn(usize) -> F) {
    let (start, cpu_before) = (Instant::now(), cpu("self"));
    let lanes = (0..concurrency).map(|lane| {
        let operation = &operation;
        async move {
            for index in (lane..OBJECTS).step_by(concurrency) {
                operation(index).await;
            }
        }
    });
    join_all(lanes).await;
    let (wall, cpu) = (start.elapsed(), cpu("self").saturating_sub(cpu_before));
    let count = OBJECTS as f64;
    let wall_each = wall.as_secs_f64() * 1e3 * concurrency as f64 / count;
    let cpu_each = cpu.as_secs_f64() * 1e3 / count;
    println!("{label:<58} {wall_each:>12.3} {cpu_each:>12.3} {:>12.0}", count / wall.as_secs_f64());
}

// Children and clocks.

struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(role: &str, data_dir: &Path) -> Worker {
        let program: PathBuf = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.env(ROLE, role).env(DATA_DIR, data_dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a child");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Worker { child, stdin, stdout }
    }

    fn go(&mut self) {
        writeln!(self.stdin, "go").expect("told the child");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn expect_line(&mut self, expected: &str) {
        assert_eq!(self.line(), expected);
    }

    fn acked(&mut self) -> (usize, u64) {
        let line = self.line();
        let (acked, last_ack) = line.split_once(' ').expect("two numbers");
        (acked.parse().expect("a number"), last_ack.parse().expect("a time"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).expect("told the parent");
}

fn wait_for_go() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("told by the parent");
}

fn nanos() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since_epoch.as_nanos()).expect("before 2554")
}

/// CPU time of all living threads of a process.
fn cpu(process: &str) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("the threads");
    let nanos = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn options(wait: Duration) -> ReceiveOptions {
    ReceiveOptions { max: MAX_BATCH, wait, visibility_timeout: Duration::from_secs(30) }
}

fn print_quantiles(label: &str, mut sample: Vec<f64>) {
    sample.sort_by(f64::total_cmp);
    let quantile = |q: f64| sample[((sample.len() - 1) as f64 * q).round() as usize];
    let mut line = format!("{label:<58}");
    for q in [0.5, 0.99, 1.0] {
        write!(line, " {:>12.3}", quantile(q)).expect("a string takes all");
    }
    println!("{line}");
}
