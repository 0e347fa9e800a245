//! Observes the resources that the doctor examines, whether imgcls or somebody else made them.

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use serde_json::{Value, json};

use super::autoscaling::{group_to_json, policy_to_json};
use super::client::{Cloud, text};
use super::cloudwatch::alarm_to_json;
use super::iam;
use crate::aws::Fault;
use crate::provision::doctor::{Bucket, Group, Observed, Role, Target};
use crate::provision::resource::{Kind, label};
use crate::provision::tier::Tier;

impl Cloud {
    /// # Errors
    /// One line, if these credentials may not read a resource.
    pub(in crate::provision) async fn examine(
        &self,
        target: &Target<'_>,
        roles: &[(Tier, String)],
    ) -> anyhow::Result<Observed> {
        let mut observed = Observed { group: self.examine_group(target.group).await?, ..Observed::default() };
        for name in [&target.names.request_queue, &target.names.result_queue] {
            if let Some(queue) = self.examine_queue(name).await? {
                observed.queues.push((name.clone(), queue));
            }
        }
        for name in [&target.names.input_bucket, &target.names.output_bucket] {
            observed.buckets.extend(self.examine_bucket(name).await?);
        }
        for alarm in self.alarms().await? {
            let name = alarm.alarm_name.clone().unwrap_or_default();
            let members = alarm_to_json(&alarm);
            // An alarm is examined if it reads the queue, under whatever dimension name, or acts on the group.
            let queue = target.names.request_queue.as_str();
            let reads_queue = members.to_string().contains(&format!("\"{queue}\""));
            let acts_on_group =
                members["AlarmActions"].to_string().contains(&format!("autoScalingGroupName/{}", target.group));
            if reads_queue || acts_on_group {
                observed.alarms.push((name, members));
            }
        }
        for (tier, name) in roles {
            if let Some(documents) = self.documents_of_role(name).await? {
                observed.roles.push(Role { name: name.clone(), tier: *tier, documents });
            }
        }
        Ok(observed)
    }

    async fn examine_queue(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let what = label(Kind::Queue, name);
        let answer = self.sqs.get_queue_url().queue_name(name).send().await;
        let Some(url) = self.if_there("sqs:GetQueueUrl", &what, answer)?.and_then(|answer| answer.queue_url) else {
            return Ok(None);
        };
        let all = aws_sdk_sqs::types::QueueAttributeName::All;
        let answer = self.sqs.get_queue_attributes().queue_url(url).attribute_names(all).send().await;
        let answer = self.if_there("sqs:GetQueueAttributes", &what, answer)?;
        let attributes = answer.and_then(|answer| answer.attributes).unwrap_or_default();
        let members = attributes.into_iter().map(|(name, value)| {
            let value = value.parse::<u64>().map_or(Value::String(value), Value::from);
            (name.as_str().to_owned(), value)
        });
        Ok(Some(members.collect::<serde_json::Map<_, _>>().into()))
    }

    async fn examine_bucket(&self, name: &str) -> anyhow::Result<Option<Bucket>> {
        let what = label(Kind::Bucket, name);
        let bucket = |is_closed, other_region| Some(Bucket { name: name.to_owned(), is_closed, other_region });
        let answer = self.s3.get_bucket_location().bucket(name).send().await;
        let region = match answer {
            Ok(answer) => answer.location_constraint.map(|region| region.as_str().to_owned()),
            Err(error) if error.code() == Some("AccessDenied") => return Ok(None),
            Err(error) => match self.fault("s3:GetBucketLocation", &what, &error) {
                Fault::Missing => return Ok(None),
                Fault::Unavailable(reason) | Fault::Fatal(reason) => anyhow::bail!(reason),
            },
        };
        // S3 returns no location for buckets in us-east-1.
        let region = region.filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".to_owned());
        if region != self.aws.region() {
            return Ok(bucket(true, Some(region)));
        }
        let block = self.public_access_block(name).await?;
        let is_closed = block.is_some_and(|block| {
            block.as_object().is_some_and(|settings| settings.values().all(|setting| *setting == Value::Bool(true)))
        });
        Ok(bucket(is_closed, None))
    }

    async fn examine_group(&self, name: &str) -> anyhow::Result<Option<Group>> {
        let groups = self.groups().await?;
        let Some(group) = groups.iter().find(|group| group.auto_scaling_group_name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        let policies = self.policies(name).await?;
        let properties = group_to_json(group);
        let specification = [
            &properties["LaunchTemplate"],
            &properties["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"],
        ];
        let specification = specification.into_iter().find(|specification| !specification.is_null());
        let template = match specification {
            Some(specification) => {
                let version = specification["Version"].as_str().unwrap_or("$Default");
                self.template_data_of(&text(&specification["LaunchTemplateName"]), version).await?
            }
            None => None,
        };
        let image = template.as_ref().and_then(|template| template["ImageId"].as_str().map(str::to_owned));
        let image_cpu = match image {
            Some(image) => self.cpu_of_image(&image).await?,
            None => None,
        };
        Ok(Some(Group {
            name: name.to_owned(),
            properties,
            policies: policies.iter().map(|policy| policy_to_json(name, policy)).collect(),
            policy_arns: policies.iter().filter_map(|policy| policy.policy_arn.clone()).collect(),
            template,
            image_cpu,
        }))
    }

    /// The documents of a role's inline and attached policies. Returns `None` if the role does not exist.
    async fn documents_of_role(&self, name: &str) -> anyhow::Result<Option<Vec<Value>>> {
        let what = label(Kind::Role, name);
        let by_name = json!({ "RoleName": name });
        let Some(inline) = self.list_iam("ListRolePolicies", &what, "PolicyNames", by_name.clone()).await? else {
            return Ok(None);
        };
        let mut documents = Vec::new();
        for policy in inline {
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
        Ok(Some(documents))
    }
}
