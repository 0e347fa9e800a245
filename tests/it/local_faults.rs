//! Faults around the local backend: other users of its database, the disk, the clock, stopped and killed processes.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use imgcls::clock::{Reading, Source};
use imgcls::config::Names;
use imgcls::transport::MAX_BATCH;
use imgcls::transport::local::SqliteQueues;
use imgcls::transport::local::SqliteStore;
use imgcls::transport::queued::ServiceQueues;
use imgcls::transport::queued::object::{ObjectStore as _, PutOptions};
use imgcls::transport::queued::queue::{Outgoing, Queue, QueueAttributes, Queues, ReceiveOptions, Redrive};
use serde_json::Value;

use crate::harness::{Service, imgcls, request, test_image, until};
use crate::shim::Shim;

const QUEUE: &str = "requests";
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The reader is a backup, or a shell with a transaction. Its snapshot prevents a restart of the log.
#[tokio::test(flavor = "multi_thread")]
async fn reader_delays_no_write_and_log_restarts_after_it() {
    const PUTS: usize = 1_500;
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(directory.path(), "bucket").unwrap());
    let put_all = async |round: usize| {
        let lanes = (0..4).map(|lane| {
            let store = Arc::clone(&store);
            async move {
                let mut longest = Duration::ZERO;
                for number in 0..PUTS {
                    let start = Instant::now();
                    let key = format!("results/{round}-{lane}-{number}");
                    let _ = store.put(&key, vec![7; 4_000].into(), PutOptions::default()).await.unwrap();
                    longest = longest.max(start.elapsed());
                }
                longest
            }
        });
        futures::future::join_all(lanes).await.into_iter().max().unwrap()
    };
    let reader = database(directory.path());
    reader.execute_batch("BEGIN; SELECT count(*) FROM objects").unwrap();
    let longest = put_all(0).await;
    let log = fs::metadata(directory.path().join("imgcls.sqlite3-wal")).unwrap().len();
    assert!(log > 16 << 20, "the reader did not prevent a restart of the log: {log} bytes");
    assert!(longest < Duration::from_secs(4), "a put took {longest:?}");

    reader.execute_batch("COMMIT").unwrap();
    let start = Instant::now();
    for round in 1.. {
        put_all(round).await;
        let sql = "PRAGMA wal_checkpoint(NOOP)";
        let pages: i64 = database(directory.path()).query_row(sql, [], |row| row.get(1)).unwrap();
        if pages < (12 << 20) / 4_096 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{pages} pages are still in the log");
    }
}

#[test]
fn files_are_private_and_existing_directory_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    // An earlier release left a file that others can read.
    fs::write(data.join("imgcls.sqlite3"), "").unwrap();
    fs::set_permissions(data.join("imgcls.sqlite3"), fs::Permissions::from_mode(0o644)).unwrap();
    let service = Service::start_in(directory, 0, &[], &[]);
    service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(mode(&data), 0o755);
    let mut seen = Vec::new();
    for path in tree(&data) {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        assert_eq!(mode(&path), if kind.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        seen.push((kind.is_file(), kind.is_socket(), kind.is_fifo()));
    }
    for kind in [(true, false, false), (false, true, false), (false, false, true)] {
        assert!(seen.contains(&kind), "no file, no socket or no FIFO was checked");
    }
    assert_eq!(service.web.log().matches("chmod 700").count(), 1, "{}", service.web.log());
}

#[test]
fn created_directory_is_private() {
    let service = Service::start(0, &[], &[]);
    assert_eq!(mode(&service.data_dir()), 0o700);
    assert!(!service.web.log().contains("chmod"));
}

/// A process that is stopped during a transaction holds the write lock like this.
#[test]
fn held_write_lock_fails_sends_within_seconds_and_blocks_no_shutdown() {
    let mut service = Service::start(1, &[], &[]);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    service.finished(&id);
    let holder = service.database();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();

    let start = Instant::now();
    let refused = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("Retry-After").is_some());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let read = Instant::now();
    assert_eq!(service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").status, 200);
    assert!(read.elapsed() < Duration::from_secs(2), "reads need no lock: {:?}", read.elapsed());
    let started = Instant::now();
    let status = imgcls().args(["data", "status", "--data-dir"]).arg(service.data_dir()).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "a read-only command needs no lock: {:?}", started.elapsed());

    for process in [&mut service.workers[0], &mut service.web] {
        let started = Instant::now();
        process.signal("TERM");
        process.wait();
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}; log:\n{}", started.elapsed(), process.log());
    }
}

