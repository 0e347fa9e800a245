//! The stack as a CloudFormation template. Its resources use CloudFormation's vocabulary already.
//!
//! Values that change from one use of a template to the next are parameters, whose defaults are those of this run.

use serde_json::{Map, Value, json};

use super::arns::Arns;
use super::resource::{DNS_NAME, Kind, Resource, attribute, reference, split_group};
use super::stack::Stack;

/// A value of the exported stack that its user may choose.
pub(super) struct Parameter {
    pub id: &'static str,
    /// Its type in a template.
    kind: &'static str,
    pub description: &'static str,
    /// The properties that have this value: of which kind of resource, and which id if only one has it.
    properties: &'static [(Kind, Option<&'static str>, &'static str)],
}

pub(super) const PARAMETERS: [Parameter; 6] = [
    Parameter {
        id: "Vpc",
        kind: "AWS::EC2::VPC::Id",
        description: "VPC of the machines",
        properties: &[(Kind::SecurityGroup, None, "VpcId"), (Kind::TargetGroup, None, "VpcId")],
    },
    Parameter {
        id: "Subnets",
        kind: "List<AWS::EC2::Subnet::Id>",
        description: "Subnets of the machines, in that VPC",
        properties: &[(Kind::AutoScalingGroup, None, "VPCZoneIdentifier")],
    },
    Parameter {
        id: "BalancerSubnets",
        kind: "List<AWS::EC2::Subnet::Id>",
        description: "Subnets of the load balancer, one in each zone of the machines",
        properties: &[(Kind::LoadBalancer, None, "Subnets")],
    },
    Parameter {
        id: "MinWorkers",
        kind: "Number",
        description: "Smallest number of workers",
        properties: &[(Kind::AutoScalingGroup, Some("WorkerGroup"), "MinSize")],
    },
    Parameter {
        id: "MaxWorkers",
        kind: "Number",
        description: "Largest number of workers",
        properties: &[(Kind::AutoScalingGroup, Some("WorkerGroup"), "MaxSize")],
    },
    Parameter {
        id: "WebMachines",
        kind: "Number",
        description: "Number of machines of the web tier",
        properties: &[
            (Kind::AutoScalingGroup, Some("WebGroup"), "MinSize"),
            (Kind::AutoScalingGroup, Some("WebGroup"), "MaxSize"),
        ],
    },
];

impl Parameter {
    fn has(&self, resource: &Resource, property: &str) -> bool {
        let is_it = |(kind, id, name): &(Kind, Option<&str>, &str)| {
            *kind == resource.kind && id.is_none_or(|id| id == resource.id) && *name == property
        };
        self.properties.iter().any(is_it)
    }

    /// The value of this run. `None` if the stack has no such resource.
    pub(super) fn default(&self, stack: &Stack) -> Option<Value> {
        let values = stack.resources.iter().flat_map(|resource| {
            let has = move |name: &&String| self.has(resource, name);
            resource.properties.keys().filter(has).map(move |name| &resource.properties[name])
        });
        values.into_iter().next().cloned()
    }

    fn exported(&self, stack: &Stack) -> Option<(String, Value)> {
        let default = match self.default(stack)? {
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.as_str()?.to_owned(),
        };
        let value = json!({"Type": self.kind, "Description": self.description, "Default": default});
        Some((self.id.to_owned(), value))
    }
}

/// A template that makes the same stack. The bundle has to be uploaded to the input bucket before machines start.
pub(super) fn template(stack: &Stack) -> Value {
    let resources: Map<String, Value> =
        stack.resources.iter().filter_map(|resource| Some((resource.id.clone(), exported(stack, resource)?))).collect();
    let bundle = stack.bundle.key();
    let mut outputs = json!({
        "BundleKey": {
            "Description": "Key in the input bucket to upload the bundle of `imgcls provision export --bundle-to FILE` to",
            "Value": bundle,
        },
        "InputBucketName": {"Value": reference("InputBucket")},
    });
    if stack.get("WebGroup").is_some() {
        outputs["WebGroupName"] = json!({"Value": reference("WebGroup")});
    }
    if stack.get("WebBalancer").is_some() {
        let address = attribute("WebBalancer", DNS_NAME);
        outputs["WebUrl"] = json!({"Value": {"Fn::Join": ["", ["https://", address, "/"]]}});
    }
    json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": format!("imgcls, stack {}: image classification through a queue", stack.name),
        "Parameters": PARAMETERS.iter().filter_map(|parameter| parameter.exported(stack)).collect::<Map<_, _>>(),
        "Resources": resources,
        "Outputs": outputs,
    })
}

