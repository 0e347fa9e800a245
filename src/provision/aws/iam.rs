//! Roles and instance profiles. IAM is global, so a tag names the region of the stack that they belong to.
//!
//! The SDK crate of IAM would be the largest of the build, so its two dozen calls are written here (decision 6).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::client::{Attributes, Cloud, member, owner_by_tags, text};
use super::query::{self, Lists, list};
use super::signed::{Call, Scope, SignedError};
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::names::role_path;
use crate::provision::resource::{Kind, Resource, label, our_tags, tags_of};
use crate::provision::stack::Stack;

const VERSION: &str = "2010-05-08";
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_IAM";

impl Cloud {
    /// Makes one call and returns its result as JSON.
    async fn iam(&self, operation: &'static str, parameters: Value) -> Result<Value, SignedError> {
        let body = query::form(operation, VERSION, Lists::Members, &parameters);
        let call = Call { scope: Scope::Partition, ..Call::query("iam", ENDPOINT_VARIABLE, operation, body) };
        let answer = self.signed.call(call).await?;
        let answer = query::parse(&answer).map_err(SignedError::construction_failure)?;
        Ok(answer[format!("{operation}Result")].clone())
    }

    /// Makes a call about one role, profile or policy. Returns `None` if it does not exist.
    pub(super) async fn ask_iam(
        &self,
        operation: &'static str,
        what: &str,
        parameters: Value,
    ) -> anyhow::Result<Option<Value>> {
        self.if_there(&format!("iam:{operation}"), what, self.iam(operation, parameters).await)
    }

    /// Makes a call whose subject has to exist.
    async fn require_iam(&self, operation: &'static str, what: &str, parameters: Value) -> anyhow::Result<Value> {
        self.done(&format!("iam:{operation}"), what, self.iam(operation, parameters).await)
    }

    /// Reads all pages of a list. Returns `None` if the list's owner does not exist.
    pub(super) async fn list_iam(
        &self,
        operation: &'static str,
        what: &str,
        list_name: &str,
        mut parameters: Value,
    ) -> anyhow::Result<Option<Vec<Value>>> {
        let mut entries = Vec::new();
        loop {
            let Some(page) = self.ask_iam(operation, what, parameters.clone()).await? else { return Ok(None) };
            entries.extend(list(&page, list_name).cloned());
            if page["IsTruncated"] != "true" {
                return Ok(Some(entries));
            }
            parameters["Marker"] = page["Marker"].clone();
        }
    }

    pub(super) async fn observe_roles(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let below_path = json!({ "PathPrefix": role_path(&stack.name) });
        let mut roles: BTreeSet<String> = stack.names(Kind::Role).map(str::to_owned).collect();
        let listed = self.list_iam("ListRoles", "the roles", "Roles", below_path.clone()).await?;
        roles.extend(listed.iter().flatten().map(|role| text(&role["RoleName"])));
        let mut profiles: BTreeSet<String> = stack.names(Kind::InstanceProfile).map(str::to_owned).collect();
        let listed =
            self.list_iam("ListInstanceProfiles", "the instance profiles", "InstanceProfiles", below_path).await?;
        profiles.extend(listed.iter().flatten().map(|profile| text(&profile["InstanceProfileName"])));
        let mut found = Vec::new();
        for name in roles {
            found.extend(self.observe_role(stack, &name).await?);
        }
        let is_ours = |role: &&FoundResource| role.owner == Owner::This;
        let our_roles: Vec<String> = found.iter().filter(is_ours).map(|role| role.name.clone()).collect();
        for name in profiles {
            found.extend(self.observe_profile(stack, &name, &our_roles).await?);
        }
        Ok(found)
    }

    async fn observe_role(&self, stack: &Stack, name: &str) -> anyhow::Result<Option<FoundResource>> {
        let what = label(Kind::Role, name);
        let Some(answer) = self.ask_iam("GetRole", &what, json!({ "RoleName": name })).await? else {
            return Ok(None);
        };
        let role = &answer["Role"];
        let tags = tags(role);
        let owner = owner_by_tags(pairs(&tags), stack);
        if stack.find(Kind::Role, name).is_none() && owner != Owner::This {
            return Ok(None);
        }
        // Policies of others count as differences: they let machines do more than the stack wants.
        let mut policies = Vec::new();
        for policy in self.inline_policies(name).await?.unwrap_or_default() {
            let by_name = json!({"RoleName": name, "PolicyName": policy});
            let policy = self.ask_iam("GetRolePolicy", &what, by_name).await?;
            policies.extend(policy.map(|policy| {
                json!({"PolicyName": policy["PolicyName"], "PolicyDocument": document(&policy["PolicyDocument"])})
            }));
        }
        let members = json!({
            "AssumeRolePolicyDocument": document(&role["AssumeRolePolicyDocument"]),
            "Policies": policies,
            "ManagedPolicyArns": self.attached_policies(name).await?,
            "PermissionsBoundary": role["PermissionsBoundary"]["PermissionsBoundaryArn"],
            "Tags": our_tags(pairs(&tags), &stack.own_tags),
        });
        Ok(Some(FoundResource::new(Kind::Role, name, owner, members).with("Arn", text(&role["Arn"]))))
    }

