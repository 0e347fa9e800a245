//! New machines for a new bundle, and the way back to the one before it.

use anyhow::bail;
use serde_json::{Value, json};

use super::Outcome;
use super::aws::POLL_DELAYS;
use super::bundle::BundleRef;
use super::change::{Action, Change, Difference};
use super::inventory::{FoundResource, Inventory};
use super::machines::{Outdated, RefreshState};
use super::names::ResourceNames;
use super::operations::{Provision, confirmed, print, say};
use super::resource::{Kind, LATEST_VERSION, Resource, attribute};
use super::stack::Stack;
use super::tier::Tier;
use super::{text, user_data};

/// The launch template and the group of each tier, by their ids.
const TIERS: [(Tier, &str, &str); 2] =
    [(Tier::Worker, "WorkerTemplate", "WorkerGroup"), (Tier::Web, "WebTemplate", "WebGroup")];

/// The changes that make a tier start machines with the bundle that it had before.
struct Return {
    tier: Tier,
    group: String,
    /// Digests of the bundle that the tier has now and of the one that it gets.
    from: String,
    to: String,
    resources: [Resource; 2],
    changes: [Change; 2],
}

impl Provision {
    /// Makes the groups replace their outdated machines, and reads how far they are.
    pub(super) async fn refresh(&self, stack: &Stack, outdated: &mut [Outdated], is_newer: bool) -> anyhow::Result<()> {
        let web_group = ResourceNames::of(&stack.name).web_group;
        for Outdated { group, refresh, .. } in outdated {
            let tier = if *group == web_group { Tier::Web } else { Tier::Worker };
            self.cloud.start_refresh(group, tier, is_newer).await?;
            *refresh = self.cloud.last_refresh(group).await?;
        }
        Ok(())
    }

    /// Waits until the groups have replaced their machines, and says how far they are whenever that changes. There is no limit
    /// of time: AWS ends a refresh that does not proceed.
    ///
    /// # Errors
    /// A refresh failed or was cancelled, or this run was interrupted. The machines are then replaced all the same.
    pub(super) async fn until_replaced<'a>(&self, groups: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
        for group in groups {
            let (mut backoff, mut said) = (POLL_DELAYS.start(), None);
            while let Some(refresh) = self.cloud.last_refresh(group).await? {
                match refresh.state {
                    RefreshState::Running => {}
                    RefreshState::Ended => break,
                    RefreshState::Failed => bail!(text::refresh_failed(group, &refresh)),
                    RefreshState::Cancelled => bail!(text::refresh_cancelled(group)),
                }
                if !self.config.json && said != Some(refresh.percent) {
                    // A reader of standard output that went away does not end the wait.
                    let _ = say(&text::replacing(group, &refresh));
                    said = Some(refresh.percent);
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_delay()) => {}
                    () = self.shutdown.cancelled() => bail!(text::interrupted_refresh(group)),
                }
            }
            if !self.config.json {
                let _ = say(&text::replaced(group));
            }
        }
        Ok(())
    }

    /// Gives both tiers the launch template that they had with the bundle before the current one.
    pub(super) async fn rollback(&self, is_confirmed: bool, waits: bool) -> anyhow::Result<Outcome> {
        let site = self.site_without_network();
        let stack = Stack::new(&self.config.settings, &site, &BundleRef::unknown(), &[]);
        let inventory = Box::pin(self.cloud.observe(&stack)).await?;
        let returns = self.returns(&stack, &inventory).await?;
        if returns.is_empty() {
            bail!(
                "the launch templates of stack {:?} name no earlier bundle: `imgcls provision` with the older program rolls it out",
                stack.name
            );
        }
        check_bundles(&returns, &inventory)?;
        if !self.config.json {
            let tiers = returns.iter().map(|back| (back.group.as_str(), back.from.as_str(), back.to.as_str()));
            say(&text::rollback(&stack, tiers))?;
            if !is_confirmed && !confirmed("Replace these machines?")? {
                return Ok(Outcome::Declined);
            }
        }
        let changes: Vec<Change> = returns.iter().flat_map(|back| back.changes.clone()).collect();
        let resources = returns.iter().flat_map(|back| back.resources.clone()).collect();
        self.apply_changes(&Stack { resources, ..stack }, &changes, &inventory, None).await?;
        for back in &returns {
            self.cloud.start_refresh(&back.group, back.tier, true).await?;
        }
        if self.config.json {
            let groups = returns.iter().map(|back| json!({"group": back.group, "from": back.from, "to": back.to}));
            print(&json!({"groups": groups.collect::<Vec<_>>()}))?;
        } else {
            say(text::ROLLBACK_STARTED)?;
        }
        if waits {
            self.until_replaced(returns.iter().map(|back| back.group.as_str())).await?;
        }
        Ok(Outcome::Done)
    }

    async fn returns(&self, stack: &Stack, inventory: &Inventory) -> anyhow::Result<Vec<Return>> {
        let mut returns = Vec::new();
        for (tier, template, group) in TIERS {
            let found = |id: &str| {
                let resource = stack.get(id)?;
                inventory.get(resource.kind, &resource.name)
            };
            let (Some(found_template), Some(found_group)) = (found(template), found(group)) else { continue };
            let versions = self.cloud.template_versions(&found_template.name).await?;
            let Some((from, to, data)) = earlier(&versions) else { continue };
            let data = json!({ "LaunchTemplateData": data });
            let properties = with_newest_version(found_group, template);
            let (old_template, group_change) =
                (resource(template, found_template, data.clone()), resource(group, found_group, json!(properties)));
            returns.push(Return {
                tier,
                group: found_group.name.clone(),
                from,
                to,
                changes: [
                    change(&old_template, found_template, "LaunchTemplateData"),
                    Change::of(Action::Update, &group_change, Vec::new()),
                ],
                resources: [old_template, group_change],
            });
        }
        Ok(returns)
    }
}

