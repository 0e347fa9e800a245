//! Slow, silent and greedy clients: each takes only a bounded share of the resources, and others are still served.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    DEADLINE, Process, Response, Service, free_port, imgcls, metric, metrics, read_response, request, test_image, until,
};

/// Opens a connection and sends some bytes.
fn begin(address: SocketAddr, text: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(text).unwrap();
    stream
}

/// Opens a connection and sends the head of an upload and its first bytes.
fn begin_upload(address: SocketAddr, announced: usize, bytes: &[u8]) -> TcpStream {
    let head = format!("POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\n");
    begin(address, &[head.as_bytes(), bytes].concat())
}

fn answer(stream: TcpStream) -> Response {
    read_response(&mut BufReader::new(stream)).unwrap()
}

/// Returns bytes that begin like a JPEG, which is all that the web tier checks.
fn image_of(bytes: usize) -> Vec<u8> {
    let mut image = vec![0x55; bytes];
    image[..3].copy_from_slice(b"\xff\xd8\xff");
    image
}

#[test]
fn uploads_reserve_memory_for_arrived_bytes_and_not_for_the_announced_length() {
    let service = Service::start(0, &["--max-buffered-bytes", "2MiB"], &[]);
    // The announced lengths add up to sixteen times the budget.
    let _silent: Vec<TcpStream> = (0..16).map(|_| begin_upload(service.address, 2_000_000, b"\xff\xd8\xff")).collect();
    for _ in 0..5 {
        assert_eq!(service.request("POST", "/v1/jobs", &[], &image_of(1_000_000)).status, 202);
    }
}

#[test]
fn newest_upload_is_refused_when_the_memory_is_full() {
    let service = Service::start(0, &["--max-buffered-bytes", "1MiB"], &[]);
    let image = image_of(900_000);
    let mut old = begin_upload(service.address, image.len(), &image[..300_000]);
    let wait_for_memory_use = |bytes: f64| {
        until("what was sent", || (metric(service.address, "imgcls_web_upload_memory_bytes") >= bytes).then_some(()));
    };
    wait_for_memory_use(300_000.0);
    let new = begin_upload(service.address, image.len(), &image[..200_000]);
    wait_for_memory_use(500_000.0);
    old.write_all(&image[300_000..]).unwrap();
    let refused = answer(new);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert_eq!(answer(old).status, 202, "the older one is not refused");
}

#[test]
fn upload_slower_than_a_kibibyte_per_second_is_refused() {
    assert_slow_upload_is_refused(b"\xff\xd8\xff", &[0; 100]);
}

/// Bytes that arrived fast give no extra time to a client that is slow afterwards.
#[test]
fn upload_that_stops_after_a_fast_start_is_refused() {
    assert_slow_upload_is_refused(&image_of(900_000), &[0]);
}

/// Sends the beginning of an upload at once, and then `piece` every half second.
fn assert_slow_upload_is_refused(beginning: &[u8], piece: &'static [u8]) {
    let service = Service::start(0, &[], &[]);
    let mut slow = begin_upload(service.address, 1_000_000, beginning);
    let mut reader = slow.try_clone().unwrap();
    let sending = thread::spawn(move || {
        while slow.write_all(piece).is_ok() {
            thread::sleep(Duration::from_millis(500));
        }
    });
    let began = Instant::now();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(reader);
    sending.join().unwrap();
}

