//! One resource as a plain value, in the words of CloudFormation: what is wanted, what is found and what is exported are
//! then the same language, which AWS documents.
//!
//! A property may refer to what only exists after another resource was made: `{"Ref": id}` or `{"Fn::GetAtt": [id,
//! attribute]}`, as in a template. [`resolve`] replaces such references by what is known.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Property → value, as CloudFormation names them. Only what a stack says is here: all else is left as it is.
pub type Properties = BTreeMap<String, Value>;

/// The tag that makes a resource a stack's.
pub const STACK_TAG: &str = crate::protocol::TAG_STACK;
/// Roles are the whole account's, whatever region their stack is in.
pub const REGION_TAG: &str = "imgcls:region";

/// In the order in which they are made; they are removed in the opposite one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    LogGroup,
    Queue,
    Bucket,
    /// The program itself, an object in the input bucket.
    Bundle,
    BucketPolicy,
    Role,
    InstanceProfile,
    SecurityGroup,
    LaunchTemplate,
    AutoScalingGroup,
    LifecycleHook,
    ScalingPolicy,
    Alarm,
    Dashboard,
}

impl Kind {
    /// In a sentence: `queue "requests"`.
    pub fn word(self) -> &'static str {
        match self {
            Kind::LogGroup => "log group",
            Kind::Queue => "queue",
            Kind::Bucket => "bucket",
            Kind::BucketPolicy => "bucket policy",
            Kind::Bundle => "bundle",
            Kind::Role => "role",
            Kind::InstanceProfile => "instance profile",
            Kind::SecurityGroup => "security group",
            Kind::LaunchTemplate => "launch template",
            Kind::AutoScalingGroup => "Auto Scaling group",
            Kind::LifecycleHook => "lifecycle hook",
            Kind::ScalingPolicy => "scaling policy",
            Kind::Alarm => "alarm",
            Kind::Dashboard => "dashboard",
        }
    }

    /// The resource type of CloudFormation, and the property that is the name there. None: not part of a template.
    pub fn cloudformation(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Kind::LogGroup => ("AWS::Logs::LogGroup", "LogGroupName"),
            Kind::Queue => ("AWS::SQS::Queue", "QueueName"),
            Kind::Bucket => ("AWS::S3::Bucket", "BucketName"),
            Kind::BucketPolicy => ("AWS::S3::BucketPolicy", "Bucket"),
            Kind::Bundle => return None,
            Kind::Role => ("AWS::IAM::Role", "RoleName"),
            Kind::InstanceProfile => ("AWS::IAM::InstanceProfile", "InstanceProfileName"),
            Kind::SecurityGroup => ("AWS::EC2::SecurityGroup", "GroupName"),
            Kind::LaunchTemplate => ("AWS::EC2::LaunchTemplate", "LaunchTemplateName"),
            Kind::AutoScalingGroup => ("AWS::AutoScaling::AutoScalingGroup", "AutoScalingGroupName"),
            Kind::LifecycleHook => ("AWS::AutoScaling::LifecycleHook", "LifecycleHookName"),
            Kind::ScalingPolicy => ("AWS::AutoScaling::ScalingPolicy", "PolicyName"),
            Kind::Alarm => ("AWS::CloudWatch::Alarm", "AlarmName"),
            Kind::Dashboard => ("AWS::CloudWatch::Dashboard", "DashboardName"),
        })
    }

    /// What can only be said when it is made, so that no change is planned for it.
    pub fn is_fixed(self, property: &str) -> bool {
        matches!(
            (self, property),
            (Kind::Role | Kind::InstanceProfile, "Path") | (Kind::SecurityGroup, "GroupDescription" | "VpcId")
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A resource that a stack wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resource {
    /// Its name within the stack, the same in every stack: `RequestQueue`.
    pub id: String,
    pub kind: Kind,
    /// Its name on AWS. Of a lifecycle hook or scaling policy `<group>/<name>`.
    pub name: String,
    pub properties: Properties,
}

impl Resource {
    /// As in a sentence: `queue "requests"`.
    pub fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

pub fn label(kind: Kind, name: &str) -> String {
    format!("{kind} {name:?}")
}

/// `<group>/<name>` of a lifecycle hook or scaling policy.
pub fn in_group(group: &str, name: &str) -> String {
    format!("{group}/{name}")
}

/// Group and own name of a lifecycle hook or scaling policy.
pub fn split_group(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}

pub fn reference(id: &str) -> Value {
    json!({ "Ref": id })
}

pub fn attribute(id: &str, attribute: &str) -> Value {
    json!({ "Fn::GetAtt": [id, attribute] })
}

/// Id and attribute that a value refers to; of `Ref` the attribute is `Ref`.
pub fn target_of(value: &Value) -> Option<(&str, &str)> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    if let Some(id) = object.get("Ref") {
        return Some((id.as_str()?, "Ref"));
    }
    match object.get("Fn::GetAtt")?.as_array()?.as_slice() {
        [id, attribute] => Some((id.as_str()?, attribute.as_str()?)),
        _ => None,
    }
}

/// The value with every reference replaced that `known` knows.
pub fn resolve(value: &Value, known: &dyn Fn(&str, &str) -> Option<String>) -> Value {
    if let Some((id, attribute)) = target_of(value) {
        return known(id, attribute).map_or_else(|| value.clone(), Value::String);
    }
    match value {
        Value::Array(items) => items.iter().map(|item| resolve(item, known)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, member)| (name.clone(), resolve(member, known)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// Properties of a JSON object; whatever is null in it is not said.
pub fn properties(value: Value) -> Properties {
    match value {
        Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Properties::new(),
    }
}

/// Our own tags, as CloudFormation writes them; those of others are left as they are.
pub fn our_tags<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let mut ours: Vec<(&str, &str)> =
        tags.into_iter().filter(|(key, _)| [STACK_TAG, REGION_TAG].contains(key)).collect();
    ours.sort_unstable();
    ours.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Key and value of each tag in a property as CloudFormation writes it.
pub fn tags_of(properties: &Properties) -> Vec<(String, String)> {
    let tags = properties.get("Tags").and_then(Value::as_array);
    let text = |tag: &Value, name: &str| tag[name].as_str().unwrap_or_default().to_owned();
    tags.into_iter().flatten().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect()
}

/// Numbers of the SDK are floating; in a template and in a plan 25 is 25.
pub fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