/// # Errors
/// A bundle is no longer in the bucket.
fn check_bundles(returns: &[Return], inventory: &Inventory) -> anyhow::Result<()> {
    let is_there = |digest: &String| {
        let mut bundles = inventory.found.iter().filter(|found| found.kind == Kind::Bundle);
        bundles.any(|found| found.properties.get("Digest").and_then(Value::as_str) == Some(digest))
    };
    if let Some(back) = returns.iter().find(|back| !is_there(&back.to)) {
        bail!(
            "the bundle {} that {} had before is no longer in the input bucket: `imgcls provision` with the older program uploads it again",
            back.to,
            back.group
        );
    }
    Ok(())
}

/// The digest of the bundle in the newest version, that of the last other bundle, and the data of the version with it.
fn earlier(versions: &[Value]) -> Option<(String, String, Value)> {
    let digest = |data: &Value| user_data::bundle_digest(data["UserData"].as_str()?);
    let now = digest(versions.first()?)?;
    versions.iter().find_map(|data| {
        let other = digest(data).filter(|other| *other != now)?;
        Some((now.clone(), other, data.clone()))
    })
}

/// The launch template of a group, with its newest version, and the tags. A call that updates a group keeps all else.
fn with_newest_version(group: &FoundResource, template: &str) -> Value {
    let is_mixed = group.properties.contains_key("MixedInstancesPolicy");
    let specification = if is_mixed { "MixedInstancesPolicy" } else { "LaunchTemplate" };
    let kept = [specification, "Tags"].map(|name| (name, group.properties.get(name)));
    let mut properties = json!(std::collections::BTreeMap::from(kept));
    for path in ["/LaunchTemplate/Version", "/MixedInstancesPolicy/LaunchTemplate/LaunchTemplateSpecification/Version"]
    {
        if let Some(version) = properties.pointer_mut(path) {
            *version = attribute(template, LATEST_VERSION);
        }
    }
    properties
}

fn resource(id: &str, found: &FoundResource, properties: Value) -> Resource {
    let properties = super::resource::properties(properties);
    Resource { id: id.to_owned(), kind: found.kind, name: found.name.clone(), properties }
}

fn change(wanted: &Resource, found: &FoundResource, property: &str) -> Change {
    let difference = Difference {
        property: property.to_owned(),
        found: found.properties.get(property).cloned(),
        wanted: wanted.properties[property].clone(),
    };
    Change::of(Action::Update, wanted, vec![difference])
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn version(digest: &str, image: &str) -> Value {
        let script = format!("#!/bin/bash\ndigest={digest}\n");
        json!({"ImageId": image, "UserData": base64::engine::general_purpose::STANDARD.encode(script)})
    }

    #[test]
    fn last_version_with_another_bundle_is_the_one_to_return_to() {
        let versions =
            [version("new", "ami-2"), version("new", "ami-1"), version("old", "ami-1"), version("older", "ami-0")];
        let (from, to, data) = earlier(&versions).unwrap();
        assert_eq!((from.as_str(), to.as_str(), &data), ("new", "old", &versions[2]));
        assert_eq!(earlier(&versions[..2]), None);
        assert_eq!(earlier(&[]), None);
    }
}
