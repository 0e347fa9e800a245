//! Queues on JetStream. Beyond the contract of [`Queue`]:
//!
//! - A queue is a stream with work-queue retention and two durable pull consumers: of messages to receive, and of messages
//!   with a delay, which a receiver moves to the others when their time has come.
//! - The visibility timeout is the acknowledgement wait of the consumer. A renewal is an in-progress acknowledgement, or a
//!   negative one with a delay where another time is wanted: JetStream takes the acknowledgement of a message until it has
//!   delivered it again.
//! - A message that was received too often is published to the dead-letter queue by the process that receives it once more,
//!   and then terminated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, HeaderValue, Message};
use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connection, Fault, connect};
use super::held::Held;
use super::pull::{About, RELEASE, Received, pull};
use super::record::QueueRecord;
use super::shape;
use super::stream::{
    ATTRIBUTES, DELAYED, MESSAGE_ID, RECEIVERS, STREAMS, SUBJECTS, Stream, VISIBLE_AT, delivery_of, now_ms,
    plain_error, release_after, sent_at_ms,
};
use crate::config::{NatsLocation, queue_name};
use crate::transport::message::{Delivery, Depth, Receipt};
use crate::transport::queued::queue::{Outgoing, Queue, QueueAttributes, QueueError, Queues, ReceiveOptions, Redrive};

/// The queues of one NATS account.
pub struct NatsQueues {
    connection: Arc<Connection>,
    held: Arc<Held>,
}

impl NatsQueues {
    /// Connects to NATS.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] if it cannot be used; it says what to do.
    pub async fn connect(location: &NatsLocation) -> Result<NatsQueues, QueueError> {
        Ok(NatsQueues::on(connect(location).await.map_err(QueueError::Fatal)?))
    }

    pub(super) fn on(connection: Arc<Connection>) -> NatsQueues {
        NatsQueues { connection, held: Arc::default() }
    }

    /// The configuration of the stream of a queue.
    async fn config(&self, name: &str) -> Result<Value, QueueError> {
        let stream = Stream::of(&self.connection, name);
        Ok(stream.info().await?["config"].take())
    }
}