    /// The names of a role's inline policies, sorted. Returns `None` if the role does not exist.
    async fn inline_policies(&self, role: &str) -> anyhow::Result<Option<Vec<String>>> {
        let by_name = json!({ "RoleName": role });
        let listed = self.list_iam("ListRolePolicies", &label(Kind::Role, role), "PolicyNames", by_name).await?;
        Ok(listed.map(|names| {
            let mut names: Vec<String> = names.iter().map(text).collect();
            names.sort_unstable();
            names
        }))
    }

    /// The ARNs of a role's attached policies, sorted.
    async fn attached_policies(&self, role: &str) -> anyhow::Result<Vec<String>> {
        let by_name = json!({ "RoleName": role });
        let what = label(Kind::Role, role);
        let listed = self.list_iam("ListAttachedRolePolicies", &what, "AttachedPolicies", by_name).await?;
        let mut arns: Vec<String> = listed.iter().flatten().map(|policy| text(&policy["PolicyArn"])).collect();
        arns.sort_unstable();
        Ok(arns)
    }

    async fn remove_policy(&self, role: &str, policy: &str) -> anyhow::Result<()> {
        let policy = json!({"RoleName": role, "PolicyName": policy});
        self.ask_iam("DeleteRolePolicy", &label(Kind::Role, role), policy).await.map(drop)
    }

    async fn detach_policies(&self, role: &str) -> anyhow::Result<()> {
        for arn in self.attached_policies(role).await? {
            let policy = json!({"RoleName": role, "PolicyArn": arn});
            self.ask_iam("DetachRolePolicy", &label(Kind::Role, role), policy).await?;
        }
        Ok(())
    }

    /// CloudFormation gives instance profiles no tags: such a profile belongs to the stack that owns its role.
    async fn observe_profile(
        &self,
        stack: &Stack,
        name: &str,
        our_roles: &[String],
    ) -> anyhow::Result<Option<FoundResource>> {
        let Some(profile) = self.instance_profile(name).await? else { return Ok(None) };
        let mut tags = tags(&profile);
        let is_below_path = profile["Path"] == role_path(&stack.name).as_str();
        if tags.is_empty() && is_below_path && roles_of(&profile).any(|role| our_roles.contains(&role)) {
            let wanted = stack.find(Kind::InstanceProfile, name).map(|wanted| tags_of(&wanted.properties));
            tags = wanted.unwrap_or_default();
        }
        let owner = owner_by_tags(pairs(&tags), stack);
        if stack.find(Kind::InstanceProfile, name).is_none() && owner != Owner::This {
            return Ok(None);
        }
        let roles: Vec<String> = roles_of(&profile).collect();
        let members = json!({"Roles": roles, "Tags": our_tags(pairs(&tags), &stack.own_tags)});
        Ok(Some(FoundResource::new(Kind::InstanceProfile, name, owner, members).with("Arn", text(&profile["Arn"]))))
    }

    pub(super) async fn instance_profile(&self, name: &str) -> anyhow::Result<Option<Value>> {
        let what = label(Kind::InstanceProfile, name);
        let answer = self.ask_iam("GetInstanceProfile", &what, json!({ "InstanceProfileName": name })).await?;
        Ok(answer.map(|answer| answer["InstanceProfile"].clone()))
    }

    pub(super) async fn put_role(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let trust = member(resource, &["AssumeRolePolicyDocument"])?.to_string();
        // Without one in the settings, that of a role is left alone.
        let boundary = resource.properties.get("PermissionsBoundary");
        let tags = tag_parameters(resource);
        if found.is_none() {
            let path = text(member(resource, &["Path"])?);
            let role = json!({
                "RoleName": name, "Path": path, "AssumeRolePolicyDocument": trust, "PermissionsBoundary": boundary, "Tags": tags,
            });
            self.require_iam("CreateRole", &what, role).await?;
        } else {
            self.require_iam("TagRole", &what, json!({"RoleName": name, "Tags": tags})).await?;
            let trust = json!({"RoleName": name, "PolicyDocument": trust});
            self.require_iam("UpdateAssumeRolePolicy", &what, trust).await?;
            if let Some(boundary) = boundary {
                let boundary = json!({"RoleName": name, "PermissionsBoundary": boundary});
                self.require_iam("PutRolePermissionsBoundary", &what, boundary).await?;
            }
        }
        self.put_policies(resource).await?;
        if found.is_some() {
            self.detach_policies(name).await?;
        }
        Ok(Vec::new())
    }

