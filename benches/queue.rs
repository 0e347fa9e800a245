//! Measures the local backend on this machine: `cargo bench --bench queue`.
//!
//! Four processes share one database; this program starts itself again for each, with its role in the environment.
//! `TMPDIR` chooses the disk. The exit code is 1 unless these goals are reached: 5,000 messages per second are sent,
//! received and acknowledged, one by one and in batches; and when all processes are killed (SIGKILL) meanwhile, no message
//! is lost, and none is received again after its ack.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a benchmark prints its measurements")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::join_all;
use imgcls::transport::MAX_BATCH;
use imgcls::transport::local::SqliteQueues;
use imgcls::transport::local::SqliteStore;
use imgcls::transport::queued::object::{ObjectStore, PutOptions};
use imgcls::transport::queued::queue::{Outgoing, Queue, QueueAttributes, Queues as _, ReceiveOptions};

const ROLE: &str = "IMGCLS_BENCH_ROLE";
const DATA_DIR: &str = "IMGCLS_BENCH_DATA_DIR";
const QUEUE: &str = "bench";

const PROCESSES: usize = 4;
const MESSAGES: usize = 10_000;
/// The goal in messages per second, for the median of the rounds.
const LEAST_RATE: f64 = 5_000.0;
const ROUNDS: usize = 3;
const MESSAGE_BYTES: usize = 600;
/// Concurrent sends in each process.
const SENDERS: usize = 16;
/// About half of the time that this many messages take.
const KILLED_AFTER: Duration = Duration::from_millis(700);
/// The messages of a killed process become visible again after this long. It is far longer than a message takes.
const SHORT_VISIBILITY: Duration = Duration::from_secs(5);
const WAKES: usize = 500;
const IDLE: Duration = Duration::from_secs(5);
const OBJECTS: usize = 500;

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match std::env::var(ROLE) {
        Ok(role) => {
            let data_dir = std::env::var(DATA_DIR).expect("a data directory");
            runtime.block_on(child(&role, Path::new(&data_dir)));
            ExitCode::SUCCESS
        }
        Err(_) if runtime.block_on(report()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints all tables. Returns true if every goal was reached.
async fn report() -> bool {
    println!("{:<58} {:>12} {:>12} {:>12}", "local queue", "messages/s", "least", "most");
    let mut is_enough = true;
    for (role, name) in [("singly", "one by one, 16 at a time"), ("batches", "in batches of ten")] {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            rates.push(throughput(role).await);
        }
        rates.sort_by(f64::total_cmp);
        let (rate, least, most) = (rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
        let label = format!("{PROCESSES} processes send, receive, ack {MESSAGES}, sent {name}");
        let reached = rate >= LEAST_RATE;
        println!("{label:<58} {rate:>12.0} {least:>12.0} {most:>12.0} {}", verdict(reached));
        is_enough &= reached;
    }
    println!("\n{:<58} {:>12} {:>12} {:>12}", "killed while they do it", "acked", "left", "lost, again");
    for (role, name) in [("singly-until-killed", "one by one"), ("batches-until-killed", "in batches of ten")] {
        let Killed { sent, acked, left, lost, again } = kill_all(role).await;
        let label = format!("{sent} sent {name} until SIGKILL");
        let nothing = lost == 0 && again == 0;
        println!("{label:<58} {acked:>12} {left:>12} {:>12} {}", format!("{lost}, {again}"), verdict(nothing));
        is_enough &= nothing;
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
    is_enough
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "NOT reached" }
}

async fn child(role: &str, data_dir: &Path) {
    let queue = open(data_dir).await;
    match role {
        "singly" => exchange(queue, 1).await,
        "batches" => exchange(queue, MAX_BATCH).await,
        "singly-until-killed" => exchange_until_killed(queue, data_dir, 1).await,
        "batches-until-killed" => exchange_until_killed(queue, data_dir, MAX_BATCH).await,
        "wake" | "idle" => receive_times(queue).await,
        other => panic!("no role {other:?}"),
    }
}

async fn open(data_dir: &Path) -> Arc<dyn Queue> {
    let queues = SqliteQueues::open(data_dir).expect("the queues");
    queues.create(QUEUE, &QueueAttributes::default()).await.expect("the queue")
}

// Throughput.

/// Returns the messages per second from the start to the last ack.
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

/// Sends its share, and at the same time receives and acknowledges messages.
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

// Killed.

struct Killed {
    sent: usize,
    acked: usize,
    /// Received after the kill.
    left: usize,
    /// Sent, not received after the kill, and no process had begun to acknowledge it.
    lost: usize,
    /// Received although their ack had returned, or received twice after the kill.
    again: usize,
}

/// Kills all processes while they work, and compares the queue with their journals.
async fn kill_all(role: &str) -> Killed {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = open(directory.path()).await;
    let mut children: Vec<Worker> = (0..PROCESSES).map(|_| Worker::start(role, directory.path())).collect();
    for child in &mut children {
        child.expect_line("ready");
    }
    children.iter_mut().for_each(Worker::go);
    tokio::time::sleep(KILLED_AFTER).await;
    for worker in &mut children {
        worker.child.kill().expect("killed");
    }
    // Dropping them waits for their exits, so that none writes any more.
    let pids: Vec<u32> = children.iter().map(|worker| worker.child.id()).collect();
    drop(children);
    let (mut sent, mut acking, mut acked) = (HashSet::new(), HashSet::new(), HashSet::new());
    for pid in pids {
        let text = std::fs::read_to_string(journal_path(directory.path(), pid)).expect("its journal");
        for line in text.lines() {
            match line.split_once(' ').expect("a word and a name") {
                ("sent", name) => sent.insert(name.to_owned()),
                ("acking", name) => acking.insert(name.to_owned()),
                (_acked, name) => acked.insert(name.to_owned()),
            };
        }
    }
    let left = receive_all(&*queue).await;
    let found: HashSet<&String> = left.iter().collect();
    Killed {
        sent: sent.len(),
        acked: acked.len(),
        left: left.len(),
        lost: sent.iter().filter(|name| !acking.contains(*name) && !found.contains(name)).count(),
        again: left.len() - found.len() + acked.iter().filter(|name| found.contains(name)).count(),
    }
}

/// Receives until nothing is visible or in flight. Returns the names of the messages.
async fn receive_all(queue: &dyn Queue) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let depth = queue.depth().await.expect("the depth");
        if depth.visible + depth.in_flight == 0 {
            return names;
        }
        let deliveries = queue.receive(options(Duration::from_secs(1))).await.expect("received");
        let receipts: Vec<_> = deliveries.iter().map(|delivery| delivery.receipt.clone()).collect();
        queue.ack(&receipts).await.expect("acked");
        names.extend(deliveries.iter().map(|delivery| name_of(&delivery.body).to_owned()));
    }
}