#[async_trait]
impl Queues for NatsQueues {
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        queue_name(name).map_err(|reason| QueueError::Fatal(format!("queue {name:?}: {reason}")))?;
        let stream = Stream::of(&self.connection, name);
        if let Err(fault) = self.connection.create_stream(&stream.full_name, &stream.config(attributes)).await {
            // It names the stream.
            return Err(plain_error(&fault));
        }
        // Those of a queue that existed.
        let attributes = QueueRecord::of_stream(&self.config(name).await?).attributes();
        stream.create_consumers(attributes.visibility_timeout).await?;
        self.open(name).await
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        // No stream has such a name, so none can be there.
        queue_name(name).map_err(|_| QueueError::NotFound(name.to_owned()))?;
        let (stream, config) = (Stream::of(&self.connection, name), self.config(name).await?);
        let attributes = QueueRecord::of_stream(&config).attributes();
        if let Some(reason) = shape::misfit(&config, &stream.config(&attributes)) {
            return Err(QueueError::Fatal(reason));
        }
        Ok(Arc::new(NatsQueue {
            stream,
            held: Arc::clone(&self.held),
            attributes: Mutex::new(attributes),
            mover: OnceLock::new(),
        }))
    }

    async fn delete(&self, name: &str) -> Result<(), QueueError> {
        let stream = Stream::of(&self.connection, name);
        match stream.call("STREAM.DELETE", &json!({})).await {
            Ok(_) | Err(QueueError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError> {
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            let wanted = json!({"subject": format!("{SUBJECTS}.>"), "offset": offset});
            let answer = self.connection.api("STREAM.NAMES", &wanted).await.map_err(|fault| plain_error(&fault))?;
            let names = answer["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            let queues = names.iter().filter_map(|name| name.strip_prefix(STREAMS));
            found.extend(queues.filter(|name| name.starts_with(prefix)).map(str::to_owned));
            offset += names.len() as u64;
            if names.is_empty() || offset >= answer["total"].as_u64().unwrap_or_default() {
                break;
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError> {
        Ok(QueueRecord::of_stream(&self.config(name).await?).tags)
    }

    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError> {
        let stream = Stream::of(&self.connection, name);
        stream.change(|record| drop(record.tags.insert(key.to_owned(), value.to_owned()))).await.map(drop)
    }
}

/// One queue.
struct NatsQueue {
    stream: Stream,
    held: Arc<Held>,
    /// As they were read last.
    attributes: Mutex<QueueAttributes>,
    /// Moves messages with a delay, from the first receive on.
    mover: OnceLock<AbortOnDropHandle<()>>,
}

impl NatsQueue {
    fn known_attributes(&self) -> QueueAttributes {
        self.attributes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, attributes: &QueueAttributes) {
        self.attributes.lock().unwrap_or_else(PoisonError::into_inner).clone_from(attributes);
    }

    fn max_message_bytes(&self) -> usize {
        self.known_attributes().max_message_bytes.min(self.stream.connection.max_body_bytes())
    }

    async fn publish(&self, message: &Outgoing, limit: usize) -> Result<(), QueueError> {
        let size = message.size_bytes();
        if size > limit {
            return Err(QueueError::TooLarge { queue: self.stream.name.clone(), size, limit });
        }
        let mut headers = HeaderMap::new();
        // If the call is made again, the stream keeps one copy.
        headers.insert(MESSAGE_ID, HeaderValue::from(rand::random::<u64>()));
        if !message.attributes.is_empty() {
            // JSON has no line breaks.
            let attributes = json!(message.attributes).to_string();
            headers.insert(ATTRIBUTES, attributes.parse::<HeaderValue>().unwrap_or_default());
        }
        let consumer = if message.delay.is_zero() {
            RECEIVERS
        } else {
            let delay_ms = i64::try_from(message.delay.as_millis()).unwrap_or(i64::MAX);
            headers.insert(VISIBLE_AT, HeaderValue::from(now_ms().saturating_add(delay_ms)));
            DELAYED
        };
        let body = message.body.clone().into();
        match self.stream.connection.publish(self.stream.subject(consumer), headers, body).await {
            Ok(_) => Ok(()),
            Err(fault) => Err(self.stream.error(&fault).await),
        }
    }

    async fn pull(&self, max: usize, wait: Duration) -> Result<Option<Received>, QueueError> {
        match pull(&self.stream.connection, &self.stream.consumer(RECEIVERS), max, wait).await {
            Ok(received) => Ok(Some(received)),
            Err(Fault::NoResponders) if !self.stream.connection.is_missing(&self.stream.full_name).await => {
                tracing::warn!(queue = self.stream.name, "the consumer of the queue was missing and is created again");
                self.stream.create_consumers(self.known_attributes().visibility_timeout).await?;
                Ok(None)
            }
            Err(fault) => Err(self.stream.error(&fault).await),
        }
    }

    /// Turns messages into deliveries. Those that were received too often become dead letters.
    async fn accept(&self, received: &mut Received, visibility_timeout: Duration) -> Result<Vec<Delivery>, QueueError> {
        let QueueAttributes { visibility_timeout: ack_wait, redrive, .. } = self.known_attributes();
        let mut accepted = Vec::new();
        while let Some(message) = received.take() {
            let Some((receipt, about)) = delivery_of(&message) else { continue };
            if let Some(redrive) = &redrive
                && about.delivered > redrive.max_receive_count
            {
                if let Err(error) = self.give_up(&message, &receipt, about, redrive).await {
                    tracing::warn!(
                        %error,
                        queue = self.stream.name,
                        "cannot move a message to the dead letters; trying again after its visibility timeout"
                    );
                }
                continue;
            }
            self.held.hold(&receipt, visibility_timeout);
            if visibility_timeout != ack_wait {
                let delay = release_after(visibility_timeout);
                // If it is lost, the message is visible again after the time of the consumer.
                drop(self.stream.connection.client.publish(receipt.0.clone(), delay.into()).await);
            }
            accepted.push(to_delivery(&message, receipt, about));
        }
        Ok(accepted)
    }

    async fn give_up(
        &self,
        message: &Message,
        receipt: &Receipt,
        about: About,
        redrive: &Redrive,
    ) -> Result<(), QueueError> {
        let dead_letters = Stream::of(&self.stream.connection, &redrive.dead_letter_queue);
        let moved = self.stream.republish(message, about, &dead_letters.subject(RECEIVERS), "dead").await;
        if let Err(fault) = moved {
            return Err(dead_letters.error(&fault).await);
        }
        self.stream.answer(receipt, "+TERM".to_owned()).await
    }

    /// Sets until when a delivery is held.
    async fn hold(&self, receipt: &Receipt, timeout: Duration) -> Result<(), QueueError> {
        if !self.held.is_held(receipt) {
            return Ok(());
        }
        if timeout.is_zero() {
            self.stream.answer(receipt, RELEASE.to_owned()).await?;
            self.held.forget(receipt);
            return Ok(());
        }
        let answer = if timeout == self.known_attributes().visibility_timeout {
            "+WPI".to_owned()
        } else {
            release_after(timeout)
        };
        self.held.hold(receipt, timeout);
        self.stream.answer(receipt, answer).await
    }
}

fn to_delivery(message: &Message, receipt: Receipt, about: About) -> Delivery {
    let attributes = message.headers.as_ref().and_then(|headers| headers.get(ATTRIBUTES));
    let attributes = attributes.and_then(|text| serde_json::from_str(text.as_str()).ok());
    Delivery {
        message_id: about.sequence.to_string(),
        receipt,
        body: String::from_utf8_lossy(&message.payload).into_owned(),
        attributes: attributes.unwrap_or_default(),
        receive_count: about.delivered,
        sent_at_ms: sent_at_ms(message, about),
    }
}

#[async_trait]
impl Queue for NatsQueue {
    fn name(&self) -> &str {
        &self.stream.name
    }

    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let limit = self.max_message_bytes();
        let answers = join_all(messages.iter().map(|message| self.publish(message, limit))).await;
        let is_of_queue = |answer: &Result<(), QueueError>| {
            matches!(answer, Err(QueueError::NotFound(_) | QueueError::Unavailable(_) | QueueError::Fatal(_)))
        };
        match answers.first() {
            Some(Err(error)) if answers.iter().all(is_of_queue) => Err(error.clone()),
            _ => Ok(answers),
        }
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        let start_mover = || AbortOnDropHandle::new(tokio::spawn(self.stream.clone().move_delayed()));
        self.mover.get_or_init(start_mover);
        let end = Instant::now() + options.wait;
        loop {
            let wait = end.saturating_duration_since(Instant::now());
            if let Some(mut received) = self.pull(options.max, wait).await? {
                let deliveries = self.accept(&mut received, options.visibility_timeout).await?;
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
            }
            // Less than that is no time for another look.
            if end.saturating_duration_since(Instant::now()) < Duration::from_millis(10) {
                return Ok(Vec::new());
            }
        }
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        let acknowledged = receipts.iter().filter(|receipt| self.held.is_held(receipt)).map(|receipt| async move {
            self.stream.answer(receipt, "+ACK".to_owned()).await?;
            self.held.forget(receipt);
            Ok(())
        });
        join_all(acknowledged).await.into_iter().collect()
    }

    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError> {
        let changed = changes.iter().map(|(receipt, timeout)| self.hold(receipt, *timeout));
        join_all(changed).await.into_iter().collect()
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let (receivers, delayed) = futures::try_join!(self.stream.counts(RECEIVERS), self.stream.counts(DELAYED))?;
        Ok(Depth { visible: receivers.0, in_flight: receivers.1, delayed: delayed.0 + delayed.1 })
    }

    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError> {
        let info = self.stream.info().await?;
        let state = &info["state"];
        if state["messages"].as_u64().unwrap_or_default() == 0 {
            return Ok(None);
        }
        let first = state["first_ts"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let age_ms = first.map(|at| now_ms().saturating_sub(at.as_millisecond()));
        Ok(age_ms.map(|age| Duration::from_millis(u64::try_from(age).unwrap_or_default())))
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let mut attributes = QueueRecord::of_stream(&self.stream.info().await?["config"]).attributes();
        self.learn(&attributes);
        attributes.max_message_bytes = self.max_message_bytes();
        Ok(attributes)
    }

    async fn set_redrive(&self, redrive: &Redrive) -> Result<(), QueueError> {
        let attributes = self.stream.change(|record| record.set_redrive(redrive)).await?;
        self.learn(&attributes);
        Ok(())
    }

    async fn purge(&self) -> Result<(), QueueError> {
        self.stream.call("STREAM.PURGE", &json!({})).await.map(drop)
    }
}
