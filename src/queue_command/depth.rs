//! The depth of every queue of a service.

use std::time::Duration;

use serde::Serialize;

use crate::transport::{Depth, QueueRole, Transport};

#[derive(Debug, Serialize)]
pub(crate) struct Depths {
    pub queues: Vec<QueueDepth>,
}

#[derive(Debug, Serialize)]
pub(crate) struct QueueDepth {
    pub name: String,
    pub role: QueueRole,
    /// `None` when the queue does not exist.
    #[serde(flatten)]
    pub depth: Option<Messages>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Messages {
    pub visible: u64,
    pub in_flight: u64,
    pub delayed: u64,
    /// `None` if the backend does not know it, or if there is no message.
    pub oldest_age_seconds: Option<f64>,
}

/// The name of a role for people.
pub(crate) fn role_name(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Requests => "requests",
        QueueRole::BulkRequests => "bulk requests",
        QueueRole::Callbacks => "callbacks",
        QueueRole::DeadLetters => "dead letters",
        QueueRole::Results => "results",
        QueueRole::Replies => "replies",
    }
}

pub(crate) async fn read(transport: &dyn Transport) -> anyhow::Result<Depths> {
    let mut queues = Vec::new();
    for (name, role) in transport.queues().await? {
        let depth = match transport.queue_depth(&name).await? {
            Some(depth) => Some(messages(transport, &name, depth).await),
            // The inbox may be gone since it was listed.
            None if role == QueueRole::Replies => continue,
            None => None,
        };
        queues.push(QueueDepth { name, role, depth });
    }
    Ok(Depths { queues })
}

async fn messages(transport: &dyn Transport, name: &str, depth: Depth) -> Messages {
    let Depth { visible, in_flight, delayed } = depth;
    let is_empty = visible + in_flight + delayed == 0;
    let oldest_age = if is_empty { None } else { oldest_age(transport, name).await };
    Messages { visible, in_flight, delayed, oldest_age_seconds: oldest_age.map(|age| age.as_secs_f64()) }
}

/// On AWS another service knows it, with permissions of its own; the rest is worth reading without it.
async fn oldest_age(transport: &dyn Transport, queue: &str) -> Option<Duration> {
    transport.oldest_age(queue).await.unwrap_or_else(|error| {
        tracing::warn!(queue, %error, "cannot read how old the oldest message is");
        None
    })
}
