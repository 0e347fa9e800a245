//! Two web tiers and two workers on emulated SQS and S3, while one of each is killed.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::emulators::ministack;
use crate::harness::{label_of, request, test_image, until};
use crate::legacy_tiers::AwsFixture;

const IMAGES: usize = 1_000;
/// Number of images that share one file name.
const SAME_NAME: usize = 100;
const CLIENTS: usize = 16;
const IMAGE_NAMES: [&str; 5] = ["rocket.jpg", "cup.jpg", "cat.jpg", "rgb.png", "lossy.webp"];
/// Numbers of answers after which a worker and a web tier are killed.
const WORKER_DIES_AT: usize = 300;
const WEB_DIES_AT: usize = 500;

#[test]
fn every_remaining_caller_gets_its_own_answer_when_tiers_are_killed() {
    let fixture = AwsFixture::new(ministack());
    let mut service = fixture.service_with(2, &[], &["--visibility-timeout", "5s"]);
    let webs = [service.address, service.add_web()];
    let clients = Clients {
        webs,
        images: IMAGE_NAMES.map(|name| (test_image(name), label_of(name))),
        next: AtomicUsize::new(0),
        answered: AtomicUsize::new(0),
        cut_off: AtomicUsize::new(0),
        both_live: AtomicBool::new(true),
        accepted: Mutex::default(),
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| clients.send_until_all_are_sent());
        }
        let answered = |count| clients.answered.load(Ordering::Acquire) >= count;
        until("answers before a worker dies", || answered(WORKER_DIES_AT).then_some(()));
        service.workers[0].kill();
        until("answers before a web tier dies", || answered(WEB_DIES_AT).then_some(()));
        service.other_webs[0].kill();
    });
    // At most one request of each client was in flight to the web tier that was killed.
    let cut_off = clients.cut_off.load(Ordering::Acquire);
    assert!((1..=CLIENTS).contains(&cut_off), "{cut_off} callers were cut off");
    let accepted = clients.accepted.into_inner().unwrap();
    assert!(accepted.len() > IMAGES / 5, "{} ids", accepted.len());
    for (id, label) in &accepted {
        let job = service.finished(id);
        assert_eq!(job["predictions"][0]["label"], label.as_str(), "{id}: {job}");
    }
    let depth = fixture.queue_json(&["depth"]);
    let dead_letters = depth["queues"].as_array().unwrap().iter().find(|queue| queue["role"] == "dead_letters");
    assert_eq!(dead_letters.unwrap()["visible"], 0, "{depth}");
}

/// The state that the concurrent clients share. Each client takes the next image, and alternates between the web tiers
/// while both live.
struct Clients {
    webs: [SocketAddr; 2],
    /// The images and their labels.
    images: [(Vec<u8>, String); 5],
    next: AtomicUsize,
    answered: AtomicUsize,
    cut_off: AtomicUsize,
    both_live: AtomicBool,
    /// Accepted ids, each with its expected label.
    accepted: Mutex<Vec<(String, String)>>,
}

impl Clients {
    fn send_until_all_are_sent(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::AcqRel);
            if index >= IMAGES {
                return;
            }
            let second = index % 2 == 1 && self.both_live.load(Ordering::Acquire);
            if !self.send(self.webs[usize::from(second)], index) {
                assert!(second, "the surviving web tier cut a caller off");
                self.both_live.store(false, Ordering::Release);
                self.cut_off.fetch_add(1, Ordering::AcqRel);
                assert!(self.send(self.webs[0], index), "the surviving web tier cut a caller off");
            }
        }
    }

    /// Sends an image and checks the answer. Returns false if the web tier died before it answered.
    fn send(&self, web: SocketAddr, index: usize) -> bool {
        let (image, label) = &self.images[index % self.images.len()];
        let name = if index < SAME_NAME { "one name.jpg".to_owned() } else { format!("{index}.jpg") };
        let disposition = format!("attachment; filename=\"{name}\"");
        let headers = [("Content-Disposition", disposition.as_str())];
        let waits = index % 4 < 3;
        let path = if waits { "/v1/classify?wait=120" } else { "/v1/jobs" };
        let Ok(response) = request(web, "POST", path, &headers, image) else { return false };
        let answer = response.json();
        if waits {
            assert_eq!(response.status, 200, "{answer}");
            assert_eq!(
                (answer["filename"].as_str(), answer["predictions"][0]["label"].as_str()),
                (Some(&*name), Some(&**label))
            );
        } else {
            assert_eq!(response.status, 202, "{answer}");
            self.accepted.lock().unwrap().push((answer["id"].as_str().unwrap().to_owned(), label.clone()));
        }
        self.answered.fetch_add(1, Ordering::AcqRel);
        true
    }
}
