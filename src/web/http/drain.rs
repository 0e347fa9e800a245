//! Reading the rest of a refused request, so that its client reads the answer.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;

/// How long the rest of a refused body is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads and drops what a refused client still sends, at most `max_bytes` and for one second.
///
/// If the server closed the connection at once, the client's system would discard the answer. A client that takes
/// longer loses the connection and the answer.
pub(crate) async fn drain_body(body: &mut Body, max_bytes: u64) {
    let rest = async {
        let mut left = max_bytes;
        while left > 0
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
}
