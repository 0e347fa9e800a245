//! The worker's own HTTP: whether it lives, whether it is ready, what it counted. For operators, not for clients.

use std::sync::Arc;

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Starting,
    Ready,
    Draining,
}

/// Serves until cancelled.
pub async fn serve(
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
    match *readiness.borrow() {
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "the model is being loaded\n"),
        Readiness::Ready => (StatusCode::OK, "ready\n"),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, telemetry::METRICS_CONTENT_TYPE)], telemetry::metrics_text())
}
