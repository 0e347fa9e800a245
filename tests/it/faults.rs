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
const PICTURES: [&str; 5] = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];
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
/// As the project promises, of a process.
const TRIES_A_SECOND: usize = 2;
/// Less what a busy machine may delay one try more than the next.
const NEARLY_A_SECOND: Duration = Duration::from_millis(900);
/// What a worker with one session takes while it can fetch nothing.
const HELD: usize = 2;
const DRAINED_WITHIN: Duration = Duration::from_secs(10);
const WORKS_AGAIN_WITHIN: Duration = Duration::from_secs(5);

/// Two web tiers and some workers, each behind a door of its own, in the order in which they were started.
struct Fleet {
    stage: AwsFixture,
    emulator: &'static Emulator,
    proxy: FaultProxy,
    doors: Vec<Door>,
    webs: [SocketAddr; 2],
    service: Service,
}

impl Fleet {
    fn start(emulator: &'static Emulator, workers: usize, worker_flags: &[&str]) -> Fleet {
        let stage = AwsFixture::new(emulator);
        let proxy = FaultProxy::before(emulator.address, SEED);
        let doors: Vec<Door> = (0..2 + workers).map(|_| proxy.door()).collect();
        let worker_flags = [&["--admin-listen", "127.0.0.1:0"], worker_flags].concat();
        let mut service = stage.service_at(&doors[0].url, &[], &worker_flags);
        service.start_next_with(stage.environment_at(&doors[1].url));
        let webs = [service.address, service.add_web()];
        for door in &doors[2..] {
            service.start_next_with(stage.environment_at(&door.url));
            service.add_worker();
        }
        Fleet { stage, emulator, proxy, doors, webs, service }
    }

    /// `/readyz` of every process.
    fn readiness(&self) -> Vec<Response> {
        let workers = self.service.workers.iter().map(Process::admin_address);
        let addresses: Vec<SocketAddr> = self.webs.into_iter().chain(workers).collect();
        thread::scope(|scope| {
            let ask = |&address| scope.spawn(move || request(address, "GET", "/readyz", &[], b"").unwrap());
            let asked: Vec<_> = addresses.iter().map(ask).collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect()
        })
    }

    /// The job as a web tier reports it, once it has a result.
    fn ended(&self, web: usize, id: &str) -> Value {
        let path = format!("/v1/jobs/{id}?wait=10");
        until(&format!("the end of {id}"), || {
            let answer = request(self.webs[web], "GET", &path, &[], b"").unwrap();
            match answer.status {
                200 => Some(answer.json()).filter(|job| job["status"] != "queued"),
                503 => None,
                status => panic!("{id}: {status} {}", answer.text()),
            }
        })
    }

    /// Ids of the stored results, read from the emulator itself.
    fn stored_results(&self) -> BTreeSet<String> {
        let path = format!("/{}?list-type=2&prefix=results/&max-keys=1000", self.stage.name_of("out"));
        let listing = request(self.emulator.address, "GET", &path, &[], b"").unwrap().text();
        assert!(listing.contains("<IsTruncated>false</IsTruncated>"), "{listing}");
        let keys = listing.split("<Key>results/").skip(1).filter_map(|rest| rest.split_once(".json</Key>"));
        keys.map(|(id, _)| id.to_owned()).collect()
    }

    fn reply_queues(&self) -> usize {
        let depth = self.stage.queue_json(&["depth"]);
        depth["queues"].as_array().unwrap().iter().filter(|queue| queue["role"] == "replies").count()
    }

    /// Waits until no request is left; there must be no dead letter.
    fn until_nothing_is_left(&self) {
        until("empty queues", || {
            let depth = self.stage.queue_json(&["depth"]);
            let queues = depth["queues"].as_array().unwrap();
            let of = |role: &str| queues.iter().find(|queue| queue["role"] == role).unwrap();
            assert_eq!(of("dead_letters")["visible"], 0, "{depth}");
            let requests = of("requests");
            (requests["visible"] == 0 && requests["in_flight"] == 0).then_some(())
        });
    }
}

/// What the clients were told.
#[derive(Default)]
struct Told {
    /// Ids and the names and labels that they are for.
    accepted: Mutex<BTreeMap<String, (String, String)>>,
    answered: AtomicUsize,
    /// Refusals with 503, after which the client came again.
    refused: AtomicUsize,
}

