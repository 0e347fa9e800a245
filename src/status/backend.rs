//! The state of the queues and of the data directory.

use std::time::Duration;

use super::report::{Disk, LastError, Queue};
use crate::retention;
use crate::transport::local::LocalData;
use crate::transport::{QueueRole, Transport, TransportError};

/// How long reading the queues may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many errors are shown.
const ERRORS_SHOWN: usize = 5;

/// The request queues of both classes and the dead letters.
///
/// # Errors
/// One line for the operator.
pub(super) async fn queues(transport: &dyn Transport) -> Result<Vec<Queue>, String> {
    match tokio::time::timeout(TIMEOUT, read_queues(transport)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn read_queues(transport: &dyn Transport) -> Result<Vec<Queue>, TransportError> {
    let mut queues = Vec::new();
    for (name, role) in transport.queues().await? {
        let role_name = match role {
            QueueRole::Requests => "requests",
            QueueRole::BulkRequests => "batches",
            QueueRole::Callbacks => "callbacks",
            QueueRole::DeadLetters => "dead letters",
            QueueRole::Results | QueueRole::Replies => continue,
        };
        let depth = transport.queue_depth(&name).await?.unwrap_or_default();
        let is_empty = depth.visible + depth.in_flight + depth.delayed == 0;
        // On AWS the age needs a permission of its own, and the rest is worth showing without it.
        let oldest = if is_empty { None } else { transport.oldest_age(&name).await.unwrap_or_default() };
        queues.push(Queue {
            name,
            role: role_name,
            visible: depth.visible,
            in_flight: depth.in_flight,
            delayed: depth.delayed,
            oldest_age_seconds: oldest.map(|age| age.as_secs_f64()),
        });
    }
    Ok(queues)
}

/// `None` if the data directory cannot be measured; the log says why.
pub(super) async fn disk(data: &LocalData) -> Option<Disk> {
    let measured = async {
        let usage = data.usage().await?;
        let limit = data.noted_limits().await?.map(|(_, bytes)| bytes);
        Ok(Disk {
            used_bytes: usage.counted_bytes(),
            limit_bytes: limit.unwrap_or_else(|| retention::default_limit(&usage)),
            free_bytes: usage.disk_free_bytes,
        })
    };
    logged(measured.await, "measure the data directory")
}

pub(super) async fn last_errors(data: &LocalData) -> Option<Vec<LastError>> {
    let found = async {
        let now_ms = data.now_ms().await?;
        let failures = data.recent_failures(ERRORS_SHOWN).await?;
        let errors = failures.into_iter().map(|failure| LastError {
            id: failure.id,
            age_seconds: Duration::from_millis(now_ms.saturating_sub(failure.at_ms).max(0).unsigned_abs())
                .as_secs_f64(),
            code: failure.error.code.as_str(),
            message: failure.error.message,
        });
        Ok(errors.collect())
    };
    logged(found.await, "read the results of jobs")
}

fn logged<T>(read: Result<T, crate::sqlite::Fault>, what: &str) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(%error, "cannot {what}")).ok()
}
