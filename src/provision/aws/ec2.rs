//! Launch templates and the machines.
//!
//! The SDK crate of EC2 would take longer to build than the rest of the program, so its dozen calls are written here
//! (decision 6).

use serde_json::{Value, json};

use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::client::{Attributes, Cloud, member, owner_by_tags};
use super::query::{self, Lists, list, parse};
use super::signed::{Call, SignedError};
use crate::provision::change::Change;
use crate::provision::inventory::{FoundResource, Instance, Owner};
use crate::provision::resource::{Kind, Resource, STACK_TAG, label, our_tags, properties, tags_of};
use crate::provision::stack::Stack;

const VERSION: &str = "2016-11-15";
/// Error codes for resources that do not exist.
const MISSING: [&str; 9] = [
    "InvalidAMIID.NotFound",
    "InvalidAMIID.Unavailable",
    "InvalidGroup.NotFound",
    "InvalidGroupId.NotFound",
    "InvalidLaunchTemplateName.NotFoundException",
    "InvalidLaunchTemplateId.NotFound",
    "InvalidPermission.NotFound",
    "InvalidSubnetID.NotFound",
    "InvalidVpcID.NotFound",
];
const GROUP_OF_INSTANCE: &str = "aws:autoscaling:groupName";
const TEMPLATE_VERSION_OF_INSTANCE: &str = "aws:ec2launchtemplate:version";

const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_EC2";

impl Cloud {
    pub(super) async fn ec2(&self, operation: &'static str, parameters: &Value) -> Result<String, SignedError> {
        let body = query::form(operation, VERSION, Lists::Ec2, parameters);
        self.signed.call(Call::query("ec2", ENDPOINT_VARIABLE, operation, body)).await
    }

    /// Reads all pages of a list.
    pub(super) async fn all(
        &self,
        operation: &'static str,
        what: &str,
        parameters: Value,
    ) -> anyhow::Result<Vec<Value>> {
        let action = format!("ec2:{operation}");
        let mut parameters = parameters;
        let mut entries = Vec::new();
        loop {
            let answer = match self.ec2(operation, &parameters).await {
                Err(error) if error.code().is_some_and(|code| MISSING.contains(&code)) => return Ok(entries),
                answer => self.done(&action, what, answer)?,
            };
            let answer = parse(&answer)?;
            let list = answer.as_object().and_then(|members| members.values().find(|member| member.is_array()));
            entries.extend(list.and_then(Value::as_array).cloned().unwrap_or_default());
            match answer["nextToken"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => parameters["NextToken"] = token.into(),
                None => return Ok(entries),
            }
        }
    }

    pub(super) async fn observe_ec2(&self, stack: &Stack) -> anyhow::Result<(Vec<FoundResource>, Vec<Instance>)> {
        let mut found = self.observe_security_groups(stack).await?;
        found.extend(self.observe_launch_templates(stack).await?);
        let filter = json!({"Filters": [{"Name": format!("tag:{STACK_TAG}"), "Values": [stack.name]}]});
        let reservations = self.all("DescribeInstances", "the machines", filter).await?;
        let machines = reservations.iter().flat_map(|entry| list(entry, "instancesSet"));
        let instances = machines.map(instance).filter(|instance| instance.state != "terminated").collect();
        Ok((found, instances))
    }

    async fn observe_launch_templates(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let templates = self.all("DescribeLaunchTemplates", "the launch templates", json!({"MaxResults": 200})).await?;
        let mut found = Vec::new();
        for template in &templates {
            let name = template["launchTemplateName"].as_str().unwrap_or_default();
            let tags = tags(template);
            let owner = owner_by_tags(pairs(&tags), stack);
            if stack.find(Kind::LaunchTemplate, name).is_none() && owner != Owner::This {
                continue;
            }
            let latest = json!({"LaunchTemplateName": name, "LaunchTemplateVersions": ["$Latest"]});
            let what = label(Kind::LaunchTemplate, name);
            let versions = self.all("DescribeLaunchTemplateVersions", &what, latest).await?;
            let data = versions.first().map(|version| &version["launchTemplateData"]);
            let members =
                json!({"LaunchTemplateData": data.map(template_data), "Tags": our_tags(pairs(&tags), &stack.own_tags)});
            let version = versions.first().and_then(|version| version["versionNumber"].as_str()).unwrap_or_default();
            found.push(
                FoundResource::new(Kind::LaunchTemplate, name, owner, members).with("LatestVersionNumber", version),
            );
        }
        Ok(found)
    }

