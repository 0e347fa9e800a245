//! A resource as a plain value, in the types and property names of CloudFormation. Wanted state, actual state and
//! exported template then share one vocabulary, which AWS documents.
//!
//! As in a template, a property may refer to an attribute of another resource, which only exists once that resource is
//! made: `{"Ref": id}` or `{"Fn::GetAtt": [id, attribute]}`. [`resolve`] replaces the references that are known.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Values by property name. Properties that are absent here are left as they are on AWS.
pub(super) type Properties = BTreeMap<String, Value>;

/// The tag that names the stack which owns a resource.
pub(super) const STACK_TAG: &str = crate::protocol::TAG_STACK;
/// The tag that names the region of the owning stack. IAM resources have it, since IAM is global.
pub(super) const REGION_TAG: &str = "imgcls:region";
/// The tag that a queue gets before it is deleted. SQS lists a deleted queue for up to a minute, and only the tag tells
/// it from one that exists.
pub(super) const DELETION_TAG: &str = "imgcls:deletion";
/// The tag of a resource that existed before the stack and was taken over. It is not deleted with the stack.
pub(super) const ADOPTED_TAG: &str = "imgcls:adopted";
/// Attribute of a topic with the addresses whose owners have not confirmed that they want messages.
pub(super) const UNCONFIRMED: &str = "Unconfirmed";
/// Attribute of a load balancer with its address.
pub(super) const DNS_NAME: &str = "DNSName";
/// Attribute of a launch template that changes with every version.
pub(super) const LATEST_VERSION: &str = "LatestVersionNumber";

/// Types of resources, in the order in which they are created. They are deleted in the opposite order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    LogGroup,
    Queue,
    Bucket,
    /// The program itself, an object in the input bucket.
    Bundle,
    /// A version of a model, an object in the input bucket that never changes.
    ModelPackage,
    /// The object that names the version of a model which machines run.
    ModelPointer,
    BucketPolicy,
    /// The statement of this program in the policy of a queue.
    QueuePolicy,
    /// The notifications of a watched bucket to the queue of the stack. The bucket itself is somebody else's.
    BucketNotification,
    Role,
    InstanceProfile,
    SecurityGroup,
    TargetGroup,
    LoadBalancer,
    /// Its name is that of its load balancer and its port: `BALANCER/443`.
    Listener,
    LaunchTemplate,
    AutoScalingGroup,
    LifecycleHook,
    ScalingPolicy,
    Topic,
    Alarm,
    Dashboard,
    Budget,
}