#[test]
fn up_ends_in_time_despite_stopped_worker_and_held_write_lock() {
    let up = Up::start(&["--min-workers", "1"]);
    let database = database(&up.data_dir());
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    for worker in up.workers() {
        signal(worker, "STOP");
    }
    let started = Instant::now();
    signal(up.process.id(), "TERM");
    let mut up = up;
    up.process.wait().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}; log:\n{}", started.elapsed(), up.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_messages_are_skipped_at_once_and_removed_in_background() {
    const EXPIRED: i64 = 50_000;
    let directory = tempfile::tempdir().unwrap();
    let queue = create(&SqliteQueues::open(directory.path()).unwrap(), HOUR).await;
    let database = database(directory.path());
    let sql = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
               INSERT INTO messages (queue_id, visible_at_ms, receive_count, sent_at_ms, message_id, body)
               SELECT queues.id, n, 0, n, randomblob(16), 'old' FROM numbers, queues WHERE name = ?2";
    database.execute(sql, rusqlite::params![EXPIRED, QUEUE]).unwrap();
    let count = || database.query_row("SELECT count(*) FROM messages", [], |row| row.get::<_, i64>(0)).unwrap();
    let start = Instant::now();
    while count() > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} are left", count());
        let call = Instant::now();
        send(&*queue, "fresh").await;
        assert_eq!(queue.depth().await.unwrap().visible, 1, "expired messages do not count");
        let delivery = queue.receive(options(Duration::ZERO)).await.unwrap().remove(0);
        assert_eq!(delivery.body, "fresh");
        queue.ack(&[delivery.receipt]).await.unwrap();
        assert!(call.elapsed() < Duration::from_secs(2), "{:?}", call.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_step_neither_expires_nor_hides_messages() {
    for step in [5 * DAY, 2 * HOUR].map(|step| step.as_secs().cast_signed()).into_iter().chain([-3_600, -400 * 86_400])
    {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new());
        let open = || SqliteQueues::open_with(directory.path(), Arc::clone(&clock) as Arc<dyn Source>).unwrap();
        let queues = open();
        let queue = create(&queues, DAY).await;
        send(&*queue, "before").await;
        let taken = queue.receive(options(HOUR)).await.unwrap();
        assert_eq!(taken.len(), 1);
        clock.step(step);
        send(&*queue, "after").await;
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.visible, depth.in_flight), (1, 1), "{step}");
        // A process that starts now sees the same time.
        drop((queue, queues));
        let queue = open().open(QUEUE).await.unwrap();
        assert_eq!(queue.receive(options(HOUR)).await.unwrap()[0].body, "after", "{step}");
        clock.pass(HOUR + Duration::from_secs(60));
        assert_eq!(queue.receive(options(HOUR)).await.unwrap().len(), 2, "an hour is an hour: {step}");
        clock.pass(DAY);
        assert_eq!(queue.depth().await.unwrap().visible, 0, "a day is a day: {step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reboot_with_wrong_clock_ages_messages_by_a_day_at_most() {
    for step in [-400 * 86_400, 400 * 86_400] {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new());
        let open = || SqliteQueues::open_with(directory.path(), Arc::clone(&clock) as Arc<dyn Source>).unwrap();
        let queue = create(&open(), 2 * DAY).await;
        send(&*queue, "kept").await;
        drop(queue);
        clock.reboot();
        clock.step(step);
        let queue = open().open(QUEUE).await.unwrap();
        assert_eq!(queue.receive(options(Duration::ZERO)).await.unwrap().len(), 1, "{step}");
    }
}

/// The web tier runs before and after the clock step, the worker only after it.
#[test]
fn jobs_accepted_before_clock_step_finish_after_it() {
    for step in [5 * 86_400, -3_600] {
        let shim = Shim::new();
        let mut service = Service::start_on(&["--backend", "local"], shim.environment(), 0, &[], &[]);
        let before: Vec<String> = (0..5).map(|_| service.submit("cat.jpg", &test_image("cat.jpg"))).collect();
        shim.step(step);
        let after = service.submit("cat.jpg", &test_image("cat.jpg"));
        for id in &before {
            let job = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").json();
            assert_eq!(job["status"], "queued", "{job}");
        }
        service.add_worker();
        for id in before.iter().chain([&after]) {
            let job = service.finished(id);
            assert_eq!(job["status"], "succeeded", "{job}");
        }
    }
}