    /// The data of a launch template, in CloudFormation's form. Returns `None` if there is no such template or version.
    pub(in crate::provision) async fn template_data_of(
        &self,
        name: &str,
        version: &str,
    ) -> anyhow::Result<Option<Value>> {
        let parameters = json!({"LaunchTemplateName": name, "LaunchTemplateVersions": [version]});
        let versions =
            self.all("DescribeLaunchTemplateVersions", &label(Kind::LaunchTemplate, name), parameters).await?;
        Ok(versions.first().map(|version| template_data(&version["launchTemplateData"])))
    }

    /// The data of all versions of a launch template, in CloudFormation's form, the newest first.
    pub(in crate::provision) async fn template_versions(&self, name: &str) -> anyhow::Result<Vec<Value>> {
        let by_name = json!({"LaunchTemplateName": name, "MaxResults": 200});
        let what = label(Kind::LaunchTemplate, name);
        let mut versions = self.all("DescribeLaunchTemplateVersions", &what, by_name).await?;
        let number = |version: &Value| version["versionNumber"].as_str().and_then(|text| text.parse::<u64>().ok());
        versions.sort_by_key(|version| std::cmp::Reverse(number(version)));
        Ok(versions.iter().map(|version| template_data(&version["launchTemplateData"])).collect())
    }

    pub(super) async fn tag(&self, id: &str, resource: &Resource) -> anyhow::Result<()> {
        let parameters = json!({"ResourceIds": [id], "Tags": tag_parameters(resource)});
        self.done("ec2:CreateTags", &resource.label(), self.ec2("CreateTags", &parameters).await).map(drop)
    }

    pub(super) async fn put_launch_template(
        &self,
        resource: &Resource,
        change: &Change,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let data = member(resource, &["LaunchTemplateData"])?;
        let version = |number: String| vec![("LatestVersionNumber".to_owned(), number)];
        let Some(found) = found else {
            let parameters = json!({
                "LaunchTemplateName": resource.name,
                "LaunchTemplateData": data,
                "TagSpecifications": [{"ResourceType": "launch-template", "Tags": tag_parameters(resource)}],
            });
            self.done("ec2:CreateLaunchTemplate", &what, self.ec2("CreateLaunchTemplate", &parameters).await)?;
            return Ok(version("1".to_owned()));
        };
        if change.differs("Tags") {
            let by_name = json!({"LaunchTemplateNames": [resource.name]});
            let there = self.all("DescribeLaunchTemplates", &what, by_name).await?;
            let id = there.first().and_then(|template| template["launchTemplateId"].as_str()).unwrap_or_default();
            self.tag(id, resource).await?;
        }
        if !change.differs("LaunchTemplateData") {
            return Ok(version(found.attributes.get("LatestVersionNumber").cloned().unwrap_or_default()));
        }
        let parameters = json!({"LaunchTemplateName": resource.name, "LaunchTemplateData": data});
        let answer = self.ec2("CreateLaunchTemplateVersion", &parameters).await;
        let answer = parse(&self.done("ec2:CreateLaunchTemplateVersion", &what, answer)?)?;
        let number = answer["launchTemplateVersion"]["versionNumber"].as_str().unwrap_or_default().to_owned();
        // Machines that people start by hand use the default version.
        let parameters = json!({"LaunchTemplateName": resource.name, "SetDefaultVersion": number});
        self.done("ec2:ModifyLaunchTemplate", &what, self.ec2("ModifyLaunchTemplate", &parameters).await)?;
        Ok(version(number))
    }

