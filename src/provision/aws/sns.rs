//! The topic of a stack and the addresses that subscribe to it. Its calls of SNS do without an SDK crate, as those of EC2.

use serde_json::{Value, json};

use super::client::{Attributes, Cloud, member, owner_by_tags, text};
use super::query::{self, Lists, list};
use super::signed::{Call, SignedError};
use crate::provision::arns::Arns;
use crate::provision::inventory::FoundResource;
use crate::provision::names::ResourceNames;
use crate::provision::resource::{Kind, Resource, UNCONFIRMED, label, our_tags, tags_of};
use crate::provision::stack::Stack;

const VERSION: &str = "2010-03-31";
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_SNS";
/// SNS shows this instead of an ARN until the owner of an address confirms the subscription.
const PENDING: &str = "PendingConfirmation";
/// Subscriptions of other protocols belong to others.
const PROTOCOL: &str = "email";

impl Cloud {
    async fn sns(&self, operation: &'static str, parameters: Value) -> Result<Value, SignedError> {
        let body = query::form(operation, VERSION, Lists::Members, &parameters);
        let answer = self.signed.call(Call::query("sns", ENDPOINT_VARIABLE, operation, body)).await?;
        let answer = query::parse(&answer).map_err(SignedError::construction_failure)?;
        Ok(answer[format!("{operation}Result")].clone())
    }

    pub(super) async fn observe_topic(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let name = ResourceNames::of(&stack.name).topic;
        let (what, arn) = (label(Kind::Topic, &name), Arns::new(&stack.account, &stack.region).topic(&name));
        let wanted = stack.find(Kind::Topic, &name);
        let answer = self.sns("ListTagsForResource", json!({ "ResourceArn": arn })).await;
        let Some(answer) = self.if_visible("sns:ListTagsForResource", &what, wanted.is_some(), answer)? else {
            return Ok(Vec::new());
        };
        let tags: Vec<(String, String)> =
            list(&answer, "Tags").map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect();
        let pairs = || tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let is_wanted = |address: &str| {
            let subscriptions = wanted.and_then(|wanted| wanted.properties.get("Subscription")).map(addresses_of);
            subscriptions.is_some_and(|wanted| wanted.iter().any(|wanted| wanted == address))
        };
        let (mut subscriptions, mut pending) = (Vec::new(), Vec::new());
        for (address, subscription) in self.subscriptions(&arn, &what).await? {
            let is_pending = subscription == PENDING;
            // An unwanted one cannot be removed before it is confirmed. SNS forgets it after some days.
            if is_pending && !is_wanted(&address) {
                continue;
            }
            if is_pending {
                pending.push(address.clone());
            }
            subscriptions.push(json!({"Endpoint": address, "Protocol": PROTOCOL}));
        }
        let members = json!({"Subscription": subscriptions, "Tags": our_tags(pairs(), &stack.own_tags)});
        let topic = FoundResource::new(Kind::Topic, name, owner_by_tags(pairs(), stack), members);
        Ok(vec![topic.with("Ref", arn).with(UNCONFIRMED, pending.join(", "))])
    }

    /// The addresses that subscribe to a topic, sorted, each with the ARN of its subscription.
    async fn subscriptions(&self, arn: &str, what: &str) -> anyhow::Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        let mut parameters = json!({ "TopicArn": arn });
        loop {
            let answer = self.sns("ListSubscriptionsByTopic", parameters.clone()).await;
            let page = self.if_there("sns:ListSubscriptionsByTopic", what, answer)?.unwrap_or_default();
            let of_people = list(&page, "Subscriptions").filter(|entry| entry["Protocol"] == PROTOCOL);
            found.extend(of_people.map(|entry| (text(&entry["Endpoint"]), text(&entry["SubscriptionArn"]))));
            match page["NextToken"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => parameters["NextToken"] = token.into(),
                None => {
                    found.sort_unstable();
                    return Ok(found);
                }
            }
        }
    }

    pub(super) async fn put_topic(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let tags: Vec<Value> =
            tags_of(&resource.properties).into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect();
        let arn = match found.and_then(|found| found.attributes.get("Ref")) {
            Some(arn) => {
                let answer = self.sns("TagResource", json!({"ResourceArn": arn, "Tags": tags})).await;
                self.done("sns:TagResource", &what, answer)?;
                arn.clone()
            }
            None => {
                let answer = self.sns("CreateTopic", json!({"Name": resource.name, "Tags": tags})).await;
                text(&self.done("sns:CreateTopic", &what, answer)?["TopicArn"])
            }
        };
        let wanted = addresses_of(member(resource, &["Subscription"])?);
        let there = self.subscriptions(&arn, &what).await?;
        for (_, subscription) in there.iter().filter(|(address, arn)| arn != PENDING && !wanted.contains(address)) {
            let answer = self.sns("Unsubscribe", json!({ "SubscriptionArn": subscription })).await;
            self.gone("sns:Unsubscribe", &what, answer)?;
        }
        for address in wanted.iter().filter(|wanted| !there.iter().any(|(address, _)| address == *wanted)) {
            let answer =
                self.sns("Subscribe", json!({"TopicArn": arn, "Protocol": PROTOCOL, "Endpoint": address})).await;
            self.done("sns:Subscribe", &what, answer)?;
        }
        Ok(vec![("Ref".to_owned(), arn)])
    }

    /// Deletes a topic with its subscriptions.
    pub(super) async fn delete_topic(&self, name: &str, stack: &Stack) -> anyhow::Result<()> {
        let arn = Arns::new(&stack.account, &stack.region).topic(name);
        let answer = self.sns("DeleteTopic", json!({ "TopicArn": arn })).await;
        self.gone("sns:DeleteTopic", &label(Kind::Topic, name), answer)
    }
}

fn addresses_of(subscriptions: &Value) -> Vec<String> {
    subscriptions.as_array().into_iter().flatten().map(|entry| text(&entry["Endpoint"])).collect()
}