#[test]
fn messages_of_killed_worker_are_redelivered_before_visibility_timeout() {
    const JOBS: usize = 30;
    let up = Up::start(&["--min-workers", "1", "--max-workers", "1", "--visibility-timeout", "300s"]);
    let image = test_image("cat.jpg");
    let worker = up.workers()[0];
    signal(worker, "STOP");
    let ids: Vec<String> = (0..JOBS).map(|_| up.submit(&image)).collect();
    let database = database(&up.data_dir());
    let held = || {
        let sql = "SELECT count(*) FROM messages WHERE receive_count > 0 AND queue_id =
                   (SELECT queue_id FROM messages GROUP BY queue_id ORDER BY count(*) DESC LIMIT 1)";
        database.query_row(sql, [], |row| row.get::<_, usize>(0)).unwrap()
    };
    // The worker runs only for short intervals, so that it still holds the messages when they are counted.
    let killed = until("a worker that holds a message", || {
        signal(worker, "CONT");
        std::thread::sleep(Duration::from_millis(10));
        signal(worker, "STOP");
        Some(held()).filter(|held| *held > 0)
    });
    signal(worker, "KILL");
    for id in &ids {
        let job = up.finished(id);
        assert_eq!(job["status"], "succeeded", "{job}; the worker held {killed}; log:\n{}", up.log());
    }
}

#[test]
fn damaged_image_fails_at_once_and_alone() {
    let mut service = Service::start(0, &[], &[]);
    let damaged = service.submit("damaged.jpg", &test_image("cat.jpg"));
    let intact = service.submit("intact.jpg", &test_image("cat.jpg"));
    let (segment, offset): (String, u64) = service
        .database()
        .query_row("SELECT segment, offset FROM objects WHERE key = ?1", [format!("images/{damaged}")], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let path = service.data_dir().join("objects").join(segment);
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"damaged", offset + 100).unwrap();
    service.add_worker();
    let job = service.finished(&damaged);
    assert_eq!((&job["status"], &job["error"]["code"]), (&"failed".into(), &"internal".into()), "{job}");
    assert!(job["error"]["message"].as_str().unwrap().contains("damaged, send it again"), "{job}");
    assert_eq!(job["attempt"], 1, "{job}");
    assert_eq!(service.finished(&intact)["status"], "succeeded");
    let listed = queue_json(&service, &["dead"]);
    assert_eq!(listed["dead_letters"][0]["id"], damaged.as_str(), "{listed}");
}

#[test]
fn damaged_result_is_answered_with_an_error() {
    let service = Service::start(1, &[], &[]);
    let id = service.submit("cat.jpg", &test_image("cat.jpg"));
    service.finished(&id);
    let sql =
        "UPDATE objects SET body = CAST(replace(CAST(body AS TEXT), 'succeeded', 'succeedex') AS BLOB) WHERE key = ?1";
    assert_eq!(service.database().execute(sql, [format!("results/{id}.json")]).unwrap(), 1);
    let answer = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"");
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.json()["type"], "urn:imgcls:problem:damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_queue_for_more_attempts_raises_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let names = Names::local("test");
    let limit = async |max_receive_count| {
        let open = ServiceQueues::open_or_create(&queues, &names, HOUR, max_receive_count).await.unwrap();
        let Redrive { dead_letter_queue, max_receive_count } =
            open.requests.attributes().await.unwrap().redrive.unwrap();
        assert_eq!(dead_letter_queue, open.dead_letters.name());
        max_receive_count
    };
    let (for_one, for_twenty) = (limit(1).await, limit(20).await);
    assert!(for_one < for_twenty && for_twenty > 20, "{for_one} {for_twenty}");
    assert_eq!(limit(1).await, for_twenty, "another process may need as many");
}

/// After a failed sync the next one succeeds although the bytes of the first are lost.
#[test]
fn process_accepts_nothing_and_ends_after_a_failed_sync() {
    let shim = Shim::new();
    let mut service = Service::start_on(&["--backend", "local"], shim.environment(), 0, &[], &[]);
    service.submit("cat.jpg", &test_image("cat.jpg"));
    shim.fail_syncs();
    let refused = service.try_request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert!(refused.is_err() || refused.as_ref().is_ok_and(|response| response.status == 503), "{refused:?}");
    assert_eq!(service.web.wait(), Some(1), "{}", service.web.log());
    assert!(service.web.log().contains("cannot be synced to disk"), "{}", service.web.log());
}

#[test]
fn removed_data_directory_is_reported_and_accepts_nothing() {
    let service = Service::start(0, &[], &[]);
    service.submit("cat.jpg", &test_image("cat.jpg"));
    fs::remove_dir_all(service.data_dir()).unwrap();
    let refused = service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    let ready = until("an unready web tier", || {
        let ready = service.request("GET", "/readyz", &[], b"");
        (ready.status == 503).then_some(ready)
    });
    assert!(ready.text().contains("was removed"), "{}", ready.text());
    assert_eq!(service.web.log().matches(" ERROR ").count(), 1, "{}", service.web.log());
}

