//! The accept loop: hyper with a timeout on everything a client may be slow at.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;

/// After a failed accept (file descriptors used up) trying again at once would only spin.
const REST_AFTER_FAULT: Duration = Duration::from_millis(100);
/// Request line and headers.
const MAX_HEAD_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy)]
pub struct ServeRules {
    /// Connections at a time; the permit is taken before the accept, so more wait in the listen queue.
    pub max_connections: usize,
    /// How long a client may take for its headers, and how long a connection may idle between requests.
    pub idle_timeout: Duration,
}

/// Serves until `shutdown`, then lets open requests end; what is left when `give_up` is cancelled is cut off by the
/// caller dropping this future.
pub async fn serve(listener: TcpListener, router: Router, rules: ServeRules, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(rules.max_connections));
    let mut connections = JoinSet::new();
    while let Some(accepted) = shutdown.run_until_cancelled(accept(&listener, &permits)).await {
        match accepted {
            Ok((stream, permit)) => {
                let connection = Connection { stream, router: router.clone(), rules, shutdown: shutdown.clone() };
                connections.spawn(async move {
                    connection.serve().await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(REST_AFTER_FAULT).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are small and waited for.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

struct Connection {
    stream: TcpStream,
    router: Router,
    rules: ServeRules,
    shutdown: CancellationToken,
}

impl Connection {
    async fn serve(self) {
        METRICS.connections.inc();
        let service = TowerToHyperService::new(self.router);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.rules.idle_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(self.stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
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