    pub(super) async fn delete_launch_template(&self, name: &str) -> anyhow::Result<()> {
        let answer = self.ec2("DeleteLaunchTemplate", &json!({ "LaunchTemplateName": name })).await;
        self.gone_from_ec2("ec2:DeleteLaunchTemplate", &label(Kind::LaunchTemplate, name), answer)
    }

    pub(super) fn gone_from_ec2(
        &self,
        action: &str,
        what: &str,
        answer: Result<String, SignedError>,
    ) -> anyhow::Result<()> {
        match answer {
            Err(error) if error.code().is_some_and(|code| MISSING.contains(&code)) => Ok(()),
            answer => self.gone(action, what, answer),
        }
    }
}

pub(super) fn tag_parameters(resource: &Resource) -> Vec<Value> {
    tags_of(&resource.properties).into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Converts the data of a launch template to CloudFormation's form.
fn template_data(data: &Value) -> Value {
    let flag = |value: &Value| value.as_str().map(|text| text == "true");
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<i64>().ok());
    let texts = |name: &str| Some(list(data, name).cloned().collect::<Vec<_>>()).filter(|texts| !texts.is_empty());
    let devices: Vec<Value> = list(data, "blockDeviceMappingSet")
        .map(|device| {
            let ebs = &device["ebs"];
            json!({"DeviceName": device["deviceName"], "Ebs": properties(json!({
                "DeleteOnTermination": flag(&ebs["deleteOnTermination"]), "Encrypted": flag(&ebs["encrypted"]),
                "VolumeSize": number(&ebs["volumeSize"]), "VolumeType": ebs["volumeType"],
            }))})
        })
        .collect();
    // moto includes the tags of the template itself.
    let own = |specification: &&Value| specification["resourceType"] != "launch-template";
    let tagged: Vec<Value> = list(data, "tagSpecificationSet")
        .filter(own)
        .map(|specification| {
            let mut tags = tags(specification);
            tags.sort_unstable();
            let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect();
            json!({"ResourceType": specification["resourceType"], "Tags": tags})
        })
        .collect();
    let metadata = data.get("metadataOptions").map(|options| {
        properties(json!({
            "HttpEndpoint": options["httpEndpoint"], "HttpTokens": options["httpTokens"],
            "HttpPutResponseHopLimit": number(&options["httpPutResponseHopLimit"]),
        }))
    });
    json!(properties(json!({
        "ImageId": data["imageId"],
        "InstanceType": data["instanceType"],
        "KeyName": data["keyName"],
        "IamInstanceProfile": data.get("iamInstanceProfile").map(|profile| {
            properties(json!({"Arn": profile["arn"], "Name": profile["name"]}))
        }),
        "SecurityGroupIds": texts("securityGroupIdSet"),
        "MetadataOptions": metadata,
        "BlockDeviceMappings": devices,
        "TagSpecifications": tagged,
        "UserData": data["userData"],
    })))
}

fn instance(entry: &Value) -> Instance {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tags = tags(entry);
    let tag = |name: &str| tags.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let address = [&entry["dnsName"], &entry["ipAddress"], &entry["privateDnsName"]];
    Instance {
        id: text(&entry["instanceId"]),
        group: tag(GROUP_OF_INSTANCE).unwrap_or_default(),
        state: text(&entry["instanceState"]["name"]),
        address: address.into_iter().map(text).find(|address| !address.is_empty()),
        template_version: tag(TEMPLATE_VERSION_OF_INSTANCE),
        started_at: entry["launchTime"].as_str().and_then(seconds_of),
    }
}

/// A time of EC2, in seconds since 1970.
fn seconds_of(text: &str) -> Option<i64> {
    DateTime::from_str(text, Format::DateTime).ok().map(|time| time.secs())
}

pub(super) fn tags(entry: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    list(entry, "tagSet").map(|tag| (text(&tag["key"]), text(&tag["value"]))).collect()
}

pub(super) fn pairs(tags: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    tags.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}
