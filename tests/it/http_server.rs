//! An HTTP server whose answers the test decides.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::keys::test_certificate;

/// A request, as it arrived.
pub struct ReceivedRequest {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl ReceivedRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The answer to one request.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: vec![("Content-Type", content_type.to_owned())], body: body.into() }
    }
}

/// Serves on a free loopback port until the test binary ends.
pub fn serve(answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static) -> SocketAddr {
    serve_on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
}

/// The same at an address of the test's choice.
pub fn serve_on(
    listener: TcpListener,
    answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static,
) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve_connection(connection.unwrap(), &*answer));
        }
    });
    address
}

/// The same with TLS, with one of the test certificates by its name.
pub fn serve_tls(certificate: &str, answer: impl Fn(&ReceivedRequest) -> Answer + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let certificates = CertificateDer::pem_file_iter(test_certificate(certificate, "crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(test_certificate(certificate, "key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key)
        .unwrap();
    let (config, answer) = (Arc::new(config), Arc::new(answer));
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (config, answer) = (Arc::clone(&config), Arc::clone(&answer));
            std::thread::spawn(move || {
                let session = ServerConnection::new(config).unwrap();
                serve_connection(StreamOwned::new(session, connection.unwrap()), &*answer);
            });
        }
    });
    address
}

fn serve_connection(connection: impl Read + Write, answer: &(dyn Fn(&ReceivedRequest) -> Answer + Send + Sync)) {
    let mut reader = BufReader::new(connection);
    while let Some(request) = read(&mut reader) {
        let Answer { status, headers, body } = answer(&request);
        let mut head = format!("HTTP/1.1 {status} Answer\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let connection = reader.get_mut();
        let sent = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&body));
        if sent.and_then(|()| connection.flush()).is_err() {
            return;
        }
    }
}

/// Reads one request, or returns `None` at the end of the connection.
fn read(reader: &mut impl BufRead) -> Option<ReceivedRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = ReceivedRequest { method, path, headers: Vec::new(), body: Vec::new() };
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}
