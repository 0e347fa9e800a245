//! The log group. Its five calls of CloudWatch Logs do without an SDK crate, as those of EC2.

use serde_json::{Map, Value, json};

use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_smithy_types::date_time::{DateTime, Format};

use super::client::{Attributes, Cloud, member, owner_by_tags};
use super::query::list;
use super::signed::{Call, Scope, SignedError};
use crate::provision::inventory::FoundResource;
use crate::provision::log_reader::LogEvent;
use crate::provision::names::ResourceNames;
use crate::provision::resource::{Kind, Resource, label, our_tags, tags_of};
use crate::provision::stack::Stack;

const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS";

impl Cloud {
    async fn logs(&self, operation: &'static str, body: Value) -> Result<Value, SignedError> {
        let headers = vec![
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("x-amz-target", format!("Logs_20140328.{operation}")),
        ];
        let answer = self
            .signed
            .call(Call {
                service: "logs",
                endpoint_variable: ENDPOINT_VARIABLE,
                scope: Scope::Region,
                operation,
                headers,
                body: body.to_string(),
            })
            .await?;
        Ok(serde_json::from_str(&answer).unwrap_or_default())
    }

    pub(super) async fn observe_logs(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let name = ResourceNames::of(&stack.name).log_group;
        let what = label(Kind::LogGroup, &name);
        let answer = self.logs("DescribeLogGroups", json!({"logGroupNamePrefix": name})).await;
        let answer = self.done("logs:DescribeLogGroups", &what, answer)?;
        let groups = answer["logGroups"].as_array().cloned().unwrap_or_default();
        let Some(group) = groups.iter().find(|group| group["logGroupName"] == name.as_str()) else {
            return Ok(Vec::new());
        };
        let arn = group["arn"].as_str().unwrap_or_default().trim_end_matches(":*");
        let answer = self.logs("ListTagsForResource", json!({"resourceArn": arn})).await;
        let tags = self.if_there("logs:ListTagsForResource", &what, answer)?.unwrap_or_default();
        let tags = tags["tags"].as_object().cloned().unwrap_or_default();
        let pairs = || tags.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
        let members = json!({"RetentionInDays": group["retentionInDays"], "Tags": our_tags(pairs(), &stack.own_tags)});
        Ok(vec![FoundResource::new(Kind::LogGroup, &name, owner_by_tags(pairs(), stack), members).with("Arn", arn)])
    }

    pub(super) async fn put_log_group(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let tags: Map<String, Value> =
            tags_of(&resource.properties).into_iter().map(|(key, value)| (key, value.into())).collect();
        match found {
            None => {
                let answer = self.logs("CreateLogGroup", json!({"logGroupName": name, "tags": tags})).await;
                self.done("logs:CreateLogGroup", &what, answer)?;
            }
            Some(found) => {
                let arn = found.attributes.get("Arn");
                let answer = self.logs("TagResource", json!({"resourceArn": arn, "tags": tags})).await;
                self.done("logs:TagResource", &what, answer)?;
            }
        }
        let days = member(resource, &["RetentionInDays"])?;
        let answer = self.logs("PutRetentionPolicy", json!({"logGroupName": name, "retentionInDays": days})).await;
        self.done("logs:PutRetentionPolicy", &what, answer)?;
        Ok(Vec::new())
    }

    /// The events of a log group since `start`, in milliseconds since 1970.
    ///
    /// # Errors
    /// There is no such group, or it may not be read.
    pub(in crate::provision) async fn log_events(&self, group: &str, start: i64) -> anyhow::Result<Vec<LogEvent>> {
        let mut events = Vec::new();
        let mut body = json!({"logGroupName": group, "startTime": start});
        loop {
            let answer = self.logs("FilterLogEvents", body.clone()).await;
            if answer.as_ref().err().and_then(|error| error.code()) == Some("ResourceNotFoundException") {
                anyhow::bail!("there is no log group {group:?} in {}: no stack has been made yet", self.aws.region());
            }
            let answer = self.done("logs:FilterLogEvents", &label(Kind::LogGroup, group), answer)?;
            events.extend(list(&answer, "events").map(event));
            match answer["nextToken"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => body["nextToken"] = token.into(),
                None => return Ok(events),
            }
        }
    }

    pub(super) async fn delete_log_group(&self, name: &str) -> anyhow::Result<()> {
        let answer = self.logs("DeleteLogGroup", json!({"logGroupName": name})).await;
        self.gone("logs:DeleteLogGroup", &label(Kind::LogGroup, name), answer)
    }
}

fn event(event: &Value) -> LogEvent {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let at = event["timestamp"].as_i64().unwrap_or_default();
    let time = DateTime::from_millis(at).fmt(Format::DateTime).unwrap_or_default();
    LogEvent { id: text("eventId"), at, time, stream: text("logStreamName"), message: text("message") }
}
