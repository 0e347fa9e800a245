//! The accept loop. Every step in which a client may be slow has a timeout.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::connections::{ConnectionPermit, Connections};
use super::guard::Client;
use super::held::HeldBody;
use super::http2;
use super::idle::IdleTracker;
use super::rules::{MAX_HEAD_BYTES, ServeRules};
use super::stream::ClientStream;
use super::tls::{Socket, Tls};
use crate::web::metrics::METRICS;

/// Pause after a failed accept. Without it the loop would spin while file descriptors are exhausted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Connections that the system accepts before this process does.
const LISTEN_BACKLOG: u32 = 1_024;
/// Size of the send buffer of a connection. Without a fixed size the system lets it grow to several MiB.
const SEND_BUFFER_BYTES: u32 = 256 << 10;
/// How often idle connections are closed while most permits are taken.
const CLOSE_IDLE_INTERVAL: Duration = Duration::from_millis(250);

/// Binds the web tier's listener, with a bounded send buffer for each connection.
///
/// # Errors
/// When the address is in use or does not belong to this machine.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Serves until `stop`, then waits for open requests. The caller cuts off those that remain by dropping this future.
/// With `tls`, every connection begins with a handshake, which holds the permit of the connection.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    rules: ServeRules,
    connections: Arc<Connections>,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    // The interval is polled only under pressure. Pressure begins with a new connection, after which the loop checks
    // again.
    let mut close_idle = tokio::time::interval(CLOSE_IDLE_INTERVAL);
    close_idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let Some(permit) = stop.run_until_cancelled(connections.admit(address.ip())).await else { break };
                    // Without a permit the connection is closed without an answer.
                    if let Some(permit) = permit {
                        let connection = Connection { stream, address, permit: Arc::new(permit) };
                        tasks.spawn(connection.serve(router.clone(), rules, tls.clone(), stop.clone()));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    // An idle connection holds a descriptor that a new one needs.
                    connections.close_longest_idle(false);
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            _ = close_idle.tick(), if connections.is_under_pressure() => connections.close_idle(),
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    permit: Arc<ConnectionPermit>,
}

impl Connection {
    async fn serve(self, router: Router, rules: ServeRules, tls: Option<Arc<Tls>>, stop: CancellationToken) {
        METRICS.connections.inc();
        self.serve_counted(router, rules, tls, stop).await;
        METRICS.connections.dec();
    }

    async fn serve_counted(self, router: Router, rules: ServeRules, tls: Option<Arc<Tls>>, stop: CancellationToken) {
        // Answers are small and clients wait for them. If the connection is gone already, the first read reports it.
        let _ = self.stream.set_nodelay(true);
        let idle = Arc::clone(&self.permit.idle);
        let begun = match until_stopped(begin(self.stream, tls.as_deref(), rules), &idle, &stop).await {
            Some(Ok(begun)) => begun,
            Some(Err(error)) => {
                if tls.is_some() {
                    METRICS.closed.with_label_values(&["tls_handshake"]).inc();
                }
                tracing::debug!(%error, "the connection did not begin");
                return;
            }
            None => return,
        };
        let client = Client { address: self.address, permit: self.permit, refusal: None };
        let router = TowerToHyperService::new(router);
        let stream = ClientStream::new(begun.socket, Arc::clone(&idle), rules.write_timeout);
        if begun.is_http2 {
            http2::serve(stream.of_http2(begun.first), router, client, rules, stop).await;
            return;
        }
        let stream = stream.that_begins_with(begun.first);
        let service = service_fn(|request| answer(&router, &client, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(rules.idle_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = idle.close_requested() => Ok(()),
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// A connection of which it is known what it speaks.
struct Begun {
    socket: Socket,
    is_http2: bool,
    /// Bytes that were taken from the socket already.
    first: Bytes,
}

/// Does the handshake of TLS, or waits for the first bytes.
async fn begin(mut stream: TcpStream, tls: Option<&Tls>, rules: ServeRules) -> io::Result<Begun> {
    if let Some(tls) = tls {
        let socket = tls.accept(stream).await?;
        return Ok(Begun { is_http2: socket.is_http2(), socket, first: Bytes::new() });
    }
    let chosen = tokio::time::timeout(rules.idle_timeout, http2::is_chosen(&mut stream)).await;
    let (is_http2, first) = chosen.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no request"))??;
    Ok(Begun { socket: Socket::Plain(stream), is_http2, first })
}

/// Waits for the beginning of a connection. Returns `None` when the connection has to close first: it still counts as idle.
async fn until_stopped<T>(
    handshake: impl Future<Output = T>,
    idle: &IdleTracker,
    stop: &CancellationToken,
) -> Option<T> {
    tokio::select! {
        done = handshake => Some(done),
        () = idle.close_requested() => None,
        () = stop.cancelled() => None,
    }
}

/// Answers one request. The connection counts as busy until the answer is written.
fn answer(
    router: &TowerToHyperService<Router>,
    client: &Client,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<HeldBody<Busy>>, Infallible>> + use<> {
    let idle = Arc::clone(&client.permit.idle);
    let is_begun = idle.begin_request();
    request.extensions_mut().insert(client.clone());
    let answer = is_begun.then(|| (Busy(idle), router.call(request)));
    async move {
        // The connection was asked to close just now: its task drops this future.
        let Some((busy, answer)) = answer else { return std::future::pending().await };
        let response = answer.await?;
        Ok(response.map(|body| HeldBody::new(body, busy)))
    }
}

/// Marks the connection as busy until it is dropped.
struct Busy(Arc<IdleTracker>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end_request();
    }
}
