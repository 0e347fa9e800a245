//! Deletes all messages of a queue, after a confirmation.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::bail;
use serde::Serialize;

use super::explained;
use crate::transport::{Depth, QueueRole, Transport, TransportError};

#[derive(Debug, Serialize)]
pub(crate) struct Purged {
    pub queue: String,
    /// The number of messages that were deleted. It is approximate on AWS.
    pub messages: u64,
}

/// Purges a queue. Returns `None` if the user did not confirm it.
///
/// # Errors
/// The queue does not belong to the service, or confirmation is needed and standard input is no terminal.
pub(crate) async fn purge(transport: &dyn Transport, name: &str, is_confirmed: bool) -> anyhow::Result<Option<Purged>> {
    let queues = transport.queues().await?;
    let Some((_, role)) = queues.iter().find(|(known, _)| known == name) else {
        let known: Vec<&str> = queues.iter().map(|(name, _)| name.as_str()).collect();
        bail!("{name:?} is no queue of this service; it has {}", known.join(", "));
    };
    let depth = transport.queue_depth(name).await?;
    let Some(Depth { visible, in_flight, delayed }) = depth else {
        return Err(explained(TransportError::Missing(name.to_owned())));
    };
    let messages = visible + in_flight + delayed;
    if !is_confirmed && !ask(name, *role, messages)? {
        return Ok(None);
    }
    transport.purge(name).await?;
    Ok(Some(Purged { queue: name.to_owned(), messages }))
}

fn ask(name: &str, role: QueueRole, messages: u64) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "{name:?} was not purged: standard input is no terminal, so that you cannot confirm it here; give --yes if you mean it"
        );
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "Delete {messages} messages from {name} forever? {}. [y/N] ", consequence(role))?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn consequence(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Requests | QueueRole::BulkRequests => "Their jobs will expire",
        QueueRole::Callbacks => "Their receivers are never called",
        QueueRole::DeadLetters => "They cannot be sent again; their jobs stay failed",
        QueueRole::Results | QueueRole::Replies => "Waiting callers get the stored results, a few seconds later",
    }
}