#[test]
fn restored_data_directory_is_used_again() {
    let service = Service::start(0, &[], &[]);
    let renamed = service.dir.path().join("renamed");
    fs::rename(service.data_dir(), &renamed).unwrap();
    let readiness = |status| {
        until("another readiness", || (service.request("GET", "/readyz", &[], b"").status == status).then_some(()));
    };
    readiness(503);
    let ticks = || cpu_ticks(service.web.id());
    let (before, since) = (ticks(), Instant::now());
    until("three seconds", || (since.elapsed() >= Duration::from_secs(3)).then_some(()));
    assert!(ticks() - before < 100, "it spins while the files are missing: {} ticks of 10 ms", ticks() - before);
    fs::rename(&renamed, service.data_dir()).unwrap();
    readiness(200);
    let objects = service.data_dir().join("objects");
    fs::rename(&objects, &renamed).unwrap();
    readiness(503);
    assert_eq!(service.request("POST", "/v1/jobs", &[], &test_image("cat.jpg")).status, 503);
    fs::rename(&renamed, &objects).unwrap();
    readiness(200);
    service.submit("cat.jpg", &test_image("cat.jpg"));
}

/// The CPU time of a process so far, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A wall clock and a time since boot that tests set, in microseconds.
struct TestClock {
    wall: AtomicI64,
    boot: AtomicI64,
    boots: AtomicI64,
}

impl TestClock {
    fn new() -> TestClock {
        TestClock { wall: 1_800_000_000_000_000.into(), boot: 5_000_000.into(), boots: 0.into() }
    }

    fn step(&self, seconds: i64) {
        self.wall.fetch_add(seconds * 1_000_000, Ordering::Relaxed);
    }

    fn pass(&self, time: Duration) {
        let micros = time.as_micros() as i64;
        self.wall.fetch_add(micros, Ordering::Relaxed);
        self.boot.fetch_add(micros, Ordering::Relaxed);
    }

    fn reboot(&self) {
        self.boots.fetch_add(1, Ordering::Relaxed);
        self.boot.store(1_000_000, Ordering::Relaxed);
    }
}

impl Source for TestClock {
    fn read(&self) -> Reading {
        Reading { wall_us: self.wall.load(Ordering::Relaxed), boot_us: self.boot.load(Ordering::Relaxed) }
    }

    fn boot_id(&self) -> String {
        self.boots.load(Ordering::Relaxed).to_string()
    }
}

/// A running `imgcls up` with its own directory.
struct Up {
    process: Child,
    address: std::net::SocketAddr,
    directory: tempfile::TempDir,
}

impl Up {
    fn start(arguments: &[&str]) -> Up {
        let directory = tempfile::tempdir().unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = imgcls();
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(directory.path().join("data"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("open http://").and_then(|rest| rest.strip_suffix('/'));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).parse().unwrap();
        Up { process, address, directory }
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn workers(&self) -> Vec<u32> {
        // The kernel lists a child under the thread that started it.
        let threads = fs::read_dir(format!("/proc/{}/task", self.process.id())).into_iter().flatten().flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        children
            .flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>())
            .collect()
    }

    fn submit(&self, image: &[u8]) -> String {
        let response = request(self.address, "POST", "/v1/jobs", &[], image).unwrap();
        assert_eq!(response.status, 202, "{}", response.text());
        response.json()["id"].as_str().unwrap().to_owned()
    }

    fn finished(&self, id: &str) -> Value {
        until(&format!("the outcome of {id}"), || {
            let job = request(self.address, "GET", &format!("/v1/jobs/{id}?wait=10"), &[], b"").unwrap().json();
            job["status"].as_str().is_some_and(|status| status != "queued").then_some(job)
        })
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        for worker in self.workers() {
            let _ = Command::new("kill").args(["-KILL", &worker.to_string()]).status();
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(done.success(), "cannot signal {pid}");
}

/// Runs `imgcls queue` and returns its JSON.
fn queue_json(service: &Service, arguments: &[&str]) -> Value {
    let mut command = imgcls();
    command.arg("queue").args(arguments).args(["--json", "--backend", "local", "--data-dir"]).arg(service.data_dir());
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn database(data_dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(data_dir.join("imgcls.sqlite3")).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

/// Returns every path below a directory.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], tree(&path)].concat() } else { vec![path] })
        .collect()
}

async fn create(queues: &SqliteQueues, retention: Duration) -> Arc<dyn Queue> {
    queues.create(QUEUE, &QueueAttributes { retention, ..QueueAttributes::default() }).await.unwrap()
}

async fn send(queue: &dyn Queue, body: &str) {
    queue.send(&[Outgoing::new(body)]).await.unwrap().remove(0).unwrap();
}

fn options(visibility_timeout: Duration) -> ReceiveOptions {
    ReceiveOptions { max: MAX_BATCH, wait: Duration::ZERO, visibility_timeout }
}
