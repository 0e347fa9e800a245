//! Observes what [`crate::provision::doctor`] diagnoses, under any names.

use std::collections::BTreeSet;
use std::time::Duration;

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::{Value, json};

use super::autoscaling::{group_to_json, hook_to_json, in_service, policy_to_json};
use super::client::{Cloud, text};
use super::cloudwatch::alarm_to_json;
use super::iam;
use super::query::list;
use crate::aws::Fault;
use crate::provision::doctor::{Bucket, FoundRole, Group, Observed, Profile, Role, Stalled, Store, Target};
use crate::provision::resource::{Kind, label};
use crate::provision::tier::Tier;
use crate::transport::aws::{keeps_conditions, takes_checksums};

/// Time between two readings of a queue that nobody seems to receive from.
const BETWEEN_READINGS: Duration = Duration::from_secs(2);
/// The name that S3 still has for the region of old buckets.
const OLD_NAME_OF_EU_WEST_1: &str = "EU";

impl Cloud {
    /// # Errors
    /// One line, if these credentials may not read a resource.
    pub(in crate::provision) async fn examine(
        &self,
        target: &Target<'_>,
        roles: &[(Tier, String)],
    ) -> anyhow::Result<Observed> {
        let mut observed = Observed {
            group: self.examine_group(target.group).await?,
            web_group: self.examine_group(target.web_group).await?,
            ..Observed::default()
        };
        let bulk = target.names.bulk_queue();
        for name in [&target.names.request_queue, &target.names.result_queue, &bulk] {
            if let Some(queue) = self.examine_queue(name).await? {
                observed.queues.push((name.clone(), queue));
            }
        }
        let dead_letters: BTreeSet<String> =
            observed.queues.iter().filter_map(|(_, queue)| dead_letter_queue(queue)).collect();
        for name in dead_letters {
            if let Some(queue) = self.examine_queue(&name).await? {
                observed.queues.push((name, queue));
            }
        }
        for name in [&target.names.input_bucket, &target.names.output_bucket] {
            observed.buckets.extend(self.examine_bucket(name).await?);
        }
        observed.store = self.examine_store(&observed.buckets, &target.names.output_bucket).await;
        observed.alarms = self.examine_alarms(target).await?;
        for (tier, name) in roles {
            observed.roles.push(Role { name: name.clone(), tier: *tier, found: self.examine_role(name).await? });
        }
        let joined = observed.web_group.as_ref().map(|group| list(&group.properties, "TargetGroupARNs"));
        let joined: Vec<String> = joined.into_iter().flatten().map(text).collect();
        for arn in joined {
            observed.balancers.push(self.examine_target_group(&arn).await?);
        }
        observed.stalled = self.stalled(&target.names.request_queue, target.group).await?;
        Ok(observed)
    }

    /// Reads whether images wait, machines are in service and nobody receives. Between two receives of a working fleet
    /// that may be so for a moment, so the queue is then read again.
    pub(in crate::provision) async fn stalled(&self, queue: &str, group: &str) -> anyhow::Result<Option<Stalled>> {
        let groups = self.groups().await?;
        let group = groups.iter().find(|found| found.auto_scaling_group_name.as_deref() == Some(group));
        let in_service = group.map_or(0, in_service);
        if in_service == 0 {
            return Ok(None);
        }
        let mut last = None;
        for reading in 0..2 {
            if reading > 0 {
                tokio::time::sleep(BETWEEN_READINGS).await;
            }
            let Some(attributes) = self.examine_queue(queue).await? else { return Ok(None) };
            let number = |name: QueueAttributeName| attributes[name.as_str()].as_u64().unwrap_or_default();
            let visible = number(QueueAttributeName::ApproximateNumberOfMessages);
            if visible == 0 || number(QueueAttributeName::ApproximateNumberOfMessagesNotVisible) > 0 {
                return Ok(None);
            }
            last = Some(Stalled { visible, in_service });
        }
        Ok(last)
    }

