//! The web tier in this process, on a data directory in memory, spoken to over one kept connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use clap::Parser as _;
use imgcls::cli::{Cli, Command};
use imgcls::shutdown::CancellationToken;
use imgcls::web;
use libfuzzer_sys::Corpus;
use tempfile::TempDir;

/// Far more than an answer takes; what takes longer hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// The first line is the value of `Content-Type`, the rest is the body.
pub fn multipart(input: &[u8]) -> Corpus {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (content_type, body) = (&input[..end], input.get(end + 1..).unwrap_or_default());
    if content_type.iter().any(|byte| byte.is_ascii_control()) {
        return Corpus::Reject;
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
    Corpus::Keep
}

/// Asks for the job of that id.
pub fn get_job(id: &str) {
    let encoded: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
    send(format!("GET /v1/jobs/{encoded} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
}

/// In memory where there is such a file system.
pub fn scratch_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// A kept connection may have ended between two requests; a new one must serve.
fn send(request: &[u8]) {
    static CONNECTION: Mutex<Option<BufReader<TcpStream>>> = Mutex::new(None);
    let mut kept = CONNECTION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mut connection) = kept.take()
        && let Some(is_kept) = answer(&mut connection, request)
    {
        *kept = is_kept.then_some(connection);
        return;
    }
    let mut connection = BufReader::new(TcpStream::connect(address()).expect("the web tier listens"));
    connection.get_ref().set_read_timeout(Some(ANSWER_WITHIN)).expect("a timeout");
    let is_kept = answer(&mut connection, request).expect("a new connection is served");
    *kept = is_kept.then_some(connection);
}

/// Whether the connection may be used again; None where it ended without an answer.
fn answer(connection: &mut BufReader<TcpStream>, request: &[u8]) -> Option<bool> {
    // It may be refused before all is sent.
    let _ = connection.get_mut().write_all(request);
    let mut line = String::new();
    match connection.read_line(&mut line) {
        Ok(0) => return None,
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
        Err(error) => panic!("no answer: {error}"),
    }
    let status: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    assert!(status < 500 || status == 503, "the web tier fails: {line}");
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
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let line = ["imgcls", "serve-web", "--backend", "local", "--data-dir", &data_dir];
        let Command::ServeWeb(args) = Cli::parse_from(line).command else { unreachable!("that is the command") };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (backend, _) = args.shared.backend();
            let names = args.shared.names(&backend).await.expect("names");
            let config = args.config(backend, names).expect("a configuration");
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            told.send(listener.local_addr().expect("an address")).expect("somebody asks");
            web::run(listener, config, None, CancellationToken::new()).await.expect("it serves");
        });
        panic!("the web tier ended");
    });
    address.recv().expect("an address")
}