/// The body of an answer may contain any bytes and is sent unchanged.
#[test]
fn image_that_ends_like_an_http_answer_is_sent_unchanged() {
    let service = Service::start(0, &[], &[]);
    let like_an_answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    for pieces in 1..=2 {
        let image = [image_of(pieces * (128 << 10)).as_slice(), like_an_answer].concat();
        let id = service.submit("odd.jpg", &image);
        let ask = format!("GET /v1/jobs/{id}/image HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut all = Vec::new();
        begin(service.address, ask.as_bytes()).read_to_end(&mut all).unwrap();
        assert!(
            all.ends_with(&image),
            "{pieces}: the last bytes are {:?}",
            String::from_utf8_lossy(&all[all.len() - 300..])
        );
    }
}

#[test]
fn caller_that_waits_for_its_answer_holds_no_upload_memory() {
    let service = Service::start(0, &["--max-buffered-bytes", "1MiB"], &[]);
    let address = service.address;
    let waiting =
        thread::spawn(move || request(address, "POST", "/v1/classify?wait=20", &[], &image_of(900_000)).unwrap());
    until("the first image", || service.images().pop());
    let first_ended = until("memory for the second", || {
        let answer = service.request("POST", "/v1/jobs", &[], &image_of(900_000));
        (answer.status == 202).then(|| waiting.is_finished())
    });
    assert!(!first_ended, "the first caller does not wait any more");
    assert_eq!(waiting.join().unwrap().status, 202);
}

#[test]
fn clients_that_do_not_read_an_image_take_little_memory_and_are_cut_off() {
    let service = Service::start(0, &["--write-timeout", "2s"], &[]);
    let image = image_of(12 << 20);
    let id = service.submit("large.jpg", &image);
    let path = format!("/v1/jobs/{id}/image");
    let read = service.request("GET", &path, &[], b"");
    assert!(read.body == image, "{} bytes of {}", read.body.len(), image.len());
    let before = service.web.peak_memory_bytes();
    let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _unread: Vec<TcpStream> = (0..60).map(|_| begin(service.address, ask.as_bytes())).collect();
    until("all of them to be cut off", || {
        let closed = metric(service.address, "imgcls_web_connections_closed_total{reason=\"write_timeout\"}");
        (closed >= 60.0).then_some(())
    });
    let more = service.web.peak_memory_bytes() - before;
    assert!(more < 100 << 20, "{more} bytes for 60 clients");
    assert!(service.request("GET", &path, &[], b"").body == image, "others are served");
}

#[test]
fn silent_connections_are_closed_for_those_with_a_request() {
    let service = Service::start(0, &["--max-connections", "32"], &[]);
    let began = Instant::now();
    // Half of the connections send nothing, the others half a head.
    let half: &[u8] = b"GET / HTTP/1.1\r\nHost: ";
    let silent: Vec<TcpStream> =
        (0..100).map(|at| begin(service.address, if at % 2 == 0 { b"" } else { half })).collect();
    assert_eq!(service.request("GET", "/healthz", &[], b"").status, 200);
    until("an upload", || {
        let answer = service.try_request("POST", "/v1/jobs", &[], &test_image("cup.jpg")).ok()?;
        (answer.status == 202).then_some(())
    });
    // The idle timeout is a minute.
    until("the silent ones to be closed", || {
        let open = metric(service.address, "imgcls_web_connections");
        (open < 32.0).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(silent);
}

#[test]
fn service_full_of_requests_answers_health_checks() {
    let service = Service::start(0, &["--max-connections", "4"], &[]);
    let id = service.submit("a.jpg", &test_image("cup.jpg"));
    let wait = format!("GET /v1/jobs/{id}?wait=600 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let waiting: Vec<TcpStream> = (0..4).map(|_| begin(service.address, wait.as_bytes())).collect();
    until("all permits to be taken", || {
        let answer = service.request("GET", &format!("/v1/jobs/{id}"), &[], b"");
        (answer.status == 503).then(|| {
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert_eq!(answer.header("connection"), Some("close"));
        })
    });
    for _ in 0..100 {
        assert_eq!(service.request("GET", "/healthz", &[], b"").status, 200);
        assert_eq!(service.request("GET", "/readyz", &[], b"").status, 200);
    }
    drop(waiting);
    until("a free permit", || {
        (service.request("GET", &format!("/v1/jobs/{id}"), &[], b"").status == 200).then_some(())
    });
}

#[test]
fn client_behind_a_trusted_proxy_has_its_own_limit() {
    let flags = ["--trusted-proxy", "127.0.0.0/8", "--max-connections-per-address", "2"];
    let service = Service::start(0, &flags, &[]);
    let id = service.submit("a.jpg", &test_image("cup.jpg"));
    let path = format!("/v1/jobs/{id}");
    let get = |client: &str| service.request("GET", &path, &[("X-Forwarded-For", client)], b"").status;
    let wait =
        format!("GET {path}?wait=600 HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n\r\n");
    let _waiting: Vec<TcpStream> = (0..2).map(|_| begin(service.address, wait.as_bytes())).collect();
    until("its limit", || (get("192.0.2.1") == 503).then_some(()));
    assert_eq!(get("203.0.113.9, 192.0.2.1"), 503, "addresses before the last one may be forged");
    assert_eq!(get("192.0.2.1, 192.0.2.2"), 200, "another client");
    assert_eq!(get("127.0.0.1"), 200, "this machine");
    assert_eq!(service.request("GET", &path, &[], b"").status, 200, "the proxy names no client");
}

/// Starts a web tier with a limit of open files, given as arguments of `ulimit`.
fn start_under_limit(dir: &tempfile::TempDir, limit: &str) -> (Process, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = std::process::Command::new("sh");
    let program = imgcls().get_program().to_owned();
    command.arg("-c").arg(format!("ulimit {limit} && exec \"$0\" \"$@\"")).arg(program);
    command.args(["serve-web", "--backend", "local", "--listen", &address.to_string(), "--data-dir"]);
    command.arg(dir.path().join("data"));
    let process = Process::start(command, &dir.path().join("web.log"));
    until("the web tier", || request(address, "GET", "/healthz", &[], b"").ok().filter(|answer| answer.status == 200));
    (process, address)
}

#[test]
fn soft_limit_of_open_files_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let (web, _) = start_under_limit(&dir, "-Sn 100");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", web.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(soft > 100, "{line}");
}

#[test]
fn connections_never_exhaust_the_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let (web, address) = start_under_limit(&dir, "-n 320");
    let _silent: Vec<TcpStream> = (0..330).map(|_| begin(address, b"")).collect();
    for _ in 0..10 {
        assert_eq!(request(address, "GET", "/healthz", &[], b"").unwrap().status, 200);
        assert_eq!(request(address, "GET", "/readyz", &[], b"").unwrap().status, 200);
    }
    assert!(!web.log().contains("cannot accept"), "{}", web.log());
}

#[test]
fn drain_delay_keeps_the_port_open_and_readyz_reports_the_drain() {
    let mut service = Service::start(0, &["--drain-delay", "3s"], &[]);
    assert_eq!(service.request("GET", "/readyz", &[], b"").status, 200);
    let began = Instant::now();
    service.web.signal("TERM");
    let draining = until("readyz to report the drain", || {
        Some(service.request("GET", "/readyz", &[], b"")).filter(|answer| answer.status == 503)
    });
    assert!(draining.text().contains("draining"), "{}", draining.text());
    let accepted = service.request("POST", "/v1/jobs", &[], &test_image("cup.jpg"));
    assert!(accepted.status == 202 || began.elapsed() > Duration::from_secs(3), "{}", accepted.text());
    assert_eq!(service.web.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
}

#[test]
fn drain_ends_while_another_process_holds_the_database_lock() {
    let mut service = Service::start(0, &[], &[]);
    let database = service.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The request waits for the lock.
    let address = service.address;
    let waiting = thread::spawn(move || request(address, "POST", "/v1/jobs", &[], &test_image("cup.jpg")));
    until("the request", || {
        let open = metrics(address, "imgcls_web_connections");
        open.iter().any(|(_, count)| *count >= 2.0).then_some(())
    });
    let began = Instant::now();
    service.web.signal("TERM");
    assert_eq!(service.web.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    drop(waiting.join().unwrap());
}