impl Told {
    /// Asks for one picture, again whenever it is refused for the moment; that it comes is for the caller to wait for.
    fn ask(&self, web: SocketAddr, index: usize, pictures: &[(Vec<u8>, String)], waits: bool) {
        let (image, label) = &pictures[index % pictures.len()];
        let name = format!("{index}.jpg");
        let disposition = format!("attachment; filename=\"{name}\"");
        let path = if waits { "/v1/classify?wait=120" } else { "/v1/jobs" };
        loop {
            let answer = request(web, "POST", path, &[("Content-Disposition", &disposition)], image).unwrap();
            let Some(told) = self.read(&answer) else { continue };
            if waits {
                assert_eq!(answer.status, 200, "{told}");
                assert_eq!(told["filename"], name.as_str());
                assert_eq!(told["predictions"][0]["label"], label.as_str(), "{told}");
            } else {
                assert_eq!(answer.status, 202, "{told}");
            }
            let id = told["id"].as_str().unwrap().to_owned();
            let other = self.accepted.lock().unwrap().insert(id, (name, label.clone()));
            assert_eq!(other, None, "one id for two");
            self.answered.fetch_add(1, Ordering::AcqRel);
            return;
        }
    }

    /// `None` when the client has to retry. It has waited as long as the answer said.
    fn read(&self, answer: &Response) -> Option<Value> {
        if answer.status != 503 {
            return Some(answer.json());
        }
        self.refused.fetch_add(1, Ordering::AcqRel);
        let seconds = answer.header("retry-after").and_then(|text| text.parse().ok()).expect("when to come again");
        thread::sleep(Duration::from_secs(seconds));
        None
    }
}

fn pictures() -> Vec<(Vec<u8>, String)> {
    PICTURES.iter().map(|name| (test_image(name), label_of(name))).collect()
}

/// Every accepted id has its own result, the same at both web tiers and in the store.
fn expect_all_ended(fleet: &Fleet, told: &Told) {
    let accepted = told.accepted.lock().unwrap().clone();
    let next = AtomicUsize::new(0);
    let expected: Vec<_> = accepted.iter().collect();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let Some((id, (name, label))) = expected.get(next.fetch_add(1, Ordering::AcqRel)) {
                    let [job, same] = [0, 1].map(|web| fleet.ended(web, id));
                    assert_eq!(same, job, "two ends of one job");
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
    assert!(accepted.keys().all(|id| stored.contains(id)), "results that do not stand");
    // A request whose answer was lost each time is refused, and done all the same.
    let refused = told.refused.load(Ordering::Acquire);
    assert!(stored.len() <= accepted.len() + refused, "{} results, {refused} refused", stored.len());
}

#[test]
fn five_hundred_jobs_among_faults_are_each_answered_once() {
    let fleet = Fleet::start(ministack(), 2, &["--visibility-timeout", "5s", "--max-batch-size", "10"]);
    let (told, pictures, next) = (Told::default(), pictures(), AtomicUsize::new(0));
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
                    told.ask(fleet.webs[index % 2], index, &pictures, index % 4 < 3);
                }
            });
        }
    });
    let accepted = told.accepted.lock().unwrap().len();
    assert_eq!(accepted, JOBS);
    println!("{accepted} accepted after {:?}, {:?} refused", began.elapsed(), told.refused);
    expect_all_ended(&fleet, &told);
    println!("all ended after {:?}", began.elapsed());
    let operations =
        ["SendMessageBatch", "ReceiveMessage", "DeleteMessageBatch", "PutObject", "PutObjectOnce", "GetObject"];
    for operation in operations {
        let of = |fate| fleet.proxy.count(|call| call.operation == operation && call.disposition == fate);
        let counts = [Disposition::Passed, Disposition::Reset, Disposition::Refused, Disposition::AnswerLost].map(of);
        println!("{operation}: {counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{operation}: {counts:?}");
    }
}

#[test]
fn ten_seconds_without_sqs_and_s3_lose_nothing() {
    // The emulator goes on serving polls whose caller was cut off: what such a one takes comes again after this long.
    let fleet = Fleet::start(ministack(), 2, &["--visibility-timeout", "3s"]);
    let (told, pictures, next, is_over) = (Told::default(), pictures(), AtomicUsize::new(0), AtomicBool::new(false));
    let ask = |web: usize, waits| {
        let index = next.fetch_add(1, Ordering::AcqRel);
        told.ask(fleet.webs[web], index, &pictures, waits);
    };
    // Slow enough that the run is one of seconds, not of thousands of jobs.
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
        until("a service at work", || (told.answered.load(Ordering::Acquire) >= 40).then_some(()));
        let cut_at = fleet.proxy.follow(OUTAGE);
        until("/readyz of everybody to say so", || {
            let readiness = fleet.readiness();
            readiness.iter().all(is_one_line_of_why).then_some(())
        });
        // Asked for in the middle of it: refused for the moment, or answered later, but answered.
        for web in [0, 1] {
            scope.spawn(move || ask(web, true));
        }
        thread::sleep(OUTAGE_LASTS.saturating_sub(cut_at.elapsed()));
        let back_at = fleet.proxy.follow(Plan::default());
        // New pictures, sent at once: one to each web tier.
        let ask_now = |web| {
            ask(web, true);
            Instant::now()
        };
        for answered_at in [0, 1].map(|web| scope.spawn(move || ask_now(web))).map(|asked| asked.join().unwrap()) {
            let after = answered_at - back_at;
            println!("answered {after:?} after the outage");
            assert!(after < WORKS_AGAIN_WITHIN, "answered {after:?} after the outage");
        }
        until("/readyz of everybody", || fleet.readiness().iter().all(|ready| ready.status == 200).then_some(()));
        drop(over);
        (cut_at, back_at)
    });
    for door in &fleet.doors {
        expect_few_tries(&fleet.proxy, door, cut_at, back_at);
    }
    println!("{:?} accepted, {:?} refused", told.answered, told.refused);
    expect_all_ended(&fleet, &told);
}

