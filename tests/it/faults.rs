//! Two web tiers and two workers that reach SQS and S3 only through a fault proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::emulators::{Emulator, ministack, moto};
use crate::fault_proxy::{Call, Disposition, Door, FaultProxy, Plan};
use crate::harness::{Process, Response, Service, label_of, request, test_image, until};
use crate::legacy_tiers::AwsFixture;

const SEED: u64 = 3;
const JOBS: usize = 500;
const CLIENTS: usize = 32;
const IMAGES: [&str; 5] = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];
const BAD_DAY: Plan = Plan {
    latency: Duration::from_millis(300),
    resets: 0.05,
    refusals: 0.05,
    lost_answers: 0.05,
    stalled: &[],
    unreachable: false,
};
const OUTAGE: Plan =
    Plan { latency: Duration::ZERO, resets: 0.0, refusals: 0.0, lost_answers: 0.0, stalled: &[], unreachable: true };
const OUTAGE_LASTS: Duration = Duration::from_secs(10);
/// The largest number of calls that a process sends per second during an outage.
const TRIES_A_SECOND: usize = 2;
/// One second, less the time by which a busy machine may delay one try more than the next.
const NEARLY_A_SECOND: Duration = Duration::from_millis(900);
/// The number of messages that a worker with one session holds while it can fetch no image.
const HELD: usize = 2;
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
const WORKS_AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// Two web tiers and some workers. Each reaches AWS through its own door, in the order in which they were started.
struct Fleet {
    fixture: AwsFixture,
    emulator: &'static Emulator,
    proxy: FaultProxy,
    doors: Vec<Door>,
    webs: [SocketAddr; 2],
    service: Service,
}

impl Fleet {
    fn start(emulator: &'static Emulator, workers: usize, worker_flags: &[&str]) -> Fleet {
        let fixture = AwsFixture::new(emulator);
        let proxy = FaultProxy::before(emulator.address, SEED);
        let doors: Vec<Door> = (0..2 + workers).map(|_| proxy.door()).collect();
        let worker_flags = [&["--admin-listen", "127.0.0.1:0"], worker_flags].concat();
        let mut service = fixture.service_at(&doors[0].url, &[], &worker_flags);
        service.start_next_with(fixture.environment_at(&doors[1].url));
        let webs = [service.address, service.add_web()];
        for door in &doors[2..] {
            service.start_next_with(fixture.environment_at(&door.url));
            service.add_worker();
        }
        Fleet { fixture, emulator, proxy, doors, webs, service }
    }

    /// Requests `/readyz` of every process.
    fn readiness(&self) -> Vec<Response> {
        let workers = self.service.workers.iter().map(Process::admin_address);
        let addresses: Vec<SocketAddr> = self.webs.into_iter().chain(workers).collect();
        thread::scope(|scope| {
            let ask = |&address| scope.spawn(move || request(address, "GET", "/readyz", &[], b"").unwrap());
            let answers: Vec<_> = addresses.iter().map(ask).collect();
            answers.into_iter().map(|answer| answer.join().unwrap()).collect()
        })
    }

    /// Waits until a job has a result and returns the job as a web tier reports it.
    fn result_of(&self, web: usize, id: &str) -> Value {
        let path = format!("/v1/jobs/{id}?wait=10");
        until(&format!("the result of {id}"), || {
            let answer = request(self.webs[web], "GET", &path, &[], b"").unwrap();
            match answer.status {
                200 => Some(answer.json()).filter(|job| job["status"] != "queued"),
                503 => None,
                status => panic!("{id}: {status} {}", answer.text()),
            }
        })
    }

    /// Returns the ids of the stored results, read directly from the emulator.
    fn stored_results(&self) -> BTreeSet<String> {
        let path = format!("/{}?list-type=2&prefix=results/&max-keys=1000", self.fixture.name_of("out"));
        let listing = request(self.emulator.address, "GET", &path, &[], b"").unwrap().text();
        assert!(listing.contains("<IsTruncated>false</IsTruncated>"), "{listing}");
        let keys = listing.split("<Key>results/").skip(1).filter_map(|rest| rest.split_once(".json</Key>"));
        keys.map(|(id, _)| id.to_owned()).collect()
    }

    fn reply_queues(&self) -> usize {
        let depth = self.fixture.queue_json(&["depth"]);
        depth["queues"].as_array().unwrap().iter().filter(|queue| queue["role"] == "replies").count()
    }

