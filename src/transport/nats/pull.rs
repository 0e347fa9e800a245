//! Receiving: a pull of a consumer, which never loses a message that it had not returned.
//!
//! A pull runs in a task of its own. If its caller leaves, it goes on until the server ends it, as a long poll of SQS does, and
//! what it got is released, so that others receive it without waiting for the visibility timeout.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::{Connection, Fault};

/// How long a pull waits for the end that the server announces, after the time that it had.
const GRACE: Duration = Duration::from_secs(2);
/// How long a pull that has a message waits for more of those that the server has. The server says when it has no more.
const MORE_WITHIN: Duration = Duration::from_secs(2);
/// The same after a message behind which there was none. Old servers then do not say that the pull has ended.
const NO_MORE_WITHIN: Duration = Duration::from_millis(20);
/// How long messages that are on their way to a pull that has ended are waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The acknowledgement that makes a message visible again.
pub(super) const RELEASE: &str = "-NAK";

/// A consumer of a stream.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub stream: String,
    pub name: &'static str,
}

/// Messages that were received. Those that are not taken are released.
pub(super) struct Received {
    connection: Arc<Connection>,
    messages: Vec<Message>,
}

impl Received {
    /// The next message. The caller then answers for it.
    pub(super) fn take(&mut self) -> Option<Message> {
        self.messages.pop()
    }

    /// Gives a message back, which is released unless it is taken again.
    pub(super) fn give_back(&mut self, message: Message) {
        self.messages.push(message);
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let (connection, messages) = (Arc::clone(&self.connection), std::mem::take(&mut self.messages));
        // Without a runtime the process ends, and the messages become visible after their timeout.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for message in messages {
                    release(&connection, message).await;
                }
            });
        }
    }
}

/// Facts about a delivery, from the subject that acknowledges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    /// 1 at the first delivery.
    pub delivered: u32,
    /// The place of the message in its stream.
    pub sequence: u64,
    /// When the stream got it.
    pub stored_at_ms: i64,
    /// How many messages waited behind it.
    pub pending: u64,
}

impl About {
    /// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<sequence of consumer>.<nanoseconds>.<pending>`; newer
    /// servers have domain and account before the stream.
    pub(super) fn of(subject: &str) -> Option<About> {
        let tokens: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        let first = match tokens.len() {
            7 => 2,
            length if length >= 9 => 4,
            _ => return None,
        };
        let number = |at: usize| tokens.get(first + at)?.parse::<u64>().ok();
        Some(About {
            delivered: u32::try_from(number(0)?).ok()?,
            sequence: number(1)?,
            stored_at_ms: i64::try_from(number(3)? / 1_000_000).ok()?,
            pending: number(4)?,
        })
    }
}

/// Waits up to `wait` for the first message, then returns those that the consumer has, at most `max`.
pub(super) async fn pull(
    connection: &Arc<Connection>,
    from: &Consumer,
    max: usize,
    wait: Duration,
) -> Result<Received, Fault> {
    connection.wait_until_connected().await?;
    let (answer, answered) = oneshot::channel();
    let (connection, from) = (Arc::clone(connection), from.clone());
    tokio::spawn(async move { run(connection, &from, max, wait, answer).await });
    answered.await.unwrap_or_else(|_| Err(Fault::Unavailable("the receive ended early".to_owned())))
}

/// How a pull ended.
enum End {
    /// The server sends nothing more.
    Complete,
    /// More may be on its way.
    Early,
    Failed(Fault),
}

async fn run(
    connection: Arc<Connection>,
    from: &Consumer,
    max: usize,
    wait: Duration,
    answer: oneshot::Sender<Result<Received, Fault>>,
) {
    let mut subscriber = match start(&connection, from, max, wait).await {
        Ok(subscriber) => subscriber,
        Err(fault) => return drop(answer.send(Err(fault))),
    };
    let mut messages = Vec::new();
    let end = collect(&connection, &mut subscriber, &mut messages, (max, wait)).await;
    // The last one is taken first.
    messages.reverse();
    let received = Received { connection: Arc::clone(&connection), messages };
    let (outcome, is_early) = match end {
        // Messages that came before the fault are as good.
        End::Failed(fault) if received.messages.is_empty() => (Err(fault), false),
        End::Failed(_) | End::Complete => (Ok(received), false),
        End::Early => (Ok(received), true),
    };
    // If the caller has left, the messages are released here.
    drop(answer.send(outcome));
    if is_early {
        release_late(&connection, subscriber).await;
    }
}

