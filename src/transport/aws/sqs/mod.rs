//! Queues on AWS: SQS.
//!
//! Beyond the contract of [`Queue`]:
//!
//! - A handle keeps the queue's URL. It follows from region, account and name, so a queue that was deleted and created
//!   again has the same one. AWS lets a name be used again after 60 s.
//! - The message limit is read from the attributes, and only when a message is larger than the smallest limit that a queue
//!   can have; so most handles cost no call for it. It is read again when SQS refuses a message (somebody lowered
//!   the limit), and now and then while messages are too large (somebody may have raised it).
//! - Sends and acknowledgements of many callers share calls (`coalesce`).
//! - Counts are SQS's, and approximate. Only CloudWatch knows how old the oldest message is (`age`).

mod address;
mod age;
mod attributes;
mod batches;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName, QueueAttributeName};

use self::address::{Address, Service};
use self::attributes::{redrive_policy, to_sqs};
use self::batches::{Acks, Sends, try_entries};
use super::coalesce::{Coalescer, Pace};
use crate::aws::Aws;
use crate::config;
use crate::transport::message::{Delivery, Depth, Receipt};
use crate::transport::queued::queue::{
    LONGEST_POLL, MAX_BATCH, Outgoing, Queue, QueueAttributes, QueueError, Queues, ReceiveOptions, Redrive,
};

/// The most bytes of one call, whatever the limit of the queue.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// A caller waits for its send. Under load it waits up to this long for others to share a call with.
const SEND_PACE: Pace =
    Pace { interval: Duration::from_millis(25), max_in_flight: 8, max_batch_bytes: MAX_BATCH_BYTES };
/// No client waits for an acknowledgement.
const ACK_PACE: Pace = Pace { interval: Duration::from_millis(50), max_in_flight: 8, max_batch_bytes: usize::MAX };
/// Names that one call of ListQueues returns.
const LIST_PAGE: i32 = 1_000;

/// The queues of one account in one region.
pub struct SqsQueues {
    service: Arc<Service>,
}

struct SqsQueue {
    name: String,
    queue: Arc<Address>,
    sends: Coalescer<Sends>,
    acks: Coalescer<Acks>,
}

impl SqsQueues {
    /// Connects with the credentials and settings of the environment.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when no region is found.
    pub async fn connect(region: Option<&str>, endpoint_url: Option<&str>) -> Result<SqsQueues, QueueError> {
        let aws = Aws::connect(region, endpoint_url).await.map_err(|refusal| QueueError::Fatal(refusal.to_string()))?;
        Ok(SqsQueues::over(aws))
    }

    /// Uses a configuration that is already loaded.
    pub fn over(aws: Aws) -> SqsQueues {
        let client = Client::new(aws.sdk());
        SqsQueues { service: Arc::new(Service { aws, client }) }
    }

    async fn address(&self, name: &str) -> Result<Arc<Address>, QueueError> {
        Address::find(&self.service, name).await
    }
}