fn exported(stack: &Stack, resource: &Resource) -> Option<Value> {
    let (kind, name_property) = resource.kind.cloudformation()?;
    let (_, own_name) = split_group(&resource.name);
    let own_name = if belongs_to_group(resource.kind) { own_name } else { &resource.name };
    let mut properties = linked_properties(stack, resource);
    let name = match resource.kind {
        Kind::BucketPolicy => linked(stack, resource, &Value::from(own_name)),
        Kind::QueuePolicy => linked(stack, resource, &json!([own_name])),
        _ => own_name.into(),
    };
    // CloudFormation generates the names of scaling policies. What names a budget or a listener is one of its properties.
    if ![Kind::ScalingPolicy, Kind::Budget, Kind::Listener].contains(&resource.kind) {
        properties.insert(name_property.to_owned(), name);
    }
    adapt(resource.kind, &mut properties);
    let mut exported = json!({"Type": kind, "Properties": properties});
    if [Kind::Bucket, Kind::Queue].contains(&resource.kind) {
        // Users' data outlives the template.
        exported["DeletionPolicy"] = "Retain".into();
        exported["UpdateReplacePolicy"] = "Retain".into();
    }
    Some(exported)
}

/// The properties of a resource, with references to parameters and to other resources of the stack.
pub(super) fn linked_properties(stack: &Stack, resource: &Resource) -> Map<String, Value> {
    let value = |name: &str, value: &Value| match PARAMETERS.iter().find(|parameter| parameter.has(resource, name)) {
        Some(parameter) => reference(parameter.id),
        None => linked(stack, resource, value),
    };
    resource.properties.iter().map(|(name, found)| (name.clone(), value(name, found))).collect()
}

fn belongs_to_group(kind: Kind) -> bool {
    matches!(kind, Kind::LifecycleHook | Kind::ScalingPolicy)
}

/// Adapts properties that templates write differently from the API.
fn adapt(kind: Kind, properties: &mut Map<String, Value>) {
    match kind {
        Kind::InstanceProfile => {
            properties.remove("Tags");
        }
        // A state that templates do not have.
        Kind::AutoScalingGroup => {
            properties.remove("SuspendedProcesses");
        }
        Kind::LaunchTemplate => {
            if let Some(tags) = properties.remove("Tags") {
                properties
                    .insert("TagSpecifications".into(), json!([{"ResourceType": "launch-template", "Tags": tags}]));
            }
        }
        _ => {}
    }
}

/// Replaces names and ARNs of the stack's own resources with references, from which CloudFormation derives the order.
fn linked(stack: &Stack, from: &Resource, value: &Value) -> Value {
    match value {
        Value::String(text) => link(stack, from, text).unwrap_or_else(|| value.clone()),
        Value::Array(items) => items.iter().map(|item| linked(stack, from, item)).collect(),
        Value::Object(members) => {
            let is_reference = super::resource::target_of(value).is_some();
            if is_reference {
                return value.clone();
            }
            members
                .iter()
                .map(|(name, member)| (name.clone(), linked(stack, from, member)))
                .collect::<Map<_, _>>()
                .into()
        }
        other => other.clone(),
    }
}

fn link(stack: &Stack, from: &Resource, text: &str) -> Option<Value> {
    let arns = Arns::new(&stack.account, &stack.region);
    let others = stack.resources.iter().filter(|resource| resource.id != from.id);
    for other in others {
        let name = other.name.as_str();
        let (arn, is_named) = match other.kind {
            Kind::Queue => (arns.queue(name), from.kind == Kind::QueuePolicy),
            Kind::Bucket => (arns.bucket(name), from.kind == Kind::BucketPolicy),
            Kind::Role => (String::new(), from.kind == Kind::InstanceProfile),
            Kind::InstanceProfile => (arns.instance_profile(&stack.name, name), false),
            Kind::AutoScalingGroup => (String::new(), belongs_to_group(from.kind)),
            _ => continue,
        };
        if text == arn {
            return Some(attribute(&other.id, "Arn"));
        }
        if is_named && text == name {
            return Some(reference(&other.id));
        }
    }
    None
}
