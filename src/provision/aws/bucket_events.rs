//! The events of watched buckets: the statement in the policy of the queue, and the notifications of the buckets.
//!
//! The buckets belong to others, and so do further notifications of theirs and further statements of the policy. Only those
//! of this program are compared and changed: notifications with its ids to the queue of the stack. The statement names the
//! watched buckets, so that a later run finds them without being told.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::operation::get_bucket_notification_configuration::GetBucketNotificationConfigurationOutput;
use aws_sdk_s3::types::{
    Event, FilterRule, FilterRuleName, NotificationConfiguration, NotificationConfigurationFilter, QueueConfiguration,
    S3KeyFilter,
};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Map, Value, json};

use super::client::{Attributes, Cloud, member, retry_while_within, text};
use crate::provision::arns::Arns;
use crate::provision::inventory::FoundResource;
use crate::provision::permissions::BUCKET_EVENTS;
use crate::provision::policy_evaluation::listed;
use crate::provision::resource::{Kind, Resource, label};
use crate::provision::stack::Stack;
use crate::provision::stack::bucket_events::OUR_IDS;

/// S3 sees a new policy of a queue after some seconds, and refuses notifications until then.
const LONGEST_PROPAGATION: Duration = Duration::from_secs(60);

impl Cloud {
    /// Observes the statement in the policy of the bulk queue, and the notifications of the buckets that it names or that are
    /// wanted.
    pub(super) async fn observe_bucket_events(
        &self,
        stack: &Stack,
        queues: &[FoundResource],
    ) -> anyhow::Result<Vec<FoundResource>> {
        let Some((name, queue)) = bulk_queue(stack).and_then(|name| Some((name, found_queue(queues, name)?))) else {
            return Ok(Vec::new());
        };
        let statements = self.queue_statements(name).await?.unwrap_or_default();
        let ours: Vec<Value> = statements.into_iter().filter(is_our_statement).collect();
        let mut buckets: BTreeSet<String> = stack.names(Kind::BucketNotification).map(str::to_owned).collect();
        buckets.extend(ours.iter().flat_map(buckets_of));
        let mut found = Vec::new();
        if !ours.is_empty() {
            let members = json!({"PolicyDocument": {"Version": "2012-10-17", "Statement": ours}});
            found.push(FoundResource::new(Kind::QueuePolicy, name, queue.owner.clone(), members));
        }
        let queue_arn = queue.attributes.get("Arn").map(String::as_str).unwrap_or_default();
        for bucket in buckets {
            let Some(answer) = self.notifications(&bucket).await? else { continue };
            let all = answer.queue_configurations.unwrap_or_default();
            let mut ours: Vec<Value> =
                all.iter().filter(|one| is_ours(one, queue_arn)).map(notification_to_json).collect();
            ours.sort_by_key(|one| text(&one["Filter"]["prefix"]));
            if !ours.is_empty() {
                let members = json!({"QueueConfigurations": ours});
                found.push(FoundResource::new(Kind::BucketNotification, bucket, queue.owner.clone(), members));
            }
        }
        Ok(found)
    }

    pub(super) async fn put_queue_policy(&self, resource: &Resource) -> anyhow::Result<Attributes> {
        let ours = member(resource, &["PolicyDocument", "Statement"])?.as_array().cloned().unwrap_or_default();
        self.change_queue_policy(&resource.name, ours).await?;
        Ok(Vec::new())
    }

    pub(super) async fn delete_queue_policy(&self, queue: &str) -> anyhow::Result<()> {
        self.change_queue_policy(queue, Vec::new()).await
    }

    /// Replaces the statement of this program in a queue's policy.
    async fn change_queue_policy(&self, queue: &str, ours: Vec<Value>) -> anyhow::Result<()> {
        let what = label(Kind::Queue, queue);
        let Some(mut statements) = self.queue_statements(queue).await? else { return Ok(()) };
        statements.retain(|statement| !is_our_statement(statement));
        statements.extend(ours);
        // An empty text removes the policy.
        let policy = if statements.is_empty() {
            String::new()
        } else {
            json!({"Version": "2012-10-17", "Statement": statements}).to_string()
        };
        let url = self.sqs.get_queue_url().queue_name(queue).send().await;
        let url = self.done("sqs:GetQueueUrl", &what, url)?.queue_url.unwrap_or_default();
        let call = self.sqs.set_queue_attributes().queue_url(url).attributes(QueueAttributeName::Policy, policy);
        self.done("sqs:SetQueueAttributes", &what, call.send().await).map(drop)
    }