#[async_trait]
impl Queues for SqsQueues {
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        let name = config::queue_name(name).map_err(|why| QueueError::Fatal(format!("{why}: not {name:?}")))?;
        let dead_letters = match &attributes.redrive {
            Some(redrive) => Some(self.address(&redrive.dead_letter_queue).await?.arn().await?),
            None => None,
        };
        let attributes = to_sqs(attributes, dead_letters.as_deref());
        let call = self.service.client.create_queue().queue_name(&name).set_attributes(Some(attributes)).send();
        match call.await {
            Ok(created) => {
                let url = created.queue_url.ok_or_else(|| nothing_said("sqs:CreateQueue", &name))?;
                tracing::info!(queue = name, "queue created");
                Ok(SqsQueue::of(Address::of(&self.service, &name, url)))
            }
            // It exists with other attributes.
            Err(error) if exists_already(&error) => self.open(&name).await,
            Err(error) => Err(self.service.fault("sqs:CreateQueue", &name, &error)),
        }
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let address = self.address(name).await?;
        Ok(SqsQueue::of(address))
    }

    async fn delete(&self, name: &str) -> Result<(), QueueError> {
        let deleted = async {
            let url = &self.address(name).await?.url;
            let call = self.service.client.delete_queue().queue_url(url).send();
            call.await.map_err(|error| self.service.fault("sqs:DeleteQueue", name, &error))
        };
        match deleted.await {
            Ok(_) | Err(QueueError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError> {
        let call = self.service.client.list_queues().max_results(LIST_PAGE);
        let call = if prefix.is_empty() { call } else { call.queue_name_prefix(prefix) };
        let mut urls = call.into_paginator().items().send();
        let mut names = Vec::new();
        while let Some(url) = urls.next().await {
            let url = url.map_err(|error| self.service.fault("sqs:ListQueues", prefix, &error))?;
            names.extend(url.rsplit('/').next().map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError> {
        let url = &self.address(name).await?.url;
        let call = self.service.client.list_queue_tags().queue_url(url).send();
        let found = call.await.map_err(|error| self.service.fault("sqs:ListQueueTags", name, &error))?;
        Ok(found.tags.unwrap_or_default().into_iter().collect())
    }

    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError> {
        let url = &self.address(name).await?.url;
        let call = self.service.client.tag_queue().queue_url(url).tags(key, value).send();
        call.await.map(drop).map_err(|error| self.service.fault("sqs:TagQueue", name, &error))
    }
}

impl SqsQueue {
    fn of(queue: Arc<Address>) -> Arc<dyn Queue> {
        Arc::new(SqsQueue {
            name: queue.name.clone(),
            sends: Coalescer::new(Sends(Arc::clone(&queue)), SEND_PACE),
            acks: Coalescer::new(Acks(Arc::clone(&queue)), ACK_PACE),
            queue,
        })
    }
}

#[async_trait]
impl Queue for SqsQueue {
    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Result<(), QueueError>>, QueueError> {
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            match self.queue.check_size(message.size_bytes()).await {
                Err(error) if !matches!(error, QueueError::TooLarge { .. }) => return Err(error),
                checked => answers.push(checked),
            }
        }
        let fitting = messages.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        let sent = self.sends.submit(fitting.map(|(message, _)| message.clone()).collect()).await;
        for (answer, sent) in answers.iter_mut().filter(|answer| answer.is_ok()).zip(sent) {
            *answer = sent;
        }
        match answers.first() {
            // The error is one of the queue or of the way to it, and not of a single message.
            Some(Err(error)) if !matches!(error, QueueError::TooLarge { .. }) && answers.iter().all(Result::is_err) => {
                Err(error.clone())
            }
            _ => Ok(answers),
        }
    }

    async fn receive(&self, options: ReceiveOptions) -> Result<Vec<Delivery>, QueueError> {
        let wait = options.wait.min(LONGEST_POLL);
        let deadlines = aws_sdk_sqs::config::Builder::default().timeout_config(Aws::timeouts_with(wait));
        let call = self
            .queue
            .service
            .client
            .receive_message()
            .queue_url(&self.queue.url)
            .max_number_of_messages(i32::try_from(options.max.clamp(1, MAX_BATCH)).unwrap_or(1))
            .wait_time_seconds(whole_seconds(wait))
            .visibility_timeout(whole_seconds(options.visibility_timeout))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
            .message_attribute_names("All")
            .customize()
            .config_override(deadlines)
            .send();
        let received = call.await.map_err(|error| self.queue.fault("sqs:ReceiveMessage", &error))?;
        Ok(received.messages.unwrap_or_default().into_iter().filter_map(to_delivery).collect())
    }

    async fn ack(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.acks.submit(receipts.to_vec()).await.into_iter().collect()
    }

    async fn set_visibility(&self, changes: &[(Receipt, Duration)]) -> Result<(), QueueError> {
        if changes.is_empty() {
            return Ok(());
        }
        let answers = try_entries(changes.len(), |left| self.queue.change_visibility(changes, left)).await;
        answers.into_iter().collect()
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        use QueueAttributeName as Name;
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
            Name::ApproximateNumberOfMessagesDelayed,
        ];
        let found = self.queue.read_attributes(&names).await?;
        let count = |name: &Name| found.get(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        let [visible, in_flight, delayed] = names.each_ref().map(count);
        Ok(Depth { visible, in_flight, delayed })
    }

    async fn oldest_age(&self) -> Result<Option<Duration>, QueueError> {
        age::of_oldest(&self.queue.service.aws, &self.name).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.queue.attributes().await
    }

    async fn set_redrive(&self, redrive: &Redrive) -> Result<(), QueueError> {
        let arn = Address::find(&self.queue.service, &redrive.dead_letter_queue).await?.arn().await?;
        let call = self.queue.service.client.set_queue_attributes().queue_url(&self.queue.url);
        let call = call.attributes(QueueAttributeName::RedrivePolicy, redrive_policy(redrive, &arn)).send();
        call.await.map(drop).map_err(|error| self.queue.fault("sqs:SetQueueAttributes", &error))
    }

    async fn purge(&self) -> Result<(), QueueError> {
        let call = self.queue.service.client.purge_queue().queue_url(&self.queue.url).send();
        call.await.map(drop).map_err(|error| match error.code() {
            Some("PurgeQueueInProgress" | "AWS.SimpleQueueService.PurgeQueueInProgress") => {
                QueueError::Unavailable(format!("queue {:?} was purged within the last 60 s", self.name))
            }
            _ => self.queue.fault("sqs:PurgeQueue", &error),
        })
    }
}

/// Returns `None` if the message has no receipt, which SQS never sends.
fn to_delivery(message: Message) -> Option<Delivery> {
    let system = message.attributes.unwrap_or_default();
    let number = |name: &MessageSystemAttributeName| system.get(name).map(String::as_str);
    let attributes = message.message_attributes.unwrap_or_default();
    Some(Delivery {
        receipt: Receipt(message.receipt_handle?),
        message_id: message.message_id.unwrap_or_default(),
        body: message.body.unwrap_or_default(),
        attributes: attributes.into_iter().filter_map(|(name, value)| Some((name, value.string_value?))).collect(),
        receive_count: number(&MessageSystemAttributeName::ApproximateReceiveCount)
            .and_then(|text| text.parse().ok())
            .unwrap_or(1),
        sent_at_ms: number(&MessageSystemAttributeName::SentTimestamp)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
    })
}

/// SQS has no shorter times. Rounded up, so that a short wait is a wait and a short timeout does not end at once.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

fn exists_already<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    matches!(error.code(), Some("QueueNameExists" | "QueueAlreadyExists"))
}

fn nothing_said(action: &str, queue: &str) -> QueueError {
    QueueError::Unavailable(format!("{action}: no URL of queue {queue:?} in the answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(20)), 20);
        assert_eq!(whole_seconds(Duration::from_millis(20_001)), 21);
    }
}
