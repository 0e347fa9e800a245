//! The difference between what is wanted and what is found: a pure function, and a value to print, save and carry out.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inventory::{Found, Inventory, Owner};
use super::resource::{Kind, Resource, label, resolve, target_of};
use super::stack::{LATEST_VERSION, Stack};

/// Of the form of a saved plan.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    pub stack: Stack,
    /// Of the inventory that this rests on; a saved plan is carried out on no other.
    pub inventory: String,
    /// In the order in which they are carried out.
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub action: Action,
    pub kind: Kind,
    pub name: String,
    /// Within the stack; what is removed may have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Of an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub property: String,
    pub found: Option<Value>,
    pub wanted: Value,
}

/// Why nothing is planned. One line with the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Change {
    pub fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

impl Plan {
    /// What has to change so that the stack stands as wanted. `adopt`: what stands under a wanted name and is nobody's
    /// becomes the stack's.
    ///
    /// # Errors
    /// Where a wanted name is taken.
    pub fn new(stack: Stack, inventory: &Inventory, adopt: bool) -> Result<Plan, Refusal> {
        let mut changes: Vec<Change> = Vec::new();
        for resource in &stack.resources {
            let Some(found) = inventory.get(resource.kind, &resource.name) else {
                changes.push(Change::of(Action::Create, resource, Vec::new()));
                continue;
            };
            check_owner(&stack, found, adopt)?;
            let changed: BTreeSet<&str> = changes.iter().filter_map(|change| change.id.as_deref()).collect();
            let differences = differences(&stack, resource, found, inventory, &changed);
            if !differences.is_empty() {
                changes.push(Change::of(Action::Update, resource, differences));
            }
        }
        changes.extend(stack.unwanted(inventory).into_iter().rev().map(Change::delete));
        Ok(Plan { version: VERSION, inventory: inventory.fingerprint(), stack, changes })
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn count(&self, action: Action) -> usize {
        self.changes.iter().filter(|change| change.action == action).count()
    }

    /// # Errors
    /// Where the text is no plan of this program.
    pub fn parse(text: &str) -> Result<Plan, String> {
        let plan: Plan = serde_json::from_str(text).map_err(|error| format!("it is no saved plan ({error})"))?;
        if plan.version == VERSION { Ok(plan) } else { Err("it was saved by another version of imgcls".to_owned()) }
    }

    /// # Errors
    /// Where something has changed since the plan was made.
    pub fn check_inventory(&self, inventory: &Inventory) -> Result<(), Refusal> {
        if inventory.fingerprint() == self.inventory {
            return Ok(());
        }
        Err(Refusal("what stands on AWS has changed since this plan was made; make a new one with `imgcls provision plan --out FILE`".to_owned()))
    }
}

impl Change {
    fn of(action: Action, resource: &Resource, differences: Vec<Difference>) -> Change {
        let (kind, name) = (resource.kind, resource.name.clone());
        Change { action, kind, name, id: Some(resource.id.clone()), differences }
    }

    fn delete(found: &Found) -> Change {
        let (kind, name) = (found.kind, found.name.clone());
        Change { action: Action::Delete, kind, name, id: None, differences: Vec::new() }
    }
}

fn check_owner(stack: &Stack, found: &Found, adopt: bool) -> Result<(), Refusal> {
    let what = label(found.kind, &found.name);
    match &found.owner {
        Owner::This => Ok(()),
        Owner::Nobody if adopt => Ok(()),
        Owner::Nobody => Err(Refusal(format!(
            "{what} stands already and is no part of stack {:?} (it has no tag imgcls:stack): give another --stack or name, or --adopt to take over everything that stands under the stack's names and change it",
            stack.name
        ))),
        Owner::Other(other) => Err(Refusal(format!(
            "{what} belongs to stack {other}, not to {:?} in {}: give another --stack or name",
            stack.name, stack.region
        ))),
    }
}

fn differences(
    stack: &Stack,
    resource: &Resource,
    found: &Found,
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
        if !resource.kind.is_fixed(property) && there != Some(&wanted) {
            differences.push(Difference { property: property.clone(), found: there.cloned(), wanted });
        }
    }
    differences
}

/// Where a value differs, by the paths of its members; those that are alike are left out.
pub fn leaves(difference: &Difference) -> Vec<(String, Option<Value>, Option<Value>)> {
    let mut found = Vec::new();
    walk(&difference.property, difference.found.as_ref(), Some(&difference.wanted), &mut found);
    found
}

