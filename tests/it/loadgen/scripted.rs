//! A small HTTP server whose answers are scripted.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// Runs on its own thread until the process ends.
pub struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
}

/// A received request.
pub struct Seen {
    /// The number of the request, from 0.
    pub number: u64,
    /// The number of the request on its connection, from 0.
    pub on_connection: u64,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(it, _)| it == name).map_or("", |(_, value)| value)
    }
}

pub struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    after: Duration,
    hang_up: bool,
}

impl Answer {
    pub fn text(status: u16, body: &str) -> Self {
        Answer { status, headers: Vec::new(), body: body.to_owned(), after: Duration::ZERO, hang_up: false }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Answer::text(status, &body.to_string()).header("content-type", "application/json")
    }

    /// Closes the connection without an answer.
    pub fn hang_up() -> Self {
        Answer { hang_up: true, ..Answer::text(200, "") }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn after(self, after: Duration) -> Self {
        Answer { after, ..self }
    }
}

type Script = dyn Fn(&Seen) -> Answer + Send + Sync;

impl Server {
    pub fn start(script: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let (script, requests): (Arc<Script>, Arc<AtomicU64>) = (Arc::new(script), Arc::default());
        let (bound, address) = mpsc::channel();
        let counted = requests.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                bound.send(listener.local_addr().expect("bound")).expect("the receiver waits");
                loop {
                    let (stream, _) = listener.accept().await.expect("a connection");
                    let (script, requests, on_connection) = (script.clone(), counted.clone(), AtomicU64::new(0));
                    tokio::spawn(async move {
                        let service = service_fn(|request| {
                            let number = requests.fetch_add(1, Ordering::SeqCst);
                            let on_connection = on_connection.fetch_add(1, Ordering::SeqCst);
                            answer(request, number, on_connection, script.clone())
                        });
                        // Ignore clients that disconnect; some tests do that on purpose.
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
        });
        Server { address: address.recv().expect("it starts"), requests }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The number of requests received so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn wait_for_requests(&self, count: u64) {
        let began = Instant::now();
        while self.requests() < count {
            assert!(began.elapsed() < Duration::from_secs(30), "only {} requests came", self.requests());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    number: u64,
    on_connection: u64,
    script: Arc<Script>,
) -> io::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes().to_vec();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let (method, target) = (parts.method.to_string(), parts.uri.to_string());
    let answer = script(&Seen { number, on_connection, method, target, headers, body });
    if answer.hang_up {
        return Err(io::Error::other("hang up"));
    }
    tokio::time::sleep(answer.after).await;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(answer.body.into())).expect("a valid answer"))
}
