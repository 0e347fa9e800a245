//! Roles and instance profiles. IAM is global, so a tag names the region of the stack that they belong to.

use std::collections::BTreeSet;

use aws_sdk_iam::types::Tag;
use serde_json::{Value, json};

use super::client::{Attributes, Cloud, member, owner_by_tags, text};
use crate::provision::inventory::{FoundResource, Owner};
use crate::provision::names::role_path;
use crate::provision::resource::{Kind, Resource, label, our_tags, tags_of};
use crate::provision::stack::Stack;

impl Cloud {
    pub(super) async fn observe_roles(&self, stack: &Stack) -> anyhow::Result<Vec<FoundResource>> {
        let path = role_path(&stack.name);
        let mut roles: BTreeSet<String> = stack.names(Kind::Role).map(str::to_owned).collect();
        let mut pages = self.iam.list_roles().path_prefix(&path).into_paginator().items().send();
        while let Some(role) = pages.next().await {
            roles.insert(self.done("iam:ListRoles", "the roles", role)?.role_name);
        }
        let mut profiles: BTreeSet<String> = stack.names(Kind::InstanceProfile).map(str::to_owned).collect();
        let mut pages = self.iam.list_instance_profiles().path_prefix(&path).into_paginator().items().send();
        while let Some(profile) = pages.next().await {
            profiles
                .insert(self.done("iam:ListInstanceProfiles", "the instance profiles", profile)?.instance_profile_name);
        }
        let mut found = Vec::new();
        for name in roles {
            found.extend(self.observe_role(stack, &name).await?);
        }
        for name in profiles {
            found.extend(self.observe_profile(stack, &name).await?);
        }
        Ok(found)
    }

    async fn observe_role(&self, stack: &Stack, name: &str) -> anyhow::Result<Option<FoundResource>> {
        let what = label(Kind::Role, name);
        let answer = self.iam.get_role().role_name(name).send().await;
        let Some(role) = self.if_there("iam:GetRole", &what, answer)?.and_then(|answer| answer.role) else {
            return Ok(None);
        };
        let tags = role.tags.unwrap_or_default();
        let owner = owner_by_tags(pairs(&tags), stack);
        if stack.find(Kind::Role, name).is_none() && owner != Owner::This {
            return Ok(None);
        }
        let answer = self.iam.get_role_policy().role_name(name).policy_name("imgcls").send().await;
        let policy = self.if_there("iam:GetRolePolicy", &what, answer)?;
        let policies: Vec<Value> = policy
            .iter()
            .map(
                |policy| json!({"PolicyName": policy.policy_name, "PolicyDocument": document(&policy.policy_document)}),
            )
            .collect();
        let members = json!({
            "AssumeRolePolicyDocument": document(role.assume_role_policy_document.as_deref().unwrap_or_default()),
            "Policies": policies,
            "Tags": our_tags(pairs(&tags)),
        });
        Ok(Some(FoundResource::new(Kind::Role, name, owner, members).with("Arn", role.arn)))
    }

    async fn observe_profile(&self, stack: &Stack, name: &str) -> anyhow::Result<Option<FoundResource>> {
        let answer = self.iam.get_instance_profile().instance_profile_name(name).send().await;
        let answer = self.if_there("iam:GetInstanceProfile", &label(Kind::InstanceProfile, name), answer)?;
        let Some(profile) = answer.and_then(|answer| answer.instance_profile) else { return Ok(None) };
        let tags = profile.tags.unwrap_or_default();
        let owner = owner_by_tags(pairs(&tags), stack);
        if stack.find(Kind::InstanceProfile, name).is_none() && owner != Owner::This {
            return Ok(None);
        }
        let roles: Vec<&str> = profile.roles.iter().map(|role| role.role_name.as_str()).collect();
        let members = json!({"Roles": roles, "Tags": our_tags(pairs(&tags))});
        Ok(Some(FoundResource::new(Kind::InstanceProfile, name, owner, members).with("Arn", profile.arn)))
    }

    pub(super) async fn put_role(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let trust = member(resource, &["AssumeRolePolicyDocument"])?.to_string();
        let tags = tags(resource)?;
        if found.is_none() {
            let call = self.iam.create_role().role_name(name).path(text(member(resource, &["Path"])?));
            let call = call.assume_role_policy_document(&trust).set_tags(Some(tags)).send();
            self.done("iam:CreateRole", &what, call.await)?;
        } else {
            let call = self.iam.tag_role().role_name(name).set_tags(Some(tags)).send();
            self.done("iam:TagRole", &what, call.await)?;
            let call = self.iam.update_assume_role_policy().role_name(name).policy_document(&trust).send();
            self.done("iam:UpdateAssumeRolePolicy", &what, call.await)?;
        }
        for policy in member(resource, &["Policies"])?.as_array().into_iter().flatten() {
            let call = self.iam.put_role_policy().role_name(name).policy_name(text(&policy["PolicyName"]));
            let call = call.policy_document(policy["PolicyDocument"].to_string()).send();
            self.done("iam:PutRolePolicy", &what, call.await)?;
        }
        Ok(Vec::new())
    }

