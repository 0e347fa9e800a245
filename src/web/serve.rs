//! The accept loop: hyper with a timeout on everything a client may be slow at.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::connections::{Activity, Admission, Connections};
use super::gate::Client;
use super::metrics::METRICS;
use super::stream::ClientStream;

/// After a failed accept (file descriptors used up) trying again at once would only spin.
const REST_AFTER_FAULT: Duration = Duration::from_millis(100);
/// Request line and headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Connections that the system accepts before this process does.
const LISTEN_BACKLOG: u32 = 1_024;
/// What the system holds of an answer that its client has not read yet. It would grow to several MiB a connection.
const SEND_BUFFER_BYTES: u32 = 256 << 10;
/// How often connections that wait too long are looked for, while most places are taken.
const CLOSE_WAITING_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy)]
pub struct ServeRules {
    /// How long a client may take for its headers, and how long a connection may idle between requests.
    pub idle_timeout: Duration,
    /// How long a client may take none of its answer.
    pub write_timeout: Duration,
}

/// Listens at `address`, as the web tier needs it.
///
/// # Errors
/// Where the address is taken or not this machine's.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Serves until `stop`, then lets open requests end; the caller cuts off what is left by dropping this future.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    rules: ServeRules,
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    // Without pressure it is not polled and wakes nobody. Pressure comes with a connection, after which it is looked for.
    let mut close_waiting = tokio::time::interval(CLOSE_WAITING_EVERY);
    close_waiting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let Some(admission) = stop.run_until_cancelled(connections.admit(address.ip())).await else { break };
                    // None: refused without a word.
                    if let Some(admission) = admission {
                        let connection = Connection { stream, address, admission: Arc::new(admission) };
                        tasks.spawn(connection.serve(router.clone(), rules, stop.clone()));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    // A connection that waits for a request holds a descriptor that others need.
                    connections.replace_one(false);
                    tokio::time::sleep(REST_AFTER_FAULT).await;
                }
            },
            _ = close_waiting.tick(), if connections.is_under_pressure() => connections.close_waiting(),
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    admission: Arc<Admission>,
}

impl Connection {
    async fn serve(self, router: Router, rules: ServeRules, stop: CancellationToken) {
        METRICS.connections.inc();
        // Answers are small and waited for. A connection that is gone already is told so by its first read.
        let _ = self.stream.set_nodelay(true);
        let activity = Arc::clone(&self.admission.activity);
        let client = Client { address: self.address, admission: self.admission };
        let router = TowerToHyperService::new(router);
        let service = service_fn(|request| answer(&router, &client, request));
        let stream = ClientStream::new(self.stream, Arc::clone(&activity), rules.write_timeout);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(rules.idle_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(stream, service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = activity.told_to_close() => Ok(()),
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        METRICS.connections.dec();
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// Answers one request, and counts the connection as busy until the answer is written.
fn answer(
    router: &TowerToHyperService<Router>,
    client: &Client,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<BusyBody>, Infallible>> + use<> {
    let activity = Arc::clone(&client.admission.activity);
    let is_begun = activity.begin_request();
    request.extensions_mut().insert(client.clone());
    let answer = is_begun.then(|| (Busy(activity), router.call(request)));
    async move {
        // It was told to close just now, and will be dropped.
        let Some((busy, answer)) = answer else { return std::future::pending().await };
        let response = answer.await?;
        Ok(response.map(|body| BusyBody { body, _busy: busy }))
    }
}

/// A request that is being answered.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// The body of an answer, which ends the request when it was written.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