/// Sends and receives until it is killed, and records each call in its journal by a single write, so that a kill leaves no
/// half of a line.
async fn exchange_until_killed(queue: Arc<dyn Queue>, data_dir: &Path, batch: usize) {
    let pid = std::process::id();
    let journal = Arc::new(File::create(journal_path(data_dir, pid)).expect("a journal"));
    say("ready");
    wait_for_go();
    for sender in 0..SENDERS {
        let (queue, journal) = (Arc::clone(&queue), Arc::clone(&journal));
        tokio::spawn(async move {
            for call in 0.. {
                let body = |index| format!("{pid}-{sender}-{call}-{index:.<MESSAGE_BYTES$}");
                let messages: Vec<_> = (0..batch).map(|index| Outgoing::new(body(index))).collect();
                let answers = queue.send(&messages).await.expect("sent");
                assert!(answers.iter().all(Result::is_ok));
                write_down(&journal, "sent", messages.iter().map(|message| message.body.as_str()));
            }
        });
    }
    loop {
        let short = ReceiveOptions { visibility_timeout: SHORT_VISIBILITY, ..options(Duration::from_secs(1)) };
        let deliveries = queue.receive(short).await.expect("received");
        let receipts: Vec<_> = deliveries.iter().map(|delivery| delivery.receipt.clone()).collect();
        let bodies = || deliveries.iter().map(|delivery| delivery.body.as_str());
        write_down(&journal, "acking", bodies());
        queue.ack(&receipts).await.expect("acked");
        write_down(&journal, "acked", bodies());
    }
}

fn journal_path(data_dir: &Path, pid: u32) -> PathBuf {
    data_dir.join(format!("journal-{pid}"))
}

fn write_down<'a>(mut journal: &File, what: &str, bodies: impl Iterator<Item = &'a str>) {
    let lines: String = bodies.map(|body| format!("{what} {}\n", name_of(body))).collect();
    journal.write_all(lines.as_bytes()).expect("written down");
}

/// Returns the name of a message. It is followed by dots up to the size of the body.
fn name_of(body: &str) -> &str {
    body.trim_end_matches('.')
}

// Notifications.

/// Returns the milliseconds until another process has received a message, from the call and from the return of each send.
async fn wakes() -> (Vec<f64>, Vec<f64>) {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = open(directory.path()).await;
    let mut receiver = Worker::start("wake", directory.path());
    receiver.expect_line("ready");
    receiver.go();
    let (mut from_call, mut from_return) = (Vec::new(), Vec::new());
    for _ in 0..WAKES {
        // The receiver needs this long until it waits again.
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

/// Returns the CPU time of all living threads of a process.
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