    pub(super) async fn put_instance_profile(
        &self,
        resource: &Resource,
        found: Option<&FoundResource>,
    ) -> anyhow::Result<Attributes> {
        let (name, what) = (resource.name.as_str(), resource.label());
        let tags = tags(resource)?;
        if found.is_none() {
            let call = self.iam.create_instance_profile().instance_profile_name(name);
            let call = call.path(text(member(resource, &["Path"])?)).set_tags(Some(tags)).send();
            self.done("iam:CreateInstanceProfile", &what, call.await)?;
        } else {
            let call = self.iam.tag_instance_profile().instance_profile_name(name).set_tags(Some(tags)).send();
            self.done("iam:TagInstanceProfile", &what, call.await)?;
        }
        let there = found.and_then(|found| found.properties.get("Roles")).cloned().unwrap_or_default();
        let there: Vec<String> = there.as_array().into_iter().flatten().map(text).collect();
        let wanted: Vec<String> = member(resource, &["Roles"])?.as_array().into_iter().flatten().map(text).collect();
        for role in there.iter().filter(|role| !wanted.contains(role)) {
            self.remove_role_from_profile(name, role).await?;
        }
        for role in wanted.iter().filter(|role| !there.contains(role)) {
            let call = self.iam.add_role_to_instance_profile().instance_profile_name(name).role_name(role).send();
            self.done("iam:AddRoleToInstanceProfile", &what, call.await)?;
        }
        Ok(Vec::new())
    }

    async fn remove_role_from_profile(&self, profile: &str, role: &str) -> anyhow::Result<()> {
        let call = self.iam.remove_role_from_instance_profile().instance_profile_name(profile).role_name(role).send();
        self.gone("iam:RemoveRoleFromInstanceProfile", &label(Kind::InstanceProfile, profile), call.await)
    }

    pub(super) async fn delete_role(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::Role, name);
        let inline = self.iam.list_role_policies().role_name(name).send().await;
        let Some(inline) = self.if_there("iam:ListRolePolicies", &what, inline)? else { return Ok(()) };
        for policy in inline.policy_names {
            let call = self.iam.delete_role_policy().role_name(name).policy_name(policy).send();
            self.gone("iam:DeleteRolePolicy", &what, call.await)?;
        }
        let attached = self.iam.list_attached_role_policies().role_name(name).send().await;
        let attached =
            self.done("iam:ListAttachedRolePolicies", &what, attached)?.attached_policies.unwrap_or_default();
        for policy in attached.into_iter().filter_map(|policy| policy.policy_arn) {
            let call = self.iam.detach_role_policy().role_name(name).policy_arn(policy).send();
            self.gone("iam:DetachRolePolicy", &what, call.await)?;
        }
        self.gone("iam:DeleteRole", &what, self.iam.delete_role().role_name(name).send().await)
    }

    pub(super) async fn delete_instance_profile(&self, name: &str) -> anyhow::Result<()> {
        let what = label(Kind::InstanceProfile, name);
        let answer = self.iam.get_instance_profile().instance_profile_name(name).send().await;
        let answer = self.if_there("iam:GetInstanceProfile", &what, answer)?;
        let Some(profile) = answer.and_then(|answer| answer.instance_profile) else { return Ok(()) };
        for role in profile.roles {
            self.remove_role_from_profile(name, &role.role_name).await?;
        }
        let call = self.iam.delete_instance_profile().instance_profile_name(name).send();
        self.gone("iam:DeleteInstanceProfile", &what, call.await)
    }
}

fn pairs(tags: &[Tag]) -> impl Iterator<Item = (&str, &str)> {
    tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str()))
}

fn tags(resource: &Resource) -> anyhow::Result<Vec<Tag>> {
    let tags = tags_of(&resource.properties).into_iter();
    Ok(tags.map(|(key, value)| Tag::builder().key(key).value(value).build()).collect::<Result<_, _>>()?)
}

/// Parses a policy document. IAM returns documents URL-encoded.
pub(super) fn document(text: &str) -> Value {
    let text = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    serde_json::from_str(&text).unwrap_or_default()
}