/// However a scope ends, so that its threads do.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The web tier's is `application/problem+json`, the worker's plain text.
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
    // What was sent before the first had failed is not held against it but in the sum.
    let later: Vec<Duration> = tries.iter().copied().filter(|after| *after > Duration::from_secs(1)).collect();
    let crowded = later.windows(TRIES_A_SECOND + 1).find(|tries| tries[TRIES_A_SECOND] < tries[0] + NEARLY_A_SECOND);
    assert_eq!(crowded, None, "door {}: {tries:?}", door.number);
    let seconds = (back_at - cut_at).as_secs_f64();
    assert!(tries.len() as f64 <= TRIES_A_SECOND as f64 * seconds, "door {}: {tries:?}", door.number);
}

#[test]
fn drain_on_ministack_releases_held_messages() {
    a_drain_gives_back_what_is_held(ministack());
}

#[test]
fn drain_on_moto_releases_held_messages() {
    a_drain_gives_back_what_is_held(moto());
}

/// A web tier with a waiting caller, and a worker that cannot finish its messages.
fn a_drain_gives_back_what_is_held(emulator: &'static Emulator) {
    // A message that is not released is invisible for longer than this test waits.
    let mut fleet = Fleet::start(emulator, 1, &["--visibility-timeout", "10m"]);
    fleet.proxy.follow(Plan { stalled: &["GetObject"], ..Plan::default() });
    let (image, label) = (test_image("cat.jpg"), label_of("cat.jpg"));
    let mut ids: Vec<String> = (0..5).map(|index| fleet.service.submit(&format!("{index}.jpg"), &image)).collect();
    let worker = fleet.doors[2].number;
    let fetched = |call: &Call| call.door == worker && call.operation == "GetObject";
    until("a worker that holds all it can", || (fleet.proxy.count(fetched) >= HELD).then_some(()));
    let web = fleet.webs[1];
    let caller = thread::spawn(move || request(web, "POST", "/v1/classify?wait=60", &[], &image).unwrap());
    let sends =
        |call: &Call| call.door == 1 && call.operation == "SendMessageBatch" && call.disposition == Disposition::Passed;
    until("a caller that waits", || (fleet.proxy.count(sends) > 0).then_some(()));
    assert_eq!(fleet.reply_queues(), 2);

    let told_at = Instant::now();
    fleet.service.other_webs[0].signal("TERM");
    fleet.service.workers[0].signal("TERM");
    assert_eq!(fleet.service.other_webs[0].wait(), Some(0));
    assert_eq!(fleet.service.workers[0].wait(), Some(0));
    assert!(told_at.elapsed() < DRAINED_WITHIN, "{:?}", told_at.elapsed());
    let answer = caller.join().unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    ids.push(answer.json()["id"].as_str().unwrap().to_owned());
    assert_eq!(fleet.reply_queues(), 1, "the drained web tier's is deleted");

    fleet.proxy.follow(Plan::default());
    fleet.service.add_worker();
    for id in &ids {
        assert_eq!(fleet.ended(0, id)["predictions"][0]["label"], label.as_str(), "{id}");
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
    until("workers with something to say", || (fleet.proxy.count(at_work) >= 2).then_some(()));
    fleet.proxy.follow(OUTAGE);
    until("/readyz of everybody to say so", || fleet.readiness().iter().all(is_one_line_of_why).then_some(()));

    let told_at = Instant::now();
    let Service { web, other_webs, workers, .. } = &mut fleet.service;
    let mut everybody: Vec<&mut Process> = other_webs.iter_mut().chain(workers).collect();
    everybody.push(web);
    for process in &everybody {
        process.signal("TERM");
    }
    for process in everybody {
        assert_eq!(process.wait(), Some(0));
    }
    assert!(told_at.elapsed() < DRAINED_WITHIN, "{:?}", told_at.elapsed());

    fleet.proxy.follow(Plan::default());
    fleet.service.restart_web();
    fleet.service.add_worker();
    for id in &ids {
        assert_eq!(fleet.ended(0, id)["predictions"][0]["label"], label.as_str(), "{id}");
    }
    fleet.until_nothing_is_left();
}
