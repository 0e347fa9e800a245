//! `autoscale` on NATS: worker processes on this machine follow the depth of the queue, through restarts of the server and
//! kills of processes.

use std::fs;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::elastic::slow_image;
use crate::harness::{Process, Service, imgcls, label_of, test_image, until};
use crate::nats;
use crate::nats_server::{NatsServer, shared};
use crate::up::children;

const IMAGES: usize = 20;

/// A running `imgcls autoscale`.
struct Autoscale {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Autoscale {
    fn start(url: &str, stack: &str, flags: &[&str]) -> Autoscale {
        let folder = tempfile::tempdir().unwrap();
        let mut command = imgcls();
        command.args(["autoscale", "--backend", "nats", "--stack", stack]).args(flags);
        command.env("IMGCLS_NATS_URL", url);
        let process = Process::start(command, &folder.path().join("autoscale.log"));
        process.wait_for_log("policy=");
        Autoscale { process, _folder: folder }
    }

    fn workers(&self) -> Vec<Pid> {
        children(Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap())
    }

    fn wait_for_workers(&self, count: usize) -> Vec<Pid> {
        until(&format!("{count} workers"), || Some(self.workers()).filter(|workers| workers.len() == count))
    }
}

fn submit_all(service: &Service) -> Vec<String> {
    let image = slow_image();
    (0..IMAGES).map(|index| service.submit(&format!("{index}.png"), &image)).collect()
}

#[test]
fn workers_start_from_zero_by_the_depth_of_nats_and_end_again() {
    let server = NatsServer::start("authorization { user: ann, password: s3cret }");
    let (url, stack) = (format!("nats://ann:s3cret@{}", server.address()), nats::new_stack());
    let service = nats::service(&url, &stack, 0, &[]);
    let bounds = ["--min-workers", "0", "--max-workers", "2"];
    let policy = ["--scale-out-above", "2", "--scale-out-period", "0s", "--scale-in-period", "1s"];
    let mut autoscale = Autoscale::start(&url, &stack, &[&bounds[..], &policy[..]].concat());
    assert_eq!(autoscale.workers(), []);

    // A fast machine finishes any fixed number of images before the second worker is wanted.
    let (image, mut ids) = (slow_image(), Vec::new());
    let workers = until("two workers while images come faster than one decodes them", || {
        ids.push(service.submit("slow.png", &image));
        Some(autoscale.workers()).filter(|workers| workers.len() == 2)
    });
    for worker in workers {
        let line = fs::read(format!("/proc/{}/cmdline", worker.as_raw_nonzero())).unwrap();
        let line = String::from_utf8_lossy(&line);
        assert!(line.contains("--backend=nats") && !line.contains("s3cret"), "{line}");
    }
    for id in &ids {
        let job = service.finished(id);
        // A second attempt means that the worker of the image was removed.
        assert_eq!((job["status"].as_str(), job["attempt"].as_u64()), (Some("succeeded"), Some(1)), "{id}: {job}");
    }
    autoscale.wait_for_workers(0);

    let again = service.submit("cat.jpg", &test_image("cat.jpg"));
    assert_eq!(service.finished(&again)["predictions"][0]["label"], label_of("cat.jpg").as_str());
    autoscale.wait_for_workers(0);
    autoscale.process.signal("TERM");
    assert_eq!(autoscale.process.wait(), Some(0));
    let log = autoscale.process.log();
    assert!(log.contains("drained") && !log.contains("s3cret"), "{log}");
}

#[test]
fn no_worker_is_removed_while_nats_is_away_and_a_killed_one_is_replaced_afterwards() {
    let mut server = NatsServer::start("");
    let (url, stack) = (server.url(), nats::new_stack());
    let service = nats::service(&url, &stack, 0, &["--visibility-timeout", "2s"]);
    let flags = ["--min-workers", "0", "--max-workers", "1", "--scale-in-period", "0s", "--visibility-timeout", "2s"];
    let mut autoscale = Autoscale::start(&url, &stack, &flags);
    let mut ids = submit_all(&service);
    // It is ready.
    service.finished(&ids.remove(0));
    let workers = autoscale.wait_for_workers(1);

    server.kill();
    autoscale.process.wait_for_log("cannot read the queue: no worker is taken away");
    // The last reading is then too old to count.
    autoscale.process.wait_for_log("no connection to NATS");
    assert_eq!(autoscale.workers(), workers);
    kill_process(workers[0], Signal::KILL).unwrap();
    autoscale.process.wait_for_log("a worker died; restarting it");
    autoscale.process.wait_for_log("a worker failed to start; restarting it");

    server.restart();
    autoscale.process.wait_for_log("the queue can be read again");
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded", "{id}");
    }
    autoscale.wait_for_workers(0);
    autoscale.process.signal("TERM");
    assert_eq!(autoscale.process.wait(), Some(0));
}

#[test]
fn sigterm_ends_autoscale_and_its_workers_while_nats_is_away() {
    let mut server = NatsServer::start("");
    let mut autoscale = Autoscale::start(&server.url(), &nats::new_stack(), &["--min-workers", "2"]);
    let workers = autoscale.wait_for_workers(2);
    until("both are ready", || (autoscale.process.log().matches("ready").count() > 2).then_some(()));
    server.kill();
    autoscale.process.wait_for_log("cannot read the queue");
    autoscale.process.signal("TERM");
    assert_eq!(autoscale.process.wait(), Some(0));
    assert!(workers.iter().all(|worker| test_kill_process(*worker).is_err()), "{}", autoscale.process.log());
}

#[test]
fn workers_end_when_autoscale_is_killed_and_lose_no_image() {
    let (url, stack) = (shared().url(), nats::new_stack());
    let service = nats::service(&url, &stack, 0, &[]);
    let flags = ["--min-workers", "2"];
    let mut first = Autoscale::start(&url, &stack, &flags);
    let ids = submit_all(&service);
    service.finished(&ids[0]);
    let workers = first.wait_for_workers(2);
    first.process.kill();
    until("the workers have ended", || workers.iter().all(|pid| test_kill_process(*pid).is_err()).then_some(()));
    // Draining workers have released the images that they held.
    let _second = Autoscale::start(&url, &stack, &flags);
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded", "{id}");
    }
}
