//! The web tier in this process, with a data directory in memory, accessed through one persistent connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::config::Document;
use imgcls::names;
use imgcls::shutdown::CancellationToken;
use imgcls::web;
use tempfile::TempDir;

use super::Verdict;

/// A response that takes longer than this counts as a hang.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(8);

/// The first line is the value of `Content-Type`, the rest is the body.
pub fn multipart(input: &[u8]) -> Verdict {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (content_type, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    if content_type.iter().any(u8::is_ascii_control) {
        return Verdict::Reject;
    }
    let length = body.len().to_string();
    let head: [&[u8]; 5] = [
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: ",
        content_type,
        b"\r\nContent-Length: ",
        length.as_bytes(),
        b"\r\n\r\n",
    ];
    send(&[&head.concat(), body].concat());
    Verdict::Keep
}

/// The addresses of [`dialects`], by their letter from `a` on, and the headers of their clients.
const DIALECTS: [(&str, &str); 11] = [
    ("/v2/models/efficientnet-lite0/infer", "Content-Type: application/json\r\n"),
    ("/v1/models/efficientnet-lite0:predict", "Content-Type: application/json\r\n"),
    ("/predictions/efficientnet-lite0", "Content-Type: application/json\r\n"),
    ("/", "X-Amz-Target: RekognitionService.DetectLabels\r\nContent-Type: application/x-amz-json-1.1\r\n"),
    ("/endpoints/efficientnet-lite0/invocations", "Content-Type: application/json\r\n"),
    ("/api/v1/vision/labels", "Content-Type: application/json\r\n"),
    ("/v1/predictions", "Content-Type: application/json\r\nPrefer: wait=1\r\n"),
    ("/models/efficientnet-lite0", "Content-Type: application/json\r\n"),
    ("/v1/jobs", "Content-Type: application/json\r\n"),
    ("/v1/batches", "Content-Type: application/json\r\n"),
    ("/v2/models/efficientnet-lite0/infer", "Content-Type: application/octet-stream\r\n"),
];

/// The first byte is the letter of a dialect. Digits after it, up to the end of the line, are the length of the JSON before binary
/// tensors. The rest is the body.
pub fn dialects(input: &[u8]) -> Verdict {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (line, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    let Some((letter, digits)) = line.split_first() else { return Verdict::Reject };
    let dialect = letter.checked_sub(b'a').and_then(|index| DIALECTS.get(usize::from(index)));
    let Some((path, headers)) = dialect else { return Verdict::Reject };
    if !digits.iter().all(u8::is_ascii_digit) {
        return Verdict::Reject;
    }
    let json_length = match std::str::from_utf8(digits) {
        Ok(digits) if !digits.is_empty() => format!("Inference-Header-Content-Length: {digits}\r\n"),
        _ => String::new(),
    };
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{json_length}{length}");
    send(&[head.as_bytes(), body].concat());
    Verdict::Keep
}

/// Requests the job with this id.
pub fn get_job(id: &str) {
    let encoded: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
    send(format!("GET /v1/jobs/{encoded} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
}

/// A temporary directory, in memory if possible.
pub fn scratch_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Sends a request. The server may have closed the persistent connection since the last request, but a new one must
/// work.
fn send(request: &[u8]) {
    static CONNECTION: Mutex<Option<BufReader<TcpStream>>> = Mutex::new(None);
    let mut kept = CONNECTION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mut connection) = kept.take()
        && let Some(is_kept) = exchange(&mut connection, request)
    {
        *kept = is_kept.then_some(connection);
        return;
    }
    let mut connection = BufReader::new(TcpStream::connect(address()).expect("the web tier listens"));
    connection.get_ref().set_read_timeout(Some(RESPONSE_TIMEOUT)).expect("a read timeout can be set");
    let is_kept = exchange(&mut connection, request).expect("a new connection gets a response");
    *kept = is_kept.then_some(connection);
}

/// Sends a request and reads the response. Returns whether the connection may be reused, or `None` when it was closed
/// without a response.
fn exchange(connection: &mut BufReader<TcpStream>, request: &[u8]) -> Option<bool> {
    // The server may refuse the request before all of it is sent.
    let _ = connection.get_mut().write_all(request);
    let mut line = String::new();
    match connection.read_line(&mut line) {
        Ok(0) => return None,
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
        Err(error) => panic!("cannot read the response: {error}"),
    }
    let status: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    assert!(status < 500 || status == 503 || status == 504, "the web tier failed: {line}");
    let (mut length, mut is_kept) = (0, true);
    loop {
        line.clear();
        connection.read_line(&mut line).expect("headers");
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().expect("a length");
        }
        is_kept &= !(name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close"));
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).expect("a body");
    Some(is_kept)
}

fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| serve(&scratch_directory().keep()))
}

/// Serves until the process ends.
fn serve(data_dir: &Path) -> SocketAddr {
    let data_dir = data_dir.to_str().expect("a path in UTF-8").to_owned();
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // No worker runs, and so no image is waited for.
        let line = ["imgcls", "serve-web", "--backend", "local", "--sync-timeout", "10ms", "--data-dir", &data_dir];
        let Command::ServeWeb(args) = Cli::parse_from(line).command else {
            unreachable!("the command line names this command")
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (backend, _) = args.shared.backend(&Document::default());
            let names = names::resolve(args.shared.names(), &backend).await.expect("names");
            let config = args.config(backend, names).expect("a configuration");
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender.send(listener.local_addr().expect("an address")).expect("the receiver waits");
            web::run(listener, config, None, CancellationToken::new()).await.expect("the web tier runs");
        });
        panic!("the web tier ended");
    });
    address.recv().expect("an address")
}
