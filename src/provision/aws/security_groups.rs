//! Security groups and their rules.

use serde_json::{Value, json};

use aws_sdk_sqs::error::ProvideErrorMetadata as _;

use super::client::{Attributes, Cloud, member, owner_by_tags, retry_while};
use super::ec2::{pairs, tag_parameters, tags};
use super::query::{list, parse};
use super::signed::SignedError;
use crate::provision::doctor::SecurityGroup;
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::resource::{Kind, Resource, STACK_TAG, label, our_tags, properties};
use crate::provision::stack::Stack;

/// The rule that a rule was authorized as already.
const DUPLICATE: &str = "InvalidPermission.Duplicate";

/// The traffic that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// Name of the property in CloudFormation.
    fn property(self) -> &'static str {
        match self {
            Direction::Ingress => "SecurityGroupIngress",
            Direction::Egress => "SecurityGroupEgress",
        }
    }

    /// Name of the list in an answer.
    fn list(self) -> &'static str {
        match self {
            Direction::Ingress => "ipPermissions",
            Direction::Egress => "ipPermissionsEgress",
        }
    }

    /// Names of the properties for another security group and for a prefix list.
    fn peers(self) -> [&'static str; 2] {
        match self {
            Direction::Ingress => ["SourceSecurityGroupId", "SourcePrefixListId"],
            Direction::Egress => ["DestinationSecurityGroupId", "DestinationPrefixListId"],
        }
    }

    fn authorize(self) -> &'static str {
        match self {
            Direction::Ingress => "AuthorizeSecurityGroupIngress",
            Direction::Egress => "AuthorizeSecurityGroupEgress",
        }
    }

    fn revoke(self) -> &'static str {
        match self {
            Direction::Ingress => "RevokeSecurityGroupIngress",
            Direction::Egress => "RevokeSecurityGroupEgress",
        }
    }
}

impl Cloud {
    /// Observes the groups that have the stack's tag, in any VPC, and those in its VPC that have its names.
    pub(super) async fn observe_security_groups(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let tagged = json!({"Filters": [{"Name": format!("tag:{STACK_TAG}"), "Values": [stack.name]}]});
        let mut groups = self.all("DescribeSecurityGroups", "the security groups", tagged).await?;
        let names: Vec<&str> = stack.names(Kind::SecurityGroup).collect();
        if !stack.vpc_id.is_empty() && !names.is_empty() {
            let named = json!({"Filters": [
                {"Name": "vpc-id", "Values": [stack.vpc_id]}, {"Name": "group-name", "Values": names},
            ]});
            for group in self.all("DescribeSecurityGroups", "the security groups", named).await? {
                if !groups.iter().any(|known| known["groupId"] == group["groupId"]) {
                    groups.push(group);
                }
            }
        }
        let found = groups.iter().filter_map(|group| {
            let name = group["groupName"].as_str()?;
            let tags = tags(group);
            let owner = owner_by_tags(pairs(&tags), stack);
            if stack.find(Kind::SecurityGroup, name).is_none() && owner != Owner::This {
                return None;
            }
            let members = json!({
                "VpcId": group["vpcId"],
                "SecurityGroupIngress": rules(group, Direction::Ingress),
                "SecurityGroupEgress": rules(group, Direction::Egress),
                "Tags": our_tags(pairs(&tags), &stack.own_tags),
            });
            let id = group["groupId"].as_str().unwrap_or_default();
            Some(FoundResource::new(Kind::SecurityGroup, name, owner, members).with("GroupId", id))
        });
        Ok(found.collect())
    }

    /// The groups with these ids.
    pub(super) async fn security_groups_of(&self, ids: &[String]) -> anyhow::Result<Vec<SecurityGroup>> {
        let mut found = Vec::new();
        for id in ids {
            let by_id = json!({"GroupIds": [id]});
            let groups = self.all("DescribeSecurityGroups", &label(Kind::SecurityGroup, id), by_id).await?;
            let group = groups.into_iter().next();
            let exists = group.is_some();
            let group = group.unwrap_or_default();
            found.push(SecurityGroup {
                name: group["groupName"].as_str().unwrap_or(id).to_owned(),
                exists,
                ingress: rules(&group, Direction::Ingress),
                egress: rules(&group, Direction::Egress),
            });
        }
        Ok(found)
    }

    pub(super) async fn put_security_group(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let what = resource.label();
        let id = match found.and_then(|found| found.attributes.get("GroupId")) {
            Some(id) => {
                self.tag(id, resource).await?;
                id.clone()
            }
            None => {
                let parameters = json!({
                    "GroupName": resource.name,
                    "GroupDescription": member(resource, &["GroupDescription"])?,
                    "VpcId": member(resource, &["VpcId"])?,
                    "TagSpecifications": [{"ResourceType": "security-group", "Tags": tag_parameters(resource)}],
                });
                let answer =
                    self.done("ec2:CreateSecurityGroup", &what, self.ec2("CreateSecurityGroup", &parameters).await)?;
                parse(&answer)?["groupId"].as_str().unwrap_or_default().to_owned()
            }
        };
        for direction in [Direction::Ingress, Direction::Egress] {
            self.put_rules(resource, found, &id, direction).await?;
        }
        Ok(vec![("GroupId".to_owned(), id)])
    }