    /// Waits until no request is left. Panics if there is a dead letter.
    fn until_nothing_is_left(&self) {
        until("empty queues", || {
            let depth = self.fixture.queue_json(&["depth"]);
            let queues = depth["queues"].as_array().unwrap();
            let of = |role: &str| queues.iter().find(|queue| queue["role"] == role).unwrap();
            assert_eq!(of("dead_letters")["visible"], 0, "{depth}");
            let requests = of("requests");
            (requests["visible"] == 0 && requests["in_flight"] == 0).then_some(())
        });
    }
}

/// The answers that the clients got.
#[derive(Default)]
struct Answers {
    /// The name and the label that belong to each accepted id.
    accepted: Mutex<BTreeMap<String, (String, String)>>,
    answered: AtomicUsize,
    /// Refusals with 503, after which the client retried.
    refused: AtomicUsize,
}

impl Answers {
    /// Submits one image, and retries while the answer is 503. Does not wait for the result unless `waits` is set.
    fn ask(&self, web: SocketAddr, index: usize, images: &[(Vec<u8>, String)], waits: bool) {
        let (image, label) = &images[index % images.len()];
        let name = format!("{index}.jpg");
        let disposition = format!("attachment; filename=\"{name}\"");
        let path = if waits { "/v1/classify?wait=120" } else { "/v1/jobs" };
        loop {
            let answer = request(web, "POST", path, &[("Content-Disposition", &disposition)], image).unwrap();
            let Some(job) = self.read(&answer) else { continue };
            if waits {
                assert_eq!(answer.status, 200, "{job}");
                assert_eq!(job["filename"], name.as_str());
                assert_eq!(job["predictions"][0]["label"], label.as_str(), "{job}");
            } else {
                assert_eq!(answer.status, 202, "{job}");
            }
            let id = job["id"].as_str().unwrap().to_owned();
            let other = self.accepted.lock().unwrap().insert(id, (name, label.clone()));
            assert_eq!(other, None, "two jobs got the same id");
            self.answered.fetch_add(1, Ordering::AcqRel);
            return;
        }
    }

    /// Returns `None` when the client has to retry, after it has waited for the time in `Retry-After`.
    fn read(&self, answer: &Response) -> Option<Value> {
        if answer.status != 503 {
            return Some(answer.json());
        }
        self.refused.fetch_add(1, Ordering::AcqRel);
        let seconds =
            answer.header("retry-after").and_then(|text| text.parse().ok()).expect("a Retry-After header in seconds");
        thread::sleep(Duration::from_secs(seconds));
        None
    }
}

fn images() -> Vec<(Vec<u8>, String)> {
    IMAGES.iter().map(|name| (test_image(name), label_of(name))).collect()
}

/// Checks that every accepted id has its own result, which is the same at both web tiers and in the store.
fn expect_all_completed(fleet: &Fleet, answers: &Answers) {
    let accepted = answers.accepted.lock().unwrap().clone();
    let next = AtomicUsize::new(0);
    let expected: Vec<_> = accepted.iter().collect();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let Some((id, (name, label))) = expected.get(next.fetch_add(1, Ordering::AcqRel)) {
                    let [job, same] = [0, 1].map(|web| fleet.result_of(web, id));
                    assert_eq!(same, job, "the web tiers report different results");
                    assert_eq!(
                        (&job["status"], &job["filename"]),
                        (&"succeeded".into(), &name.as_str().into()),
                        "{job}"
                    );
                    assert_eq!(job["predictions"][0]["label"], label.as_str(), "{id}: {job}");
                }
            });
        }
    });
    fleet.until_nothing_is_left();
    let stored = fleet.stored_results();
    assert!(accepted.keys().all(|id| stored.contains(id)), "results that are not stored");
    // A request that is refused because every answer was lost may have been stored, so it may have a result.
    let refused = answers.refused.load(Ordering::Acquire);
    assert!(stored.len() <= accepted.len() + refused, "{} results, {refused} refused", stored.len());
}

