//! The queues of a stack, and the reply queues of its web processes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName;
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::client::{Attributes, CONCURRENT_CALLS, Cloud, POLL_DELAYS, owner_by_tags, retry_while, text};
use crate::aws::Fault;
use crate::protocol;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::resource::{DELETION_TAG, Kind, Resource, label, our_tags, tags_of};
use crate::provision::stack::Stack;

/// SQS deletes a queue within a minute.
const LONGEST_DELETION: Duration = Duration::from_secs(180);
/// Number of listings in a row without a queue after which it is deleted.
const LISTINGS_WITHOUT: u32 = 3;
const BETWEEN_LISTINGS: Duration = Duration::from_millis(500);
/// Numeric attributes that are compared with the wanted ones.
const COMPARED: [&str; 3] = ["VisibilityTimeout", "MessageRetentionPeriod", "MaximumMessageSize"];

/// The queues of a stack.
#[derive(Default)]
pub(super) struct Queues {
    pub found: Vec<FoundResource>,
    /// Names of reply queues.
    pub replies: Vec<String>,
    /// Names of queues that were deleted and are still listed.
    pub in_deletion: Vec<String>,
}

enum Seen {
    Queue(Box<FoundResource>),
    InDeletion(String),
}

impl Cloud {
    /// Observes the queues that have the stack's names or its tag.
    pub(super) async fn observe_queues(&self, stack: &Stack) -> anyhow::Result<Queues> {
        let mut urls = self.sqs.list_queues().max_results(1_000).into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(url) = urls.next().await {
            all.push(self.done("sqs:ListQueues", "the queues", url)?);
        }
        let reply_prefix = protocol::reply_queue(&stack.result_queue, "");
        let tagged = self.tagged("sqs", &stack.name).await;
        let is_candidate = |url: &&String| {
            let name = name_of(url);
            stack.find(Kind::Queue, name).is_some() || name.starts_with(&reply_prefix) || tagged.contains(name)
        };
        let observed = all.iter().filter(is_candidate).map(|url| self.observe_queue(stack, url));
        let observed: Vec<_> = futures::stream::iter(observed).buffer_unordered(CONCURRENT_CALLS).collect().await;
        let mut queues = Queues::default();
        for queue in observed {
            match queue? {
                Some(Seen::InDeletion(name)) => queues.in_deletion.push(name),
                Some(Seen::Queue(queue))
                    if queue.name.starts_with(&reply_prefix) && stack.find(Kind::Queue, &queue.name).is_none() =>
                {
                    queues.replies.push(queue.name);
                }
                Some(Seen::Queue(queue)) => queues.found.push(*queue),
                None => {}
            }
        }
        Ok(queues)
    }

