//! HTTP/2: chosen by ALPN with TLS, and by the first bytes of a connection without it (prior knowledge), as proxies do.
//!
//! The requests of one connection run at the same time, and every limit on connections holds for them too: the first is covered
//! by the permit of its connection, and each other one takes a permit of its own. A client that leaves answers unread, that
//! resets what it asked for again and again, or that has no request for too long loses the connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::connections::RequestPermit;
use super::guard::Client;
use super::rules::{MAX_HEAD_BYTES, ServeRules};
use super::stream::{ClientStream, MIN_BYTES_PER_SECOND};
use crate::web::metrics::METRICS;

/// The first bytes of a connection of HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The requests of a connection that are answered at the same time. The standard advises at least 100.
const MAX_STREAMS: u32 = 100;
/// Bytes of one body that a client may send before they are read: enough for 5 MB/s over 50 ms.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// The same for all bodies of a connection, which is the memory that a client can fill without being read.
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// Bytes of one answer that wait in this process until the client takes them.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Answers are handed over in pieces of at most this size, each once the client takes it.
const PIECE_BYTES: usize = 16 << 10;
/// Streams that a client has reset before they were accepted. With more of them the connection is closed.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that this side has reset because of errors of the client. With more of them the connection is closed.
const MAX_LOCAL_RESETS: usize = 100;
/// A client may leave this many requests before it has the answer, beyond the number of those that it has waited for.
const MAX_ABANDONED: u64 = 100;
/// How often a connection is checked, unless its timeouts are short.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection may stay open after it was asked to close and has no request.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// A silent connection is asked this often whether its client is there, which has as long to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Returns true if a connection without TLS speaks HTTP/2. Bytes are taken from the connection only while they may be the
/// beginning of its preface; they are returned, so that they can be read again.
pub(super) async fn is_chosen(stream: &mut TcpStream) -> io::Result<(bool, Bytes)> {
    let mut first = [0; PREFACE.len()];
    let seen = stream.peek(&mut first).await?;
    if seen == PREFACE.len() || seen == 0 || !PREFACE.starts_with(&first[..seen]) {
        return Ok((first == *PREFACE, Bytes::new()));
    }
    let mut taken = 0;
    while taken < PREFACE.len() && PREFACE.starts_with(&first[..taken]) {
        match stream.read(&mut first[taken..]).await? {
            0 => break,
            read => taken += read,
        }
    }
    Ok((taken == PREFACE.len() && first == *PREFACE, Bytes::copy_from_slice(&first[..taken])))
}

/// Serves a connection until it ends, or until `stop` and the end of its requests.
pub(super) async fn serve(
    stream: ClientStream,
    router: TowerToHyperService<Router>,
    client: Client,
    rules: ServeRules,
    stop: CancellationToken,
) {
    let idle = Arc::clone(&client.permit.idle);
    let requests = Arc::new(Requests::new(client, rules));
    let of_service = Arc::clone(&requests);
    let connection = http2::Builder::new(StreamTasks::default())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .serve_connection(stream, service_fn(move |request| of_service.answer(&router, request)));
    tokio::pin!(connection);
    let mut checks = tokio::time::interval(CHECK_INTERVAL.min(rules.idle_timeout / 4).max(Duration::from_millis(50)));
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_closing = false;
    loop {
        let closes = tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = idle.close_requested() => return,
            () = stop.cancelled(), if !is_closing => true,
            () = requests.close.cancelled(), if !is_closing => true,
            _ = checks.tick() => {
                let now = Instant::now();
                if requests.has_unread_answer(now) {
                    METRICS.closed.with_label_values(&["write_timeout"]).inc();
                    return;
                }
                let idle_time = idle.idle_time(now).unwrap_or_default();
                if is_closing && idle_time > CLOSE_GRACE {
                    return;
                }
                !is_closing && idle_time > rules.idle_timeout
            }
        };
        if closes {
            is_closing = true;
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Runs the streams of one connection. Dropping it ends them.
#[derive(Clone, Default)]
struct StreamTasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        let mut tasks = lock(&self.0);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(stream);
    }
}

