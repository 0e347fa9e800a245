//! The stream of a queue: its configuration and consumers, calls about it, and the messages with a delay that wait in it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Message};
use serde_json::{Value, json};

use super::connection::{Connection, Fault, codes};
use super::pull::{About, Consumer, RELEASE, Received, pull};
use super::record::QueueRecord;
use crate::clock;
use crate::transport::message::Receipt;
use crate::transport::queued::queue::{QueueAttributes, QueueError};

/// Subjects of messages, and the begin of the names of their streams.
pub(super) const SUBJECTS: &str = "imgcls.queue";
pub(super) const STREAMS: &str = "imgcls-queue-";
/// The consumer of messages to receive.
pub(super) const RECEIVERS: &str = "receivers";
/// The consumer of messages with a delay.
pub(super) const DELAYED: &str = "delayed";
/// The attributes of a message beside its body, as JSON.
pub(super) const ATTRIBUTES: &str = "Imgcls-Attributes";
/// When a message was sent first, if that was in another queue or with a delay: milliseconds since the Unix epoch.
const SENT_AT: &str = "Imgcls-Sent-At";
/// When a message with a delay becomes visible: milliseconds since the Unix epoch.
pub(super) const VISIBLE_AT: &str = "Imgcls-Visible-At";
/// JetStream drops a message whose id it had a while ago.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Within this time JetStream drops a message of the same id.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Receives that may wait at a consumer. The default of JetStream, 512, would be too few for large fleets.
const MAX_WAITING: u64 = 16_384;
/// How long a look for messages with a delay waits.
const DELAYED_POLL: Duration = Duration::from_secs(30);
/// The rest after a look that failed.
const DELAYED_RETRY: Duration = Duration::from_secs(1);
const DELAYED_BATCH: usize = 10;

pub(super) fn plain_error(fault: &Fault) -> QueueError {
    if fault.is_transient() { QueueError::Unavailable(fault.to_string()) } else { QueueError::Fatal(fault.to_string()) }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX.unsigned_abs())
}

/// The stream of a queue.
#[derive(Clone)]
pub(super) struct Stream {
    pub connection: Arc<Connection>,
    /// The name of the queue.
    pub name: String,
    /// The name of the stream.
    pub full_name: String,
}

impl Stream {
    pub(super) fn of(connection: &Arc<Connection>, name: &str) -> Stream {
        Stream { connection: Arc::clone(connection), name: name.to_owned(), full_name: format!("{STREAMS}{name}") }
    }

    pub(super) fn subject(&self, consumer: &str) -> String {
        format!("{SUBJECTS}.{}.{consumer}", self.name)
    }

    pub(super) fn consumer(&self, name: &'static str) -> Consumer {
        Consumer { stream: self.full_name.clone(), name }
    }

    pub(super) fn config(&self, attributes: &QueueAttributes) -> Value {
        json!({
            "name": self.full_name,
            "subjects": [self.subject("*")],
            "retention": "workqueue",
            "storage": "file",
            "discard": "new",
            "max_age": nanoseconds(attributes.retention),
            "duplicate_window": nanoseconds(attributes.retention.min(DUPLICATE_WINDOW)),
            "num_replicas": self.connection.replicas,
            "description": QueueRecord::of(attributes).to_description(),
        })
    }