    /// The statements of a queue's policy, or `None` if there is no such queue.
    async fn queue_statements(&self, queue: &str) -> anyhow::Result<Option<Vec<Value>>> {
        let what = label(Kind::Queue, queue);
        let url = self.sqs.get_queue_url().queue_name(queue).send().await;
        let Some(url) = self.if_there("sqs:GetQueueUrl", &what, url)? else { return Ok(None) };
        let url = url.queue_url.unwrap_or_default();
        let call = self.sqs.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::Policy);
        let Some(answer) = self.if_there("sqs:GetQueueAttributes", &what, call.send().await)? else { return Ok(None) };
        let policy = answer.attributes.unwrap_or_default().remove(&QueueAttributeName::Policy).unwrap_or_default();
        let document: Value = serde_json::from_str(&policy).unwrap_or_default();
        Ok(Some(listed(&document["Statement"]).into_iter().filter(|one| one.is_object()).cloned().collect()))
    }

    pub(super) async fn put_notifications(&self, resource: &Resource, stack: &Stack) -> anyhow::Result<Attributes> {
        let wanted = member(resource, &["QueueConfigurations"])?.as_array().cloned().unwrap_or_default();
        let ours = wanted.iter().map(notification_from_json).collect::<anyhow::Result<Vec<_>>>()?;
        self.change_notifications(&resource.name, stack, ours).await?;
        Ok(Vec::new())
    }

    pub(super) async fn delete_notifications(&self, bucket: &str, stack: &Stack) -> anyhow::Result<()> {
        self.change_notifications(bucket, stack, Vec::new()).await
    }

    /// Replaces the notifications of this program. `PutBucketNotificationConfiguration` replaces all notifications, so those
    /// of others are read and written again.
    async fn change_notifications(
        &self,
        bucket: &str,
        stack: &Stack,
        ours: Vec<QueueConfiguration>,
    ) -> anyhow::Result<()> {
        let what = label(Kind::Bucket, bucket);
        let Some(there) = self.notifications(bucket).await? else {
            anyhow::ensure!(ours.is_empty(), "--watch: there is no {what}: create it first");
            return Ok(());
        };
        let queue_arn = bulk_queue_arn(stack)?;
        let mut queues = there.queue_configurations.unwrap_or_default();
        queues.retain(|one| !is_ours(one, &queue_arn));
        queues.extend(ours);
        let wanted = NotificationConfiguration::builder()
            .set_queue_configurations(Some(queues))
            .set_topic_configurations(there.topic_configurations)
            .set_lambda_function_configurations(there.lambda_function_configurations)
            .set_event_bridge_configuration(there.event_bridge_configuration)
            .build();
        let is_transient = |error: &aws_sdk_s3::error::SdkError<_, _>| {
            error.message().is_some_and(|message| message.contains("Unable to validate the following destination"))
        };
        let answer = retry_while_within(LONGEST_PROPAGATION, is_transient, async || {
            let call = self.s3.put_bucket_notification_configuration().bucket(bucket);
            call.notification_configuration(wanted.clone()).send().await
        });
        self.done("s3:PutBucketNotification", &what, answer.await).map(drop)
    }

    /// The notifications of a bucket, or `None` if there is no such bucket.
    async fn notifications(&self, bucket: &str) -> anyhow::Result<Option<GetBucketNotificationConfigurationOutput>> {
        let call = self.s3.get_bucket_notification_configuration().bucket(bucket).send().await;
        self.if_there("s3:GetBucketNotification", &label(Kind::Bucket, bucket), call)
    }
}

fn bulk_queue(stack: &Stack) -> Option<&str> {
    stack.get("BulkQueue").map(|queue| queue.name.as_str())
}

fn bulk_queue_arn(stack: &Stack) -> anyhow::Result<String> {
    let name = bulk_queue(stack).context("the plan has no queue for bulk requests")?;
    Ok(Arns::new(&stack.account, &stack.region).queue(name))
}

fn found_queue<'a>(queues: &'a [FoundResource], name: &str) -> Option<&'a FoundResource> {
    queues.iter().find(|queue| queue.name == name)
}

fn is_our_statement(statement: &Value) -> bool {
    statement["Sid"] == BUCKET_EVENTS
}

/// The names of the buckets whose events a statement allows.
fn buckets_of(statement: &Value) -> Vec<String> {
    let arns = listed(&statement["Condition"]["ArnEquals"]["aws:SourceArn"]);
    arns.into_iter().filter_map(|arn| arn.as_str()?.rsplit(':').next().map(str::to_owned)).collect()
}

fn is_ours(one: &QueueConfiguration, queue_arn: &str) -> bool {
    one.queue_arn == queue_arn && one.id.as_deref().is_some_and(|id| id.starts_with(OUR_IDS))
}

fn notification_to_json(one: &QueueConfiguration) -> Value {
    let rules = one.filter.as_ref().and_then(|filter| filter.key.as_ref()).and_then(|key| key.filter_rules.as_ref());
    let rules = rules.into_iter().flatten().filter_map(|rule| {
        // S3 returns the name with a capital letter.
        let name = rule.name.as_ref()?.as_str().to_ascii_lowercase();
        Some((name, Value::from(rule.value.clone().unwrap_or_default())))
    });
    let mut events: Vec<&str> = one.events.iter().map(Event::as_str).collect();
    events.sort_unstable();
    json!({"Id": one.id, "Events": events, "Filter": rules.collect::<Map<_, _>>(), "Queue": one.queue_arn})
}

fn notification_from_json(one: &Value) -> anyhow::Result<QueueConfiguration> {
    let events = listed(&one["Events"]).into_iter().map(|event| Event::from(text(event).as_str())).collect();
    let rules = one["Filter"].as_object().into_iter().flatten().map(|(name, value)| {
        FilterRule::builder().name(FilterRuleName::from(name.as_str())).value(text(value)).build()
    });
    let rules: Vec<FilterRule> = rules.collect();
    let filter = (!rules.is_empty()).then(|| {
        let key = S3KeyFilter::builder().set_filter_rules(Some(rules)).build();
        NotificationConfigurationFilter::builder().key(key).build()
    });
    let one = QueueConfiguration::builder()
        .id(text(&one["Id"]))
        .queue_arn(text(&one["Queue"]))
        .set_events(Some(events))
        .set_filter(filter);
    Ok(one.build()?)
}