    /// An alarm is examined if it reads a request queue, under whatever dimension and also by its URL, or acts on the group.
    async fn examine_alarms(&self, target: &Target<'_>) -> anyhow::Result<Vec<(String, Value)>> {
        let queues = [target.names.request_queue.clone(), target.names.bulk_queue()];
        let ends = queues.map(|queue| [format!("\"{queue}\""), format!("/{queue}\"")]);
        let mut examined = Vec::new();
        for alarm in self.alarms().await? {
            let members = alarm_to_json(&alarm);
            let text = members.to_string();
            let reads_queue = ends.iter().flatten().any(|end| text.contains(end));
            let acts_on_group =
                members["AlarmActions"].to_string().contains(&format!("autoScalingGroupName/{}:", target.group));
            // Auto Scaling owns the alarms of target tracking.
            let is_own = alarm.alarm_name.as_deref().is_some_and(|name| name.starts_with("TargetTracking-"));
            if (reads_queue || acts_on_group) && !is_own {
                examined.push((alarm.alarm_name.clone().unwrap_or_default(), members));
            }
        }
        Ok(examined)
    }

    async fn examine_queue(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let what = label(Kind::Queue, name);
        let answer = self.sqs.get_queue_url().queue_name(name).send().await;
        let Some(url) = self.if_there("sqs:GetQueueUrl", &what, answer)?.and_then(|answer| answer.queue_url) else {
            return Ok(None);
        };
        let all = QueueAttributeName::All;
        let answer = self.sqs.get_queue_attributes().queue_url(url).attribute_names(all).send().await;
        let Some(answer) = self.if_there("sqs:GetQueueAttributes", &what, answer)? else { return Ok(None) };
        let members = answer.attributes.unwrap_or_default().into_iter().map(|(name, value)| {
            let value = value.parse::<u64>().map_or(Value::String(value), Value::from);
            (name.as_str().to_owned(), value)
        });
        Ok(Some(members.collect::<serde_json::Map<_, _>>().into()))
    }

    async fn examine_bucket(&self, name: &str) -> anyhow::Result<Option<Bucket>> {
        let what = label(Kind::Bucket, name);
        let answer = self.s3.get_bucket_location().bucket(name).send().await;
        let region = match answer {
            Ok(answer) => answer.location_constraint.map(|region| region.as_str().to_owned()),
            Err(error) if error.code() == Some("AccessDenied") => return Ok(None),
            Err(error) => match self.fault("s3:GetBucketLocation", &what, &error) {
                Fault::Missing => return Ok(None),
                Fault::Unavailable(reason) | Fault::Fatal(reason) => anyhow::bail!(reason),
            },
        };
        let region = region_of_location(region);
        let mut bucket = Bucket { name: name.to_owned(), is_closed: true, other_region: None, statements: Vec::new() };
        if region != self.aws.region() {
            bucket.other_region = Some(region);
            return Ok(Some(bucket));
        }
        let block = self.public_access_block(name).await?;
        bucket.is_closed = block.is_some_and(|block| {
            block.as_object().is_some_and(|settings| settings.values().all(|setting| *setting == Value::Bool(true)))
        });
        bucket.statements = self.policy_statements(name).await?;
        Ok(Some(bucket))
    }

    /// Finds out what a store that is not AWS's own lacks, by putting small objects into the output bucket and removing them.
    async fn examine_store(&self, buckets: &[Bucket], output: &str) -> Option<Store> {
        let endpoint_url = self.aws.compatible_store()?;
        buckets.iter().find(|bucket| bucket.name == output)?;
        let keeps_conditions = keeps_conditions(&self.s3, output).await.ok();
        let takes_checksums = takes_checksums(&self.s3, output).await.ok();
        Some(Store { endpoint_url, keeps_conditions, takes_checksums })
    }

