//! A proxy between a client of AWS and an emulator. A test sees every call and decides its answer.
//!
//! Each connection carries one request. Calls are forwarded unchanged, since they are signed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

pub struct Call {
    /// Request line and headers, with the empty line after them.
    pub head: String,
    pub body: Vec<u8>,
}

/// Serves on a free loopback port until the test binary ends. If `answer` returns `None`, the connection is closed.
pub fn start(answer: impl Fn(&Call) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                if let Some(response) = Call::read(&stream).and_then(|call| answer(&call)) {
                    let _ = (&stream).write_all(&response);
                }
            });
        }
    });
    address
}

impl Call {
    fn read(stream: &TcpStream) -> Option<Call> {
        let mut reader = BufReader::new(stream);
        let mut call = Call { head: String::new(), body: Vec::new() };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            // The client waits for this before it sends the body.
            if line.to_ascii_lowercase().starts_with("expect:") {
                (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
                continue;
            }
            call.head.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        call.body = vec![0; call.header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut call.body).ok()?;
        Some(call)
    }

    /// Forwards the call and returns the server's answer unchanged.
    pub fn forward_to(&self, server: SocketAddr) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(server).unwrap();
        let head = self.head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(head.as_bytes()).and_then(|()| server.write_all(&self.body)).unwrap();
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok().map(|_| answer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Name of the operation. Returns `None` for S3, whose protocol has methods and paths only.
    pub fn operation(&self) -> Option<String> {
        let of_path = self.path().split("/operation/").nth(1).map(str::to_owned);
        let of_header = || Some(self.header("x-amz-target")?.rsplit('.').next()?.to_owned());
        let of_form = || {
            let body = String::from_utf8_lossy(&self.body);
            body.split('&').find_map(|pair| pair.strip_prefix("Action=").map(str::to_owned))
        };
        of_path.or_else(of_header).or_else(of_form)
    }

    pub fn changes_something(&self) -> bool {
        match self.operation() {
            Some(name) => !["Describe", "Get", "List"].iter().any(|reading| name.starts_with(reading)),
            None => self.method() != "GET" && self.method() != "HEAD",
        }
    }
}
