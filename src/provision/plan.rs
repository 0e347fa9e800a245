//! The difference between wanted and actual state. Computing it is a pure function; the result can be printed, saved
//! and applied.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adoption;
use super::change::{Action, Change, Difference};
use super::inventory::{FoundResource, Inventory, Owner};
use super::notifications;
use super::resource::{Kind, LATEST_VERSION, Properties, Resource, label, resolve};
use super::stack::Stack;

const EVERYBODY: &str = "0.0.0.0/0";
/// Properties that are left as they are where a customer's key encrypts.
const ENCRYPTION: [&str; 2] = ["SqsManagedSseEnabled", "BucketEncryption"];
/// Version of the file format of saved plans.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub version: u32,
    pub stack: Stack,
    /// Fingerprint of the inventory that this plan was made from. A saved plan is applied to no other.
    pub inventory: String,
    /// In the order in which they are applied.
    pub changes: Vec<Change>,
    /// Things that are kept although the stack would be made differently, and their consequences. One line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The reason why no plan can be made or applied: one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refusal(String);

impl Plan {
    /// Plans the changes that turn the actual state into the wanted one. With `adopt`, the stack takes over resources
    /// that have a wanted name and no owner.
    ///
    /// # Errors
    /// A wanted name is taken.
    pub(super) fn new(stack: Stack, inventory: &Inventory, adopt: bool) -> Result<Plan, Refusal> {
        check_versions(&stack, inventory)?;
        let stack = adoption::adapted(stack, inventory, adopt);
        let (mut changes, mut notes): (Vec<Change>, Vec<String>) = (Vec::new(), Vec::new());
        for resource in &stack.resources {
            let Some(found) = inventory.get(resource.kind, &resource.name) else {
                notes.extend(notifications::note(resource, None));
                changes.push(Change::of(Action::Create, resource, Vec::new()));
                continue;
            };
            check_owner(&stack, found, adopt)?;
            check_network(&stack, found)?;
            notes.extend(closes_web_tier(&stack, resource, found));
            notes.extend(notifications::note(resource, Some(found)));
            notes.extend(adoption::note(resource, found, adopt));
            notes.extend(found.kms_key().map(|key| {
                format!(
                    "{} keeps its KMS key {key}: both roles get kms:Decrypt and kms:GenerateDataKey on it, and its key policy has to let the policies of IAM decide, as the default one does",
                    label(found.kind, &found.name)
                )
            }));
            let changed: BTreeSet<&str> = changes.iter().filter_map(|change| change.id.as_deref()).collect();
            let differences = differences(&stack, resource, found, inventory, &changed);
            if !differences.is_empty() {
                changes.push(Change::of(Action::Update, resource, differences));
            }
        }
        let unwanted = stack.unwanted(inventory).into_iter().rev();
        // The queue's policy names the buckets that are watched. A bucket that is not any more stops sending before the policy
        // forgets it, so that a run that dies in between leaves nothing behind that the next one cannot find.
        let (unwatched, others): (Vec<_>, Vec<_>) = unwanted.partition(|found| found.kind == Kind::BucketNotification);
        changes.splice(0..0, unwatched.into_iter().map(Change::delete));
        changes.extend(others.into_iter().map(Change::delete));
        Ok(Plan { version: VERSION, inventory: inventory.fingerprint(), stack, changes, notes })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn count(&self, action: Action) -> usize {
        self.changes.iter().filter(|change| change.action == action).count()
    }

    /// # Errors
    /// The text is not a plan of this version of the program.
    pub(super) fn parse(text: &str) -> Result<Plan, String> {
        let plan: Plan = serde_json::from_str(text).map_err(|error| format!("it is not a saved plan ({error})"))?;
        if plan.version == VERSION { Ok(plan) } else { Err("it was saved by another version of imgcls".to_owned()) }
    }

    /// # Errors
    /// The actual state has changed since the plan was made.
    pub(super) fn check_inventory(&self, inventory: &Inventory) -> Result<(), Refusal> {
        if inventory.fingerprint() == self.inventory {
            return Ok(());
        }
        Err(Refusal("the resources on AWS have changed since this plan was made; make a new one with `imgcls provision plan --out FILE`".to_owned()))
    }
}

/// A version of a model never changes, since machines that have it do not download it again.
fn check_versions(stack: &Stack, inventory: &Inventory) -> Result<(), Refusal> {
    for package in &stack.packages {
        let key = package.key();
        let version = key.rsplit_once('/').map_or(key.as_str(), |(version, _)| version);
        let is_other = |found: &&FoundResource| {
            found.kind == Kind::ModelPackage && found.name.starts_with(&format!("{version}/")) && found.name != key
        };
        if let Some(found) = inventory.found.iter().find(is_other) {
            return Err(Refusal(format!(
                "version {:?} of model {:?} is in the bucket with other content ({}): give the changed model another version",
                package.version, package.name, found.name
            )));
        }
    }
    Ok(())
}

fn check_owner(stack: &Stack, found: &FoundResource, adopt: bool) -> Result<(), Refusal> {
    let resource = label(found.kind, &found.name);
    match &found.owner {
        Owner::This => Ok(()),
        Owner::Nobody if adopt => Ok(()),
        Owner::Nobody => Err(Refusal(format!(
            "{resource} exists already and is not part of stack {:?} (it has no tag imgcls:stack): give another --stack or name, or --adopt to take over and change all existing resources with the stack's names",
            stack.name
        ))),
        Owner::Other(other) => Err(Refusal(format!(
            "{resource} belongs to stack {other}, not to {:?} in {}: give another --stack or name",
            stack.name, stack.region
        ))),
    }
}

/// Stacks of earlier releases let everybody reach the web tier unless `--allow` was given.
fn closes_web_tier(stack: &Stack, resource: &Resource, found: &FoundResource) -> Option<String> {
    let is_open = |properties: &Properties| {
        let rules = properties.get("SecurityGroupIngress").and_then(Value::as_array);
        rules.is_some_and(|rules| rules.iter().any(|rule| rule["FromPort"] == 80 && rule["CidrIp"] == EVERYBODY))
    };
    if found.kind != Kind::SecurityGroup || !is_open(&found.properties) || is_open(&resource.properties) {
        return None;
    }
    let group = label(found.kind, &found.name);
    Some(if stack.get("WebBalancer").is_some() {
        format!("{group} lets everybody reach the web tier by HTTP; from now on only its load balancer does")
    } else {
        format!("{group} lets everybody reach the web tier, and will not any more: --allow {EVERYBODY} keeps it open")
    })
}

/// A security group or target group cannot move to another VPC.
fn check_network(stack: &Stack, found: &FoundResource) -> Result<(), Refusal> {
    match found.properties.get("VpcId").and_then(|vpc| vpc.as_str()) {
        Some(vpc) if vpc != stack.vpc_id => Err(Refusal(format!(
            "{} is in VPC {vpc}, and the stack is planned for VPC {}: give --vpc {vpc}, or destroy the stack first",
            label(found.kind, &found.name),
            stack.vpc_id
        ))),
        _ => Ok(()),
    }
}

fn differences(
    stack: &Stack,
    resource: &Resource,
    found: &FoundResource,
    inventory: &Inventory,
    changed: &BTreeSet<&str>,
) -> Vec<Difference> {
    let known = |id: &str, attribute: &str| {
        if attribute == LATEST_VERSION && changed.contains(id) {
            return None;
        }
        stack.attribute(inventory, id, attribute)
    };
    let mut differences = Vec::new();
    for (property, wanted) in &resource.properties {
        let wanted = resolve(wanted, &known);
        let there = found.properties.get(property);
        let is_kept = found.kms_key().is_some() && ENCRYPTION.contains(&property.as_str());
        if !resource.kind.is_fixed(property) && !is_kept && there != Some(&wanted) {
            differences.push(Difference { property: property.clone(), found: there.cloned(), wanted });
        }
    }
    differences
}

/// The changes that delete everything of the stack but what is kept ([`adoption::kept`]), machines first.
pub(super) fn removal(inventory: &Inventory) -> Vec<Change> {
    let kept = adoption::kept(inventory);
    let is_deleted =
        |found: &&FoundResource| found.owner == Owner::This && !kept.contains(&(found.kind, found.name.as_str()));
    let ours = inventory.found.iter().rev().filter(is_deleted);
    let mut changes: Vec<Change> = ours.map(Change::delete).collect();
    let replies = inventory.reply_queues.iter().chain(&inventory.queues_in_deletion).map(|name| Change {
        action: Action::Delete,
        kind: Kind::Queue,
        name: name.clone(),
        id: None,
        differences: Vec::new(),
    });
    let after_groups = changes.iter().position(|change| change.kind < Kind::AutoScalingGroup).unwrap_or(changes.len());
    changes.splice(after_groups..after_groups, replies);
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde_json::json;

    use super::super::package::PackageRef;
    use super::super::resource::Properties;
    use super::super::settings::Settings;
    use super::super::text;
    use super::*;
    use crate::scaling_policy::{Bounds, Policy, TargetPolicy};

    /// The inventory after a stack was applied.
    fn applied(stack: &Stack) -> Inventory {
        let mut inventory = Inventory::default();
        for resource in &stack.resources {
            let id = resource.id.as_str();
            let attributes =
                [("Ref", format!("arn:{id}")), ("GroupId", format!("sg-{id}")), (LATEST_VERSION, "1".into())];
            inventory.found.push(FoundResource {
                kind: resource.kind,
                name: resource.name.clone(),
                owner: Owner::This,
                attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                properties: BTreeMap::new(),
            });
        }
        inventory.sort();
        for resource in &stack.resources {
            let known = |id: &str, attribute: &str| stack.attribute(&inventory, id, attribute);
            let properties: Properties = resource
                .properties
                .iter()
                .filter(|(name, _)| !resource.kind.is_fixed(name))
                .map(|(name, value)| (name.clone(), resolve(value, &known)))
                .collect();
            found(&mut inventory, resource.kind, &resource.name).properties = properties;
        }
        inventory
    }

    fn found<'a>(inventory: &'a mut Inventory, kind: Kind, name: &str) -> &'a mut FoundResource {
        let found = inventory.found.iter_mut().find(|found| found.kind == kind && found.name == name);
        found.expect("a resource of the stack")
    }

    #[test]
    fn stack_that_cloudformation_made_is_as_wanted() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = applied(&stack);
        let ids: Vec<(String, String)> = stack
            .resources
            .iter()
            .filter(|resource| resource.kind == Kind::ScalingPolicy)
            .map(|resource| (resource.name.clone(), resource.id.clone()))
            .collect();
        for (name, id) in &ids {
            let generated = format!("apptierAutoscaling/images-{id}-1A2B3C4D");
            found(&mut inventory, Kind::ScalingPolicy, name).name = generated;
        }
        inventory.sort();
        assert!(!Plan::new(stack.clone(), &inventory, false).unwrap().is_empty());
        stack.recognize_policies(&mut inventory);
        inventory.sort();
        assert_eq!(Plan::new(stack, &inventory, false).unwrap().changes, []);
    }

    fn golden(text: &str, expected: &str) {
        let unindented: Vec<&str> =
            expected.lines().map(|line| line.strip_prefix("            ").unwrap_or(line)).collect();
        assert_eq!(text.trim_end(), unindented.join("\n").trim(), "\n--- actual ---\n{text}");
    }

    fn planned(stack: &Stack, inventory: &Inventory) -> String {
        text::plan(&Plan::new(stack.clone(), inventory, false).expect("no name is taken"))
    }

    #[test]
    fn resources_are_created_in_order_of_dependency() {
        let stack = Settings::for_tests("team").stack_for_tests();
        golden(
            &planned(&stack, &Inventory::default()),
            "stack team in us-east-1, account 123456789012
              + log group          team-imgcls
              + queue              team-web-app-image-transport-dead
              + queue              team-web-app-image-transport
              + queue              team-web-app-image-transport-bulk
              + queue              team-web-app-image-transport-callbacks
              + queue              team-app-web-result-queue
              + bucket             team-imgcls-123456789012-us-east-1-input
              + bucket             team-imgcls-123456789012-us-east-1-output
              + bundle             bundle/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd/imgcls-x86_64.tar.gz
              + bucket policy      team-imgcls-123456789012-us-east-1-input
              + bucket policy      team-imgcls-123456789012-us-east-1-output
              + role               team-app-tier-sqs-s3-access-role
              + instance profile   team-app-tier-sqs-s3-access-role
              + role               team-web-tier-sqs-access-role
              + instance profile   team-web-tier-sqs-access-role
              + security group     team-imgcls-app-tier
              + security group     team-imgcls-web-tier
              + launch template    team-ApptierTemplate
              + Auto Scaling group team-apptierAutoscaling
              + lifecycle hook     team-apptierAutoscaling/drain
              + lifecycle hook     team-apptierAutoscaling/start
              + scaling policy     team-apptierAutoscaling/team-ScaleFromZero
              + scaling policy     team-apptierAutoscaling/team-ScaleUp
              + scaling policy     team-apptierAutoscaling/team-ScaleDown
              + alarm              team-ScaleUpAlarm
              + alarm              team-ScaleDownAlarm
              + alarm              team-ScaleFromZeroAlarm
              + launch template    team-WebtierTemplate
              + Auto Scaling group team-webtierAutoscaling
              + lifecycle hook     team-webtierAutoscaling/start
              + dashboard          team-imgcls
            31 to create, 0 to update, 0 to delete",
        );
    }

    #[test]
    fn unchanged_stack_needs_no_changes() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        golden(
            &planned(&stack, &applied(&stack)),
            "stack imgcls in us-east-1, account 123456789012
            nothing to do: all 31 resources are as wanted",
        );
    }

    #[test]
    fn drift_is_repaired_and_missing_resources_are_created() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = applied(&stack);
        found(&mut inventory, Kind::Queue, "web-app-image-transport")
            .properties
            .insert("VisibilityTimeout".into(), json!(5));
        let group = found(&mut inventory, Kind::SecurityGroup, "imgcls-app-tier");
        let ssh = json!([{"CidrIp": "0.0.0.0/0", "FromPort": 22, "IpProtocol": "tcp", "ToPort": 22}]);
        group.properties.insert("SecurityGroupIngress".into(), ssh);
        inventory.found.retain(|found| found.name != "ScaleDownAlarm");
        golden(
            &planned(&stack, &inventory),
            "stack imgcls in us-east-1, account 123456789012
              ~ queue              web-app-image-transport
                  VisibilityTimeout: 5 → 30
              ~ security group     imgcls-app-tier
                  − rule tcp 22 from 0.0.0.0/0
              + alarm              ScaleDownAlarm
            1 to create, 2 to update, 0 to delete",
        );
    }

    #[test]
    fn new_size_and_new_build_update_only_affected_resources() {
        let before = Settings::for_tests("imgcls");
        let inventory = applied(&before.stack_for_tests());
        let settings = Settings { bounds: Bounds::new(1, 8).expect("bounds"), spot_percent: 50, ..before };
        let mut stack = settings.stack_for_tests();
        golden(
            &planned(&stack, &inventory),
            "stack imgcls in us-east-1, account 123456789012
              ~ Auto Scaling group apptierAutoscaling
                  CapacityRebalance: false → true
                  MaxSize: 4 → 8
                  MinSize: 0 → 1
                  MixedInstancesPolicy.InstancesDistribution.OnDemandPercentageAboveBaseCapacity: 100 → 50
            0 to create, 1 to update, 0 to delete",
        );
        // The user data of the template contains the digest of the build.
        stack = Settings::for_tests("imgcls").stack_for_tests();
        let template = stack.resources.iter_mut().find(|resource| resource.id == "WorkerTemplate").expect("it");
        template.properties.get_mut("LaunchTemplateData").expect("data")["UserData"] = json!("new");
        let text = planned(&stack, &inventory);
        assert!(text.contains("~ launch template    ApptierTemplate") && text.contains("→ new"), "{text}");
        assert!(
            text.contains("Version: 1 → (WorkerTemplate.LatestVersionNumber, known after it is created)"),
            "{text}"
        );
        assert!(text.ends_with("0 to create, 2 to update, 0 to delete\n"), "{text}");
    }

    #[test]
    fn switching_the_policy_deletes_alarms_of_the_previous_one() {
        let before = Settings::for_tests("imgcls");
        let inventory = applied(&before.stack_for_tests());
        let target = TargetPolicy::with_service_time(Duration::from_millis(20));
        let stack = Settings { policy: Policy::Target(target), ..before }.stack_for_tests();
        // The policy is an argument of `autoscale` in the user data of the web tier. The size of the script does not
        // matter.
        let planned = planned(&stack, &inventory);
        let script = planned.lines().find(|line| line.contains("UserData")).expect("the script changes").to_owned();
        golden(
            &planned.replace(&script, "      LaunchTemplateData.UserData: (BEFORE) → (AFTER)"),
            "stack imgcls in us-east-1, account 123456789012
              + scaling policy     apptierAutoscaling/BacklogPerWorker
              ~ launch template    WebtierTemplate
                  LaunchTemplateData.UserData: (BEFORE) → (AFTER)
              ~ Auto Scaling group webtierAutoscaling
                  LaunchTemplate.Version: 1 → (WebTemplate.LatestVersionNumber, known after it is created)
              − alarm              ScaleUpAlarm
              − alarm              ScaleDownAlarm
              − scaling policy     apptierAutoscaling/ScaleUp
              − scaling policy     apptierAutoscaling/ScaleDown
            1 to create, 2 to update, 4 to delete",
        );
    }

    #[test]
    fn only_unowned_resources_are_adopted_and_only_on_request() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = applied(&stack);
        let queue = found(&mut inventory, Kind::Queue, "app-web-result-queue");
        queue.owner = Owner::Nobody;
        queue.properties.insert("Tags".into(), json!([]));
        let refusal = Plan::new(stack.clone(), &inventory, false).expect_err("it has no owner").to_string();
        assert!(refusal.starts_with("queue \"app-web-result-queue\" exists already") && refusal.contains("--adopt"));
        let adopted = Plan::new(stack.clone(), &inventory, true).expect("unowned resources are adopted");
        golden(
            &text::plan(&adopted),
            r#"stack imgcls in us-east-1, account 123456789012
              ~ queue              app-web-result-queue
                  Tags: [] → [{"Key":"imgcls:adopted","Value":"true"},{"Key":"imgcls:stack","Value":"imgcls"}]
            0 to create, 1 to update, 0 to delete
            queue "app-web-result-queue" existed before the stack: destroy does not delete it"#,
        );
        found(&mut inventory, Kind::Role, "web-tier-sqs-access-role").owner =
            Owner::Other("imgcls in eu-west-1".into());
        let refusal = Plan::new(stack, &inventory, true).expect_err("it belongs to another region").to_string();
        assert!(refusal.contains("belongs to stack imgcls in eu-west-1"), "{refusal}");
    }

    fn package(name: &str, version: &str, digest: char) -> PackageRef {
        let digest = digest.to_string().repeat(64);
        PackageRef { name: name.to_owned(), version: version.to_owned(), digest, bytes: 5 }
    }

    #[test]
    fn swap_of_a_model_uploads_it_and_moves_the_pointer_and_changes_nothing_else() {
        let settings = Settings::for_tests("imgcls");
        let with_models = |packages: &[PackageRef]| settings.stack_with_models_for_tests(packages);
        let (cats, old, new) = (package("cats", "1", 'c'), package("birds", "1", 'a'), package("birds", "2", 'b'));
        let inventory = applied(&with_models(&[old.clone(), cats.clone()]));
        assert!(Plan::new(with_models(&[old.clone(), cats.clone()]), &inventory, false).unwrap().is_empty());
        golden(
            &planned(&with_models(&[new.clone(), cats.clone()]), &inventory),
            &format!(
                "stack imgcls in us-east-1, account 123456789012
              + model package      models/birds/2/{b}.tar
              ~ current model      models/birds/current
                  Digest: {a} → {b}
                  Version: 1 → 2
            1 to create, 1 to update, 0 to delete",
                a = "a".repeat(64),
                b = "b".repeat(64)
            ),
        );
        let mut both = applied(&with_models(&[new, cats.clone()]));
        both.found.extend(inventory.found.into_iter().filter(|found| found.kind == Kind::ModelPackage));
        both.sort();
        let back = Plan::new(with_models(&[old, cats.clone()]), &both, false).unwrap();
        assert_eq!((back.count(Action::Create), back.count(Action::Update), back.count(Action::Delete)), (0, 1, 0));

        let changed = with_models(&[package("birds", "1", 'f'), cats]);
        let refusal = Plan::new(changed, &both, false).unwrap_err().to_string();
        assert!(refusal.contains("version \"1\" of model \"birds\""), "{refusal}");
    }

    #[test]
    fn removal_deletes_machines_first_and_only_owned_resources() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = applied(&stack);
        inventory.reply_queues = vec!["app-web-result-queue-0123456789abcdef".to_owned()];
        found(&mut inventory, Kind::Bucket, "imgcls-123456789012-us-east-1-output").owner = Owner::Nobody;
        let changes = removal(&inventory);
        let position = |kind| changes.iter().position(|change| change.kind == kind).expect("one of each");
        assert!(position(Kind::Alarm) < position(Kind::AutoScalingGroup));
        assert!(position(Kind::AutoScalingGroup) < position(Kind::Queue));
        assert!(position(Kind::LaunchTemplate) < position(Kind::SecurityGroup));
        assert!(
            position(Kind::BucketPolicy) < position(Kind::Bundle) && position(Kind::Bundle) < position(Kind::Bucket)
        );
        assert_eq!(changes.len(), stack.resources.len(), "one reply queue more, one bucket less");
    }

    #[test]
    fn saved_plan_applies_to_the_inventory_it_was_made_from() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = applied(&stack);
        inventory.found.pop();
        let plan = Plan::new(stack, &inventory, false).expect("no name is taken");
        let text = serde_json::to_string(&plan).expect("a plain value");
        assert_eq!(Plan::parse(&text).as_ref(), Ok(&plan));
        assert_eq!(plan.check_inventory(&inventory), Ok(()));
        inventory.found.pop();
        assert!(
            plan.check_inventory(&inventory).expect_err("the inventory differs").to_string().contains("have changed")
        );
        assert!(Plan::parse("{}").is_err() && Plan::parse(&text.replace("\"version\":1", "\"version\":2")).is_err());
    }
}