/// The requests of one connection.
struct Requests {
    client: Client,
    write_timeout: Duration,
    open: Mutex<Open>,
    next_id: AtomicU64,
    /// Asks the connection to close once its requests have ended.
    close: CancellationToken,
}

#[derive(Default)]
struct Open {
    /// Requests that have not ended.
    count: usize,
    /// When the client must have taken the last piece of an answer, by the number of its request. Absent while this side has
    /// nothing to send.
    unread: HashMap<u64, Instant>,
    answered: u64,
    abandoned: u64,
}

impl Requests {
    fn new(client: Client, rules: ServeRules) -> Requests {
        Requests {
            client,
            write_timeout: rules.write_timeout,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            close: CancellationToken::new(),
        }
    }

    /// Answers one request. It counts as open until the answer is handed to the connection.
    fn answer(
        self: &Arc<Self>,
        router: &TowerToHyperService<Router>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<StreamBody>, Infallible>> + Send + use<> {
        name_host(&mut request);
        let begun = self.begin();
        let answer = begun.map(|(open, client)| {
            request.extensions_mut().insert(client);
            (open, router.call(request))
        });
        async move {
            // The connection was asked to close just now: its task drops this future.
            let Some((mut open, answer)) = answer else { return std::future::pending().await };
            let mut response = answer.await?;
            open.is_answered = true;
            // This version has no such header; the connection says it by itself.
            if response.headers_mut().remove(header::CONNECTION).is_some() {
                open.requests.close.cancel();
            }
            Ok(response.map(|body| StreamBody { body, rest: Bytes::new(), open }))
        }
    }

    /// Counts a request. Returns `None` if the connection closes.
    fn begin(self: &Arc<Self>) -> Option<(OpenRequest, Client)> {
        let mut open = lock(&self.open);
        let mut client = self.client.clone();
        let mut permit = None;
        if open.count == 0 {
            if !self.client.permit.idle.begin_request() {
                return None;
            }
        } else {
            match client.permit.connections.acquire_request(client.address.ip()) {
                Ok(acquired) => permit = Some(acquired),
                Err(refusal) => client.refusal = Some(refusal),
            }
        }
        open.count += 1;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Some((OpenRequest { requests: Arc::clone(self), id, is_answered: false, _permit: permit }, client))
    }

    /// Returns true if the client has left a piece of an answer unread for too long.
    fn has_unread_answer(&self, now: Instant) -> bool {
        lock(&self.open).unread.values().any(|until| *until < now)
    }
}

/// A request that has not ended.
struct OpenRequest {
    requests: Arc<Requests>,
    id: u64,
    is_answered: bool,
    _permit: Option<RequestPermit>,
}

impl OpenRequest {
    /// Records that the connection asks for the next piece: it has handed on all before.
    fn is_read(&self) {
        lock(&self.requests.open).unread.remove(&self.id);
    }

    /// Records that the connection has a piece of this size for the client.
    fn has_piece(&self, bytes: usize) {
        let time = self.requests.write_timeout + Duration::from_secs(bytes as u64 / MIN_BYTES_PER_SECOND);
        lock(&self.requests.open).unread.insert(self.id, Instant::now() + time);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut open = lock(&self.requests.open);
        open.unread.remove(&self.id);
        open.count -= 1;
        if open.count == 0 {
            self.requests.client.permit.idle.end_request();
        }
        if self.is_answered {
            open.answered += 1;
        } else {
            open.abandoned += 1;
        }
        if open.abandoned > open.answered + MAX_ABANDONED {
            METRICS.closed.with_label_values(&["resets"]).inc();
            self.requests.close.cancel();
        }
    }
}

/// The body of an answer, in small pieces. Its request is open until it is dropped.
struct StreamBody {
    body: Body,
    /// The rest of the last piece of `body`.
    rest: Bytes,
    open: OpenRequest,
}

impl StreamBody {
    fn next_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.open.is_read();
        let frame = self.next_piece(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.open.has_piece(frame.data_ref().map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// Asked for before the first piece.
    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// Adds the header of the host, which is part of the address in this version, for all that read it there.
fn name_host(request: &mut Request<Incoming>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().entry(header::HOST).or_insert(authority);
    }
}

/// Every change is one call that cannot fail half-way, so a poisoned lock still guards a consistent state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
