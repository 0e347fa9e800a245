//! The HTTP server of a worker for its operators: liveness, readiness and metrics.

use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry;
use crate::transport::Transport;

#[derive(Clone)]
pub(crate) enum Readiness {
    Starting,
    /// Ready as long as the transport answers.
    Ready(Arc<dyn Transport>),
    Draining,
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    readiness: watch::Receiver<Readiness>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = axum::Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(readiness));
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("the admin address failed")
}

async fn readyz(State(readiness): State<Arc<watch::Receiver<Readiness>>>) -> impl IntoResponse {
    let now = readiness.borrow().clone();
    let checked = match now {
        Readiness::Starting => Err("the model is being loaded".to_owned()),
        Readiness::Ready(transport) => transport.check().await,
        Readiness::Draining => Err("draining".to_owned()),
    };
    match checked {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let (kind, text) = telemetry::metrics::answer(accept);
    ([(header::CONTENT_TYPE, kind)], text)
}