    /// Writes the policies of a role, and removes all others.
    async fn put_policies(&self, resource: &Resource) -> anyhow::Result<()> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let wanted = member(resource, &["Policies"])?.as_array().cloned().unwrap_or_default();
        for policy in &wanted {
            let policy = json!({
                "RoleName": name,
                "PolicyName": policy["PolicyName"],
                "PolicyDocument": policy["PolicyDocument"].to_string(),
            });
            self.require_iam("PutRolePolicy", &what, policy).await?;
        }
        let is_wanted = |policy: &str| wanted.iter().any(|wanted| wanted["PolicyName"] == policy);
        for policy in self.inline_policies(name).await?.unwrap_or_default() {
            if !is_wanted(&policy) {
                self.remove_policy(name, &policy).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn put_instance_profile(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let tags = tag_parameters(resource);
        if found.is_none() {
            let path = text(member(resource, &["Path"])?);
            let profile = json!({"InstanceProfileName": name, "Path": path, "Tags": tags});
            self.require_iam("CreateInstanceProfile", &what, profile).await?;
        } else {
            let tags = json!({"InstanceProfileName": name, "Tags": tags});
            self.require_iam("TagInstanceProfile", &what, tags).await?;
        }
        let existing = found.and_then(|found| found.properties.get("Roles")).cloned().unwrap_or_default();
        let existing: Vec<String> = existing.as_array().into_iter().flatten().map(text).collect();
        let wanted: Vec<String> = member(resource, &["Roles"])?.as_array().into_iter().flatten().map(text).collect();
        for role in existing.iter().filter(|role| !wanted.contains(role)) {
            self.remove_role_from_profile(name, role).await?;
        }
        for role in wanted.iter().filter(|role| !existing.contains(role)) {
            let addition = json!({"InstanceProfileName": name, "RoleName": role});
            self.require_iam("AddRoleToInstanceProfile", &what, addition).await?;
        }
        Ok(Vec::new())
    }

    async fn remove_role_from_profile(&self, profile: &str, role: &str) -> anyhow::Result<()> {
        let what = label(Kind::InstanceProfile, profile);
        let removal = json!({"InstanceProfileName": profile, "RoleName": role});
        self.ask_iam("RemoveRoleFromInstanceProfile", &what, removal).await.map(drop)
    }

    pub(super) async fn delete_role(&self, name: &str) -> anyhow::Result<()> {
        let Some(inline) = self.inline_policies(name).await? else { return Ok(()) };
        for policy in inline {
            self.remove_policy(name, &policy).await?;
        }
        self.detach_policies(name).await?;
        let by_name = json!({ "RoleName": name });
        self.ask_iam("DeleteRole", &label(Kind::Role, name), by_name).await.map(drop)
    }

    pub(super) async fn delete_instance_profile(&self, name: &str) -> anyhow::Result<()> {
        let Some(profile) = self.instance_profile(name).await? else { return Ok(()) };
        for role in roles_of(&profile) {
            self.remove_role_from_profile(name, &role).await?;
        }
        let by_name = json!({ "InstanceProfileName": name });
        self.ask_iam("DeleteInstanceProfile", &label(Kind::InstanceProfile, name), by_name).await.map(drop)
    }
}

pub(super) fn roles_of(profile: &Value) -> impl Iterator<Item = String> {
    list(profile, "Roles").map(|role| text(&role["RoleName"]))
}

fn tags(resource: &Value) -> Vec<(String, String)> {
    list(resource, "Tags").map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect()
}

fn pairs(tags: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    tags.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

fn tag_parameters(resource: &Resource) -> Vec<Value> {
    tags_of(&resource.properties).into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}

/// Parses a policy document, which IAM returns URL-encoded. Returns `Null` if it is not JSON.
pub(super) fn document(text: &Value) -> Value {
    let text = percent_encoding::percent_decode_str(text.as_str().unwrap_or_default()).decode_utf8_lossy();
    serde_json::from_str(&text).unwrap_or_default()
}
