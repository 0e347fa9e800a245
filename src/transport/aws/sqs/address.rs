//! One queue, as calls to SQS name it: single calls, the message limit, and the errors in answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
    MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry,
};
use tokio::sync::Mutex;

use super::attributes::from_sqs;
use super::{nothing_said, whole_seconds};
use crate::aws::{Aws, Fault};
use crate::transport::message::Receipt;
use crate::transport::queued::queue::{Outgoing, QueueAttributes, QueueError};

/// The smallest limit that a queue can have.
pub(super) const LEAST_MAX_MESSAGE_BYTES: usize = 1_024;
/// How long messages are refused by a limit that was read before.
const LIMIT_KEPT_FOR: Duration = Duration::from_secs(10);

/// SQS, as calls reach it.
pub(super) struct Service {
    pub aws: Aws,
    pub client: Client,
}

/// A queue, as calls name it.
pub(super) struct Address {
    pub service: Arc<Service>,
    pub name: String,
    pub url: String,
    limit: Mutex<Option<MessageLimit>>,
}

/// The message limit, when the attributes were last read.
#[derive(Clone, Copy)]
struct MessageLimit {
    bytes: usize,
    read_at: Instant,
}

/// The error of one entry of a batch, with the index of the entry.
pub(super) type EntryFault = (usize, QueueError);

impl Address {
    pub(crate) fn of(service: &Arc<Service>, name: &str, url: String) -> Arc<Address> {
        Arc::new(Address { service: Arc::clone(service), name: name.to_owned(), url, limit: Mutex::default() })
    }

    pub(crate) async fn find(service: &Arc<Service>, name: &str) -> Result<Arc<Address>, QueueError> {
        let call = service.client.get_queue_url().queue_name(name).send();
        let found = call.await.map_err(|error| service.fault("sqs:GetQueueUrl", name, &error))?;
        let url = found.queue_url.ok_or_else(|| nothing_said("sqs:GetQueueUrl", name))?;
        Ok(Address::of(service, name, url))
    }

    /// Fails if the queue is known to refuse messages of this size. A send may still be refused.
    pub(crate) async fn check_size(&self, size: usize) -> Result<(), QueueError> {
        if size <= LEAST_MAX_MESSAGE_BYTES {
            return Ok(());
        }
        // The lock is held during the read, because other callers would only repeat the same query.
        let mut known = self.limit.lock().await;
        let limit = match *known {
            Some(limit) if size <= limit.bytes || limit.read_at.elapsed() < LIMIT_KEPT_FOR => limit.bytes,
            _ => {
                let bytes = self.read_all_attributes().await?.max_message_bytes;
                *known = Some(MessageLimit { bytes, read_at: Instant::now() });
                bytes
            }
        };
        self.fits(size, limit)
    }

    pub(crate) fn fits(&self, size: usize, limit: usize) -> Result<(), QueueError> {
        if size <= limit { Ok(()) } else { Err(QueueError::TooLarge { queue: self.name.clone(), size, limit }) }
    }