async fn start(connection: &Connection, from: &Consumer, max: usize, wait: Duration) -> Result<Subscriber, Fault> {
    let failed = |error: &dyn std::fmt::Display| Fault::Unavailable(format!("cannot receive from NATS: {error}"));
    let inbox = connection.client.new_inbox();
    let subscriber = connection.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let mut request = json!({"batch": max, "no_wait": true});
    if !wait.is_zero() {
        // With both, the server waits for the first message and not for more.
        request["expires"] = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX).into();
    }
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", from.stream, from.name);
    let sent = connection.client.publish_with_reply(subject, inbox, request.to_string().into()).await;
    sent.map_err(|error| failed(&error))?;
    Ok(subscriber)
}

async fn collect(
    connection: &Connection,
    subscriber: &mut Subscriber,
    messages: &mut Vec<Message>,
    (max, wait): (usize, Duration),
) -> End {
    let mut deadline = Instant::now() + wait + GRACE;
    loop {
        let message = tokio::select! {
            message = subscriber.next() => message,
            () = tokio::time::sleep_until(deadline) => return End::Early,
            () = connection.lost() => {
                return End::Failed(Fault::Unavailable("the connection to NATS was lost".to_owned()));
            }
        };
        let Some(message) = message else {
            return End::Failed(Fault::Unavailable("the connection to NATS was closed".to_owned()));
        };
        if let Some(status) = message.status {
            match end_of(status, &message) {
                Some(end) => return end,
                None => continue,
            }
        }
        let about = message.reply.as_ref().and_then(|reply| About::of(reply));
        messages.push(message);
        if messages.len() >= max {
            return End::Complete;
        }
        let has_more = about.is_some_and(|about| about.pending > 0);
        deadline = Instant::now() + if has_more { MORE_WITHIN } else { NO_MORE_WITHIN };
    }
}

/// Reads how a message without content ends a pull. Returns `None` if the pull goes on.
fn end_of(status: StatusCode, message: &Message) -> Option<End> {
    match status {
        StatusCode::NOT_FOUND | StatusCode::TIMEOUT => Some(End::Complete),
        StatusCode::NO_RESPONDERS => Some(End::Failed(Fault::NoResponders)),
        StatusCode::IDLE_HEARTBEAT => None,
        _ => {
            let text = message.description.as_deref().unwrap_or("no reason given");
            // The consumer or its server went away meanwhile.
            Some(End::Failed(if text.contains("Deleted") {
                Fault::NoResponders
            } else {
                Fault::Unavailable(format!("JetStream ended the receive: {text}"))
            }))
        }
    }
}

/// Releases messages that were sent before the server knew that the pull had ended.
async fn release_late(connection: &Connection, mut subscriber: Subscriber) {
    let releasing = async {
        if subscriber.drain().await.is_ok() {
            while let Some(message) = subscriber.next().await {
                release(connection, message).await;
            }
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, releasing).await.is_err() {
        tracing::debug!("messages for a receive that ended are visible again after their timeout");
    }
}

async fn release(connection: &Connection, message: Message) {
    if message.status.is_none()
        && let Some(reply) = message.reply
        && let Err(error) = connection.client.publish(reply, RELEASE.into()).await
    {
        tracing::debug!(%error, "cannot release a message; it is visible again after its timeout");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_of_all_servers_are_understood() {
        let about = About { delivered: 3, sequence: 41, stored_at_ms: 1_700_000_000_123, pending: 7 };
        let old = "$JS.ACK.imgcls-queue-a.receivers.3.41.90.1700000000123456789.7";
        assert_eq!(About::of(old), Some(about));
        let new = "$JS.ACK._.hash.imgcls-queue-a.receivers.3.41.90.1700000000123456789.7.token";
        assert_eq!(About::of(new), Some(about));
        for wrong in ["", "_INBOX.a", "$JS.ACK.a.b", "$JS.ACK.a.b.x.1.1.1.1"] {
            assert_eq!(About::of(wrong), None, "{wrong}");
        }
    }
}