    /// Revokes rules that are not wanted before it makes others, so that nobody is let in meanwhile.
    async fn put_rules(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
        id: &str,
        direction: Direction,
    ) -> anyhow::Result<()> {
        let what = resource.label();
        let wanted = member(resource, &[direction.property()])?.as_array().cloned().unwrap_or_default();
        let there = match found {
            Some(found) => found.properties.get(direction.property()).and_then(Value::as_array).cloned(),
            // EC2 makes this rule with every group.
            None if direction == Direction::Egress => Some(vec![json!({"IpProtocol": "-1", "CidrIp": "0.0.0.0/0"})]),
            None => None,
        };
        let there = there.unwrap_or_default();
        for rule in there.iter().filter(|rule| !wanted.contains(rule)) {
            let parameters = json!({"GroupId": id, "IpPermissions": [permission(rule, direction)]});
            let answer = self.ec2(direction.revoke(), &parameters).await;
            self.gone_from_ec2(&format!("ec2:{}", direction.revoke()), &what, answer)?;
        }
        for rule in wanted.iter().filter(|rule| !there.contains(rule)) {
            let parameters = json!({"GroupId": id, "IpPermissions": [permission(rule, direction)]});
            match self.ec2(direction.authorize(), &parameters).await {
                Err(error) if error.code() == Some(DUPLICATE) => {}
                answer => drop(self.done(&format!("ec2:{}", direction.authorize()), &what, answer)?),
            }
        }
        Ok(())
    }

    pub(super) async fn delete_security_group(&self, name: &str, found: Option<&FoundResource>) -> anyhow::Result<()> {
        let Some(id) = found.and_then(|found| found.attributes.get("GroupId")) else { return Ok(()) };
        // The network interface of a machine exists for a while after the machine has terminated.
        let is_in_use = |error: &SignedError| error.code() == Some("DependencyViolation");
        let parameters = json!({ "GroupId": id });
        let answer = retry_while(is_in_use, async || self.ec2("DeleteSecurityGroup", &parameters).await).await;
        self.gone_from_ec2("ec2:DeleteSecurityGroup", &label(Kind::SecurityGroup, name), answer)
    }
}

/// Converts a rule of CloudFormation to a parameter.
fn permission(rule: &Value, direction: Direction) -> Value {
    let [group, prefix_list] = direction.peers();
    let peers = [
        ("IpRanges", "CidrIp", "CidrIp"),
        ("Ipv6Ranges", "CidrIpv6", "CidrIpv6"),
        ("Groups", "GroupId", group),
        ("PrefixListIds", "PrefixListId", prefix_list),
    ];
    let mut permission =
        json!({"IpProtocol": rule["IpProtocol"], "FromPort": rule["FromPort"], "ToPort": rule["ToPort"]});
    for (list, parameter, property) in peers {
        if let Some(peer) = rule.get(property) {
            permission[list] = json!([properties(json!({parameter: peer, "Description": rule["Description"]}))]);
        }
    }
    permission
}

/// Converts the rules of a group to those of CloudFormation, sorted. Peers that the stack never uses are included, so
/// that they show as differences.
fn rules(group: &Value, direction: Direction) -> Vec<Value> {
    let mut found: Vec<Value> = list(group, direction.list()).flat_map(|entry| rules_of(entry, direction)).collect();
    // EC2 adds this rule by itself where a VPC has IPv6 addresses.
    let every_ipv6 = json!({"IpProtocol": "-1", "CidrIpv6": "::/0"});
    found.retain(|rule| direction == Direction::Ingress || *rule != every_ipv6);
    found.sort_by_key(ToString::to_string);
    found
}

fn rules_of(entry: &Value, direction: Direction) -> Vec<Value> {
    let port = |name: &str| entry[name].as_str().and_then(|text| text.parse::<i64>().ok()).filter(|port| *port >= 0);
    let [group, prefix_list] = direction.peers();
    let peers = [
        ("ipRanges", "cidrIp", "CidrIp"),
        ("ipv6Ranges", "cidrIpv6", "CidrIpv6"),
        ("groups", "groupId", group),
        ("prefixListIds", "prefixListId", prefix_list),
    ];
    let mut rules = Vec::new();
    for (peers, member, property) in peers {
        for peer in list(entry, peers) {
            let description = peer["description"].as_str().filter(|text| !text.is_empty());
            rules.push(json!(properties(json!({
                "IpProtocol": entry["ipProtocol"], "FromPort": port("fromPort"), "ToPort": port("toPort"),
                property: peer[member], "Description": description,
            }))));
        }
    }
    rules
}