impl Kind {
    /// The type as it is written in a sentence.
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::LogGroup => "log group",
            Kind::Queue => "queue",
            Kind::Bucket => "bucket",
            Kind::BucketPolicy => "bucket policy",
            Kind::QueuePolicy => "queue policy",
            Kind::BucketNotification => "bucket notification",
            Kind::Bundle => "bundle",
            Kind::ModelPackage => "model package",
            Kind::ModelPointer => "current model",
            Kind::Role => "role",
            Kind::InstanceProfile => "instance profile",
            Kind::SecurityGroup => "security group",
            Kind::TargetGroup => "target group",
            Kind::LoadBalancer => "load balancer",
            Kind::Listener => "listener",
            Kind::LaunchTemplate => "launch template",
            Kind::AutoScalingGroup => "Auto Scaling group",
            Kind::LifecycleHook => "lifecycle hook",
            Kind::ScalingPolicy => "scaling policy",
            Kind::Topic => "topic",
            Kind::Alarm => "alarm",
            Kind::Dashboard => "dashboard",
            Kind::Budget => "budget",
        }
    }

    /// The resource type in CloudFormation, and its property that holds the name. Returns `None` if the resource is not
    /// part of a template.
    pub(super) fn cloudformation(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Kind::LogGroup => ("AWS::Logs::LogGroup", "LogGroupName"),
            Kind::Queue => ("AWS::SQS::Queue", "QueueName"),
            Kind::Bucket => ("AWS::S3::Bucket", "BucketName"),
            Kind::BucketPolicy => ("AWS::S3::BucketPolicy", "Bucket"),
            Kind::QueuePolicy => ("AWS::SQS::QueuePolicy", "Queues"),
            Kind::Bundle | Kind::ModelPackage | Kind::ModelPointer | Kind::BucketNotification => return None,
            Kind::Role => ("AWS::IAM::Role", "RoleName"),
            Kind::InstanceProfile => ("AWS::IAM::InstanceProfile", "InstanceProfileName"),
            Kind::SecurityGroup => ("AWS::EC2::SecurityGroup", "GroupName"),
            Kind::TargetGroup => ("AWS::ElasticLoadBalancingV2::TargetGroup", "Name"),
            Kind::LoadBalancer => ("AWS::ElasticLoadBalancingV2::LoadBalancer", "Name"),
            // It has no name. Its port is a property.
            Kind::Listener => ("AWS::ElasticLoadBalancingV2::Listener", "Port"),
            Kind::LaunchTemplate => ("AWS::EC2::LaunchTemplate", "LaunchTemplateName"),
            Kind::AutoScalingGroup => ("AWS::AutoScaling::AutoScalingGroup", "AutoScalingGroupName"),
            Kind::LifecycleHook => ("AWS::AutoScaling::LifecycleHook", "LifecycleHookName"),
            Kind::ScalingPolicy => ("AWS::AutoScaling::ScalingPolicy", "PolicyName"),
            Kind::Topic => ("AWS::SNS::Topic", "TopicName"),
            Kind::Alarm => ("AWS::CloudWatch::Alarm", "AlarmName"),
            Kind::Dashboard => ("AWS::CloudWatch::Dashboard", "DashboardName"),
            Kind::Budget => ("AWS::Budgets::Budget", "BudgetName"),
        })
    }

    /// Returns whether a property can only be set at creation. No update is planned for such a property.
    pub(super) fn is_fixed(self, property: &str) -> bool {
        matches!(
            (self, property),
            (Kind::Role | Kind::InstanceProfile, "Path")
                | (Kind::SecurityGroup, "GroupDescription" | "VpcId")
                | (Kind::TargetGroup, "Port" | "Protocol" | "TargetType" | "VpcId")
                | (Kind::LoadBalancer, "Scheme" | "Type")
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A resource of the wanted state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Resource {
    /// Logical name, the same in every stack: `RequestQueue`.
    pub id: String,
    pub kind: Kind,
    /// Name on AWS. Names of lifecycle hooks and scaling policies have the form `<group>/<name>`,
    /// those of listeners `<load balancer>/<port>`.
    pub name: String,
    pub properties: Properties,
}

impl Resource {
    /// Type and name as they are written in a sentence: `queue "requests"`.
    pub(super) fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

pub(super) fn label(kind: Kind, name: &str) -> String {
    format!("{kind} {name:?}")
}

/// The full name of a lifecycle hook or scaling policy: `<group>/<name>`.
pub(super) fn in_group(group: &str, name: &str) -> String {
    format!("{group}/{name}")
}

/// Splits the full name of a lifecycle hook or scaling policy into group and own name.
pub(super) fn split_group(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}

pub(super) fn reference(id: &str) -> Value {
    json!({ "Ref": id })
}

pub(super) fn attribute(id: &str, attribute: &str) -> Value {
    json!({ "Fn::GetAtt": [id, attribute] })
}

/// The id and attribute that a value refers to, if it is a reference. The attribute of a `Ref` is `Ref`.
pub(super) fn target_of(value: &Value) -> Option<(&str, &str)> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    if let Some(id) = object.get("Ref") {
        return Some((id.as_str()?, "Ref"));
    }
    match object.get("Fn::GetAtt")?.as_array()?.as_slice() {
        [id, attribute] => Some((id.as_str()?, attribute.as_str()?)),
        _ => None,
    }
}

/// Replaces every reference for which `known` returns a value.
pub(super) fn resolve(value: &Value, known: &dyn Fn(&str, &str) -> Option<String>) -> Value {
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

/// The properties in a JSON object. Null members are absent.
pub(super) fn properties(value: Value) -> Properties {
    match value {
        Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Properties::new(),
    }
}

/// The tags of this program and those of the user (`own`, by their keys), in CloudFormation's form. All other tags are left
/// alone.
pub(super) fn our_tags<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>, own: &[String]) -> Value {
    let mut ours: Vec<(&str, &str)> = tags.into_iter().filter(|(key, _)| is_our_tag(key, own)).collect();
    ours.sort_unstable();
    ours.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Returns whether a tag with this key is compared with the wanted one.
pub(super) fn is_our_tag(key: &str, own: &[String]) -> bool {
    [ADOPTED_TAG, REGION_TAG, STACK_TAG].contains(&key) || own.iter().any(|own| own == key)
}

/// Key and value of each tag in the `Tags` property.
pub(super) fn tags_of(properties: &Properties) -> Vec<(String, String)> {
    let tags = properties.get("Tags").and_then(Value::as_array);
    let text = |tag: &Value, name: &str| tag[name].as_str().unwrap_or_default().to_owned();
    tags.into_iter().flatten().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect()
}

/// A number of the SDK, which is always a float. Whole numbers become integers, as they are in a template.
pub(super) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
