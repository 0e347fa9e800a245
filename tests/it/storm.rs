//! The kill storm: workers and the web tier are killed with SIGKILL again and again while jobs go through. Every
//! accepted id ends in exactly one result, equal to that of a run without faults, and nothing is dead-lettered.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use imgcls::config::{Backend, Names};
use imgcls::transport;
use serde_json::Value;

use crate::harness::{Service, count_results, test_image, until};

const IMAGES: [&str; 5] = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];

struct Storm {
    jobs: usize,
    workers: usize,
    worker_kills: usize,
    web_kills: usize,
}

/// Returns 10,000 jobs and 200 kills for `scripts/test --long`, and a twentieth of that otherwise.
fn storm() -> Storm {
    if std::env::var_os("IMGCLS_TEST_LONG").is_some() {
        Storm { jobs: 10_000, workers: 4, worker_kills: 200, web_kills: 20 }
    } else {
        Storm { jobs: 500, workers: 2, worker_kills: 12, web_kills: 2 }
    }
}

#[test]
fn no_accepted_job_is_lost_or_answered_twice() {
    let storm = storm();
    let mut service = Service::start(storm.workers, &[], &["--visibility-timeout", "1s"]);
    let images: Vec<Vec<u8>> = IMAGES.iter().map(|name| test_image(name)).collect();
    let expected: Vec<Value> = images
        .iter()
        .map(|image| service.request("POST", "/v1/classify", &[], image).json()["predictions"].clone())
        .collect();
    let before = IMAGES.len();

    let accepted = Mutex::new(BTreeMap::new());
    let submitted = AtomicUsize::new(0);
    let all_submitted = AtomicBool::new(false);
    let (address, jobs) = (service.address, storm.jobs);
    thread::scope(|scope| {
        let submitters: Vec<_> =
            (0..4).map(|_| scope.spawn(|| submit(address, &images, jobs, &submitted, &accepted))).collect();
        scope.spawn(|| {
            for submitter in submitters {
                submitter.join().unwrap();
            }
            all_submitted.store(true, Ordering::Release);
        });
        kill(&mut service, &storm, &all_submitted);
    });

    let accepted = accepted.into_inner().unwrap();
    assert_eq!(accepted.len(), storm.jobs);
    for (id, image) in &accepted {
        let job = service.finished(id);
        assert_eq!(job["status"], "succeeded", "{job}");
        assert_eq!(job["predictions"], expected[*image], "{id} has the answer to another job");
    }
    let results = count_results(&service.database());
    // A web process may die after it has queued a job and before it has returned the id, so there may be more results.
    assert!(results >= before + storm.jobs, "{results} results");
    assert_eq!(depth_of_dead_letters(&service), 0);
}

/// Submits jobs until `jobs` of them are accepted. A request that a dying web process does not answer is repeated.
fn submit(
    address: std::net::SocketAddr,
    images: &[Vec<u8>],
    jobs: usize,
    submitted: &AtomicUsize,
    accepted: &Mutex<BTreeMap<String, usize>>,
) {
    loop {
        let at = submitted.fetch_add(1, Ordering::AcqRel);
        if at >= jobs {
            return;
        }
        let image = at % images.len();
        let id = until("a web tier that accepts", || {
            let response = crate::harness::request(address, "POST", "/v1/jobs", &[], &images[image]).ok()?;
            (response.status == 202).then(|| response.json()["id"].as_str().unwrap().to_owned())
        });
        assert!(accepted.lock().unwrap().insert(id, image).is_none(), "two jobs got the same id");
    }
}

/// Kills processes as results appear, so that the kills are spread over the run on a machine of any speed.
fn kill(service: &mut Service, storm: &Storm, all_submitted: &AtomicBool) {
    let file = service.database();
    let finished = || count_results(&file);
    let mut random = 0x9e37_79b9_u64;
    let mut web_kills = 0;
    for kill in 0..storm.worker_kills {
        let mark = storm.jobs * kill / storm.worker_kills;
        until("work to be done", || {
            (finished() >= mark || all_submitted.load(Ordering::Acquire) && finished() + 50 >= storm.jobs).then_some(())
        });
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = (random >> 33) as usize % service.workers.len();
        service.workers[victim].kill();
        let replacement = service.spawn_worker();
        service.workers[victim] = replacement;
        if kill % (storm.worker_kills / storm.web_kills) == 1 {
            service.restart_web();
            web_kills += 1;
        }
    }
    assert!(web_kills >= storm.web_kills, "{web_kills} web processes were killed");
}

fn depth_of_dead_letters(service: &Service) -> u64 {
    let backend = Backend::Local { data_dir: service.data_dir() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let queues = transport::open_queues(&backend).await.unwrap();
        let dead_letters = queues.open(&Names::local("imgcls").dead_letter_queue()).await.unwrap();
        dead_letters.depth().await.unwrap().visible
    })
}