fn walk(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<(String, Option<Value>, Option<Value>)>) {
    match (from, to) {
        (Some(from), Some(to)) if from == to => {}
        (Some(Value::Object(from)), Some(Value::Object(members)))
            if target_of(&Value::Object(members.clone())).is_none() =>
        {
            let names: BTreeSet<&String> = from.keys().chain(members.keys()).collect();
            for name in names {
                walk(&format!("{path}.{name}"), from.get(name), members.get(name), found);
            }
        }
        (Some(Value::Array(from)), Some(Value::Array(to))) if from.len() == to.len() => {
            for (index, (from, to)) in from.iter().zip(to).enumerate() {
                walk(&format!("{path}[{index}]"), Some(from), Some(to), found);
            }
        }
        _ => found.push((path.to_owned(), from.cloned(), to.cloned())),
    }
}

/// What has to go so that nothing of the stack is left, machines first.
pub fn removal(inventory: &Inventory) -> Vec<Change> {
    let ours = inventory.found.iter().rev().filter(|found| found.owner == Owner::This);
    let mut changes: Vec<Change> = ours.map(Change::delete).collect();
    let replies = inventory.reply_queues.iter().map(|name| Change {
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

    use super::super::resource::Properties;
    use super::super::stack::Settings;
    use super::super::text;
    use super::*;
    use crate::scaling_policy::{Bounds, Policy, TargetPolicy};

    /// What is found once a stack stands.
    fn standing(stack: &Stack) -> Inventory {
        let mut inventory = Inventory::default();
        for resource in &stack.resources {
            let id = resource.id.as_str();
            let attributes =
                [("Ref", format!("arn:{id}")), ("GroupId", format!("sg-{id}")), (LATEST_VERSION, "1".into())];
            inventory.found.push(Found {
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

    fn found<'a>(inventory: &'a mut Inventory, kind: Kind, name: &str) -> &'a mut Found {
        let found = inventory.found.iter_mut().find(|found| found.kind == kind && found.name == name);
        found.expect("a resource of the stack")
    }

    fn golden(text: &str, expected: &str) {
        let unindented: Vec<&str> =
            expected.lines().map(|line| line.strip_prefix("            ").unwrap_or(line)).collect();
        assert_eq!(text.trim_end(), unindented.join("\n").trim(), "\n--- actual ---\n{text}");
    }

    fn planned(stack: &Stack, inventory: &Inventory) -> String {
        text::plan(&Plan::new(stack.clone(), inventory, false).expect("nothing is taken"))
    }

    #[test]
    fn from_nothing_all_is_made_in_the_order_of_dependence() {
        let stack = Settings::for_tests("team").stack_for_tests();
        golden(
            &planned(&stack, &Inventory::default()),
            "stack team in us-east-1, account 123456789012
              + log group          team-imgcls
              + queue              team-web-app-image-transport-dead
              + queue              team-web-app-image-transport
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
              + scaling policy     team-apptierAutoscaling/team-ScaleFromZero
              + scaling policy     team-apptierAutoscaling/team-ScaleUp
              + scaling policy     team-apptierAutoscaling/team-ScaleDown
              + alarm              team-ScaleUpAlarm
              + alarm              team-ScaleDownAlarm
              + alarm              team-ScaleFromZeroAlarm
              + launch template    team-WebtierTemplate
              + Auto Scaling group team-webtierAutoscaling
              + dashboard          team-imgcls
            27 to make, 0 to change, 0 to remove",
        );
    }

    #[test]
    fn what_stands_as_wanted_is_left_alone() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        golden(
            &planned(&stack, &standing(&stack)),
            "stack imgcls in us-east-1, account 123456789012
            nothing to do: all 27 resources stand as wanted",
        );
    }

    #[test]
    fn what_was_changed_by_hand_is_mended_and_what_is_missing_is_made() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = standing(&stack);
        found(&mut inventory, Kind::Queue, "web-app-image-transport")
            .properties
            .insert("VisibilityTimeout".into(), json!(5));
        let group = found(&mut inventory, Kind::SecurityGroup, "imgcls-app-tier");
        let ssh = json!([{"CidrIp": "0.0.0.0/0", "FromPort": 22, "IpProtocol": "tcp", "ToPort": 22}]);
        group.properties.insert("SecurityGroupIngress".into(), ssh);
        inventory.found.retain(|found| found.name != "ScaleDownAlarm");
        golden(
            &planned(&stack, &inventory),
            r#"stack imgcls in us-east-1, account 123456789012
              ~ queue              web-app-image-transport
                  VisibilityTimeout: 5 → 30
              ~ security group     imgcls-app-tier
                  SecurityGroupIngress: [{"CidrIp":"0.0.0.0/0","FromPort":22,"IpProtocol":"tcp","ToPort":22}] → []
              + alarm              ScaleDownAlarm
            1 to make, 2 to change, 0 to remove"#,
        );
    }

    #[test]
    fn another_size_and_a_new_build_change_what_they_must() {
        let before = Settings::for_tests("imgcls");
        let inventory = standing(&before.stack_for_tests());
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
            0 to make, 1 to change, 0 to remove",
        );
        // The template's user data names the build.
        stack = Settings::for_tests("imgcls").stack_for_tests();
        let template = stack.resources.iter_mut().find(|resource| resource.id == "WorkerTemplate").expect("it");
        template.properties.get_mut("LaunchTemplateData").expect("data")["UserData"] = json!("new");
        let text = planned(&stack, &inventory);
        assert!(text.contains("~ launch template    ApptierTemplate") && text.contains("→ new"), "{text}");
        assert!(text.contains("Version: 1 → (WorkerTemplate.LatestVersionNumber, known once it is made)"), "{text}");
        assert!(text.ends_with("0 to make, 2 to change, 0 to remove\n"), "{text}");
    }

    #[test]
    fn another_policy_takes_the_alarms_of_the_first_away() {
        let before = Settings::for_tests("imgcls");
        let inventory = standing(&before.stack_for_tests());
        let target = TargetPolicy::with_service_time(Duration::from_millis(20));
        let stack = Settings { policy: Policy::Target(target), ..before }.stack_for_tests();
        // The web tier's machines run `autoscale`, which is told the policy. How long the script is does not matter here.
        let planned = planned(&stack, &inventory);
        let script = planned.lines().find(|line| line.contains("UserData")).expect("the script changes").to_owned();
        golden(
            &planned.replace(&script, "      LaunchTemplateData.UserData: (BEFORE) → (AFTER)"),
            "stack imgcls in us-east-1, account 123456789012
              + scaling policy     apptierAutoscaling/BacklogPerWorker
              ~ launch template    WebtierTemplate
                  LaunchTemplateData.UserData: (BEFORE) → (AFTER)
              ~ Auto Scaling group webtierAutoscaling
                  LaunchTemplate.Version: 1 → (WebTemplate.LatestVersionNumber, known once it is made)
              − alarm              ScaleUpAlarm
              − alarm              ScaleDownAlarm
              − scaling policy     apptierAutoscaling/ScaleUp
              − scaling policy     apptierAutoscaling/ScaleDown
            1 to make, 2 to change, 4 to remove",
        );
    }

    #[test]
    fn what_is_not_the_stacks_is_never_changed_unless_it_is_nobodys_and_given() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = standing(&stack);
        let queue = found(&mut inventory, Kind::Queue, "app-web-result-queue");
        queue.owner = Owner::Nobody;
        queue.properties.insert("Tags".into(), json!([]));
        let refusal = Plan::new(stack.clone(), &inventory, false).expect_err("it is nobody's").to_string();
        assert!(refusal.starts_with("queue \"app-web-result-queue\" stands already") && refusal.contains("--adopt"));
        let adopted = Plan::new(stack.clone(), &inventory, true).expect("it is given");
        golden(
            &text::plan(&adopted),
            r#"stack imgcls in us-east-1, account 123456789012
              ~ queue              app-web-result-queue
                  Tags: [] → [{"Key":"imgcls:stack","Value":"imgcls"}]
            0 to make, 1 to change, 0 to remove"#,
        );
        found(&mut inventory, Kind::Role, "web-tier-sqs-access-role").owner =
            Owner::Other("imgcls in eu-west-1".into());
        let refusal = Plan::new(stack, &inventory, true).expect_err("another region's").to_string();
        assert!(refusal.contains("belongs to stack imgcls in eu-west-1"), "{refusal}");
    }

    #[test]
    fn all_of_the_stack_goes_machines_first_and_nothing_else() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = standing(&stack);
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
        assert_eq!(changes.len(), stack.resources.len(), "a reply queue more, a bucket less");
    }

    #[test]
    fn a_saved_plan_is_the_plan_and_is_for_one_inventory() {
        let stack = Settings::for_tests("imgcls").stack_for_tests();
        let mut inventory = standing(&stack);
        inventory.found.pop();
        let plan = Plan::new(stack, &inventory, false).expect("nothing is taken");
        let text = serde_json::to_string(&plan).expect("a plain value");
        assert_eq!(Plan::parse(&text).as_ref(), Ok(&plan));
        assert_eq!(plan.check_inventory(&inventory), Ok(()));
        inventory.found.pop();
        assert!(plan.check_inventory(&inventory).expect_err("it is another").to_string().contains("has changed"));
        assert!(Plan::parse("{}").is_err() && Plan::parse(&text.replace("\"version\":1", "\"version\":2")).is_err());
    }
}
