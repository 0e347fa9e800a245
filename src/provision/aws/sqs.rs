//! The queues of a stack, and the reply queues of its web processes.

use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName;
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::client::{Attributes, CONCURRENT_CALLS, Cloud, owner_by_tags, retry_while, text};
use crate::aws::Fault;
use crate::protocol;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::resource::{Kind, Resource, label, our_tags, tags_of};
use crate::provision::stack::Stack;

/// Numeric attributes that are compared with the wanted ones.
const COMPARED: [&str; 3] = ["VisibilityTimeout", "MessageRetentionPeriod", "MaximumMessageSize"];

impl Cloud {
    /// Observes the queues that have the stack's names or its tag. Its reply queues are returned by name.
    pub(super) async fn observe_queues(&self, stack: &Stack) -> anyhow::Result<(Vec<FoundResource>, Vec<String>)> {
        let mut urls = self.sqs.list_queues().max_results(1_000).into_paginator().items().send();
        let mut all = Vec::new();
        while let Some(url) = urls.next().await {
            all.push(self.done("sqs:ListQueues", "the queues", url)?);
        }
        let observed = all.iter().map(|url| self.observe_queue(stack, url));
        let observed: Vec<_> = futures::stream::iter(observed).buffer_unordered(CONCURRENT_CALLS).collect().await;
        let (mut found, mut replies) = (Vec::new(), Vec::new());
        let reply_prefix = protocol::reply_queue(&stack.result_queue, "");
        for queue in observed {
            let Some(queue) = queue? else { continue };
            if queue.name.starts_with(&reply_prefix) && stack.find(Kind::Queue, &queue.name).is_none() {
                replies.push(queue.name);
            } else {
                found.push(queue);
            }
        }
        Ok((found, replies))
    }

    /// Returns `None` if the queue is neither wanted nor owned by the stack.
    async fn observe_queue(&self, stack: &Stack, url: &str) -> anyhow::Result<Option<FoundResource>> {
        let name = url.rsplit('/').next().unwrap_or_default();
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
        let call = self.sqs.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All).send();
        let Some(answer) = self.if_there("sqs:GetQueueAttributes", &resource, call.await)? else { return Ok(None) };
        let attributes = answer.attributes.unwrap_or_default();
        let get = |name: &str| attributes.get(&QueueAttributeName::from(name)).cloned();
        let mut properties = json!({
            "SqsManagedSseEnabled": get("SqsManagedSseEnabled").is_some_and(|text| text == "true"),
            "RedrivePolicy": get("RedrivePolicy").map(|text| redrive(&text)),
            "Tags": our_tags(pairs()),
        });
        for name in COMPARED {
            properties[name] = get(name).and_then(|text| text.parse::<u64>().ok()).map_or(Value::Null, Value::from);
        }
        let arn = get("QueueArn").unwrap_or_default();
        Ok(Some(FoundResource::new(Kind::Queue, name, owner, properties).with("Arn", arn).with("Ref", url)))
    }

    pub(super) async fn put_queue(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let attributes = queue_attributes(resource);
        let tags = tags_of(&resource.properties);
        if found.is_none() {
            // SQS accepts the name of a deleted queue again after a minute.
            let is_transient =
                |error: &aws_sdk_sqs::error::SdkError<_, _>| error.code().is_some_and(was_deleted_recently);
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
        let call = self.sqs.delete_queue().queue_url(answer.queue_url.unwrap_or_default()).send();
        self.gone("sqs:DeleteQueue", &what, call.await)
    }
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