    /// Creates the consumers that are missing.
    pub(super) async fn create_consumers(&self, ack_wait: Duration) -> Result<(), QueueError> {
        for name in [RECEIVERS, DELAYED] {
            let config = json!({
                "durable_name": name,
                "filter_subject": self.subject(name),
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "replay_policy": "instant",
                "ack_wait": nanoseconds(ack_wait),
                "max_deliver": -1,
                "max_ack_pending": -1,
                "max_waiting": MAX_WAITING,
            });
            let body = json!({"stream_name": self.full_name, "config": config});
            let call = format!("CONSUMER.DURABLE.CREATE.{}.{name}", self.full_name);
            match self.connection.api(&call, &body).await {
                // It exists, and was created with other values.
                Err(Fault::Refused { status: 400, text, .. }) => {
                    tracing::debug!(queue = self.name, consumer = name, reason = text, "the consumer stays as it is");
                }
                Err(fault) => return Err(self.error(&fault).await),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// A call of the API about the stream.
    pub(super) async fn call(&self, call: &str, body: &Value) -> Result<Value, QueueError> {
        match self.connection.api(&format!("{call}.{}", self.full_name), body).await {
            Ok(answer) => Ok(answer),
            Err(fault) => Err(self.error(&fault).await),
        }
    }

    pub(super) async fn info(&self) -> Result<Value, QueueError> {
        self.call("STREAM.INFO", &json!({})).await
    }

    /// Changes the description, and returns the attributes afterwards.
    pub(super) async fn change(&self, change: impl FnOnce(&mut QueueRecord)) -> Result<QueueAttributes, QueueError> {
        let mut config = self.info().await?["config"].take();
        let mut record = QueueRecord::of_stream(&config);
        change(&mut record);
        config["description"] = record.to_description().into();
        self.call("STREAM.UPDATE", &config).await?;
        Ok(record.attributes())
    }

    pub(super) async fn error(&self, fault: &Fault) -> QueueError {
        let is_missing = match fault {
            fault if fault.is(codes::STREAM_NOT_FOUND) => true,
            Fault::NoResponders => self.connection.is_missing(&self.full_name).await,
            _ => false,
        };
        if is_missing {
            QueueError::NotFound(self.name.clone())
        } else {
            plain_error(&fault.clone().of_stream(&self.full_name))
        }
    }

    /// Counts messages of a consumer: those that nobody received, and those that are received and not acknowledged.
    pub(super) async fn counts(&self, consumer: &str) -> Result<(u64, u64), QueueError> {
        let call = format!("CONSUMER.INFO.{}.{consumer}", self.full_name);
        match self.connection.api(&call, &json!({})).await {
            Ok(info) => {
                let count = |name: &str| info[name].as_u64().unwrap_or_default();
                Ok((count("num_pending"), count("num_ack_pending")))
            }
            Err(fault) if fault.is(codes::CONSUMER_NOT_FOUND) => {
                // Somebody deleted it; the next receive creates it.
                Ok((self.info().await?["state"]["messages"].as_u64().unwrap_or_default(), 0))
            }
            Err(fault) => Err(self.error(&fault).await),
        }
    }

    /// Acknowledges a delivery in one of JetStream's ways, and waits until that is confirmed.
    pub(super) async fn answer(&self, receipt: &Receipt, answer: String) -> Result<(), QueueError> {
        match self.connection.call(&receipt.0, None, answer.into()).await {
            Ok(_) => Ok(()),
            Err(fault) => Err(self.error(&fault).await),
        }
    }

    /// Publishes the messages whose delay is over again, without one. Runs until it is dropped.
    pub(super) async fn move_delayed(self) {
        loop {
            match pull(&self.connection, &self.consumer(DELAYED), DELAYED_BATCH, DELAYED_POLL).await {
                Ok(received) => {
                    if let Err(error) = self.move_due(received).await {
                        tracing::debug!(%error, queue = self.name, "cannot move a message whose delay is over");
                        tokio::time::sleep(DELAYED_RETRY).await;
                    }
                }
                Err(fault) => {
                    tracing::debug!(%fault, queue = self.name, "cannot look for messages whose delay is over");
                    tokio::time::sleep(DELAYED_RETRY).await;
                }
            }
        }
    }

    pub(super) async fn move_due(&self, mut received: Received) -> Result<(), QueueError> {
        while let Some(message) = received.take() {
            let Some((receipt, about)) = delivery_of(&message) else { continue };
            let rest_ms = header(&message, VISIBLE_AT).unwrap_or_default() - now_ms();
            if let Some(rest) = u64::try_from(rest_ms).ok().filter(|rest| *rest > 0) {
                self.answer(&receipt, release_after(Duration::from_millis(rest))).await?;
                continue;
            }
            let moved = self.republish(&message, about, &self.subject(RECEIVERS), "delayed").await;
            if let Err(fault) = moved {
                received.give_back(message);
                return Err(self.error(&fault).await);
            }
            self.answer(&receipt, "+ACK".to_owned()).await?;
        }
        Ok(())
    }

    /// Publishes a message again. JetStream drops a second copy of it within some time.
    pub(super) async fn republish(
        &self,
        message: &Message,
        about: About,
        subject: &str,
        purpose: &str,
    ) -> Result<(), Fault> {
        let mut headers = HeaderMap::new();
        if let Some(attributes) = message.headers.as_ref().and_then(|headers| headers.get(ATTRIBUTES)) {
            headers.insert(ATTRIBUTES, attributes.clone());
        }
        headers.insert(SENT_AT, HeaderValue::from(sent_at_ms(message, about)));
        // The time tells streams of the same name apart that existed one after the other.
        let id = format!("{}-{purpose}-{}-{}", self.name, about.sequence, about.stored_at_ms);
        headers.insert(MESSAGE_ID, id.parse::<HeaderValue>().unwrap_or_default());
        self.connection.publish(subject.to_owned(), headers, message.payload.clone()).await.map(drop)
    }
}

/// The negative acknowledgement that makes a message visible after a time, unless it is acknowledged before.
pub(super) fn release_after(delay: Duration) -> String {
    format!("{RELEASE} {{\"delay\": {}}}", nanoseconds(delay))
}

pub(super) fn delivery_of(message: &Message) -> Option<(Receipt, About)> {
    let subject = message.reply.as_ref()?;
    Some((Receipt(subject.to_string()), About::of(subject)?))
}

pub(super) fn header(message: &Message, name: &str) -> Option<i64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}

pub(super) fn sent_at_ms(message: &Message, about: About) -> i64 {
    header(message, SENT_AT).unwrap_or(about.stored_at_ms)
}

pub(super) fn now_ms() -> i64 {
    clock::now().as_millisecond()
}
