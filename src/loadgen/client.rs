//! One kept-alive connection and the classification of one image over it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;

use super::connect::Connector;
use super::dialect::{Answer, Dialect, Prepared};
use super::failure::{Failure, Reason};
use crate::http_client::{self, Io};

/// Maximum size of an answer. A result object takes about a kilobyte.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Minimum delays between polls of a job, for servers that answer a long poll at once.
const POLL_PAUSES: [Duration; 5] = [
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// Shared by all clients of a run.
pub(super) struct Target {
    pub dialect: Dialect,
    pub connector: Connector,
    /// The addresses that the host's name resolved to at the start.
    pub addresses: Vec<SocketAddr>,
    /// The longest time from the start of a request to the end of its answer.
    pub timeout: Duration,
}

/// Sends one request at a time over a kept-alive connection and reconnects if the server has closed it.
pub(super) struct Client {
    target: Arc<Target>,
    /// Index of the address to try first, so that clients spread over the addresses.
    first_address: usize,
    connection: Option<Connection>,
    /// The body of the last answer; the buffer is reused.
    answer: Vec<u8>,
    pub counts: Counts,
}

/// Counts of what one client did besides the requests themselves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub connections: u64,
    /// Requests that were sent again because the server had closed the kept-alive connection.
    pub retries: u64,
    /// Polls of jobs that were not final in the first answer.
    pub polls: u64,
}

/// Both halves of a hyper connection, polled by one task, so that a request wakes no second task.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    io: Io,
    /// Answers received. After the first, the server may close the connection at any time.
    answers: u64,
}

struct Head {
    status: StatusCode,
    location: Option<String>,
}

impl Client {
    pub(super) fn new(target: Arc<Target>, number: usize) -> Self {
        Client { target, first_address: number, connection: None, answer: Vec::new(), counts: Counts::default() }
    }

    /// Connects in advance of the first request.
    pub(super) async fn connect(&mut self) -> io::Result<()> {
        self.connection = Some(Connection::open(&self.target, self.first_address).await?);
        self.counts.connections += 1;
        Ok(())
    }

    /// Sends one image and waits for the final state of its job.
    pub(super) async fn classify(&mut self, image: &Prepared) -> Result<Answer<'_>, Failure> {
        let status = match tokio::time::timeout(self.target.timeout, self.until_final(image)).await {
            Ok(Ok(status)) => status,
            Ok(Err(failure)) => {
                self.connection = None;
                return Err(failure);
            }
            // A late answer may still arrive on this connection, so it cannot be reused.
            Err(_elapsed) => {
                self.connection = None;
                return Err(Failure::new(Reason::TimedOut));
            }
        };
        self.target.dialect.read(status, &self.answer)
    }

    /// Waits for `event` and meanwhile notices when the server closes the idle connection.
    pub(super) async fn idle_until<T>(&mut self, event: impl Future<Output = T>) -> T {
        let mut event = pin!(event);
        std::future::poll_fn(|cx| {
            if self.connection.as_mut().is_some_and(|connection| connection.io.poll(cx).is_ready()) {
                self.connection = None;
            }
            event.as_mut().poll(cx)
        })
        .await
    }

    async fn until_final(&mut self, image: &Prepared) -> Result<StatusCode, Failure> {
        let body = image
            .body()
            .await
            .map_err(|error| Failure { reason: Reason::ImageUnreadable, detail: Some(error.to_string()) })?;
        let mut head = self.exchange(&Method::POST, &image.uri, &image.headers, &body).await?;
        let mut pauses = POLL_PAUSES.into_iter().chain(std::iter::repeat(Duration::from_secs(1)));
        while let Some(uri) = self.target.dialect.poll_uri(head.status, head.location.as_deref(), &self.answer) {
            let started = Instant::now();
            self.counts.polls += 1;
            head = self.exchange(&Method::GET, &uri, &self.target.dialect.poll_headers(), &Bytes::new()).await?;
            if let Some(early) = pauses.next().and_then(|pause| pause.checked_sub(started.elapsed()))
                && self.target.dialect.poll_uri(head.status, None, &self.answer).is_some()
            {
                tokio::time::sleep(early).await;
            }
        }
        Ok(head.status)
    }

    /// Sends one request and reads its answer; the body is left in `self.answer`.
    ///
    /// A server may close a kept-alive connection at any time, even while a request is on its way, and the client
    /// cannot know whether the request was read (RFC 9112, 9.3.1). Classification is idempotent, so such a request is
    /// sent once more on a new connection and counted: closing idle connections is correct behaviour of a server. If
    /// the connection has not answered anything yet, the same error is a failure.
    async fn exchange(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Head, Failure> {
        let mut retried = false;
        loop {
            if self.connection.as_mut().is_none_or(|connection| connection.io.has_ended()) {
                self.connect().await.map_err(|error| Failure::connect(&error))?;
            }
            let connection = self.connection.as_mut().expect("connected above; this is a bug");
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            match connection.exchange(request, &mut self.answer).await {
                Ok(head) => return Ok(head),
                Err(Fault::BeforeAnswer(failure)) if connection.answers > 0 && !retried && is_closed(&failure) => {
                    self.connection = None;
                    self.counts.retries += 1;
                    retried = true;
                }
                Err(Fault::BeforeAnswer(failure) | Fault::InAnswer(failure)) => return Err(failure),
            }
        }
    }
}

/// Says if a failure came before or after the head of the answer.
enum Fault {
    BeforeAnswer(Failure),
    InAnswer(Failure),
}

fn is_closed(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::Closed | Reason::Reset)
}

impl Connection {
    async fn open(target: &Target, first: usize) -> io::Result<Self> {
        let addresses = &target.addresses;
        let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for at in 0..addresses.len() {
            match target.connector.connect(addresses[(first + at) % addresses.len()]).await {
                Ok(stream) => {
                    let (sender, io) = http_client::handshake(stream).await.map_err(io::Error::other)?;
                    return Ok(Connection { sender, io, answers: 0 });
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>, answer: &mut Vec<u8>) -> Result<Head, Fault> {
        let Connection { sender, io, answers } = self;
        let exchange = async {
            let before = |error: hyper::Error| Fault::BeforeAnswer(Failure::connection(&error));
            sender.ready().await.map_err(before)?;
            let mut response = sender.send_request(request).await.map_err(before)?;
            *answers += 1;
            answer.clear();
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|error| Fault::InAnswer(Failure::connection(&error)))?;
                let Some(data) = frame.data_ref() else { continue };
                if answer.len() + data.len() > MAX_ANSWER_BYTES {
                    let detail = Some(format!("longer than {MAX_ANSWER_BYTES} bytes"));
                    return Err(Fault::InAnswer(Failure { reason: Reason::Unreadable, detail }));
                }
                answer.extend_from_slice(data);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
            Ok(Head { status: response.status(), location })
        };
        io.drive(exchange).await
    }
}