#[test]
fn five_hundred_jobs_among_faults_are_each_answered_once() {
    let fleet = Fleet::start(ministack(), 2, &["--visibility-timeout", "5s", "--max-batch-size", "10"]);
    let (answers, images, next) = (Answers::default(), images(), AtomicUsize::new(0));
    fleet.proxy.follow(BAD_DAY);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::AcqRel);
                    if index >= JOBS {
                        return;
                    }
                    answers.ask(fleet.webs[index % 2], index, &images, index % 4 < 3);
                }
            });
        }
    });
    let accepted = answers.accepted.lock().unwrap().len();
    assert_eq!(accepted, JOBS);
    println!("{accepted} accepted after {:?}, {:?} refused", began.elapsed(), answers.refused);
    expect_all_completed(&fleet, &answers);
    println!("all completed after {:?}", began.elapsed());
    let operations =
        ["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "PutObject", "PutObjectOnce", "GetObject"];
    for operation in operations {
        let of = |disposition| fleet.proxy.count(|call| call.operation == operation && call.disposition == disposition);
        let counts = [Disposition::Passed, Disposition::Reset, Disposition::Refused, Disposition::AnswerLost].map(of);
        println!("{operation}: {counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{operation}: {counts:?}");
    }
}

#[test]
fn ten_seconds_without_sqs_and_s3_lose_nothing() {
    // The emulator still serves polls whose caller was cut off. Their messages become visible after this timeout.
    let fleet = Fleet::start(ministack(), 2, &["--visibility-timeout", "3s"]);
    let (answers, images, next, is_over) = (Answers::default(), images(), AtomicUsize::new(0), AtomicBool::new(false));
    let ask = |web: usize, waits| {
        let index = next.fetch_add(1, Ordering::AcqRel);
        answers.ask(fleet.webs[web], index, &images, waits);
    };
    // The latency keeps the number of jobs small, because the run lasts for a fixed time.
    fleet.proxy.follow(Plan { latency: Duration::from_millis(50), ..Plan::default() });
    assert!(fleet.readiness().iter().all(|ready| ready.status == 200));
    let (cut_at, back_at) = thread::scope(|scope| {
        let over = SetAtEnd(&is_over);
        for client in 0..8 {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Acquire) {
                    ask(client / 2 % 2, client % 2 == 0);
                }
            });
        }
        until("the first answers", || (answers.answered.load(Ordering::Acquire) >= 40).then_some(()));
        let cut_at = fleet.proxy.follow(OUTAGE);
        until("/readyz of every process to report the outage", || {
            let readiness = fleet.readiness();
            readiness.iter().all(is_one_line_of_why).then_some(())
        });
        // These requests are sent during the outage. They may be refused or answered late, but they must be answered.
        for web in [0, 1] {
            scope.spawn(move || ask(web, true));
        }
        thread::sleep(OUTAGE_LASTS.saturating_sub(cut_at.elapsed()));
        let back_at = fleet.proxy.follow(Plan::default());
        // After the outage, one new image is sent to each web tier at once.
        let ask_now = |web| {
            ask(web, true);
            Instant::now()
        };
        for answered_at in [0, 1].map(|web| scope.spawn(move || ask_now(web))).map(|asked| asked.join().unwrap()) {
            let after = answered_at - back_at;
            println!("answered {after:?} after the outage");
            assert!(after < WORKS_AGAIN_WITHIN, "answered {after:?} after the outage");
        }
        until("/readyz of every process", || fleet.readiness().iter().all(|ready| ready.status == 200).then_some(()));
        drop(over);
        (cut_at, back_at)
    });
    for door in &fleet.doors {
        expect_few_tries(&fleet.proxy, door, cut_at, back_at);
    }
    println!("{:?} accepted, {:?} refused", answers.answered, answers.refused);
    expect_all_completed(&fleet, &answers);
}

/// Sets the flag when it is dropped, so that the threads of a scope end even if the scope panics.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The web tier answers with `application/problem+json`, the worker with plain text.
fn is_one_line_of_why(readiness: &Response) -> bool {
    let text = readiness.text();
    let why = serde_json::from_str(&text).map_or_else(|_| text.clone(), |problem: Value| problem["detail"].to_string());
    let names_it = ["queue \"", "bucket \"", "queue \\\"", "bucket \\\""].iter().any(|name| why.contains(name));
    readiness.status == 503 && names_it && why.trim_end().lines().count() == 1
}

fn expect_few_tries(proxy: &FaultProxy, door: &Door, cut_at: Instant, back_at: Instant) {
    let calls = proxy.calls();
    let tries: Vec<Duration> = calls
        .iter()
        .filter(|call| call.door == door.number && call.disposition == Disposition::Unreachable)
        .map(|call| call.at - cut_at)
        .collect();
    println!("door {}: {tries:?}", door.number);
    assert!(!tries.is_empty(), "door {} was not tried: no outage", door.number);
    // Calls that were sent before the first one failed count only towards the total.
    let later: Vec<Duration> = tries.iter().copied().filter(|after| *after > Duration::from_secs(1)).collect();
    let crowded = later.windows(TRIES_A_SECOND + 1).find(|tries| tries[TRIES_A_SECOND] < tries[0] + NEARLY_A_SECOND);
    assert_eq!(crowded, None, "door {}: {tries:?}", door.number);
    let seconds = (back_at - cut_at).as_secs_f64();
    assert!(tries.len() as f64 <= TRIES_A_SECOND as f64 * seconds, "door {}: {tries:?}", door.number);
}

