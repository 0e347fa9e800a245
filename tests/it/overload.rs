//! Overload: which callers are refused or admitted, and which jobs are dropped before inference.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, Response, Service, imgcls, metric, read_response, request, test_image, until};

const EXPECTED_WAIT: &str = "imgcls_web_expected_wait_seconds";
const SHED: &str = "imgcls_web_shed_total{reason=\"expected_wait\"}";
/// A refusal takes milliseconds. Even on a busy machine it must take much less than the seconds that the caller would
/// wait.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A running `imgcls up`. Its workers end with it.
struct Up {
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Up {
    fn start(flags: &[&str]) -> Up {
        let dir = tempfile::tempdir().unwrap();
        let mut command = imgcls();
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data")).args(flags);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("open http://").and_then(|rest| rest.strip_suffix('/')).unwrap();
        Up { process, address: address.parse().unwrap(), _dir: dir }
    }

    fn post(&self, path: &str, image: &[u8]) -> Response {
        request(self.address, "POST", path, &[], image).unwrap()
    }

    /// Stops or continues its workers.
    fn signal_workers(&self, signal: &str) {
        let parent = self.process.id().to_string();
        let pkill = std::process::Command::new("pkill").args([&format!("-{signal}"), "-P", &parent]).status().unwrap();
        assert!(pkill.success(), "no worker to send {signal} to");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Workers drain when their standard input closes. A stopped worker has to be continued first.
        let parent = self.process.id().to_string();
        let _ = std::process::Command::new("pkill").args(["-CONT", "-P", &parent]).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn assert_refused(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(response.json()["type"], "urn:imgcls:problem:full");
    let retry_after: u32 = response.header("retry-after").expect("a Retry-After").parse().unwrap();
    assert!((1..=60).contains(&retry_after), "{retry_after}");
}

/// Submits jobs, without waiting for them, until the expected wait of a new caller is this long.
fn fill_until_expected_wait(address: SocketAddr, image: &[u8], seconds: f64) {
    until("a queue that is deep enough", || {
        for _ in 0..20 {
            let response = request(address, "POST", "/v1/jobs", &[], image).unwrap();
            assert_eq!(response.status, 202, "{}", response.text());
        }
        (metric(address, EXPECTED_WAIT) >= seconds).then_some(())
    });
}

#[test]
fn caller_with_a_short_wait_is_refused_at_once_and_one_with_a_long_wait_is_served() {
    let up = Up::start(&["--min-workers", "1", "--max-workers", "1"]);
    let image = test_image("rocket.jpg");
    assert_eq!(up.post("/v1/classify", &image).status, 200);
    // A worker is ready now. Wait until its service time is measured.
    until("a measured service time", || {
        assert_eq!(up.post("/v1/classify", &image).status, 200);
        request(up.address, "POST", "/v1/jobs", &[], &image).unwrap();
        (metric(up.address, EXPECTED_WAIT) > 0.0).then_some(())
    });
    up.signal_workers("STOP");
    fill_until_expected_wait(up.address, &image, 4.0);

    let started = Instant::now();
    assert_refused(&up.post("/v1/classify?wait=3", &image));
    assert!(started.elapsed() < AT_ONCE, "refused after {:?}", started.elapsed());
    assert!((metric(up.address, SHED) - 1.0).abs() < 0.1);

    // The answer comes before the body: the client has sent only the head.
    let started = Instant::now();
    let mut early = TcpStream::connect(up.address).unwrap();
    early.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!("POST /v1/classify?wait=3 HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000000\r\n\r\n", up.address);
    early.write_all(head.as_bytes()).unwrap();
    assert_refused(&read_response(&mut BufReader::new(early)).unwrap());
    assert!(started.elapsed() < AT_ONCE, "refused after {:?}", started.elapsed());

    assert_eq!(
        request(up.address, "GET", "/readyz", &[], b"").unwrap().status,
        200,
        "a service that sheds load is ready"
    );
    let accepted_before = metric(up.address, "imgcls_web_waiting");
    thread::scope(|scope| {
        let long_wait = scope.spawn(|| up.post("/v1/classify?wait=120", &image));
        until("the caller with a long wait is waiting", || {
            (metric(up.address, "imgcls_web_waiting") > accepted_before).then_some(())
        });
        up.signal_workers("CONT");
        assert_eq!(long_wait.join().unwrap().status, 200);
    });
    until("callers are admitted again", || (up.post("/v1/classify?wait=3", &image).status == 200).then_some(()));
}

#[test]
fn every_caller_is_admitted_before_the_first_worker_is_ready() {
    let up = Up::start(&["--min-workers", "0", "--max-workers", "1"]);
    let image = test_image("rocket.jpg");
    thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| up.post("/v1/classify?wait=60", &image).status)).collect();
        assert!(callers.into_iter().all(|caller| caller.join().unwrap() == 200));
    });
}