    /// Reads the attributes. From here on messages are checked against this limit.
    pub(crate) async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        let attributes = self.read_all_attributes().await?;
        *self.limit.lock().await = Some(MessageLimit { bytes: attributes.max_message_bytes, read_at: Instant::now() });
        Ok(attributes)
    }

    pub(crate) fn fault<E>(&self, action: &str, error: &SdkError<E, HttpResponse>) -> QueueError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.service.fault(action, &self.name, error)
    }

    pub(crate) async fn read_attributes(
        &self,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, QueueError> {
        let call = self.service.client.get_queue_attributes().queue_url(&self.url);
        let call = call.set_attribute_names(Some(names.to_vec())).send();
        let found = call.await.map_err(|error| self.fault("sqs:GetQueueAttributes", &error))?;
        Ok(found.attributes.unwrap_or_default())
    }

    async fn read_all_attributes(&self) -> Result<QueueAttributes, QueueError> {
        let names = [
            QueueAttributeName::VisibilityTimeout,
            QueueAttributeName::MessageRetentionPeriod,
            QueueAttributeName::MaximumMessageSize,
            QueueAttributeName::RedrivePolicy,
        ];
        from_sqs(&self.read_attributes(&names).await?)
            .map_err(|what| QueueError::Unavailable(format!("queue {:?} returned no {what}", self.name)))
    }

    pub(crate) async fn arn(&self) -> Result<String, QueueError> {
        let mut found = self.read_attributes(&[QueueAttributeName::QueueArn]).await?;
        found
            .remove(&QueueAttributeName::QueueArn)
            .ok_or_else(|| QueueError::Unavailable(format!("queue {:?} returned no ARN", self.name)))
    }

    /// Sends the messages at those indices.
    pub(crate) async fn send(&self, messages: &[Outgoing], places: &[usize]) -> Result<Vec<EntryFault>, QueueError> {
        let entries = places.iter().map(|&at| send_entry(at, &messages[at])).collect();
        let call = self.service.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send();
        let answer = call.await.map_err(|error| self.fault("sqs:SendMessage", &error))?;
        Ok(self.entry_faults("sqs:SendMessage", answer.failed))
    }

    /// Deletes by the receipts at those indices.
    pub(crate) async fn delete(&self, receipts: &[Receipt], places: &[usize]) -> Result<Vec<EntryFault>, QueueError> {
        let entry = |&at: &usize| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(at.to_string()).receipt_handle(&receipts[at].0);
            entry.build().expect("id and receipt are set; this is a bug")
        };
        let entries = places.iter().map(entry).collect();
        let call = self.service.client.delete_message_batch().queue_url(&self.url).set_entries(Some(entries)).send();
        let answer = call.await.map_err(|error| self.fault("sqs:DeleteMessage", &error))?;
        Ok(self.faults_but_stale("sqs:DeleteMessage", answer.failed))
    }

    pub(crate) async fn change_visibility(
        &self,
        changes: &[(Receipt, Duration)],
        places: Vec<usize>,
    ) -> Result<Vec<EntryFault>, QueueError> {
        let entry = |&at: &usize| {
            let (receipt, timeout) = &changes[at];
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(at.to_string());
            let entry = entry.receipt_handle(&receipt.0).visibility_timeout(whole_seconds(*timeout));
            entry.build().expect("id and receipt are set; this is a bug")
        };
        let entries = places.iter().map(entry).collect();
        let call = self.service.client.change_message_visibility_batch().queue_url(&self.url);
        let answer = call.set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| self.fault("sqs:ChangeMessageVisibility", &error))?;
        Ok(self.faults_but_stale("sqs:ChangeMessageVisibility", answer.failed))
    }

    /// The faults of a call with receipts. A stale receipt does nothing, which is no error.
    fn faults_but_stale(&self, action: &str, failed: Vec<BatchResultErrorEntry>) -> Vec<EntryFault> {
        let failed = failed.into_iter().filter(|entry| !is_stale_receipt(&entry.code));
        self.entry_faults(action, failed.collect())
    }

    fn entry_faults(&self, action: &str, failed: Vec<BatchResultErrorEntry>) -> Vec<EntryFault> {
        let fault = |entry: BatchResultErrorEntry| {
            let said = format!("{}: {}", entry.code, entry.message.unwrap_or_default());
            let error = if entry.sender_fault {
                QueueError::Fatal(format!("{action} on queue {:?} was refused: {said}", self.name))
            } else {
                QueueError::Unavailable(format!("{action} on queue {:?}: {said}", self.name))
            };
            Some((entry.id.parse().ok()?, error))
        };
        failed.into_iter().filter_map(fault).collect()
    }
}

impl Service {
    pub(crate) fn fault<E>(&self, action: &str, queue: &str, error: &SdkError<E, HttpResponse>) -> QueueError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        if matches!(error.code(), Some("QueueDeletedRecently" | "AWS.SimpleQueueService.QueueDeletedRecently")) {
            let reason =
                format!("queue {queue:?} was removed within the last 60 s; AWS makes it again only after them");
            return QueueError::Unavailable(reason);
        }
        as_queue_error(self.aws.fault(action, &format!("queue {queue:?}"), error), queue)
    }
}

/// Names the queue in a fault of AWS.
pub(super) fn as_queue_error(fault: Fault, queue: &str) -> QueueError {
    match fault {
        Fault::Missing => QueueError::NotFound(queue.to_owned()),
        Fault::Unavailable(reason) => QueueError::Unavailable(reason),
        Fault::Fatal(reason) => QueueError::Fatal(reason),
    }
}

fn send_entry(at: usize, message: &Outgoing) -> SendMessageBatchRequestEntry {
    let attributes = message.attributes.iter().map(|(name, value)| {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value).build();
        (name.clone(), value.expect("the type is set; this is a bug"))
    });
    SendMessageBatchRequestEntry::builder()
        .id(at.to_string())
        .message_body(&message.body)
        .set_message_attributes(Some(attributes.collect()).filter(|attributes: &HashMap<_, _>| !attributes.is_empty()))
        .set_delay_seconds(Some(whole_seconds(message.delay)).filter(|delay| *delay > 0))
        .build()
        .expect("id and body are set; this is a bug")
}

/// Returns true if the error code means that the message was received again, was deleted, or is visible.
fn is_stale_receipt(code: &str) -> bool {
    let code = code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code);
    matches!(code, "ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidParameterValue")
}