    async fn examine_group(&self, name: &str) -> anyhow::Result<Option<Group>> {
        let groups = self.groups().await?;
        let Some(group) = groups.iter().find(|group| group.auto_scaling_group_name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        let policies = self.policies(name).await?;
        let hooks = self.hooks(name).await?;
        let properties = group_to_json(group, &[]);
        let specification = [
            &properties["LaunchTemplate"],
            &properties["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"],
        ];
        let specification = specification.into_iter().find(|specification| !specification.is_null());
        let template_name = specification.map(|specification| text(&specification["LaunchTemplateName"]));
        let template = match (specification, &template_name) {
            (Some(specification), Some(template)) => {
                self.template_data_of(template, specification["Version"].as_str().unwrap_or("$Default")).await?
            }
            _ => None,
        };
        let data = template.clone().unwrap_or_default();
        let image_cpu = match data["ImageId"].as_str() {
            Some(image) => self.cpu_of_image(image).await?,
            None => None,
        };
        let ids: Vec<String> = list(&data, "SecurityGroupIds").map(text).collect();
        Ok(Some(Group {
            name: name.to_owned(),
            policies: policies.iter().map(|policy| policy_to_json(name, policy)).collect(),
            policy_arns: policies.into_iter().map(|policy| policy.policy_arn.unwrap_or_default()).collect(),
            hooks: hooks
                .iter()
                .map(|hook| (hook.lifecycle_hook_name.clone().unwrap_or_default(), hook_to_json(name, hook)))
                .collect(),
            profile: self.examine_profile(&data["IamInstanceProfile"]).await?,
            security_groups: self.security_groups_of(&ids).await?,
            failed_start: self.starts([name].into_iter()).await?.failed.pop().map(|(_, reason)| reason),
            properties,
            template_name,
            template,
            image_cpu,
        }))
    }

    async fn examine_profile(&self, profile: &Value) -> anyhow::Result<Option<Profile>> {
        let arn_or_name = profile["Arn"].as_str().or_else(|| profile["Name"].as_str());
        let Some(name) = arn_or_name.and_then(|text| text.rsplit('/').next()) else { return Ok(None) };
        let found = self.instance_profile(name).await?;
        let roles = found.map(|profile| iam::roles_of(&profile).collect());
        Ok(Some(Profile { name: name.to_owned(), roles }))
    }

    /// The trust policy of a role, and the documents of its inline and attached policies. Returns `None` if the role does
    /// not exist.
    async fn examine_role(&self, name: &str) -> anyhow::Result<Option<FoundRole>> {
        let what = label(Kind::Role, name);
        let by_name = json!({ "RoleName": name });
        let Some(role) = self.ask_iam("GetRole", &what, by_name.clone()).await? else { return Ok(None) };
        let trust = iam::document(&role["Role"]["AssumeRolePolicyDocument"]);
        let mut documents = Vec::new();
        let inline = self.list_iam("ListRolePolicies", &what, "PolicyNames", by_name.clone()).await?;
        for policy in inline.into_iter().flatten() {
            let policy = json!({"RoleName": name, "PolicyName": policy});
            let answer = self.ask_iam("GetRolePolicy", &what, policy).await?;
            documents.extend(answer.map(|answer| iam::document(&answer["PolicyDocument"])));
        }
        let attached = self.list_iam("ListAttachedRolePolicies", &what, "AttachedPolicies", by_name).await?;
        for policy in attached.iter().flatten() {
            let arn = text(&policy["PolicyArn"]);
            let answer = self.ask_iam("GetPolicy", &arn, json!({ "PolicyArn": arn })).await?;
            let Some(version) = answer.map(|answer| answer["Policy"]["DefaultVersionId"].clone()) else { continue };
            let version = json!({"PolicyArn": arn, "VersionId": version});
            let answer = self.ask_iam("GetPolicyVersion", &arn, version).await?;
            documents.extend(answer.map(|answer| iam::document(&answer["PolicyVersion"]["Document"])));
        }
        Ok(Some(FoundRole { trust, documents }))
    }
}

/// The name of the dead-letter queue in a queue's redrive policy.
fn dead_letter_queue(queue: &Value) -> Option<String> {
    let policy: Value = serde_json::from_str(queue["RedrivePolicy"].as_str()?).ok()?;
    Some(policy["deadLetterTargetArn"].as_str()?.rsplit(':').next()?.to_owned())
}

/// The region of a bucket. S3 returns none for buckets in us-east-1, and an old name for old ones in eu-west-1.
fn region_of_location(location: Option<String>) -> String {
    match location.filter(|location| !location.is_empty()) {
        None => "us-east-1".to_owned(),
        Some(location) if location == OLD_NAME_OF_EU_WEST_1 => "eu-west-1".to_owned(),
        Some(location) => location,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_location_is_a_region() {
        let region = |location: &str| region_of_location(Some(location.to_owned()));
        assert_eq!((region_of_location(None), region("")), ("us-east-1".to_owned(), "us-east-1".to_owned()));
        assert_eq!((region("EU"), region("eu-central-1")), ("eu-west-1".to_owned(), "eu-central-1".to_owned()));
    }
}
