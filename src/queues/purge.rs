//! Emptying a queue, once somebody has said yes.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::bail;
use serde::Serialize;

use super::Service;
use super::depth::{self, Role};
use crate::queue::Depth;

#[derive(Debug, Serialize)]
pub struct Purged {
    pub queue: String,
    /// How many there were; on AWS about as many.
    pub messages: u64,
}

/// None where the person said no.
///
/// # Errors
/// Also where the queue is none of the service's, and where nobody can be asked.
pub async fn purge(service: &Service, name: &str, is_confirmed: bool) -> anyhow::Result<Option<Purged>> {
    let names = depth::names(service).await?;
    let Some((_, role)) = names.iter().find(|(known, _)| known == name) else {
        let known: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        bail!("{name:?} is no queue of this service; it has {}", known.join(", "));
    };
    let queue = service.queue(name).await?;
    let Depth { visible, in_flight, delayed, .. } = queue.depth().await?;
    let messages = visible + in_flight + delayed;
    if !is_confirmed && !ask(name, *role, messages)? {
        return Ok(None);
    }
    queue.purge().await?;
    Ok(Some(Purged { queue: name.to_owned(), messages }))
}

fn ask(name: &str, role: Role, messages: u64) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{name:?} was not purged: nobody can be asked here; give --yes if you mean it");
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "Delete {messages} messages from {name} for ever? {}. [y/N] ", consequence(role))?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn consequence(role: Role) -> &'static str {
    match role {
        Role::Requests => "Their jobs will end as expired",
        Role::DeadLetters => "They cannot be sent again then; their jobs have ended as failed",
        Role::Results | Role::Replies => "Who waits finds the answers in the store, a few seconds later",
    }
}