#[test]
fn drain_on_ministack_releases_held_messages() {
    check_that_drain_releases_held_messages(ministack());
}

#[test]
fn drain_on_moto_releases_held_messages() {
    check_that_drain_releases_held_messages(moto());
}

/// Drains a web tier that has a waiting caller and a worker that cannot complete its messages.
fn check_that_drain_releases_held_messages(emulator: &'static Emulator) {
    // A message that is not released is invisible for longer than this test waits.
    let mut fleet = Fleet::start(emulator, 1, &["--visibility-timeout", "10m"]);
    fleet.proxy.follow(Plan { stalled: &["GetObject"], ..Plan::default() });
    let (image, label) = (test_image("cat.jpg"), label_of("cat.jpg"));
    let mut ids: Vec<String> = (0..5).map(|index| fleet.service.submit(&format!("{index}.jpg"), &image)).collect();
    let worker = fleet.doors[2].number;
    let fetched = |call: &Call| call.door == worker && call.operation == "GetObject";
    until("a worker that holds as much as it can", || (fleet.proxy.count(fetched) >= HELD).then_some(()));
    let web = fleet.webs[1];
    let caller = thread::spawn(move || request(web, "POST", "/v1/classify?wait=60", &[], &image).unwrap());
    let sends =
        |call: &Call| call.door == 1 && call.operation == "SendMessageBatch" && call.disposition == Disposition::Passed;
    until("the job of the waiting caller to be sent", || (fleet.proxy.count(sends) > 0).then_some(()));
    assert_eq!(fleet.reply_queues(), 2);

    let signalled_at = Instant::now();
    fleet.service.other_webs[0].signal("TERM");
    fleet.service.workers[0].signal("TERM");
    assert_eq!(fleet.service.other_webs[0].wait(), Some(0));
    assert_eq!(fleet.service.workers[0].wait(), Some(0));
    assert!(signalled_at.elapsed() < DRAINED_WITHIN, "{:?}", signalled_at.elapsed());
    let answer = caller.join().unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    assert_eq!(fleet.reply_queues(), 1, "the reply queue of the drained web tier is deleted");

    fleet.proxy.follow(Plan::default());
    fleet.service.add_worker();
    for id in &ids {
        assert_eq!(fleet.result_of(0, id)["predictions"][0]["label"], label.as_str(), "{id}");
    }
    fleet.until_nothing_is_left();
    assert_eq!(fleet.stored_results(), ids.into_iter().collect());
}

#[test]
fn drain_during_an_outage_ends_in_time() {
    let mut fleet = Fleet::start(ministack(), 2, &["--visibility-timeout", "5s"]);
    fleet.proxy.follow(Plan { stalled: &["PutObjectOnce"], ..Plan::default() });
    let (image, label) = (test_image("cat.jpg"), label_of("cat.jpg"));
    let ids: Vec<String> = (0..10).map(|index| fleet.service.submit(&format!("{index}.jpg"), &image)).collect();
    let at_work = |call: &Call| call.operation == "PutObjectOnce";
    until("workers that store results", || (fleet.proxy.count(at_work) >= 2).then_some(()));
    fleet.proxy.follow(OUTAGE);
    until("/readyz of every process to report the outage", || {
        fleet.readiness().iter().all(is_one_line_of_why).then_some(())
    });

    let signalled_at = Instant::now();
    let Service { web, other_webs, workers, .. } = &mut fleet.service;
    let mut processes: Vec<&mut Process> = other_webs.iter_mut().chain(workers).collect();
    processes.push(web);
    for process in &processes {
        process.signal("TERM");
    }
    for process in processes {
        assert_eq!(process.wait(), Some(0));
    }
    assert!(signalled_at.elapsed() < DRAINED_WITHIN, "{:?}", signalled_at.elapsed());

    fleet.proxy.follow(Plan::default());
    fleet.service.restart_web();
    fleet.service.add_worker();
    for id in &ids {
        assert_eq!(fleet.result_of(0, id)["predictions"][0]["label"], label.as_str(), "{id}");
    }
    fleet.until_nothing_is_left();
}