    /// Waits until no queue of the stack is listed any more, and deletes those that were too new to be listed before. A
    /// listing may lack a queue that the next one has, so that one listing without queues says nothing.
    ///
    /// # Errors
    /// A call fails, or there are still queues after [`LONGEST_DELETION`].
    pub(in crate::provision) async fn wait_for_deleted_queues(
        &self,
        stack: &Stack,
        kept: &BTreeSet<(Kind, &str)>,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + LONGEST_DELETION;
        let mut backoff = POLL_DELAYS.start();
        let mut listings_without = 0;
        while listings_without < LISTINGS_WITHOUT {
            let queues = self.observe_queues(stack).await?;
            let is_deleted = |queue: &FoundResource| {
                queue.owner == Owner::This && !kept.contains(&(Kind::Queue, queue.name.as_str()))
            };
            let owned = queues.found.into_iter().filter(is_deleted).map(|queue| queue.name);
            let late: Vec<String> = owned.chain(queues.replies).collect();
            for name in &late {
                self.delete_queue(name).await?;
            }
            let is_any_left = !queues.in_deletion.is_empty() || !late.is_empty();
            listings_without = if is_any_left { 0 } else { listings_without + 1 };
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "SQS still lists queues of stack {:?} {} seconds after they were deleted: run this again",
                    stack.name,
                    LONGEST_DELETION.as_secs()
                );
            }
            tokio::time::sleep(if is_any_left { backoff.next_delay() } else { BETWEEN_LISTINGS }).await;
        }
        Ok(())
    }

    /// Returns `None` if the queue is neither wanted nor owned by the stack.
    async fn observe_queue(&self, stack: &Stack, url: &str) -> anyhow::Result<Option<Seen>> {
        let name = name_of(url);
        let resource = label(Kind::Queue, name);
        let is_wanted = stack.find(Kind::Queue, name).is_some();
        let tags = match self.sqs.list_queue_tags().queue_url(url).send().await {
            Ok(answer) => answer.tags.unwrap_or_default(),
            Err(error) => match self.fault("sqs:ListQueueTags", &resource, &error) {
                // It was deleted since the queues were listed.
                Fault::Missing => return Ok(None),
                Fault::Fatal(_) if !is_wanted => return Ok(None),
                _ => return self.done("sqs:ListQueueTags", &resource, Err(error)),
            },
        };
        let pairs = || tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let owner = owner_by_tags(pairs(), stack);
        if !is_wanted && owner != Owner::This {
            return Ok(None);
        }
        if owner == Owner::This && tags.contains_key(DELETION_TAG) {
            return Ok(Some(Seen::InDeletion(name.to_owned())));
        }
        let call = self.sqs.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All).send();
        let Some(answer) = self.if_there("sqs:GetQueueAttributes", &resource, call.await)? else { return Ok(None) };
        let attributes = answer.attributes.unwrap_or_default();
        let get = |name: &str| attributes.get(&QueueAttributeName::from(name)).cloned();
        let mut properties = json!({
            "SqsManagedSseEnabled": get("SqsManagedSseEnabled").is_some_and(|text| text == "true"),
            "KmsMasterKeyId": get("KmsMasterKeyId").filter(|key| !key.is_empty()),
            "RedrivePolicy": get("RedrivePolicy").map(|text| redrive(&text)),
            "Tags": our_tags(pairs(), &stack.own_tags),
        });
        for name in COMPARED {
            properties[name] = get(name).and_then(|text| text.parse::<u64>().ok()).map_or(Value::Null, Value::from);
        }
        let arn = get("QueueArn").unwrap_or_default();
        let queue = FoundResource::new(Kind::Queue, name, owner, properties).with("Arn", arn).with("Ref", url);
        Ok(Some(Seen::Queue(Box::new(queue))))
    }

    /// `is_in_deletion`: the queue was deleted, and is to be made again.
    pub(super) async fn put_queue(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
        is_in_deletion: bool,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        if is_in_deletion {
            // The run that marked it may have ended before it deleted it.
            self.delete_queue(&resource.name).await?;
        }
        let mut attributes = queue_attributes(resource);
        if found.is_some_and(|found| found.kms_key().is_some()) {
            // It would replace the customer's key.
            attributes.remove(&QueueAttributeName::SqsManagedSseEnabled);
        }
        let tags = tags_of(&resource.properties);
        if found.is_none() {
            // SQS accepts the name of a deleted queue again after a minute, and a new dead-letter queue after a second.
            let is_transient = |error: &aws_sdk_sqs::error::SdkError<_, _>| {
                error.code().is_some_and(was_deleted_recently) || error.message().is_some_and(names_unknown_queue)
            };
            let created = retry_while(is_transient, async || {
                let call = self.sqs.create_queue().queue_name(&resource.name);
                let call = call.set_attributes(Some(attributes.clone()));
                call.set_tags(Some(tags.iter().cloned().collect())).send().await
            });
            self.done("sqs:CreateQueue", &what, created.await)?;
            return Ok(Vec::new());
        }
        let url = self.sqs.get_queue_url().queue_name(&resource.name).send().await;
        let url = self.done("sqs:GetQueueUrl", &what, url)?.queue_url.unwrap_or_default();
        let call = self.sqs.set_queue_attributes().queue_url(&url).set_attributes(Some(attributes)).send();
        self.done("sqs:SetQueueAttributes", &what, call.await)?;
        let call = self.sqs.tag_queue().queue_url(&url).set_tags(Some(tags.into_iter().collect())).send();
        self.done("sqs:TagQueue", &what, call.await)?;
        Ok(Vec::new())
    }

    pub(super) async fn delete_queue(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::Queue, name);
        let url = self.sqs.get_queue_url().queue_name(name).send().await;
        let Some(answer) = self.if_there("sqs:GetQueueUrl", &what, url)? else { return Ok(()) };
        let url = answer.queue_url.unwrap_or_default();
        let marked = self.sqs.tag_queue().queue_url(&url).tags(DELETION_TAG, "true").send().await;
        self.gone("sqs:TagQueue", &what, marked)?;
        self.gone("sqs:DeleteQueue", &what, self.sqs.delete_queue().queue_url(url).send().await)
    }
}

fn name_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// Returns whether a redrive policy was refused because its dead-letter queue is not known yet.
fn names_unknown_queue(message: &str) -> bool {
    message.contains("Dead letter target does not exist")
}

fn was_deleted_recently(code: &str) -> bool {
    code.contains("QueueDeletedRecently")
}

fn queue_attributes(resource: &Resource) -> std::collections::HashMap<QueueAttributeName, String> {
    let attributes = resource.properties.iter().filter(|(name, _)| *name != "Tags");
    attributes.map(|(name, value)| (QueueAttributeName::from(name.as_str()), text(value))).collect()
}

/// Parses a redrive policy. AWS writes the count as a number, emulators as a string.
fn redrive(text: &str) -> Value {
    let mut policy: Value = serde_json::from_str(text).unwrap_or_default();
    if let Some(count) = policy["maxReceiveCount"].as_str().and_then(|text| text.parse::<u64>().ok()) {
        policy["maxReceiveCount"] = count.into();
    }
    policy
}
