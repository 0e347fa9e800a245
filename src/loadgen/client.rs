//! One connection that is kept, and one classification on it.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::dialect::{Answer, Dialect, Prepared};
use super::failure::{Failure, Reason};

/// A result object takes about a kilobyte; what is much longer is not one.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;
/// A server that does not hold questions about jobs back is not asked in a tight loop.
const POLL_PAUSES: [Duration; 5] = [
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
];

/// What all clients of a run share.
#[derive(Debug)]
pub struct Target {
    pub dialect: Dialect,
    /// What the host's name resolved to, once.
    pub addresses: Vec<SocketAddr>,
    /// From the start of a request to the end of its answer.
    pub timeout: Duration,
}

/// Sends one request at a time over a connection that is kept alive, and made again when it was closed.
pub struct Client {
    target: Arc<Target>,
    /// Which address is tried first: clients spread over them.
    first_address: usize,
    connection: Option<Connection>,
    /// The last answer's body; its memory is used again.
    answer: Vec<u8>,
    pub counts: Counts,
}

/// What one client did beside the requests themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub connections: u64,
    /// Requests sent a second time because a kept connection had been closed under them.
    pub retries: u64,
    /// Questions about jobs that were not final with the first answer.
    pub polls: u64,
}

/// hyper's two halves, polled by one task: a request costs no wake-up of another task.
struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    io: Io,
    /// Answers received; after the first, the server may close at any time.
    answers: u64,
}

/// The half that reads and writes; gone once the connection has ended.
struct Io(Option<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>);

struct Head {
    status: StatusCode,
    location: Option<String>,
}

impl Client {
    pub fn new(target: Arc<Target>, number: usize) -> Self {
        Client { target, first_address: number, connection: None, answer: Vec::new(), counts: Counts::default() }
    }

    /// Connects, so that the first request need not.
    pub async fn connect(&mut self) -> io::Result<()> {
        self.connection = Some(Connection::open(&self.target.addresses, self.first_address).await?);
        self.counts.connections += 1;
        Ok(())
    }

    /// Sends one picture and reads the end of its job.
    pub async fn classify(&mut self, picture: &Prepared) -> Result<Answer<'_>, Failure> {
        let status = match tokio::time::timeout(self.target.timeout, self.until_final(picture)).await {
            Ok(Ok(status)) => status,
            Ok(Err(failure)) => {
                self.connection = None;
                return Err(failure);
            }
            // The answer may still come, to nobody: the connection cannot be used again.
            Err(_elapsed) => {
                self.connection = None;
                return Err(Failure::new(Reason::TimedOut));
            }
        };
        self.target.dialect.read(status, &self.answer)
    }

    /// Waits for `event`, and meanwhile notices when the server closes the idle connection.
    pub async fn idle_until<T>(&mut self, event: impl Future<Output = T>) -> T {
        let mut event = pin!(event);
        std::future::poll_fn(|cx| {
            if self.connection.as_mut().is_some_and(|connection| connection.io.poll(cx).is_ready()) {
                self.connection = None;
            }
            event.as_mut().poll(cx)
        })
        .await
    }

    async fn until_final(&mut self, picture: &Prepared) -> Result<StatusCode, Failure> {
        let body = picture
            .body()
            .await
            .map_err(|error| Failure { reason: Reason::PictureGone, said: Some(error.to_string()) })?;
        let mut head = self.exchange(&Method::POST, &picture.uri, &picture.headers, &body).await?;
        let mut pauses = POLL_PAUSES.into_iter().chain(std::iter::repeat(Duration::from_secs(1)));
        while let Some(uri) = self.target.dialect.poll_uri(head.status, head.location.as_deref(), &self.answer) {
            let asked = Instant::now();
            self.counts.polls += 1;
            head = self.exchange(&Method::GET, &uri, &self.target.dialect.poll_headers(), &Bytes::new()).await?;
            if let Some(early) = pauses.next().and_then(|pause| pause.checked_sub(asked.elapsed()))
                && self.target.dialect.poll_uri(head.status, None, &self.answer).is_some()
            {
                tokio::time::sleep(early).await;
            }
        }
        Ok(head.status)
    }

    /// One request and its answer, whose body is then in `self.answer`.
    ///
    /// A server may close a kept connection at any time, also while a request is on its way; the client cannot know
    /// whether it was read (RFC 9112, 9.3.1). Classifying again has no effect but the same answer, so such a request
    /// is sent once more, on a new connection, and counted: a server that closes idle connections is not broken.
    /// On a connection that has answered nothing yet, the same is a failure.
    async fn exchange(
        &mut self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Head, Failure> {
        let mut retried = false;
        loop {
            if self.connection.as_mut().is_none_or(|connection| connection.io.0.is_none()) {
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

/// Whether a failure came before or after the head of the answer.
enum Fault {
    BeforeAnswer(Failure),
    InAnswer(Failure),
}

fn is_closed(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::Closed | Reason::Reset)
}

impl Connection {
    async fn open(addresses: &[SocketAddr], first: usize) -> io::Result<Self> {
        let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for at in 0..addresses.len() {
            match TcpStream::connect(addresses[(first + at) % addresses.len()]).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let (sender, io) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
                    return Ok(Connection { sender, io: Io(Some(io)), answers: 0 });
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
                if answer.len() + data.len() > LONGEST_ANSWER_BYTES {
                    let said = Some(format!("longer than {LONGEST_ANSWER_BYTES} bytes"));
                    return Err(Fault::InAnswer(Failure { reason: Reason::Unreadable, said }));
                }
                answer.extend_from_slice(data);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
            Ok(Head { status: response.status(), location })
        };
        io.drive(exchange).await
    }
}

impl Io {
    /// Reads and writes until `exchange` is done.
    async fn drive<T>(&mut self, exchange: impl Future<Output = T>) -> T {
        let mut exchange = pin!(exchange);
        std::future::poll_fn(|cx| {
            // First the exchange, which hands the request over; then the connection, which writes it, or reads the
            // answer; then the exchange again, which takes the answer.
            if let Poll::Ready(done) = exchange.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let _ended = self.poll(cx);
            exchange.as_mut().poll(cx)
        })
        .await
    }

    /// Ready once the connection has ended, for whatever reason: whoever waits for an answer is told it by hyper.
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        match &mut self.0 {
            None => Poll::Ready(()),
            Some(io) => Pin::new(io).poll(cx).map(|_result| self.0 = None),
        }
    }
}
