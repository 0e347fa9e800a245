//! The Auto Scaling groups and their launch templates.

use serde_json::Value;

use super::{Findings, Group, Observed, Target, network};
use crate::protocol::DRAIN_HOOK;
use crate::provision::bundle::Cpu;
use crate::provision::tier::Tier;

const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";

pub(super) fn check(observed: &Observed, target: &Target<'_>, findings: &mut Findings) {
    let on = format!("Auto Scaling group {:?}", target.group);
    match &observed.group {
        None => findings.broken(
            &on,
            "it does not exist: no worker ever starts",
            "name it with --group, or let `imgcls provision` make it",
        ),
        Some(group) => {
            scaling(group, &on, findings);
            hooks(group, &on, findings);
            every_group(observed, group, Tier::Worker, &on, findings);
        }
    }
    if let Some(group) = &observed.web_group {
        every_group(observed, group, Tier::Web, &format!("Auto Scaling group {:?}", target.web_group), findings);
    }
}

fn scaling(group: &Group, on: &str, findings: &mut Findings) {
    let size = |property: &str| group.properties[property].as_str().and_then(|text| text.parse::<u32>().ok());
    if let (Some(min), Some(max)) = (size("MinSize"), size("MaxSize"))
        && min == max
    {
        findings.broken(
            on,
            format!("its smallest and largest size are both {min}: it never scales"),
            "raise the largest size",
        );
    }
    if group.policies.is_empty() {
        findings.broken(
            on,
            "it has no scaling policy",
            "add one to scale out and one to scale in, and name them in the alarms",
        );
    }
    let tracking = group.policies.iter().map(|policy| &policy["TargetTrackingConfiguration"]);
    if tracking.into_iter().any(|tracking| tracking["DisableScaleIn"] == true) {
        findings.risk(
            on,
            "its target tracking policy has DisableScaleIn: machines are added and never removed",
            "set DisableScaleIn to false",
        );
    }
}

fn hooks(group: &Group, on: &str, findings: &mut Findings) {
    let drains = group.hooks.iter().find(|(_, hook)| hook["LifecycleTransition"] == TERMINATING);
    match drains {
        None => findings.risk(
            on,
            format!("it has no lifecycle hook for {TERMINATING}: a worker that is removed cannot finish its images"),
            format!("add the lifecycle hook {DRAIN_HOOK}; `imgcls provision` does"),
        ),
        Some((name, _)) if name != DRAIN_HOOK => findings.risk(
            on,
            format!("workers complete the lifecycle hook {DRAIN_HOOK}, its own is {name}: each removed machine waits for its timeout"),
            format!("call it {DRAIN_HOOK}"),
        ),
        Some(_) => {}
    }
}

fn every_group(observed: &Observed, group: &Group, tier: Tier, on: &str, findings: &mut Findings) {
    for process in group.properties["SuspendedProcesses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        findings.broken(
            on,
            format!("its process {process} is suspended"),
            format!("resume it: aws autoscaling resume-processes --auto-scaling-group-name {} --scaling-processes {process}", group.name),
        );
    }
    if let Some(reason) = &group.failed_start {
        findings.broken(
            on,
            format!("it could not start a machine: {reason}"),
            "remove the cause; the group retries by itself",
        );
    }
    match (&group.template, &group.template_name) {
        (Some(template), _) => self::template(group, template, on, findings),
        (None, Some(name)) => findings.broken(
            on,
            format!("its launch template {name:?} does not exist"),
            "make it, or name another; `imgcls provision` makes its own",
        ),
        (None, None) => {}
    }
    profile(observed, group, tier, on, findings);
    network::check(group, tier, on, findings);
}

fn template(group: &Group, template: &Value, on: &str, findings: &mut Findings) {
    let types = group.properties["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"].as_array();
    let types = types.into_iter().flatten().map(|entry| &entry["InstanceType"]).chain([&template["InstanceType"]]);
    if let Some(image) = group.image_cpu {
        let mut types: Vec<&str> = types.filter_map(Value::as_str).collect();
        types.sort_unstable();
        types.dedup();
        for name in types.into_iter().filter(|name| Cpu::of_instance_type(name) != image) {
            let cpu = Cpu::of_instance_type(name);
            findings.broken(
                on,
                format!("its AMI is for {image}, instance type {name} is {cpu}"),
                "use an AMI and instance types of one processor",
            );
        }
    }
    if template["MetadataOptions"]["HttpTokens"] != "required" {
        findings.risk(
            on,
            "its machines answer IMDSv1: an attacker who can make one fetch a URL gets the credentials of its role",
            "set MetadataOptions.HttpTokens to required",
        );
    }
    let disks = template["BlockDeviceMappings"].as_array().into_iter().flatten();
    for disk in disks.filter(|disk| disk["Ebs"]["Encrypted"] != true) {
        findings.risk(
            on,
            format!("the volume {} of its machines is not encrypted", disk["DeviceName"]),
            "set Ebs.Encrypted to true in the launch template",
        );
    }
    if template["IamInstanceProfile"].is_null() {
        findings.broken(
            on,
            "its machines have no role, so they have no access to queues and buckets",
            "name an instance profile in the launch template",
        );
    }
}

fn profile(observed: &Observed, group: &Group, tier: Tier, on: &str, findings: &mut Findings) {
    let Some(profile) = &group.profile else { return };
    let name = &profile.name;
    let role = observed.roles.iter().find(|role| role.tier == tier).map(|role| role.name.as_str());
    match &profile.roles {
        None => findings.broken(
            on,
            format!("its instance profile {name:?} does not exist: no machine starts"),
            "make it, with the role in it; `imgcls provision` does",
        ),
        Some(roles) if roles.is_empty() => findings.broken(
            on,
            format!("its instance profile {name:?} is empty: machines have no role"),
            format!("add role {:?} to it", role.unwrap_or_default()),
        ),
        Some(roles) if role.is_some_and(|role| !roles.iter().any(|found| found == role)) => findings.risk(
            on,
            format!("its instance profile {name:?} has the role {}, which was not examined", roles.join(", ")),
            "name that role with --worker-role or --web-role to examine it",
        ),
        Some(_) => {}
    }
}
