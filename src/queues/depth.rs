//! How deep every queue of a service is.

use std::time::Duration;

use serde::Serialize;

use super::Service;
use crate::protocol;
use crate::queue::{Depth, Queue, QueueError};

#[derive(Debug, Serialize)]
pub struct Depths {
    pub queues: Vec<QueueDepth>,
}

#[derive(Debug, Serialize)]
pub struct QueueDepth {
    pub name: String,
    pub role: Role,
    /// None: the queue does not exist.
    #[serde(flatten)]
    pub depth: Option<Messages>,
}

#[derive(Debug, Serialize)]
pub struct Messages {
    pub visible: u64,
    pub in_flight: u64,
    pub delayed: u64,
    /// None where the backend does not tell, or there is no message.
    pub oldest_age_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Requests,
    DeadLetters,
    Results,
    /// Owned by one web process.
    Replies,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Requests => "requests",
            Role::DeadLetters => "dead letters",
            Role::Results => "results",
            Role::Replies => "replies",
        }
    }
}

pub async fn read(service: &Service) -> anyhow::Result<Depths> {
    let mut queues = Vec::new();
    for (name, role) in names(service).await? {
        let depth = match messages(service, &name).await {
            Ok(messages) => Some(messages),
            // A reply queue may be gone since it was listed.
            Err(QueueError::NotFound(_)) if role == Role::Replies => continue,
            Err(QueueError::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        queues.push(QueueDepth { name, role, depth });
    }
    Ok(Depths { queues })
}

/// Every queue of the service.
pub async fn names(service: &Service) -> Result<Vec<(String, Role)>, QueueError> {
    let names = &service.names;
    let mut found = vec![
        (names.request_queue.clone(), Role::Requests),
        (names.dead_letter_queue(), Role::DeadLetters),
        (names.result_queue.clone(), Role::Results),
    ];
    let replies = service.queues.list(&protocol::reply_queue(&names.result_queue, "")).await?;
    found.extend(replies.into_iter().map(|name| (name, Role::Replies)));
    Ok(found)
}

async fn messages(service: &Service, name: &str) -> Result<Messages, QueueError> {
    let queue = service.queues.open(name).await?;
    let Depth { visible, in_flight, delayed } = queue.depth().await?;
    let is_empty = visible + in_flight + delayed == 0;
    let oldest_age = if is_empty { None } else { oldest_age(&*queue).await };
    Ok(Messages { visible, in_flight, delayed, oldest_age_seconds: oldest_age.map(|age| age.as_secs_f64()) })
}

/// On AWS another service knows it, with permissions of its own; the rest is worth knowing without it.
async fn oldest_age(queue: &dyn Queue) -> Option<Duration> {
    queue.oldest_age().await.unwrap_or_else(|error| {
        tracing::warn!(queue = queue.name(), %error, "how old the oldest message is cannot be told");
        None
    })
}