#[test]
fn callers_of_a_web_tier_alone_are_refused_by_the_pace_of_its_replies() {
    let service = Service::start(1, &[], &[]);
    let image = test_image("rocket.jpg");
    let worker = &service.workers[0];
    // The worker first completes a backlog, so that its pace is measured. The backlog is submitted while the worker is
    // stopped: a fast worker would otherwise complete each job as it comes. Then it stops while another backlog grows.
    worker.signal("STOP");
    let ids: Vec<String> = (0..60).map(|_| service.submit("rocket.jpg", &image)).collect();
    worker.signal("CONT");
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    worker.signal("STOP");
    fill_until_expected_wait(service.address, &image, 4.0);

    let started = Instant::now();
    assert_refused(&service.request("POST", "/v1/classify?wait=3", &[], &image));
    assert!(started.elapsed() < AT_ONCE, "refused after {:?}", started.elapsed());
    thread::scope(|scope| {
        let long_wait = scope.spawn(|| service.request("POST", "/v1/classify?wait=120", &[], &image));
        until("the caller with a long wait is waiting", || {
            (metric(service.address, "imgcls_web_waiting") > 0.0).then_some(())
        });
        worker.signal("CONT");
        assert_eq!(long_wait.join().unwrap().status, 200);
    });
}

#[test]
fn full_queue_refuses_jobs_until_work_is_done() {
    let mut service = Service::start(0, &["--max-queue-depth", "3"], &[]);
    let image = test_image("rocket.jpg");
    let ids: Vec<String> = (0..3).map(|_| service.submit("rocket.jpg", &image)).collect();
    for path in ["/v1/jobs", "/v1/classify?wait=0", "/v1/classify?wait=60"] {
        assert_refused(&service.request("POST", path, &[], &image));
    }
    assert!((metric(service.address, "imgcls_web_shed_total{reason=\"queue_depth\"}") - 3.0).abs() < 0.1);
    assert_eq!(service.images().len(), 3, "no refused image was stored");
    service.add_worker();
    for id in &ids {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    let accepted = until("the queue accepts a job again", || {
        let response = service.request("POST", "/v1/jobs", &[], &image);
        (response.status == 202).then(|| response.json()["id"].as_str().unwrap().to_owned())
    });
    assert_eq!(service.finished(&accepted)["status"], "succeeded");
}

/// Sends a request and does not read the answer.
fn send(address: SocketAddr, path: &str, image: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", image.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(image).unwrap();
    stream
}

#[test]
fn job_of_a_client_that_left_is_classified_only_if_the_client_knew_its_id() {
    const LEFT: usize = 6;
    let mut service = Service::start(0, &[], &["--admin-listen", "127.0.0.1:0"]);
    let (image, large) = (test_image("rocket.jpg"), test_image("rgb.bmp"));
    let known = [
        service.submit("jobs.jpg", &image),
        service.request("POST", "/v1/classify?wait=0.1", &[], &image).json()["id"].as_str().unwrap().to_owned(),
    ];
    let paths = ["/v1/classify?wait=120", "/"];
    let clients: Vec<TcpStream> = (0..LEFT)
        .map(|index| send(service.address, paths[index % 2], if index < 3 { &image } else { &large }))
        .collect();
    until("all are stored and wait", || {
        let messages: usize =
            service.database().query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
        (messages == LEFT + known.len() && service.images().len() == messages).then_some(())
    });
    drop(clients);
    until("their jobs are withdrawn", || {
        let withdrawn = metric(service.address, "imgcls_web_withdrawals_total{outcome=\"withdrawn\"}");
        (withdrawn >= LEFT as f64).then_some(())
    });

    service.add_worker();
    for id in &known {
        assert_eq!(service.finished(id)["status"], "succeeded");
    }
    let admin = service.workers[0].admin_address();
    let ended = |outcome: &str| metric(admin, &format!("imgcls_worker_endings_total{{ending=\"{outcome}\"}}")) as usize;
    until("all messages are done", || (ended("withdrawn") + ended("succeeded") >= LEFT + known.len()).then_some(()));
    assert_eq!((ended("withdrawn"), ended("succeeded"), ended("failed")), (LEFT, known.len(), 0));
    let mut kept: Vec<String> = known.iter().map(|id| format!("images/{id}")).collect();
    kept.sort();
    assert_eq!(service.images(), kept, "neither image nor marker of a withdrawn job is left");
    assert_eq!(crate::harness::count_results(&service.database()), known.len());
    assert!(!service.workers[0].log().contains("ended without an answer"), "{}", service.workers[0].log());
}

#[test]
fn clients_that_leave_at_any_moment_harm_no_other_client() {
    const ROUNDS: u64 = 40;
    let service = Service::start(1, &[], &["--admin-listen", "127.0.0.1:0"]);
    let image = test_image("rocket.jpg");
    let label = crate::harness::label_of("rocket.jpg");
    let known: Vec<String> = thread::scope(|scope| {
        let leaving = (0..2).map(|lane| {
            let (service, image) = (&service, &image);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let client = send(service.address, "/v1/classify?wait=60", image);
                    // The client leaves before its job is stored, while it waits, during inference, or at the answer.
                    thread::sleep(Duration::from_millis((round * 7 + lane * 3) % 60));
                    drop(client);
                }
            })
        });
        let leaving: Vec<_> = leaving.collect();
        let known = (0..ROUNDS).map(|_| {
            let answer = service.request("POST", "/v1/classify?wait=60", &[], &image).json();
            assert_eq!(answer["predictions"][0]["label"], label.as_str(), "{answer}");
            [answer["id"].as_str().unwrap().to_owned(), service.submit("rocket.jpg", &image)]
        });
        let known = known.flatten().collect();
        for lane in leaving {
            lane.join().unwrap();
        }
        known
    });
    for id in &known {
        let job = service.finished(id);
        assert_eq!(job["predictions"][0]["label"], label.as_str(), "{job}");
    }
    let admin = service.workers[0].admin_address();
    until("an empty queue", || {
        let left: usize = service.database().query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
        (left == 0).then_some(())
    });
    assert!(metric(admin, "imgcls_worker_endings_total{ending=\"failed\"}").abs() < 0.1);
    let database = service.database();
    let kept = service.images();
    assert!(kept.len() >= known.len());
    for key in kept {
        // A job that was not withdrawn has a result. Of a withdrawn job nothing is left.
        let id = key.strip_prefix("images/").unwrap();
        assert!(crate::harness::result_text(&database, id).contains(&label), "{id}");
    }
}

#[test]
fn one_connection_is_reserved_for_refusals_when_all_others_wait() {
    let service = Service::start(0, &["--max-connections", "64"], &[]);
    let image = test_image("rgb.png");
    let waiting: Vec<TcpStream> = (0..63).map(|_| send(service.address, "/v1/classify?wait=120", &image)).collect();
    until("all but one connection wait", || {
        (metric(service.address, "imgcls_web_waiting") >= waiting.len() as f64).then_some(())
    });
    // The previous connection may still hold the last permit. The refusal then has another reason.
    let refused = until("a refusal for lack of connections", || {
        let refused = service.request("POST", "/v1/classify?wait=120", &[], &image);
        assert_eq!(refused.status, 503, "{}", refused.text());
        (metric(service.address, "imgcls_web_shed_total{reason=\"connections\"}") > 0.9).then_some(refused)
    });
    assert_refused(&refused);
    assert_eq!(refused.header("connection"), Some("close"));
    until("a caller that does not wait is admitted", || {
        (service.request("POST", "/v1/jobs", &[], &image).status == 202).then_some(())
    });
}
